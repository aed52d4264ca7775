package sync

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// One has begun to wait, and stands still while the event is set and cleared; when it comes to park,
// the leader is one who came after that and waits for another time.
func TestEventSetAndClearedBeforeAWaiterParksEndsItsWait(t *testing.T) {
	var e Event
	began := e.word.Load() / eventOnce
	e.Set()
	e.Clear()
	ctx, cancel := context.WithCancel(t.Context())
	led := make(chan error)
	go func() { led <- e.Wait(ctx) }()
	eventually(t, "the later one leads", e.Sleeps)
	over := make(chan error, 1)
	w := watch{word: &e.word, limit: limit{what: "wait for an event"}, over: changed(began)}
	go func() { over <- w.wait() }()
	select {
	case err := <-over:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the wait does not end")
	}
	cancel()
	if err := <-led; !errors.Is(err, context.Canceled) {
		t.Errorf("the later one: %v", err)
	}
}

// The zeros that Close puts in a word's place are not what anybody waited for.
func TestEventInARegionThatIsClosedWhileItIsLookedAtIsNotSet(t *testing.T) {
	r, err := shm.Heap(shm.Size(1 << 16))
	if err != nil {
		t.Fatal(err)
	}
	e, err := shm.At[Event](r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	w := watch{word: &e.word, limit: limit{what: "wait for an event"}, over: func(uint32) (bool, error) { return true, r.Close() }}
	err = w.wait()
	if !errors.Is(err, shm.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}

// attached attaches to a region and waits for its end.
var attached = proc.Define("attached", func(ctx context.Context, r *shm.Region) error {
	w, err := shm.At[atomic.Uint32](r, r.Data())
	if err != nil {
		return err
	}
	w.Store(1)
	<-ctx.Done()
	return nil
})

// Who waits for what a death may end is woken when the death is known, whoever has found it.
func TestAWaitThatADeathMayEndIsWokenByIt(t *testing.T) {
	first, long := firstSleep, longSleep
	firstSleep, longSleep = time.Hour, time.Hour
	defer func() { firstSleep, longSleep = first, long }()
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	said, err := shm.At[atomic.Uint32](r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	word, err := shm.At[atomic.Uint32](r, r.Data()+64)
	if err != nil {
		t.Fatal(err)
	}
	p, err := attached.Start(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	eventually(t, "the child is there", func() bool { return said.Load() == 1 })
	deaths := r.Deaths().Load()
	over := make(chan error, 1)
	w := watch{word: word, limit: limit{what: "wait"}, mortal: true, over: func(uint32) (bool, error) {
		return r.Deaths().Load() != deaths, nil
	}}
	go func() { over <- w.wait() }()
	eventually(t, "it sleeps", func() bool { return word.Load()&1 != 0 })
	p.Kill()
	<-p.Done()
	eventually(t, "the death is known", func() bool { r.Scan(); return r.Deaths().Load() != deaths })
	select {
	case err := <-over:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("it sleeps on")
	}
}
