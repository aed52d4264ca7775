// Package page writes what package bench has measured as one page of HTML. It is apart because it imports what
// draws plots, which every process of a program pays for when it starts.
package page

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/shmkit/shmkit/bench"
)

//go:embed page.html
var pageText string

var page = sync.OnceValue(func() *template.Template { return template.Must(template.New("page").Parse(pageText)) })

// A pageKind is what the page says of one kind of case.
type pageKind struct {
	Name  string
	Cases []pageCase
	Plots []pagePlot
}

type pagePlot struct {
	SVG  template.HTML
	Keys []key
}

type pageCase struct {
	*bench.Result
	Head []string
	Rows []pageRow
	Busy string // how much longer a counted loop took, if too much
}

type pageRow struct {
	Role  bench.Role
	Cells []string
}

// Write writes the report as one page that needs nothing else: tables, and plots drawn by gonum.org/v1/plot.
func Write(w io.Writer, r *bench.Report) error {
	var kinds []*pageKind
	var results [][]*bench.Result
	for _, res := range r.Results {
		kind, _, _ := strings.Cut(res.Name, "/")
		if len(kinds) == 0 || kinds[len(kinds)-1].Name != kind {
			kinds = append(kinds, &pageKind{Name: kind})
			results = append(results, nil)
		}
		k := kinds[len(kinds)-1]
		c := pageCase{Result: res}
		if res.Busy() {
			c.Busy = bench.Percent(res.Load)
		}
		for i, cells := range res.Rows() {
			if i == 0 {
				c.Head = cells
			} else {
				c.Rows = append(c.Rows, pageRow{res.Entries[i-1].Role, cells})
			}
		}
		k.Cases = append(k.Cases, c)
		results[len(results)-1] = append(results[len(results)-1], res)
	}
	for i, k := range kinds {
		for _, c := range charts(results[i]) {
			svg, err := c.svg()
			if err != nil {
				return err
			}
			k.Plots = append(k.Plots, pagePlot{svg, c.keys()})
		}
	}
	return page().Execute(w, map[string]any{
		"Report": r, "Kinds": kinds, "Load": bench.Percent(r.Load),
		"Begun":  r.Begun.Format("2 January 2006, 15:04 MST"),
		"Took":   time.Duration(r.Seconds * 1e9).Round(time.Second),
		"Effort": fmt.Sprintf("%d rounds of %v", r.Effort.Rounds, r.Effort.Window),
	})
}
