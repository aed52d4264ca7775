package page

import (
	"bytes"
	"fmt"
	"html/template"
	"image/color"
	"math"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/shmkit/shmkit/bench"
)

// A curve is what one subject came to, over something.
type curve struct {
	by     string
	points plotter.XYs
}

// over are the keys of names that curves are drawn over.
var over = []string{"procs", "goroutines", "size", "writes"}

// A family is cases whose names differ in one key only, whose values are numbers.
type family struct {
	name, key string
	cases     []*bench.Result
	at        []float64
}

// families returns those of two cases and more, in the order of their first ones.
func families(results []*bench.Result) (all []*family) {
	for _, key := range over {
		byName := map[string]*family{}
		var found []*family
		for _, r := range results {
			parts := strings.Split(r.Name, "/")
			for i, part := range parts {
				value, ok := strings.CutPrefix(part, key+"=")
				if !ok {
					continue
				}
				x, err := strconv.ParseFloat(strings.TrimSuffix(value, "%"), 64)
				if err != nil {
					continue
				}
				name := strings.Join(slices.Delete(slices.Clone(parts), i, i+1), "/")
				f := byName[name]
				if f == nil {
					f = &family{name: name, key: key}
					byName[name] = f
					found = append(found, f)
				}
				f.cases, f.at = append(f.cases, r), append(f.at, x)
			}
		}
		all = append(all, slices.DeleteFunc(found, func(f *family) bool { return len(f.cases) < 2 })...)
	}
	return all
}

// curves returns what y is of every subject, where it is more than 0.
func (f *family) curves(y func(e bench.Entry) float64) (all []curve) {
	for i, r := range f.cases {
		for _, e := range r.Entries {
			v := y(e)
			if v <= 0 {
				continue
			}
			j := slices.IndexFunc(all, func(c curve) bool { return c.by == e.By })
			if j < 0 {
				j = len(all)
				all = append(all, curve{by: e.By})
			}
			all[j].points = append(all[j].points, plotter.XY{X: f.at[i], Y: v})
		}
	}
	return all
}

// waitCurves returns what part of the waits was longer than so many ns.
func waitCurves(r *bench.Result) (all []curve) {
	for _, e := range r.Entries {
		c := curve{by: e.By}
		for _, p := range e.Waits {
			if p[1] < 1 {
				c.points = append(c.points, plotter.XY{X: p[0], Y: 1 - p[1]})
			}
		}
		if len(c.points) > 1 {
			all = append(all, c)
		}
	}
	return all
}

// colours of subjects, ours first: those of Okabe and Ito, which the colour-blind can tell apart.
var colours = []color.RGBA{
	{0x00, 0x72, 0xB2, 0xFF}, {0x99, 0x99, 0x99, 0xFF}, {0xE6, 0x9F, 0x00, 0xFF}, {0x00, 0x9E, 0x73, 0xFF},
	{0xCC, 0x79, 0xA7, 0xFF}, {0x56, 0xB4, 0xE9, 0xFF}, {0xD5, 0x5E, 0x00, 0xFF}, {0xB8, 0xA9, 0x00, 0xFF},
}

// A chart is a set of curves and what its axes say.
type chart struct {
	title, x, y string
	logX, logY  bool
	curves      []curve
}

// A key says by which line a subject is drawn.
type key struct {
	By     string
	Colour string
	Dashed bool
}

// keys are those of all curves, in their order.
func (c chart) keys() (all []key) {
	for i, cv := range c.curves {
		rgb := colours[i%len(colours)]
		all = append(all, key{cv.by, fmt.Sprintf("#%02x%02x%02x", rgb.R, rgb.G, rgb.B), i >= len(colours)})
	}
	return all
}

