package sync_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// fileVariable names the region of a process that package proc cannot start: one that holds its lock
// until it is killed, or its standard input ends.
const fileVariable = "SHMKIT_TEST_HOLD"

func init() {
	path, ok := os.LookupEnv(fileVariable)
	if !ok {
		return
	}
	r, err := shm.OpenFile(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	a := open(r)
	a.mu.Lock()
	a.n++ // torn
	a.addr.Store(uint64(os.Getpid()))
	a.done.Add(1)
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// holdInNamespace starts a process that is the first of a pid namespace of its own and holds the lock.
func holdInNamespace(t *testing.T, r *shm.Region) *exec.Cmd {
	t.Helper()
	theirs, mine, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fileVariable+"="+r.Path(), "GORACE=atexit_sleep_ms=0")
	cmd.Stdin, cmd.Stderr = theirs, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		mine.Close()
		t.Skipf("this system does not permit another pid namespace: %v", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		mine.Close()
	})
	a := open(r)
	until(t, "it to hold the lock", func() bool { return a.done.Load() == 1 })
	if pid := a.addr.Load(); pid != 1 {
		t.Fatalf("pid %d: it is in no namespace of its own", pid)
	}
	return cmd
}

// fileArena is newArena in a named region.
func fileArena(t *testing.T) (*shm.Region, *arena) {
	t.Helper()
	r, err := shm.CreateFile(filepath.Join(t.TempDir(), "r"), shm.Limit(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, open(r)
}

func TestMutexWhoseHolderIsKilledInAnotherNamespaceIsRecovered(t *testing.T) {
	r, a := fileArena(t)
	cmd := holdInNamespace(t, r)
	waiting := make(chan error, 1)
	go func() { waiting <- a.mu.LockContext(context.Background()) }()
	// Several looks at a holder whose pid is not to be seen here.
	if a.mu.LockTimeout(100*time.Millisecond) || len(waiting) != 0 {
		t.Fatal("a live holder of another namespace was robbed")
	}
	cmd.Process.Kill()
	var died *shmsync.OwnerDiedError
	if err := <-waiting; !errors.Is(err, shmsync.ErrInconsistent) || !errors.As(err, &died) {
		t.Fatalf("the waiter, after the kill: %v, want ErrInconsistent", err)
	}
	if err := a.mu.Recover(context.Background(), repairTwin(a)); err != nil || a.n != 0 {
		t.Errorf("recover: %v, n = %d", err, a.n)
	}
	a.mu.Lock()
	a.mu.Unlock()
}

// A process closes the descriptor that proves its life, with a lock held. Another one takes the lock over;
// the first learns it by its own Unlock, which does not unlock what is another's.
func TestMutexWhoseHolderClosesItsProofOfLifeIsTakenOver(t *testing.T) {
	r, a := newArena(t)
	p := start(t, closeProof, r, 0, 0)
	until(t, "it holds the lock without a proof", func() bool { return a.done.Load() == 1 })
	err := a.mu.Recover(context.Background(), func(d shm.Death) error {
		a.step.Store(1)
		<-p.Done()
		if a.mu.TryLock() {
			t.Error("it has unlocked the lock of another process")
			a.mu.Unlock()
		}
		return repairTwin(a)(d)
	})
	if err != nil {
		t.Error(err)
	}
	wait(t, p)
}

var closeProof = proc.Define("close proof", func(_ context.Context, o order) error {
	a := open(o.Region)
	a.mu.Lock()
	a.n++
	if err := loseProof(int(o.Region.File().Fd())); err != nil {
		return err
	}
	a.done.Add(1)
	await(&a.step, 1)
	err := func() (err error) {
		defer func() { err, _ = recover().(error) }()
		a.mu.Unlock()
		return nil
	}()
	if !errors.Is(err, shm.ErrClosed) || !o.Region.Closed() {
		return fmt.Errorf("Unlock of a lock that was taken over: %v, want a panic that is ErrClosed", err)
	}
	return nil
})
