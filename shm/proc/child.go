package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/shmkit/shmkit/shm"
)

// attached are the regions that came with the argument. Handles in the argument are counted apart; these
// keep a region attached when the function has closed its own.
var attached []*shm.Region

// runChild is the life of a child from Main on. It returns the exit code.
func runChild(numbers string) int {
	// Close-on-exec first: from here on nobody that this process starts gets what is meant for it.
	fds, err := inherited(numbers)
	if err != nil {
		fmt.Fprintf(os.Stderr, "proc: %s=%q: %v; this variable is for processes that package proc starts\n", childVariable, numbers, err)
		return 1
	}
	life, answer := os.NewFile(fds[0], "life of the parent"), os.NewFile(fds[1], "answer to the parent")
	showName()
	answer.Write([]byte{1})
	answer.Close()
	m, err := readMessage(life)
	if err != nil {
		fmt.Fprintf(os.Stderr, "proc: a new process could not read what to do: %v\n", err)
		return 1
	}
	call, err := prepare(m, fds[2:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", m.Name, err)
		return 1
	}
	if m.MaxProcs > 0 {
		runtime.GOMAXPROCS(m.MaxProcs)
	}
	me := &identity{m.Name, m.Daemon, make(chan struct{})}
	self.Store(me)

	e := &ending{grace: m.Graceful}
	ctx, cancel := context.WithCancelCause(context.Background())
	e.cancel = cancel
	if m.Graceful > 0 {
		e.listen()
	}
	go func() {
		io.Copy(io.Discard, life) // to its end, which is the parent's
		close(me.parent)
		if me.daemon {
			e.begin(syscall.SIGTERM)
		}
	}()

	err = call(ctx)
	sig := syscall.Signal(e.sig.Load())
	told := sig != 0 && errors.Is(err, context.Canceled) // it ended since it was told to
	if err != nil && !told {
		fmt.Fprintf(os.Stderr, "%s: %v\n", m.Name, err)
	}
	Wait(context.Background())
	switch {
	case told:
		die(sig)
	case err != nil:
		return 1
	}
	return 0
}

// prepare attaches the regions and decodes the argument.
func prepare(m *message, fds []uintptr) (func(context.Context) error, error) {
	if len(fds) != len(m.Regions) {
		return nil, fmt.Errorf("proc: %d regions for %d descriptors", len(m.Regions), len(fds))
	}
	for i, fd := range fds {
		f := os.NewFile(fd, m.Regions[i])
		var opts []shm.Option
		if readOnly(f) {
			opts = append(opts, shm.ReadOnly())
		}
		r, err := shm.FromFile(f, opts...)
		if err != nil {
			return nil, fmt.Errorf("proc: attach region %d of the argument: %w", i+1, err)
		}
		attached = append(attached, r)
		keep(f)
	}
	definitions.mu.Lock()
	d, ok := definitions.byName[m.Function]
	definitions.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("proc: function %q is not defined when this process comes to proc.Main; assign it to a package variable", m.Function)
	}
	call, err := d.decode(m.Argument)
	if err != nil {
		return nil, fmt.Errorf("proc: decode the argument of %q (%s): %w", m.Function, d.place, err)
	}
	return call, nil
}

// An ending is how a child goes when it is told to: at once, or after its graceful time.
type ending struct {
	grace  time.Duration
	cancel context.CancelCauseFunc
	sig    atomic.Int32 // the signal that began it
}

// listen begins the ending with a signal. Signals that come later change nothing.
func (e *ending) listen() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGTERM)
	if !signal.Ignored(os.Interrupt) { // a terminal sends it to parent and children alike
		signal.Notify(c, os.Interrupt)
	}
	go func() {
		if sig, ok := (<-c).(syscall.Signal); ok {
			e.begin(sig)
		}
	}()
}

func (e *ending) begin(sig syscall.Signal) {
	if !e.sig.CompareAndSwap(0, int32(sig)) {
		return
	}
	if e.grace > 0 {
		e.cancel(fmt.Errorf("%w by a signal: %v", context.Canceled, sig))
		time.Sleep(e.grace)
	}
	die(sig)
}
