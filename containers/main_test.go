package containers

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

func TestMain(m *testing.M) {
	proc.Main()
	os.Exit(m.Run())
}

// newManager makes a Manager on a region that processes can share, checks it when the test ends, and closes
// it.
func newManager(tb testing.TB, opts ...shm.Option) *Manager {
	tb.Helper()
	r, err := shm.Anonymous(opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return manageForTest(tb, r)
}

// newHeapManager is newManager for a region of Go memory, in which the race detector sees everything.
func newHeapManager(tb testing.TB, opts ...shm.Option) *Manager {
	tb.Helper()
	r, err := shm.Heap(opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return manageForTest(tb, r)
}

// briefManager makes a Manager on a small region of Go memory, for a test that needs many, one after the other, and closes each itself: else all
// of them would be there until the test ends.
func briefManager(tb testing.TB) *Manager {
	tb.Helper()
	r, err := shm.Heap(shm.Limit(1 << 20))
	if err != nil {
		tb.Fatal(err)
	}
	m, err := NewManager(r)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

func manageForTest(tb testing.TB, r *shm.Region) *Manager {
	tb.Helper()
	m, err := NewManager(r)
	if err != nil {
		r.Close()
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		nothingLost(tb, m)
		if err := m.Close(); err != nil {
			tb.Error(err)
		}
	})
	return m
}

// nothingLost checks m, and that each block in use belongs to somebody, which can be said once what processes that died have left is
// put right.
func nothingLost(tb testing.TB, m *Manager) {
	tb.Helper()
	s, err := m.space()
	for end := time.Now().Add(20 * time.Second); err == nil; time.Sleep(time.Millisecond) {
		m.Region().Scan()
		var exact bool
		if exact, err = s.audit(); err == nil && exact {
			return
		}
		if time.Now().After(end) {
			tb.Fatal("there is no end of operations under way")
		}
	}
	if !errors.Is(err, shm.ErrClosed) {
		tb.Error(err)
	}
}

// bothManagers runs test on a region of Go memory and on a shared one.
func bothManagers(t *testing.T, test func(t *testing.T, m *Manager)) {
	t.Run("region=heap", func(t *testing.T) { test(t, newHeapManager(t)) })
	t.Run("region=shared", func(t *testing.T) { test(t, newManager(t)) })
}

// ownDir lets named regions of this test, and of the processes it starts, live in a directory of its own.
func ownDir(t *testing.T) {
	t.Helper()
	t.Setenv("SHMKIT_DIR", regionDir(t))
}

// regionDir returns a temporary directory. Unlike that of TempDir it may hold regions that are in use when
// the test ends, which cannot be removed everywhere.
func regionDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "shmkit-test-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// deadline is a context for child processes, shorter than the test's own.
func deadline(t *testing.T) context.Context {
	ctx, stop := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(stop)
	return ctx
}

// panicOf runs fn and returns the error that it panics with, nil if it does not panic.
func panicOf(tb testing.TB, fn func()) (err error) {
	tb.Helper()
	defer func() {
		if v := recover(); v != nil {
			e, ok := v.(error)
			if !ok {
				tb.Errorf("panic with %v, which is no error", v)
			}
			err = e
		}
	}()
	fn()
	return nil
}

// wantErrors checks that each of the calls answers with an error that is want: returned or in a panic.
func wantErrors(t *testing.T, want error, calls map[string]func() error) {
	t.Helper()
	for name, call := range calls {
		var err error
		if p := panicOf(t, func() { err = call() }); p != nil {
			err = p
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want an error that is: %v", name, err, want)
		}
	}
}

// wantKilled checks that a process was killed, and did not end in another way.
func wantKilled(tb testing.TB, err error) {
	tb.Helper()
	var exit *proc.ExitError
	if !errors.As(err, &exit) || exit.Code != killedCode && exit.Code != -int(syscall.SIGKILL) {
		tb.Fatalf("the process was to be killed: %v", err)
	}
}
