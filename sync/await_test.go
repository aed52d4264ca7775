package sync

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
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
