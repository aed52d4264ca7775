package bench

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
)

// A Report is a whole run. Its JSON form is what shmkit bench --json prints.
type Report struct {
	Version int       `json:"version"`
	Command string    `json:"command"`
	Begun   time.Time `json:"begun"`
	Seconds float64   `json:"seconds"`
	Machine Machine   `json:"machine"`
	Effort  Effort    `json:"effort"`
	Results []*Result `json:"results"`
	Error   string    `json:"error,omitempty"` // what ended the run early
	// Load is the median of that of the cases. Noisy says that it is too high for times, and some ratios, to be
	// worth anything.
	Load  float64 `json:"load"`
	Noisy bool    `json:"noisy"`
}

// noisyLoad is how much of the machine may be somebody else's, as Result.Load tells, before a result says so.
const noisyLoad = 0.25

// Busy reports whether the machine had so much else to do that times, and some ratios, are not worth much.
func (r *Result) Busy() bool { return r.Load > noisyLoad }

// A Machine is what a run ran on.
type Machine struct {
	System   string `json:"system"`
	Kernel   string `json:"kernel,omitempty"`
	CPU      string `json:"cpu,omitempty"`
	CPUs     int    `json:"cpus"`
	MaxProcs int    `json:"gomaxprocs"` // of every process
	Go       string `json:"go"`
	Revision string `json:"revision,omitempty"`
}

func thisMachine() Machine {
	m := Machine{
		System: runtime.GOOS + "/" + runtime.GOARCH, Kernel: kernel(), CPUs: runtime.NumCPU(),
		MaxProcs: runtime.GOMAXPROCS(0), Go: runtime.Version(),
	}
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for in := bufio.NewScanner(f); in.Scan() && m.CPU == ""; {
			if key, value, ok := strings.Cut(in.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
				m.CPU = strings.TrimSpace(value)
			}
		}
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				m.Revision = s.Value
			}
		}
	}
	return m
}

// String tells a machine in one line.
func (m Machine) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d × ", m.CPUs)
	if m.CPU != "" {
		fmt.Fprintf(&b, "%s, ", m.CPU)
	}
	if m.Kernel != "" {
		fmt.Fprintf(&b, "%s, ", m.Kernel)
	}
	fmt.Fprintf(&b, "%s %s, GOMAXPROCS=%d in every process", m.Go, m.System, m.MaxProcs)
	return b.String()
}

// Choose returns the cases that match one of the expressions, or all if there are none; of --quick, only those
// that are.
func Choose(expressions []string, quick bool) ([]*Case, error) {
	var wanted []*regexp.Regexp
	for _, e := range expressions {
		re, err := regexp.Compile(e)
		if err != nil {
			return nil, fmt.Errorf("bench: %q: %w", e, err)
		}
		wanted = append(wanted, re)
	}
	var chosen []*Case
	all := Cases()
	for i := range all {
		c := &all[i]
		match := len(wanted) == 0
		for _, re := range wanted {
			match = match || re.MatchString(c.Name)
		}
		if match && (c.Quick || !quick) {
			chosen = append(chosen, c)
		}
	}
	return chosen, nil
}

// RunAll runs cases, one after the other. watch is told what part of all has been done, each what came of a case.
// When a case fails, or ctx ends, the report holds those before it, beside the error.
func RunAll(ctx context.Context, cases []*Case, e Effort, watch func(done float64, name string), each func(*Result) error) (*Report, error) {
	r := &Report{Version: 1, Begun: time.Now(), Machine: thisMachine(), Effort: e, Results: []*Result{}}
	defer func() { r.Seconds = time.Since(r.Begun).Seconds() }()
	all := 0
	for _, c := range cases {
		all += len(c.Subjects)
	}
	done := 0
	var loads []float64
	for _, c := range cases {
		part, steps := 0.0, float64(len(c.Subjects)*max(e.Rounds, 1))
		tell := func() {
			watch((float64(done)+float64(len(c.Subjects))*min(part/steps, 1))/float64(all), c.Name)
			part++
		}
		tell()
		res, err := c.Run(ctx, e, tell)
		if err != nil {
			r.Error = err.Error()
			return r, err
		}
		done += len(c.Subjects)
		r.Results = append(r.Results, res)
		loads = append(loads, res.Load)
		r.Load = middle(loads)
		r.Noisy = r.Load > noisyLoad
		if err := each(res); err != nil {
			return r, err
		}
	}
	return r, nil
}
