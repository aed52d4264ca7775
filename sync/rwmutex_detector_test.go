//go:build race

package sync_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// What the race detector makes of heap data beside locks for readers and writers.

// A desk is what the goroutines of a program share beside the heap.
type desk struct {
	rw, other shmsync.RWMutex
	step      atomic.Int64
}

// inTurnToWrite and inTurnToRead are the ways to take a lock, use heap data, and release the lock.
var inTurnToWrite = map[string]func(rw *shmsync.RWMutex, use func()){
	"Lock":    func(rw *shmsync.RWMutex, use func()) { rw.Lock(); use(); rw.Unlock() },
	"TryLock": func(rw *shmsync.RWMutex, use func()) { spinFor(rw.TryLock); use(); rw.Unlock() },
	"LockTimeout": func(rw *shmsync.RWMutex, use func()) {
		spinFor(func() bool { return rw.LockTimeout(100 * time.Microsecond) })
		use()
		rw.Unlock()
	},
	"LockContext": func(rw *shmsync.RWMutex, use func()) {
		spinFor(func() bool { return rw.LockContext(after(100*time.Microsecond)) == nil })
		use()
		rw.Unlock()
	},
	"Do": func(rw *shmsync.RWMutex, use func()) {
		rw.Do(context.Background(), func() error { use(); return nil })
	},
	"a panic in Do, and Recover": func(rw *shmsync.RWMutex, use func()) {
		func() {
			defer func() { recover() }()
			rw.Do(context.Background(), func() error { use(); panic("halfway") })
		}()
		rw.Recover(context.Background(), func(shm.Death) error { use(); return nil })
	},
}

var inTurnToRead = map[string]func(rw *shmsync.RWMutex, use func()){
	"RLock":    func(rw *shmsync.RWMutex, use func()) { rw.RLock(); use(); rw.RUnlock() },
	"TryRLock": func(rw *shmsync.RWMutex, use func()) { spinFor(rw.TryRLock); use(); rw.RUnlock() },
	"RLockTimeout": func(rw *shmsync.RWMutex, use func()) {
		spinFor(func() bool { return rw.RLockTimeout(100 * time.Microsecond) })
		use()
		rw.RUnlock()
	},
	"RLockContext": func(rw *shmsync.RWMutex, use func()) {
		spinFor(func() bool { return rw.RLockContext(after(100*time.Microsecond)) == nil })
		use()
		rw.RUnlock()
	},
	"RDo": func(rw *shmsync.RWMutex, use func()) {
		spinFor(func() bool {
			return rw.RDo(context.Background(), func() error { use(); return nil }) == nil
		})
	},
	"RLocker": func(rw *shmsync.RWMutex, use func()) { rw.RLocker().Lock(); use(); rw.RLocker().Unlock() },
}

// spinFor tries until it is granted.
func spinFor(try func() bool) {
	for !try() {
		time.Sleep(time.Microsecond)
	}
}

var deskPrograms = map[string]func(d *desk){
	"data beside a lock": func(d *desk) {
		guarded, beside := 0, 0
		together(2, func(int) {
			for range detectorRounds {
				d.rw.Lock()
				guarded++
				d.rw.Unlock()
				beside++
			}
		})
	},
	"data changed by readers": func(d *desk) {
		data := 0
		together(2, func(int) {
			for range detectorRounds {
				d.rw.RLock()
				data++
				d.rw.RUnlock()
			}
		})
	},
	"data changed by readers in turn": func(d *desk) { // readers are not ordered by what counts them
		data := 0
		d.rw.RLock()
		d.rw.RUnlock()
		together(2, func(i int) {
			await(&d.step, int64(i))
			d.rw.RLock()
			data++
			d.rw.RUnlock()
			d.step.Store(int64(i + 1))
			await(&d.step, 2)
		})
	},
	"data changed by a writer and read by a reader of another lock": func(d *desk) {
		data := 0
		together(2, func(i int) {
			await(&d.step, int64(i))
			if i == 0 {
				d.rw.Lock()
				data++
				d.rw.Unlock()
			} else {
				d.other.RLock()
				data++
				d.other.RUnlock()
			}
			d.step.Store(int64(i + 1))
			await(&d.step, 2)
		})
	},
	"data after a try that was refused": func(d *desk) {
		data := 0
		together(2, func(i int) {
			if i == 0 {
				d.rw.Lock()
				data++
				d.step.Store(1)
				await(&d.step, 2)
				d.rw.Unlock()
				return
			}
			await(&d.step, 1)
			if d.rw.TryRLock() || d.rw.RLockTimeout(time.Millisecond) || d.rw.TryLock() {
				panic("granted while it is held")
			}
			data++
			d.step.Store(2)
		})
	},
	"correct: all at once": func(d *desk) {
		n := 0
		shm.OnOwnerDied(func(shm.Death) error { n++; return nil })
		var wg stdsync.WaitGroup
		for _, write := range inTurnToWrite {
			wg.Go(func() {
				for range detectorRounds {
					write(&d.rw, func() { n++ })
				}
			})
		}
		var sum atomic.Int64
		for _, read := range inTurnToRead {
			wg.Go(func() {
				for range detectorRounds {
					read(&d.rw, func() { sum.Add(int64(n)) })
				}
			})
		}
		wg.Wait()
		n++
	},
}

func init() {
	reads := slices.Sorted(maps.Keys(inTurnToRead))
	for i, w := range slices.Sorted(maps.Keys(inTurnToWrite)) {
		r := reads[i%len(reads)]
		write, read := inTurnToWrite[w], inTurnToRead[r]
		deskPrograms["correct: "+w+" and "+r] = func(d *desk) {
			shm.OnOwnerDied(func(shm.Death) error { return nil })
			data, n := map[string]int{}, 0
			together(4, func(i int) {
				for range detectorRounds / 3 {
					if i%2 == 0 {
						write(&d.rw, func() { data["n"]++; n++ })
					} else {
						read(&d.rw, func() {
							if data["n"] != n {
								panic(fmt.Sprint(data, n))
							}
						})
					}
				}
			})
		}
	}
}

// A performance is a program, and where the lock lies that it uses.
type performance struct {
	Name string
	Heap bool
}

var runDeskProgram = proc.Define("run a program at a desk", func(_ context.Context, p performance) error {
	d := new(desk)
	if !p.Heap {
		r, err := shm.Anonymous(shm.Limit(1 << 20))
		if err != nil {
			return err
		}
		if d, err = shm.At[desk](r, r.Data()); err != nil {
			return err
		}
	}
	deskPrograms[p.Name](d)
	return nil
})

func TestRaceDetectorReportsRacesBesideRWMutexesAndNoOthers(t *testing.T) {
	for name := range deskPrograms {
		for _, heap := range []bool{false, true} {
			if heap && !strings.HasPrefix(name, "correct") {
				continue // await orders them there
			}
			t.Run(fmt.Sprintf("%s/heap=%v", name, heap), func(t *testing.T) {
				var stderr bytes.Buffer
				p, err := runDeskProgram.Start(context.Background(), performance{name, heap}, proc.Stderr(&stderr), proc.Env("GORACE=atexit_sleep_ms=0 exitcode=66"))
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
}