// svg draws the chart as an element of a page. Its keys are the page's: in the plot they would leave it no room.
func (c chart) svg() (template.HTML, error) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.title, c.x, c.y
	p.Title.Padding = vg.Points(6)
	p.Add(plotter.NewGrid())
	if c.logX {
		p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.TickerFunc(decades)
	} else if ticks := c.xs(); len(ticks) < 12 {
		p.X.Tick.Marker = plot.ConstantTicks(ticks)
	}
	if c.logY {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.TickerFunc(decades)
	} else {
		p.Y.Min = 0
	}
	for i, cv := range c.curves {
		line, dots, err := plotter.NewLinePoints(cv.points)
		if err != nil {
			return "", fmt.Errorf("page: plot %s, %s: %w", c.title, cv.by, err)
		}
		line.Color, line.Width = colours[i%len(colours)], vg.Points(1.6)
		if i >= len(colours) {
			line.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
		}
		dots.Color, dots.Radius, dots.Shape = line.Color, vg.Points(2.2), draw.CircleGlyph{}
		p.Add(line)
		if len(cv.points) < 12 {
			p.Add(dots)
		}
	}
	if c.logY { // whole decades
		p.Y.Min = math.Pow(10, math.Floor(math.Log10(p.Y.Min)))
		p.Y.Max = math.Pow(10, math.Ceil(math.Log10(p.Y.Max)))
	} else {
		p.Y.Max *= 1.05
	}
	if !c.logX { // room for the last label
		p.X.Max += 0.03 * (p.X.Max - p.X.Min)
	}
	canvas := vgsvg.New(vg.Points(400), vg.Points(270))
	p.Draw(draw.New(canvas))
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return "", err
	}
	_, element, _ := strings.Cut(b.String(), "<svg ")
	// Its size in points would not let it shrink on a phone.
	_, rest, _ := strings.Cut(element, "viewBox")
	return template.HTML(fmt.Sprintf(`<svg role="img" aria-label="%s" viewBox%s`, template.HTMLEscapeString(c.title), rest)), nil
}

// xs returns ticks where there are points.
func (c chart) xs() (ticks []plot.Tick) {
	for _, cv := range c.curves {
		for _, p := range cv.points {
			if !slices.ContainsFunc(ticks, func(t plot.Tick) bool { return t.Value == p.X }) {
				ticks = append(ticks, plot.Tick{Value: p.X, Label: strconv.FormatFloat(p.X, 'g', -1, 64)})
			}
		}
	}
	return ticks
}

// decades puts ticks at powers of ten, and at every third of them where there are many.
func decades(least, most float64) (ticks []plot.Tick) {
	from, to := int(math.Floor(math.Log10(least))), int(math.Ceil(math.Log10(most)))
	for e := from; e <= to; e++ {
		t := plot.Tick{Value: math.Pow(10, float64(e))}
		if to-from < 6 || e%3 == 0 {
			t.Label = power(e)
		}
		if t.Value >= least*0.999 && t.Value <= most*1.001 {
			ticks = append(ticks, t)
		}
	}
	return ticks
}

// power names a power of ten.
func power(e int) string {
	if e < 0 {
		return strconv.FormatFloat(math.Pow(10, float64(e)), 'g', -1, 64)
	}
	return []string{"1", "10", "100"}[e%3] + []string{"", " k", " M", " G", " T", " P"}[min(e/3, 5)]
}

// charts returns those of a kind of case.
func charts(results []*bench.Result) (all []chart) {
	for _, f := range families(results) {
		rate := chart{title: f.name, x: f.key, y: "operations a second", logY: true, logX: f.key == "size"}
		cost := rate
		cost.y = "ns for one operation"
		even := chart{title: f.name, x: f.key, y: "Jain's index of the shares"}
		rate.curves = f.curves(func(e bench.Entry) float64 { return e.OpsPerS })
		cost.curves = f.curves(func(e bench.Entry) float64 { return e.NsPerOp })
		even.curves = f.curves(func(e bench.Entry) float64 { return e.Jain })
		for _, c := range []chart{rate, cost, even} {
			if (c.y == cost.y) == (f.key == "size") || c.y == even.y {
				if slices.ContainsFunc(c.curves, func(cv curve) bool { return len(cv.points) > 1 }) {
					all = append(all, c)
				}
			}
		}
	}
	for _, r := range results {
		c := chart{title: r.Name, x: "a wait, ns", y: "part of the waits that is longer", logX: true, logY: true}
		if c.curves = waitCurves(r); len(c.curves) > 0 {
			all = append(all, c)
		}
	}
	return all
}
