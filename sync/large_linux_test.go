package sync_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A hoard is what a process holds when it dies: the lock, and much memory.
type hoard struct {
	Region *shm.Region
	Bytes  int
	Dir    string // where it leaves its core, or empty
}

var holdMuch = proc.Define("hold much", func(_ context.Context, h hoard) error {
	if h.Dir != "" {
		var l unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_CORE, &l); err != nil {
			return err
		}
		l.Cur = l.Max
		if err := errors.Join(unix.Setrlimit(unix.RLIMIT_CORE, &l), os.Chdir(h.Dir)); err != nil {
			return err
		}
	}
	much := make([]byte, h.Bytes)
	for i := 0; i < len(much); i += os.Getpagesize() {
		much[i] = 1
	}
	a := open(h.Region)
	a.mu.Lock()
	a.n++
	a.done.Add(int64(much[0]))
	select {} // until it is ended
})

// dieHolding ends a process with much memory that holds the lock, and returns how long a waiter needed from
// then on.
func dieHolding(t *testing.T, h hoard, end func(*proc.Process) error, opts ...proc.Option) time.Duration {
	t.Helper()
	r, a := newArena(t)
	h.Region = r
	p, err := holdMuch.Start(context.Background(), h, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		<-p.Done()
	})
	until(t, "the child holds the lock", func() bool { return a.done.Load() == 1 })
	got := make(chan error, 1)
	go func() { got <- a.mu.LockContext(context.Background()) }()
	until(t, "one waits", func() bool { return a.mu.Stats().Waiting == 1 })
	begin := time.Now()
	if err := end(p); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, shmsync.ErrInconsistent) {
		t.Errorf("the waiter: %v", err)
	}
	return time.Since(begin)
}

// The kernel takes a large process apart before it releases what proves its life: the lock stays held so
// long, and comes free then.
func TestMutexOfALargeProcessComesFreeWhenItIsGone(t *testing.T) {
	size := 256 << 20
	if testing.Short() {
		size = 32 << 20
	}
	t.Logf("%d MiB: the waiter went on %v after the kill", size>>20, dieHolding(t, hoard{Bytes: size}, (*proc.Process).Kill))
}

// A process that dumps core is not dead before the dump is written.
func TestMutexOfAProcessThatDumpsCoreComesFreeWhenTheDumpIsWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil || len(pattern) == 0 || pattern[0] == '|' || filepath.IsAbs(string(pattern)) {
		t.Skipf("dumps go elsewhere: %q, %v", pattern, err)
	}
	waited := dieHolding(t, hoard{Bytes: 32 << 20, Dir: dir}, func(p *proc.Process) error {
		return unix.Kill(p.PID(), unix.SIGQUIT)
	}, proc.Env("GOTRACEBACK=crash"), proc.Stderr(io.Discard))
	size := func() (n int64) {
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, f := range files {
			if info, err := os.Stat(f); err == nil {
				n += info.Size()
			}
		}
		return n
	}
	then := size()
	if then == 0 {
		t.Skip("no dump was written: a limit, or a filter, forbids it")
	}
	time.Sleep(20 * time.Millisecond) // in which nothing is written any more
	if now := size(); now != then {
		t.Errorf("the dump has %d bytes, and had %d when the lock was taken over", now, then)
	}
	t.Logf("a dump of %d MiB: the waiter went on after %v", then>>20, waited)
}
