package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/shmkit/shmkit/shm/proc"
	"github.com/spf13/cobra"
)

// perform runs the chosen programs one after the other and reports on each.
func perform(cmd *cobra.Command, chosen []*program, f demoFlags) error {
	p := performance{demoFlags: f, stdout: cmd.OutOrStdout()}
	if isTerminal(cmd.ErrOrStderr()) {
		p.progress = cmd.ErrOrStderr()
	}
	doc := demoDoc{Version: documentVersion, Programs: []programDoc{}}
	var trouble error // what kept a program from being run to its end
	for _, program := range chosen {
		entry, err := p.all(cmd.Context(), program)
		doc.Programs = append(doc.Programs, entry)
		if err != nil {
			trouble = err
			doc.Error = err.Error()
			break
		}
	}
	doc.OK = trouble == nil && p.failed == 0
	if f.json {
		trouble = errors.Join(trouble, printJSON(p.stdout, doc))
	}
	switch {
	case trouble != nil:
		return trouble
	case p.failed > 0 && f.noLock:
		return fmt.Errorf("demo: %d of %d checks failed, as they must with --no-lock", p.failed, p.runs)
	case p.failed > 0:
		return fmt.Errorf("demo: %d of %d checks failed", p.failed, p.runs)
	}
	return nil
}

// performance is one call of demo.
type performance struct {
	demoFlags
	stdout, progress io.Writer // progress is nil if no person watches

	runs, failed int // until now
}

// all runs the program as often as wanted.
func (p *performance) all(ctx context.Context, program *program) (programDoc, error) {
	size := program.size(p.demoFlags)
	entry := programDoc{Name: program.title, Processes: size.Processes, Rounds: size.Rounds, Locked: !size.NoLock, Runs: []result{}}
	if program.baking {
		entry.Oven = size.Oven.Seconds()
	}
	for n := range p.repeat {
		result, err := p.one(ctx, program, size, n+1)
		if ctx.Err() != nil || interrupted(err) {
			return entry, errInterrupted
		}
		if err != nil {
			return entry, fmt.Errorf("demo: %s: %w", program.title, err)
		}
		entry.Runs = append(entry.Runs, result)
	}
	return entry, nil
}

// one runs the program for the n-th time, in sight or not, and prints the check line.
func (p *performance) one(ctx context.Context, program *program, size size, n int) (result, error) {
	s := &stage{program: program, size: size, out: p.stdout, progress: p.progress}
	s.quiet = s.turns()*int64(program.linesPerTurn) > loudest && !p.verbose
	s.shows = !s.quiet && !p.json && (p.repeat == 1 || p.verbose)
	if s.shows && p.runs > 0 {
		fmt.Fprintln(p.stdout) // after the last check line
	}
	r, err := s.run(ctx)
	if err != nil {
		return r, err
	}
	p.runs++
	if !r.OK {
		p.failed++
	}
	if p.verbose {
		r.Lines = s.said
	}
	if p.json {
		return r, nil
	}
	line := r.line(program.title)
	if p.repeat > 1 {
		line += fmt.Sprintf("  (run %d of %d)", n, p.repeat)
	}
	_, err = fmt.Fprintln(p.stdout, line)
	return r, err
}

// interrupted reports whether a process was: Ctrl-C reaches it too, and its end may be seen before this
// process' own signal.
func interrupted(err error) bool {
	var exit *proc.ExitError
	return errors.As(err, &exit) && exit.Code == -int(syscall.SIGINT)
}

// isTerminal guesses whether a person watches w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// demoDoc is what demo --json prints.
type demoDoc struct {
	Version  int          `json:"version"`
	OK       bool         `json:"ok"`
	Error    string       `json:"error,omitempty"` // what ended the demo early
	Programs []programDoc `json:"programs"`
}

type programDoc struct {
	Name      string   `json:"name"`
	Processes int      `json:"processes"`
	Rounds    int      `json:"rounds"`
	Locked    bool     `json:"locked"`
	Oven      float64  `json:"oven_seconds,omitempty"`
	Runs      []result `json:"runs"`
}
