package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// demoFlags are demo's flags as they were given; 0 means not given.
type demoFlags struct {
	oven      time.Duration
	processes int
	rounds    int
	noLock    bool
	repeat    int // --runs
	verbose   bool
	json      bool
}

func newDemo() *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo [" + strings.Join(programNames(), "|") + "]...",
		Short: "Run six small programs with real processes and check what came out",
		Long:  demoHelp(),
		Example: `  shmkit demo                                          all six, as in the tutorial
  shmkit demo tickets dogs                             two of them
  shmkit demo squirrels --processes 8 --rounds 100000  no update is lost ...
  shmkit demo squirrels --no-lock                      ... unless the lock is taken out
  shmkit demo --oven 50ms --runs 100                   a hundred times each
  shmkit demo wordcount                                the words of real text, by queue and map`,
		ValidArgsFunction: func(_ *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var names []cobra.Completion
			for _, p := range programs() {
				if strings.HasPrefix(p.title, typed) && !slices.Contains(args, p.title) {
					names = append(names, cobra.CompletionWithDesc(p.title, p.shows))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			chosen, err := choose(args, changedFlags(cmd))
			if err != nil {
				return err
			}
			if err := f.check(cmd); err != nil {
				return err
			}
			return perform(cmd, chosen, f)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.DurationVar(&f.oven, "oven", 2*time.Second, "bakers: one baking takes `DURATION`")
	flags.IntVarP(&f.processes, "processes", "p", 0, "start `P` processes (default: as many as in the tutorial)")
	flags.IntVarP(&f.rounds, "rounds", "r", 0, "`R` turns for each process (default: as many as in the tutorial)")
	flags.BoolVar(&f.noLock, "no-lock", false, "take the lock out: the check must then fail")
	flags.IntVarP(&f.repeat, "runs", "n", 1, "run each program `N` times, printing only the check lines")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "print the processes' lines however many they are")
	flags.BoolVar(&f.json, "json", false, "print one JSON document instead")
	for _, name := range []string{"oven", "processes", "rounds", "runs"} {
		cobra.CheckErr(cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
	cmd.AddCommand(newWordcount())
	return cmd
}

func demoHelp() string {
	var b strings.Builder
	b.WriteString(`Run six small programs, known from tutorials on multiprocessing, and check what came out.

Each process is one of the operating system's. What they share lies in a mapped region,
and their lines appear as they are written.

`)
	for _, p := range programs() {
		fmt.Fprintf(&b, "  %-12s %s\n", p.title, p.shows)
	}
	b.WriteString(`
After each program one line says what was counted and whether all that the program
guarantees has held:

  ok    tickets: 3 sold, 1 refused, 0 left
  FAIL  squirrels: 5201 nuts counted, 15000 added: 9799 updates were lost

What "ok" means:

`)
	for _, p := range programs() {
		fmt.Fprintf(&b, "  %-12s %s\n", p.title, p.means)
	}
	fmt.Fprintf(&b, `
With --processes P and --rounds R the programs grow: P processes, let go at once, take R
turns each. Tickets and water then begin at (P-1)*R, so that R turns come too late; birds
with more than one round put a seed into every spot. Beyond %d lines the processes work in
silence (-v: they speak) and what they share is checked.

With --no-lock nothing keeps the processes apart. In its first turn each waits, between
reading and writing, until all have read; so something is always lost, and the check says
how much.

It ends with 0 when all checks held, 1 when one did not, 2 for a mistake in the call, 130
when interrupted. Ctrl-C ends all processes and leaves nothing behind.`, loudest)
	return b.String()
}

// changedFlags lists the flags given on the command line.
func changedFlags(cmd *cobra.Command) []string {
	var names []string
	for _, name := range slices.Concat(everyProgramHas, []string{"oven"}) {
		if cmd.Flags().Changed(name) {
			names = append(names, name)
		}
	}
	return names
}

// choose returns the programs named, or all, and refuses flags that a named one does not have.
func choose(names, flags []string) ([]*program, error) {
	all := programs()
	if len(names) == 0 {
		return all, nil
	}
	var chosen []*program
	for _, name := range names {
		i := slices.IndexFunc(all, func(p *program) bool { return p.title == name })
		if name == "wordcount" {
			return nil, usagef("wordcount is not one of the six; run it by itself: shmkit demo wordcount")
		}
		if i < 0 {
			return nil, usagef("there is no program %q; the programs are %s", name, strings.Join(programNames(), ", "))
		}
		p := all[i]
		for _, flag := range flags {
			if !slices.Contains(p.flags(), flag) {
				return nil, usagef("%s has no --%s; its flags are --%s", p.title, flag, strings.Join(p.flags(), ", --"))
			}
		}
		chosen = append(chosen, p)
	}
	return chosen, nil
}

// check refuses numbers that make no sense.
func (f *demoFlags) check(cmd *cobra.Command) error {
	given := cmd.Flags().Changed
	switch {
	case f.oven < 0:
		return usagef("--oven %v is negative; 0 or longer, please: --oven 50ms", f.oven)
	case given("processes") && (f.processes < 1 || f.processes > mostProcesses):
		return usagef("--processes %d is out of range; 1 to %d", f.processes, mostProcesses)
	case given("rounds") && (f.rounds < 1 || f.rounds > mostRounds):
		return usagef("--rounds %d is out of range; 1 to %d", f.rounds, mostRounds)
	case f.repeat < 1:
		return usagef("--runs %d is out of range; 1 or more", f.repeat)
	case f.noLock && f.processes == 1:
		return usagef("--no-lock shows nothing with --processes 1: one process alone loses nothing; 2 or more")
	}
	return nil
}
