//go:build race

package sync_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// What the race detector makes of heap data beside locks in mapped memory. Each program runs in a process
// of its own, which ends with 66 if the detector has reported something.

// inTurn are the ways to take a lock, use heap data, and release the lock.
var inTurn = map[string]func(m *shmsync.Mutex, use func()){
	"Lock": func(m *shmsync.Mutex, use func()) { m.Lock(); use(); m.Unlock() },
	"TryLock": func(m *shmsync.Mutex, use func()) {
		for !m.TryLock() {
			runtime.Gosched()
		}
		use()
		m.Unlock()
	},
	"TryLockIdle": func(m *shmsync.Mutex, use func()) {
		for !m.TryLockIdle() {
			runtime.Gosched()
		}
		use()
		m.Unlock()
	},
	"LockTimeout": func(m *shmsync.Mutex, use func()) {
		for !m.LockTimeout(100 * time.Microsecond) {
		}
		use()
		m.Unlock()
	},
	"LockContext": func(m *shmsync.Mutex, use func()) {
		for {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Microsecond)
			err := m.LockContext(ctx)
			cancel()
			if err == nil {
				break
			}
			m.Recover(context.Background(), func(shm.Death) error { return nil })
		}
		use()
		m.Unlock()
	},
	"LockRepaired": func(m *shmsync.Mutex, use func()) {
		m.LockRepaired(context.Background(), func(shm.Death) error { use(); return nil })
		use()
		m.Unlock()
	},
	"Do": func(m *shmsync.Mutex, use func()) {
		m.Do(context.Background(), func() error { use(); return nil })
	},
	"a panic in Do, and Recover": func(m *shmsync.Mutex, use func()) {
		func() {
			defer func() { recover() }()
			m.Do(context.Background(), func() error { use(); panic("halfway") })
		}()
		m.Recover(context.Background(), func(shm.Death) error { use(); return nil })
	},
	"the handler": func(m *shmsync.Mutex, use func()) {
		func() {
			defer func() { recover() }()
			m.Do(context.Background(), func() error { use(); panic("halfway") })
		}()
		m.Lock()
		use()
		m.Unlock()
	},
}

// together runs f in goroutines that all live until the last is done.
func together(n int, f func(i int)) {
	var wg stdsync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

const detectorRounds = 300

// A bench is what the goroutines of a program share beside the heap: mapped memory, where the detector sees
// neither data nor what is ordered by atomics.
type bench struct {
	m, other shmsync.Mutex
	step     atomic.Int64
}

var programs = map[string]func(b *bench){
	"data beside a lock": func(b *bench) {
		guarded, beside := 0, 0
		together(2, func(int) {
			for range detectorRounds {
				b.m.Lock()
				guarded++
				b.m.Unlock()
				beside++
			}
		})
	},
	"data under two locks": func(b *bench) { // one after the other: a shadow for both would order them
		data := 0
		together(2, func(i int) {
			l := &b.m
			if i == 1 {
				l = &b.other
			}
			await(&b.step, int64(i))
			l.Lock()
			data++
			l.Unlock()
			b.step.Store(int64(i + 1))
			await(&b.step, 2)
		})
	},
	"data after a try that was refused":  afterARefusal((*shmsync.Mutex).TryLock),
	"data after a wait that was refused": afterARefusal(func(m *shmsync.Mutex) bool { return m.LockTimeout(time.Millisecond) }),
	"data after a context that ended": afterARefusal(func(m *shmsync.Mutex) bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		return m.LockContext(ctx) == nil
	}),
}

// afterARefusal uses data without the lock while another goroutine holds it.
func afterARefusal(lock func(m *shmsync.Mutex) bool) func(b *bench) {
	return func(b *bench) {
		data := 0
		together(2, func(i int) {
			if i == 0 {
				b.m.Lock()
				data++
				b.step.Store(1)
				await(&b.step, 2)
				b.m.Unlock()
				return
			}
			await(&b.step, 1)
			if lock(&b.m) {
				panic("granted while it is held")
			}
			data++
			b.step.Store(2)
		})
	}
}

func init() {
	for name, lock := range inTurn {
		programs["correct: "+name] = func(b *bench) {
			shm.OnOwnerDied(func(shm.Death) error { return nil })
			data, used := map[string]int{}, 0
			together(4, func(int) {
				for range detectorRounds {
					lock(&b.m, func() { data["used"]++; used++ })
				}
			})
			b.m.Lock()
			defer b.m.Unlock()
			if data["used"] != used || used < detectorRounds {
				panic(fmt.Sprint(data, used))
			}
		}
	}
	programs["correct: all at once"] = func(b *bench) {
		n := 0
		shm.OnOwnerDied(func(shm.Death) error { n++; return nil })
		var wg stdsync.WaitGroup
		for _, lock := range inTurn {
			wg.Go(func() {
				for range detectorRounds {
					lock(&b.m, func() { n++ })
				}
			})
		}
		wg.Wait()
		n++
	}
}

var runProgram = proc.Define("run a program", func(_ context.Context, name string) error {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		return err
	}
	b, err := shm.At[bench](r, r.Data())
	if err != nil {
		return err
	}
	programs[name](b)
	return nil
})

func TestRaceDetectorReportsRacesBesideMutexesAndNoOthers(t *testing.T) {
	for name := range programs {
		t.Run(name, func(t *testing.T) {
			var stderr bytes.Buffer
			p, err := runProgram.Start(context.Background(), name, proc.Stderr(&stderr), proc.Env("GORACE=atexit_sleep_ms=0 exitcode=66"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				p.Kill()
				<-p.Done()
			})
			err = p.Wait()
			if strings.HasPrefix(name, "correct") {
				if err != nil {
					t.Errorf("%v\n%s", err, stderr.String())
				}
				return
			}
			var exit *proc.ExitError
			if !errors.As(err, &exit) || exit.Code != 66 || !strings.Contains(stderr.String(), "DATA RACE") {
				t.Errorf("%v, want the exit code 66 and a report\n%s", err, stderr.String())
			}
		})
	}
}
