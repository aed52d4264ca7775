package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
)

// An identity is what a process knows of itself once it has come to Main.
type identity struct {
	name   string        // empty in a process that this package did not start
	daemon bool          //
	parent chan struct{} // closed when the parent has ended; nil without one
}

// self is nil before Main.
var self atomic.Pointer[identity]

// Main makes this program able to start processes, and is where such a process begins: there it runs
// the function and exits, and does not return. Call it first in main, or in TestMain; [Run] does. It
// takes the variable that tells a child what it is out of the environment, so that nobody else gets it.
// More calls do nothing.
func Main() {
	numbers, child := os.LookupEnv(childVariable)
	if !child {
		self.CompareAndSwap(nil, new(identity))
		return
	}
	os.Unsetenv(childVariable)
	os.Exit(runChild(numbers))
}

// CurrentName returns the name that this process was started with; it is empty in the program itself.
func CurrentName() string {
	if me := self.Load(); me != nil {
		return me.name
	}
	return ""
}

// ParentDone returns a channel that is closed when the process that started this one has ended, however
// that happened. It is nil, which is never ready, in a process that this package did not start.
func ParentDone() <-chan struct{} {
	if me := self.Load(); me != nil {
		return me.parent
	}
	return nil
}

// Run is a whole main function: it calls [Main], then main under a context that ends with SIGINT or
// SIGTERM, then waits for ordinary children and ends daemons, as [Wait] does. It writes main's error to
// standard error and exits, with 0, with 1 for an error, or with 130 or 143 if SIGINT or SIGTERM came,
// whatever main returned; an error that is [context.Canceled] is not written then. A second such signal
// has its default action.
func Run(main func(ctx context.Context) error) {
	Main()
	os.Exit(run(main))
}

func run(main func(context.Context) error) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	var caught atomic.Int32
	signals := make(chan os.Signal, 1)
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		if !signal.Ignored(sig) { // as for a program that a shell has put in the background
			signal.Notify(signals, sig)
		}
	}
	go func() {
		sig := <-signals
		signal.Stop(signals)
		if s, ok := sig.(syscall.Signal); ok {
			caught.Store(int32(s))
		}
		cancel(fmt.Errorf("%w by a signal: %v", context.Canceled, sig))
	}()

	err := main(ctx)
	Wait(context.Background())
	sig := caught.Load()
	if err != nil && (sig == 0 || !errors.Is(err, context.Canceled)) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(commandName()), err)
	}
	switch {
	case sig != 0:
		return 128 + int(sig)
	case err != nil:
		return 1
	}
	return 0
}

// Wait ends the part of a program that uses processes: it waits for ordinary children, then ends
// daemons and waits for them. It is for programs that call [Main] themselves. If ctx ends first, Wait
// ends the daemons, leaves the ordinary children running and returns an error that wraps the context's.
// How each child ended is told by its [Process.Wait].
func Wait(ctx context.Context) error {
	err := waitOrdinary(ctx)
	var daemons []*Process
	for _, p := range Active() {
		if p.daemon {
			daemons = append(daemons, p)
		}
	}
	endAll(daemons)
	return err
}

func waitOrdinary(ctx context.Context) error {
	for { // each turn follows the end of a child; others may have been started meanwhile
		var ordinary []*Process
		for _, p := range Active() {
			if !p.daemon {
				ordinary = append(ordinary, p)
			}
		}
		if len(ordinary) == 0 {
			return nil
		}
		select {
		case <-ordinary[0].done:
		case <-ctx.Done():
			return fmt.Errorf("proc: wait: %d children are running, the first is %s (pid %d): %w", len(ordinary), ordinary[0].name, ordinary[0].pid, context.Cause(ctx))
		}
	}
}
