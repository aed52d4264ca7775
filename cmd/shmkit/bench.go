package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/shmkit/shmkit/bench"
	"github.com/shmkit/shmkit/bench/page"
	"github.com/spf13/cobra"
)

// benchFlags are bench's flags as they were given.
type benchFlags struct {
	list, quick    bool
	json, markdown bool
	report         string
	compare        string
	baseline       string
	rounds         int
	window         time.Duration
}

func newBench() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench [REGEX]...",
		Short: "Measure shmkit across processes, beside what people use instead",
		Long: `Measure shmkit across real processes, beside the floor that this machine sets and what
people use instead: the standard library in one process, file locks, pipes, and, where they
are installed, C (cc), Boost.Interprocess, Python and Redis. None of these is needed; who
is not there is skipped, and it says why.

Those who answer a case take turns in short rounds, so that whatever else the machine does
falls on all. What counts are the ratios: medians over the rounds. Columns:

  ÷ floor      time for an operation, by that of the floor, in the same round
  ÷ shmkit     the same by ours: 2.0× is half as fast
  ±            how far half of the rounds were apart in that
  even         Jain's index of the shares: 1 when they are even, 1/n when one of n has all
  shares       the smallest and the largest, of an even one
  p50 ...      waits, within 19 %, and the longest of all
  cpu s/Mop    processor seconds for a million operations
  switches/op  context switches for one

An expression chooses cases by their names, such as

  contended/inside=200ns/outside=0s/procs=8

It ends with 0 when all was measured, 1 when a case failed or --compare found something
slower, 2 for a mistake in the call, 130 when interrupted. Ctrl-C ends all processes and
leaves nothing behind.`,
		Example: `  shmkit bench --quick                        a few of each kind, in less than a minute
  shmkit bench                                all, in less than 20 minutes
  shmkit bench contended/inside=200ns         some
  shmkit bench --quick --report bench.html    with a page of plots
  shmkit bench --compare bench/baseline.json  which ratios are not what they were`,
		ValidArgsFunction: func(_ *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var names []cobra.Completion
			for _, c := range bench.Cases() {
				if strings.HasPrefix(c.Name, typed) {
					names = append(names, cobra.CompletionWithDesc(c.Name, c.Asks))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cases, err := bench.Choose(args, f.quick)
			if err != nil {
				return &usageError{err}
			}
			switch {
			case len(cases) == 0:
				return usagef("no case matches; --list prints their names")
			case f.json && f.markdown:
				return usagef("--json and --markdown are two forms of the same: one of them, please")
			case f.rounds < 0 || f.window < 0:
				return usagef("--rounds %d, --window %v: neither can be negative", f.rounds, f.window)
			}
			if f.list {
				return f.printList(cmd.OutOrStdout(), cases)
			}
			return f.run(cmd, cases)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVarP(&f.list, "list", "l", false, "list the cases instead of running them")
	flags.BoolVarP(&f.quick, "quick", "q", false, "a few cases, in short rounds: less than a minute")
	flags.BoolVar(&f.json, "json", false, "print one JSON document instead")
	flags.BoolVar(&f.markdown, "markdown", false, "print one Markdown table of ratios instead")
	flags.StringVar(&f.report, "report", "", "write a page with plots to `FILE`, which needs nothing else")
	flags.StringVar(&f.compare, "compare", "", "compare ratios with those in `FILE`, and fail if any became slower than the noise allows")
	flags.StringVar(&f.baseline, "baseline", "", "write the ratios to `FILE`, for --compare")
	flags.IntVar(&f.rounds, "rounds", 0, "`N` rounds of each (default: 5, or 3 with --quick)")
	flags.DurationVar(&f.window, "window", 0, "one round takes `DURATION` (default: 120ms, or 25ms with --quick)")
	for _, name := range []string{"rounds", "window"} {
		cobra.CheckErr(cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
	return cmd
}

// listDoc is what bench --list --json prints.
type listDoc struct {
	Version int       `json:"version"`
	Cases   []caseDoc `json:"cases"`
}

type caseDoc struct {
	Name  string       `json:"name"`
	Asks  string       `json:"asks"`
	Quick bool         `json:"quick"`
	By    []subjectDoc `json:"by"`
}

type subjectDoc struct {
	Name    string     `json:"name"`
	Role    bench.Role `json:"role"`
	Skipped string     `json:"skipped,omitempty"` // why it cannot be run here
}

func (f *benchFlags) printList(w io.Writer, cases []*bench.Case) error {
	doc := listDoc{Version: documentVersion}
	for _, c := range cases {
		d := caseDoc{Name: c.Name, Asks: c.Asks, Quick: c.Quick}
		for i := range c.Subjects {
			s := subjectDoc{Name: c.Subjects[i].By, Role: c.Subjects[i].Role}
			if err := c.Subjects[i].Ready(); err != nil {
				s.Skipped = err.Error()
			}
			d.By = append(d.By, s)
		}
		doc.Cases = append(doc.Cases, d)
	}
	if f.json {
		return printJSON(w, doc)
	}
	last := ""
	for _, c := range doc.Cases {
		if c.Asks != last {
			fmt.Fprintf(w, "# %s\n", c.Asks)
			last = c.Asks
		}
		fmt.Fprint(w, c.Name, " ")
		for _, s := range c.By {
			fmt.Fprint(w, " ", s.Name)
			if s.Skipped != "" {
				fmt.Fprint(w, "(not here)")
			}
		}
		fmt.Fprintln(w)
	}
	return nil
}

func (f *benchFlags) run(cmd *cobra.Command, cases []*bench.Case) error {
	var was *bench.Baseline
	if f.compare != "" { // before minutes of work
		was = new(bench.Baseline)
		if err := readJSON(f.compare, was); err != nil {
			return fmt.Errorf("bench: --compare: %w", err)
		}
		if was.Version != documentVersion || len(was.Ratios) == 0 {
			return fmt.Errorf("bench: --compare %s: version %d with %d ratios; want version %d and some, as --baseline writes them", f.compare, was.Version, len(was.Ratios), documentVersion)
		}
	}
	effort := bench.Full
	if f.quick {
		effort = bench.Quick
	}
	if f.rounds > 0 {
		effort.Rounds = f.rounds
	}
	if f.window > 0 {
		effort.Window = f.window
	}
	defer bench.Close()
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	bar := progressBar{begun: time.Now()}
	if isTerminal(cmd.ErrOrStderr()) {
		bar.w = cmd.ErrOrStderr()
	}
	each := func(r *bench.Result) error { return nil }
	if !f.json && !f.markdown {
		each = func(r *bench.Result) error {
			bar.clear()
			return r.WriteText(out)
		}
	}
	doc, err := bench.RunAll(ctx, cases, effort, bar.show, each)
	bar.clear()
	doc.Command = commandLine(os.Args)
	if ctx.Err() != nil || interrupted(err) {
		err = errInterrupted
	}
	if f.json {
		err = errors.Join(err, printJSON(out, doc))
	}
	if err != nil {
		return err
	}
	if f.markdown {
		if err := doc.WriteMarkdown(out); err != nil {
			return err
		}
	}
	if doc.Noisy {
		fmt.Fprintf(cmd.ErrOrStderr(), "shmkit: the machine was busy with something else: a counted loop took %.0f %% longer than at best; times are worth little, ratios less than usual\n", doc.Load*100)
	}
	if f.baseline != "" {
		if err := writeFile(f.baseline, func(w io.Writer) error { return printJSON(w, doc.Baseline()) }); err != nil {
			return err
		}
	}
	if f.report != "" {
		if err := writeFile(f.report, func(w io.Writer) error { return page.Write(w, doc) }); err != nil {
			return err
		}
	}
	if was == nil {
		return nil
	}
	return judge(cmd, doc, was)
}

// judge says what moved, and fails if something became slower and the machine was not to blame.
func judge(cmd *cobra.Command, doc *bench.Report, was *bench.Baseline) error {
	moved, compared := doc.Compare(was)
	to := cmd.OutOrStdout()
	if len(doc.Results) > 0 && (cmd.Flags().Changed("json") || cmd.Flags().Changed("markdown")) {
		to = cmd.ErrOrStderr()
	}
	if err := bench.WriteMoves(to, moved, compared); err != nil {
		return err
	}
	slower := 0
	for _, m := range moved {
		if m.Slower() && !m.Unsure {
			slower++
		}
	}
	switch {
	case compared == 0:
		return errors.New("bench: the two have no ratio in common")
	case slower > 0:
		return fmt.Errorf("bench: %d of %d ratios became slower", slower, compared)
	}
	return nil
}

// commandLine is what was typed.
func commandLine(args []string) string {
	words := []string{filepath.Base(args[0])}
	for _, a := range args[1:] {
		if a == "" || strings.ContainsAny(a, " \t\n'\"\\$&|;<>()*?[]#~`!{}^") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

func readJSON(path string, into any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := json.NewDecoder(f).Decode(into); err != nil {
		return &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return nil
}

// writeFile writes a file whole, or leaves what was there.
func writeFile(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := errors.Join(write(f), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// progressBar says on one line how far a run has come, if a person watches.
type progressBar struct {
	w     io.Writer // nil: nobody watches
	begun time.Time
	shown time.Time
}

const barWidth = 24

func (b *progressBar) show(done float64, name string) {
	if b.w == nil || time.Since(b.shown) < 100*time.Millisecond {
		return
	}
	b.shown = time.Now()
	full := int(done * barWidth)
	left := ""
	if spent := time.Since(b.begun); done > 0.02 {
		left = fmt.Sprintf(", %v left", time.Duration(float64(spent)*(1-done)/done).Round(time.Second))
	}
	if len(name) > 44 {
		name = name[:44]
	}
	fmt.Fprintf(b.w, "\r%s%s %2.0f %%%s  %s\x1b[K", strings.Repeat("█", full), strings.Repeat("░", barWidth-full), done*100, left, name)
}

func (b *progressBar) clear() {
	if b.w != nil {
		fmt.Fprint(b.w, "\r\x1b[K")
	}
}
