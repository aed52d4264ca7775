package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/shmkit/shmkit/shm"
)

// A Process is a process that [Func.Start] has started. Any number of goroutines may use it at once.
// It is reaped when it ends, whether or not anybody waits.
type Process struct {
	name     string
	pid      int
	daemon   bool
	deadline time.Duration   // from SIGTERM to SIGKILL
	ctx      context.Context // of Start
	cmd      *exec.Cmd
	life     *os.File // the child reads its end here when we are gone: open for as long as both live
	answer   *os.File // the child writes one byte in Main

	sent   atomic.Int32 // last signal we sent, for systems that have none
	closed atomic.Bool

	done chan struct{} // closed last, publishing code and err
	code int
	err  error
}

// codeUnknown stands for an exit code that the system gave to somebody else.
const codeUnknown = 255

// PID returns the process' id. The system may give it to another process when this one has ended.
func (p *Process) PID() int { return p.pid }

// Name returns the name, which the process sees as [CurrentName].
func (p *Process) Name() string { return p.name }

// Done returns a channel that is closed when the process has ended and has been reaped.
func (p *Process) Done() <-chan struct{} {
	if p.done == nil {
		panic(errNotStarted)
	}
	return p.done
}

// Alive reports whether the process has not ended yet. It panics with an error that is [shm.ErrClosed]
// after Close.
func (p *Process) Alive() bool {
	if err := p.usable("alive"); err != nil {
		panic(err)
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// ExitCode returns the code with which the process ended, or false while it runs: that of os.Exit, the
// negative number of the signal that ended it, or 255 if somebody else has reaped it.
func (p *Process) ExitCode() (code int, ended bool) {
	select {
	case <-p.Done():
		return p.code, true
	default:
		return 0, false
	}
}

// Wait waits until the process has ended. It returns nil for code 0 and an [*ExitError] otherwise; when
// a signal ended the process after Start's context had ended, the error is that context's cause as
// well. If the process ended with any code without having come to [Main], it is [ErrNoMain] as well.
// After Close the error is [shm.ErrClosed].
func (p *Process) Wait() error {
	if err := p.usable("wait"); err != nil {
		return err
	}
	<-p.done
	return p.err
}

// Terminate sends SIGTERM. It does not wait. If the process has ended, it does nothing. On Windows it
// is Kill. After Close it returns an error that is [shm.ErrClosed].
func (p *Process) Terminate() error { return p.signal("terminate", syscall.SIGTERM) }

// Kill is Terminate with SIGKILL, which no process survives.
func (p *Process) Kill() error { return p.signal("kill", syscall.SIGKILL) }

// Close gives the handle up. It returns an error that is [ErrRunning], having done nothing, while the
// process runs. Calls after the first do nothing.
func (p *Process) Close() error {
	if p.done == nil {
		return errNotStarted
	}
	select {
	case <-p.done:
		p.closed.Store(true)
		return nil
	default:
		return fmt.Errorf("proc: close %s (pid %d): %w", p.name, p.pid, ErrRunning)
	}
}

// usable reports what is wrong with using p.
func (p *Process) usable(op string) error {
	switch {
	case p.done == nil:
		return errNotStarted
	case p.closed.Load():
		return fmt.Errorf("proc: %s %s (pid %d): handle closed: %w", op, p.name, p.pid, shm.ErrClosed)
	}
	return nil
}

func (p *Process) signal(op string, sig syscall.Signal) error {
	if err := p.usable(op); err != nil {
		return err
	}
	p.sent.Store(int32(sig))
	err := sendSignal(p.cmd.Process, sig)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("proc: %s %s (pid %d): %w", op, p.name, p.pid, err)
	}
	return nil
}

// end ends the process, with SIGTERM if that is enough, and returns when it is gone.
func (p *Process) end() {
	p.Terminate()
	t := time.NewTimer(p.deadline)
	defer t.Stop()
	select {
	case <-p.done:
	case <-t.C:
		p.Kill()
		<-p.done
	}
}

// endAll ends several processes at once.
func endAll(all []*Process) {
	var wg sync.WaitGroup
	for _, p := range all {
		wg.Go(p.end)
	}
	wg.Wait()
}

// reap waits for the end of the process and publishes it.
func (p *Process) reap(stop func() bool) {
	err := p.cmd.Wait()
	stop()
	p.life.Close()
	p.code, p.err = p.result(err)
	deactivate(p)
	close(p.done)
}

// result turns what the system says of the process into its code and error.
func (p *Process) result(err error) (int, error) {
	came := p.cameToMain()
	if p.cmd.ProcessState == nil {
		return codeUnknown, fmt.Errorf("proc: wait for %s (pid %d): its exit code is lost: %w", p.name, p.pid, err)
	}
	code := exitCode(p.cmd.ProcessState, syscall.Signal(p.sent.Load()))
	exit := &ExitError{p.name, p.pid, code}
	switch {
	case code >= 0 && !came:
		return code, fmt.Errorf("%w: in that process %w, so its function did not run; call it first in main, before flags are read and on every path", exit, ErrNoMain)
	case code < 0 && p.ctx.Err() != nil:
		return code, fmt.Errorf("%w (%w)", exit, context.Cause(p.ctx))
	case code != 0:
		return code, exit
	case err != nil:
		return code, fmt.Errorf("proc: output of %s (pid %d): %w", p.name, p.pid, err)
	}
	return 0, nil
}

// cameToMain reports whether the process, which has ended, had called Main.
func (p *Process) cameToMain() bool {
	defer p.answer.Close()
	// The process and its end of the pipe are gone, unless its initialisation handed that on to some
	// other program; so this does not block, or not for long.
	p.answer.SetReadDeadline(time.Now().Add(time.Second))
	n, _ := p.answer.Read(make([]byte, 1))
	return n == 1
}

// active are the processes that were started and have not been reaped, in the order of their start.
var active struct {
	mu   sync.Mutex
	list []*Process
}

// Active returns the processes that this one has started and that have not ended, in the order of their
// start, daemons included.
func Active() []*Process {
	active.mu.Lock()
	defer active.mu.Unlock()
	return append([]*Process(nil), active.list...)
}

func activate(p *Process) {
	active.mu.Lock()
	defer active.mu.Unlock()
	active.list = append(active.list, p)
}

func deactivate(p *Process) {
	active.mu.Lock()
	defer active.mu.Unlock()
	for i, o := range active.list {
		if o == p {
			active.list = append(active.list[:i:i], active.list[i+1:]...)
			return
		}
	}
}
