package sync_test

import (
	"context"
	"fmt"
	stdsync "sync"
	"testing"

	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// What reading costs where nobody writes, beside the standard lock; outside of regions all goroutines count
// in one word, as there.
func BenchmarkRWMutexRead(b *testing.B) {
	r, _ := newArena(b)
	for _, lock := range []struct {
		name string
		rw   interface {
			RLock()
			RUnlock()
		}
	}{{"standard", new(stdsync.RWMutex)}, {"region", &libraryIn(r).rw}, {"heap", new(shmsync.RWMutex)}} {
		b.Run("lock="+lock.name, func(b *testing.B) {
			switch rw := lock.rw.(type) { // so that the calls are those of a user's program
			case *stdsync.RWMutex:
				for b.Loop() {
					rw.RLock()
					rw.RUnlock()
				}
			case *shmsync.RWMutex:
				for b.Loop() {
					rw.RLock()
					rw.RUnlock()
				}
			}
		})
	}
}

var readOnce = proc.Define("read once", func(_ context.Context, o order) error {
	l := libraryIn(o.Region)
	l.rw.RLock()
	l.rw.RUnlock()
	l.ready.Add(1)
	await(&l.step, 1)
	return nil
})

// What writing costs by the number of processes that have ever read.
func BenchmarkRWMutexWrite(b *testing.B) {
	b.Run("lock=standard", func(b *testing.B) {
		var rw stdsync.RWMutex
		for b.Loop() {
			rw.Lock()
			rw.Unlock()
		}
	})
	for _, readers := range []int{0, 1, 4} {
		b.Run(fmt.Sprintf("lock=region/readers=%d", readers), func(b *testing.B) {
			r, _ := newArena(b)
			l := libraryIn(r)
			var ps []*proc.Process
			for i := range readers {
				ps = append(ps, start(b, readOnce, r, i, 0))
			}
			until(b, "all have read", func() bool { return l.ready.Load() == int64(readers) })
			for b.Loop() {
				l.rw.Lock()
				l.rw.Unlock()
			}
			l.step.Store(1)
			wait(b, ps...)
		})
	}
}
