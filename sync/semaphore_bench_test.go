package sync_test

import (
	"context"
	"testing"

	shmsync "github.com/shmkit/shmkit/sync"
)

// What does a permit cost that nobody else wants? A Mutex in the same run is the measure.
func BenchmarkUncontendedPermits(b *testing.B) {
	_, d := newDepot(b)
	_, a := newArena(b)
	ctx := context.Background()
	b.Run("lock=mutex", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			a.mu.Lock()
			a.mu.Unlock()
		}
	})
	b.Run("lock=semaphore", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			d.sem.Acquire(ctx, 1)
			d.sem.Release(1)
		}
	})
	b.Run("lock=semaphore/outside", func(b *testing.B) {
		var s shmsync.Semaphore
		b.ReportAllocs()
		for b.Loop() {
			s.Acquire(ctx, 1)
			s.Release(1)
		}
	})
	b.Run("lock=counting", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			d.ping.Acquire(ctx)
			d.ping.Release(1)
		}
	})
	b.Run("group", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			d.group.Add(1)
			d.group.Done()
		}
	})
}
