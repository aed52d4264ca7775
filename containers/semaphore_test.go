package containers

import (
	"context"
	"errors"
	"io/fs"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

type namedSemaphore = Ref[shmsync.CountingSemaphore]

type semaphoreUser struct {
	Region *shm.Region
	Ready  namedSemaphore
}

var waitForNamed = proc.Define("wait for a named semaphore", func(ctx context.Context, u semaphoreUser) error {
	m, err := NewManager(u.Region)
	if err != nil {
		return err
	}
	s, err := Find[namedSemaphore](m, "jobs")
	if err != nil {
		return err
	}
	u.Ready.Ptr().Release(1)
	return s.Ptr().Acquire(ctx)
})

func TestNamedSemaphores(t *testing.T) {
	m := newManager(t)
	if _, err := Find[namedSemaphore](m, "jobs"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that is missing: %v", err)
	}
	s := Must(New[shmsync.CountingSemaphore](m, Name("jobs")))
	if err := s.Ptr().Init(0); err != nil {
		t.Fatal(err)
	}
	if _, err := New[shmsync.CountingSemaphore](m, Name("jobs")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("one that exists already: %v", err)
	}
	if again := Must(New[shmsync.CountingSemaphore](m, Name("jobs"), OrOpen())); again.Ptr() != s.Ptr() {
		t.Error("OrOpen has made another one")
	}
	if _, err := Find[Ref[shmsync.Semaphore]](m, "jobs"); !errors.Is(err, shm.ErrTypeMismatch) {
		t.Errorf("as one of another type: %v", err)
	}

	// The name is taken away while another process waits: it stays, and is woken through the old handle.
	ready := Must(New[shmsync.CountingSemaphore](m))
	ready.Ptr().Init(0)
	p, err := waitForNamed.Start(context.Background(), semaphoreUser{m.Region(), ready})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	if !ready.Ptr().AcquireTimeout(30 * time.Second) {
		t.Fatal("the other process has not found it")
	}
	if err := m.Unlink("jobs"); err != nil {
		t.Fatal(err)
	}
	if err := m.Unlink("jobs"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unlinked twice: %v", err)
	}
	if _, err := Find[namedSemaphore](m, "jobs"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the unlink: %v", err)
	}
	fresh := Must(New[shmsync.CountingSemaphore](m, Name("jobs")))
	if fresh.Ptr() == s.Ptr() || fresh.Ptr().Value() != 1 {
		t.Errorf("the name gives the old one, or one of value %d", fresh.Ptr().Value())
	}
	fresh.Ptr().Release(1) // is nothing to the one who waits for the old one
	if !p.Alive() || s.Ptr().Value() != 0 {
		t.Error("the one who waits went on too early")
	}
	s.Ptr().Release(1)
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	if s.Ptr().Value() != 0 || fresh.Ptr().Value() != 2 {
		t.Errorf("values %d and %d", s.Ptr().Value(), fresh.Ptr().Value())
	}
}

// Permits that a process has idle are nothing to a semaphore that is made where a destroyed one was.
func TestSemaphoresAreMadeAndDestroyedAgainAndAgain(t *testing.T) {
	m := newManager(t)
	for range 3000 {
		s := Must(New[shmsync.Semaphore](m))
		g := Must(New[shmsync.WaitGroup](m))
		if s.Ptr().Limit() != 1 || s.Ptr().Value() != 1 {
			t.Fatalf("limit %d, value %d", s.Ptr().Limit(), s.Ptr().Value())
		}
		s.Ptr().Init(3)
		if err := s.Ptr().Acquire(context.Background(), 2); err != nil {
			t.Fatal(err)
		}
		if !s.Ptr().TryAcquire(1) || s.Ptr().TryAcquire(1) {
			t.Fatal("not 3 permits")
		}
		s.Ptr().Release(3)
		g.Ptr().Add(2)
		g.Ptr().Take(1)
		if err := errors.Join(s.Destroy(), g.Destroy()); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Check(); err != nil {
		t.Error(err)
	}
}
