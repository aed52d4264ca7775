//go:build unix

package proc_test

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm/proc"
)

func TestGraceful(t *testing.T) {
	for _, c := range []struct {
		mode   string
		grace  time.Duration
		sig    os.Signal
		code   int
		stderr string
	}{
		{"returns nil", time.Hour, syscall.SIGTERM, 0, ""},
		{"returns the context's error", time.Hour, syscall.SIGTERM, -15, ""},
		{"returns the context's error", time.Hour, syscall.SIGINT, -2, ""},
		{"returns another error", time.Hour, syscall.SIGTERM, 1, "child: not stored\n"},
		{"is stuck", 200 * time.Millisecond, syscall.SIGTERM, -15, ""},
	} {
		t.Run(c.mode, func(t *testing.T) {
			g := newGate(t)
			var stderr buffer
			p := start(t, graceful, gracefulCase{g.addr(), c.mode}, proc.Graceful(c.grace), proc.Name("child"), proc.Stderr(&stderr))
			v := g.arrival()
			v.line()
			sent := time.Now()
			if err := syscall.Kill(p.PID(), c.sig.(syscall.Signal)); err != nil {
				t.Fatal(err)
			}
			if got := v.line(); got != "told" {
				t.Errorf("its context did not end: %q", got)
			}
			if code := ended(t, p); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			if took := time.Since(sent); c.mode == "is stuck" && took < c.grace {
				t.Errorf("it had %v of %v", took, c.grace)
			}
			if stderr.String() != c.stderr {
				t.Errorf("it wrote %q, want %q", stderr.String(), c.stderr)
			}
		})
	}
}

func TestGracefulDaemonIsToldWhenItsParentIsKilled(t *testing.T) {
	g := newGate(t)
	r := program(t, "graceful-daemon", gateVariable+"="+g.addr())
	v := g.arrival()
	v.line()
	r.cmd.Process.Kill()
	if got := v.line(); got != "told" {
		t.Errorf("the daemon says %q", got)
	}
	v.gone()
}

func init() {
	programs["graceful-daemon"] = func() {
		proc.Run(func(ctx context.Context) error {
			c := gracefulCase{os.Getenv(gateVariable), "returns nil"}
			if _, err := graceful.Start(ctx, c, proc.Daemon(), proc.Graceful(time.Hour)); err != nil {
				return err
			}
			select {} // until it is killed
		})
	}
}

func TestContextKillsWhatIgnoresSIGTERM(t *testing.T) {
	g := newGate(t)
	ctx, cancel := context.WithCancel(t.Context())
	p, err := graceful.Start(ctx, gracefulCase{g.addr(), "ignores"}, proc.KillDelay(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, p) })
	g.arrival().line()
	cancel()
	if code := ended(t, p); code != -9 {
		t.Errorf("exit code %d, want -9", code)
	}
}

func TestSecondSignalEndsRunAtOnce(t *testing.T) {
	g := newGate(t)
	r := program(t, "waits", gateVariable+"="+g.addr())
	v := g.arrival()
	v.line()
	r.cmd.Process.Signal(syscall.SIGTERM)
	// The first is caught, the second is not. Which one is which only the program knows.
	waitFor(t, func() bool {
		r.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-r.ended:
			return true
		default:
			return false
		}
	})
	if ws := r.cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGTERM {
		t.Errorf("it ended with %v", ws)
	}
	v.letThrough()
}

func TestRunWaitsForChildrenAlsoWhenInterrupted(t *testing.T) {
	g := newGate(t)
	r := program(t, "waits", gateVariable+"="+g.addr())
	v := g.arrival()
	r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.ended:
		t.Errorf("the program ended before its child")
	case <-time.After(300 * time.Millisecond):
	}
	v.letThrough()
	if code := r.code(); code != 143 {
		t.Errorf("exit code %d, want 143", code)
	}
}

func TestExitCodeThatSomebodyElseTook(t *testing.T) {
	g := newGate(t)
	p := start(t, hold, g.addr())
	v := g.arrival()
	// Wait for the child behind the package's back; one of the two gets the code.
	got := make(chan error, 1)
	go func() {
		var ws syscall.WaitStatus
		_, err := syscall.Wait4(p.PID(), &ws, 0, nil)
		got <- err
	}()
	v.letThrough()
	code := ended(t, p)
	if err := <-got; err == nil && (code != 255 || p.Wait() == nil) {
		t.Errorf("exit code %d, error %v", code, p.Wait())
	} else if err != nil && (code != 0 || !errors.Is(err, syscall.ECHILD)) {
		t.Errorf("exit code %d; %v", code, err)
	}
}
