package bench

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A column is one of those that a table has where some entry has something to say in it.
type column struct {
	head string
	cell func(e Entry) string // "": nothing to say
}

var columns = []column{
	{"", func(e Entry) string { return e.By }},
	{"ops/s", func(e Entry) string { return amount(e.OpsPerS) }},
	{"per op", func(e Entry) string { return duration(e.NsPerOp) }},
	{"bytes/s", func(e Entry) string { return amount(e.Bytes) }},
	{"÷ floor", func(e Entry) string { return factor(e.ToFloor) }},
	{"÷ shmkit", func(e Entry) string { return factor(e.ToOurs) }},
	{"±", func(e Entry) string { return Percent(e.Noise) }},
	{"even", func(e Entry) string { return share(e.Jain) }},
	{"shares", func(e Entry) string {
		if e.Jain == 0 {
			return ""
		}
		return fmt.Sprintf("%.2f–%.2f", e.Least, e.Most)
	}},
	{"p50", func(e Entry) string { return duration(e.P50) }},
	{"p99", func(e Entry) string { return duration(e.P99) }},
	{"p99.9", func(e Entry) string { return duration(e.P999) }},
	{"longest", func(e Entry) string { return duration(e.Longest) }},
	{"cpu s/Mop", func(e Entry) string { return digits(e.CPU) }},
	{"switches/op", func(e Entry) string { return digits(e.Switch) }},
	{"", func(e Entry) string {
		var also []string
		for unit, v := range e.Extra {
			also = append(also, fmt.Sprintf("%s=%.4g", unit, v))
		}
		slices.Sort(also)
		return strings.Join(also, " ")
	}},
}

// WriteText writes the case as a table for a terminal.
func (r *Result) WriteText(w io.Writer) error {
	fmt.Fprintf(w, "%s\n  %s\n", r.Name, r.Asks)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range r.Rows() {
		// The first column is aligned to the left, which tabwriter does not do beside the others.
		fmt.Fprintf(t, "  %-*s\t%s\t\n", r.widest(), row[0], strings.Join(row[1:], "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(w, "  %s was skipped: %s\n", s.By, strings.TrimPrefix(s.Why, "bench: "))
	}
	if r.Busy() {
		fmt.Fprintf(w, "  The machine was busy with something else: a counted loop took %.0f %% longer than at best.\n", r.Load*100)
	}
	_, err := fmt.Fprintln(w)
	return err
}

func (r *Result) widest() int {
	n := 0
	for _, e := range r.Entries {
		n = max(n, len(e.By))
	}
	return n
}

// Rows are the entries as texts, below the heads, without columns that have nothing to say.
func (r *Result) Rows() [][]string {
	rows := make([][]string, len(r.Entries)+1)
	for i, c := range columns {
		texts, said := []string{c.head}, i == 0
		for _, e := range r.Entries {
			texts = append(texts, c.cell(e))
			said = said || texts[len(texts)-1] != ""
		}
		if !said {
			continue
		}
		for j, text := range texts {
			rows[j] = append(rows[j], text)
		}
	}
	return rows
}

// WriteMarkdown writes a table of how long everybody takes, by ours, for a README: a row for each case.
func (r *Report) WriteMarkdown(w io.Writer) error {
	fmt.Fprintf(w, "%s; %s. Rounds of ours and the others took turns: medians of the ratios of single rounds.\n\n", r.Machine, r.Begun.Format(time.DateOnly))
	if r.Noisy {
		fmt.Fprintf(w, "The machine was busy with something else: a counted loop took %.0f %% longer than at best.\n\n", r.Load*100)
	}
	fmt.Fprint(w, "| case | shmkit | an operation of others takes so many times as long |\n|---|---|---|\n")
	for _, res := range r.Results {
		ours, others := "–", []string{}
		for i, e := range res.Entries {
			switch {
			case i == 0 && e.Role == Ours:
				ours = strings.Join(strings.Fields(fmt.Sprintf("%s %s", duration(e.NsPerOp), map[bool]string{true: fmt.Sprintf("(±%s)", Percent(e.Spread))}[e.Spread > 0.15])), " ")
			case e.ToOurs > 0:
				others = append(others, fmt.Sprintf("%s %s", e.By, factor(e.ToOurs)))
			}
		}
		fmt.Fprintf(w, "| %s | %s | %s |\n", res.Name, ours, strings.Join(others, ", "))
	}
	_, err := fmt.Fprintln(w)
	return err
}

// duration tells ns in the unit that suits; "" for 0.
func duration(ns float64) string {
	for _, u := range []struct {
		size float64
		name string
	}{{1e9, "s"}, {1e6, "ms"}, {1e3, "µs"}} {
		if ns >= u.size {
			return digits(ns/u.size) + " " + u.name
		}
	}
	if ns == 0 {
		return ""
	}
	return digits(ns) + " ns"
}

// amount tells a number with three digits and the letter for its thousands; "" for 0.
func amount(v float64) string {
	for _, u := range []struct {
		size float64
		name string
	}{{1e9, " G"}, {1e6, " M"}, {1e3, " k"}} {
		if v >= u.size {
			return digits(v/u.size) + u.name
		}
	}
	return digits(v)
}

// digits tells a number with three digits; "" for 0.
func digits(v float64) string {
	switch {
	case v == 0 || math.IsNaN(v) || math.IsInf(v, 0):
		return ""
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.2g", v)
}

func factor(v float64) string {
	if v == 0 {
		return ""
	}
	return digits(v) + "×"
}

func share(v float64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf("%.3f", v)
}

// Percent tells a part of 1; "" for 0.
func Percent(v float64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf("%.0f %%", v*100)
}
