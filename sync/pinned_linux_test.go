//go:build linux && !futexpoll

package sync

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
)

// Close waits for those who have the memory pinned, for a second if they do not go. One who finds the memory gone goes.
func TestWhoFindsThatTheFileWasCutLeavesNoPin(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's atomics cannot panic on a fault")
	}
	needFaultAddress(t)
	for name, use := range map[string]func(r *shm.Region, rw *RWMutex, m *Mutex, s *CountingSemaphore) error{
		"lock for writing": func(_ *shm.Region, rw *RWMutex, _ *Mutex, _ *CountingSemaphore) error {
			return rw.lock(limit{what: whatWrite}, nil)
		},
		"lock for writing, slowly": func(r *shm.Region, rw *RWMutex, m *Mutex, _ *CountingSemaphore) error {
			if !pin(r) {
				return shm.ErrClosed
			}
			return rw.lockSlow(attempt{m: m, limit: limit{what: whatWrite}, region: r, pinned: true}, true, nil)
		},
		"lock for reading": func(_ *shm.Region, rw *RWMutex, _ *Mutex, _ *CountingSemaphore) error {
			return rw.rlock(limit{what: whatRead}, nil)
		},
		"take a permit": func(r *shm.Region, _ *RWMutex, _ *Mutex, s *CountingSemaphore) error {
			_, _, err := s.take(r, true, "acquire")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			// With a pin left, each Close lasts a second. Without one a Close may do so too, where the machine is busy.
			for range 5 {
				path := filepath.Join(t.TempDir(), "r")
				r, err := shm.CreateFile(path, shm.Limit(1<<24), shm.Size(1<<20))
				if err != nil {
					t.Fatal(err)
				}
				off := r.Data() + 1<<19
				rw, err := shm.At[RWMutex](r, off)
				if err != nil {
					t.Fatal(err)
				}
				m := &rw.mu // looks at the memory
				s, err := shm.At[CountingSemaphore](r, off+64)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Truncate(path, int64(off)&^int64(os.Getpagesize()-1)); err != nil {
					t.Fatal(err)
				}
				if err := r.Guard(func() error { return use(r, rw, m, s) }); !errors.Is(err, shm.ErrCorrupt) {
					t.Errorf("in a file that is cut: %v", err)
				}
				begin := time.Now()
				r.Close()
				if time.Since(begin) < time.Second {
					return
				}
			}
			t.Error("a pin is left")
		})
	}
}

// The memory is pinned while it is looked at: that shows what Close would leave to others.
func TestCountingSemaphoreAcquireEndedByCloseTakesNoPermit(t *testing.T) {
	for i := range 200 {
		r, err := shm.Anonymous(shm.Limit(1 << 20))
		if err != nil {
			t.Fatal(err)
		}
		s, err := shm.At[CountingSemaphore](r, r.Data())
		if err != nil {
			t.Fatal(err)
		}
		s.Init(0)
		got := make(chan error, 1)
		go func() { got <- s.Acquire(context.Background()) }()
		eventually(t, "it waits", func() bool { return s.Sleeps() })
		if !r.Pin() {
			t.Fatal("not pinned")
		}
		closed := make(chan error, 1)
		go func() { closed <- r.Close() }()
		switch i % 3 {
		case 0: // it is woken, and finds the region closed, or did so before
			for !r.Closed() {
				time.Sleep(time.Microsecond)
			}
		case 1:
			time.Sleep(rand.N(100 * time.Microsecond))
		}
		s.Release(1)
		err = <-got
		if want := map[bool]int{true: 0, false: 1}[err == nil]; s.Value() != want || err != nil && !errors.Is(err, shm.ErrClosed) {
			t.Errorf("%v, and %d permits are left of one", err, s.Value())
		}
		if !r.Closed() {
			<-r.Done()
		}
		left := s.Value()
		if got, _, err := s.take(r, true, "acquire"); got || !errors.Is(err, shm.ErrClosed) || s.Value() != left {
			t.Errorf("in a closed region: %v, %v, %d permits of %d", got, err, s.Value(), left)
		}
		r.Unpin()
		if err := <-closed; err != nil {
			t.Error(err)
		}
	}
}
