//go:build unix

package sync

import (
	"context"
	"errors"
	"math/rand/v2"
	stdsync "sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// randomWaits are the calls that may wait, all but one with a limit.
var randomWaits = map[string]func(ctx context.Context, m *Mutex) error{
	"Lock": func(_ context.Context, m *Mutex) (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = r.(error)
			}
		}()
		m.Lock()
		return nil
	},
	"TryLock": func(_ context.Context, m *Mutex) error {
		if !m.TryLock() {
			return errTimeout
		}
		return nil
	},
	"TryLockIdle": func(_ context.Context, m *Mutex) error {
		if !m.TryLockIdle() {
			return errTimeout
		}
		return nil
	},
	"LockTimeout": func(_ context.Context, m *Mutex) (err error) {
		defer func() {
			if r := recover(); r != nil {
				err = r.(error)
			}
		}()
		if !m.LockTimeout(randomLimit) {
			return errTimeout
		}
		return nil
	},
	"LockContext":  func(ctx context.Context, m *Mutex) error { return m.LockContext(ctx) },
	"LockRepaired": func(ctx context.Context, m *Mutex) error { return m.LockRepaired(ctx, noRepair) },
	"Do": func(ctx context.Context, m *Mutex) error {
		err := m.Do(ctx, func() error { return nil })
		if err == nil {
			err = errReleased
		}
		return err
	},
	"Recover": func(ctx context.Context, m *Mutex) error {
		err := m.Recover(ctx, noRepair)
		if err == nil {
			err = errReleased
		}
		return err
	},
}

var (
	noRepair    = func(shm.Death) error { return nil }
	errReleased = errors.New("taken and released")
)

const randomLimit = 400 * time.Millisecond

// lent is a token of a process that lives and holds what the test says it holds.
var lend = proc.Define("lend a token", func(_ context.Context, w where) error {
	h, err := shm.At[house](w.Region, w.Region.Data())
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.came.Add(1)
	select {}
})

// Words as they come, most of them held by nobody who was ever there: a call ends with the lock, with an
// error, or when its limit is over, or goes on sleeping until the word changes. None is busy meanwhile.
func TestWordsOfRandomBitsEndInAnErrorOrInAWaitThatSleeps(t *testing.T) {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h, err := shm.At[house](r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	p, err := lend.Start(context.Background(), where{r})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		p.Kill()
		<-p.Done()
	}()
	eventually(t, "the child holds a lock", func() bool { return h.came.Load() == 1 })
	alive := h.mu.word.Load() &^ flags

	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	holders := []func() uint64{
		random.Uint64,
		func() uint64 { return alive | random.Uint64()&flags },
		func() uint64 { return token | random.Uint64()&flags },
		func() uint64 { return random.Uint64() & flags },
		func() uint64 { return alive ^ 1<<random.IntN(64) },
		func() uint64 { return token ^ 1<<random.IntN(64) },
	}
	area, err := shm.At[[400]Mutex](r, r.Data()+4096)
	if err != nil {
		t.Fatal(err)
	}
	used := 0
	var all []*Mutex
	var wg stdsync.WaitGroup
	var waiting atomic.Int64
	ctx, cancel := context.WithTimeout(context.Background(), randomLimit)
	defer cancel()
	begin, before := time.Now(), processorTime()
	for name, wait := range randomWaits {
		for _, word := range holders {
			for _, inside := range []bool{true, true, false} {
				m := new(Mutex)
				if inside {
					m = &area[used]
					used++
				}
				w := word()
				m.word.Store(w)
				all = append(all, m)
				waiting.Add(1)
				wg.Go(func() {
					defer waiting.Add(-1)
					err := wait(ctx, m)
					switch {
					case err == nil:
						if v := m.word.Load(); v&^flags != token || v&flagInconsistent != 0 {
							t.Errorf("%s of %#x: granted, and the word is %#x (seed %d)", name, w, v, seed)
						}
					case errors.Is(err, ErrInconsistent):
						if !m.Inconsistent() {
							t.Errorf("%s of %#x: %v, and the word is %#x (seed %d)", name, w, err, m.word.Load(), seed)
						}
					case errors.Is(err, errTimeout), errors.Is(err, context.DeadlineExceeded), errors.Is(err, errReleased), errors.Is(err, ErrNotInconsistent):
					default:
						t.Errorf("%s of %#x: %v (seed %d)", name, w, err, seed)
					}
				})
			}
		}
	}
	<-ctx.Done()
	time.Sleep(randomLimit)
	took, ran := time.Since(begin), processorTime()-before
	eventually(t, "all but those without a limit have ended", func() bool { return waiting.Load() <= 3*int64(len(holders)) })
	stuck := waiting.Load()
	for _, m := range all {
		switch m.word.Load() &^ flags {
		case 0:
		case token:
			m.Unlock()
		default:
			m.word.Store(0) // held by the living, or by strangers
		}
	}
	wg.Wait()
	t.Logf("%d words; %d calls waited on without a limit; %v of processor time in %v", len(all), stuck, ran, took)
	if stuck == 0 {
		t.Error("nobody had to wait for the living")
	}
	if ran > took/3 {
		t.Errorf("%v of processor time in %v: somebody spins (seed %d)", ran, took, seed)
	}
}

// Unlock of a word that is not ours changes nothing.
func TestUnlockOfRandomBitsIsMisuse(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		m := new(Mutex)
		w := random.Uint64()
		m.word.Store(w)
		func() {
			defer func() {
				if err, _ := recover().(error); !errors.Is(err, ErrMisuse) || m.word.Load() != w {
					t.Errorf("unlock of %#x: %v, and the word is %#x", w, err, m.word.Load())
				}
			}()
			m.Unlock()
		}()
	}
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
