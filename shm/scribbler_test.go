package shm_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// Words of the region through which the test speaks with its processes.
const (
	scribbleStop     = iota
	scribbleAttached // attachments that came off
	scribbleRefused  // and those that did not
	scribbleWritten  // words scribbled
)

type scribbled struct {
	Control *shm.Region
	Dir     string
}

// A process writes anything at all over the slots while others attach, look for deaths, settle, grow
// and close. They get errors, or no effect; none faults, hangs or panics.
func TestALiveScribblerOverSlotsHarmsNobodysLife(t *testing.T) {
	control, dir := anonymous(t), memoryDir(t)
	target, err := shm.Create("r", shm.Dir(dir), shm.Size(4096), shm.Limit(1<<20))
	must(t, target, err)
	scribbler := start(t, scribble, scribbled{control, dir})
	wait(t, "the first word to be scribbled", func() bool { return word(control, scribbleWritten).Load() > 0 })
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for word(control, scribbleStop).Load() == 0 {
				// It ends when the region is lost to it, and another one comes.
				if err := bearScribbles.Run(t.Context(), scribbled{control, dir}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
		bear(target)
	}
	word(control, scribbleStop).Store(1)
	wg.Wait()
	succeed(t, scribbler)
	if err := target.Close(); err != nil && !errors.Is(err, shm.ErrClosed) {
		t.Errorf("Close: %v", err)
	}
	attached, refused := word(control, scribbleAttached).Load(), word(control, scribbleRefused).Load()
	if attached == 0 {
		t.Error("nobody could attach: the test shows nothing")
	}
	t.Logf("%d words scribbled, %d attachments, %d refused", word(control, scribbleWritten).Load(), attached, refused)
}

var scribble = proc.Define("scribble", func(_ context.Context, s scribbled) error {
	r, err := shm.Open("r", shm.Dir(s.Dir))
	if err != nil {
		return err
	}
	words := shm.SlotWords(r)
	for n := 0; word(s.Control, scribbleStop).Load() == 0; n++ {
		w := &words[rand.IntN(len(words))]
		switch v := rand.Uint64() >> rand.IntN(64); rand.IntN(4) {
		case 0:
			w.Store(v)
		case 1: // a token or a state of another slot
			w.Store(words[rand.IntN(len(words))/16*16+rand.IntN(2)].Load())
		case 2: // a state that somebody recovers from
			words[rand.IntN(len(words))/16*16+1].Store(v&^15 | rand.Uint64N(6))
		case 3:
			words[rand.IntN(len(words))/16*16+rand.IntN(2)].Store(0)
		}
		word(s.Control, scribbleWritten).Add(1)
		if n%100 == 0 { // others get on
			time.Sleep(100 * time.Microsecond)
		}
	}
	return nil
})

var bearScribbles = proc.Define("bearScribbles", func(_ context.Context, s scribbled) error {
	for range 200 {
		if word(s.Control, scribbleStop).Load() != 0 {
			break
		}
		r, err := shm.Open("r", shm.Dir(s.Dir))
		if err != nil {
			word(s.Control, scribbleRefused).Add(1)
			if errors.Is(err, shm.ErrClosed) {
				break
			}
			continue
		}
		word(s.Control, scribbleAttached).Add(1)
		bear(r)
		r.Close()
	}
	return nil
})

// bear uses a region whose slots somebody scribbles over.
func bear(r *shm.Region) {
	shm.Sweep(r)
	r.Scan()
	for i := range 8 {
		t, _, _ := shm.Slot(r, rand.IntN(shm.SlotCount))
		r.Settled(t)
		r.Settled(shm.Token(rand.Uint64()))
		if b, err := r.Bytes(r.Data(), r.Size()); err == nil {
			b[i]++
		}
	}
	r.Grow(min(r.Size()+64, 1<<20))
	r.Exclusive(func() error { return nil })
}
