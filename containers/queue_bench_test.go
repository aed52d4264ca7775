package containers

import (
	"context"
	"fmt"
	stdsync "sync"
	"testing"
)

// What does a message cost beside one of a Go channel: alone, and between goroutines?
func BenchmarkQueue(b *testing.B) {
	ctx := context.Background()
	b.Run("pair=1/with=queue", func(b *testing.B) {
		q := queueForTest[int64](b, newManager(b), 1024)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			q.Put(ctx, int64(i))
			q.Get(ctx)
		}
	})
	b.Run("pair=1/with=channel", func(b *testing.B) {
		c := make(chan int64, 1024)
		for i := 0; b.Loop(); i++ {
			c <- int64(i)
			<-c
		}
	})
	b.Run("batch=64/with=queue", func(b *testing.B) {
		q := queueForTest[int64](b, newManager(b), 1024)
		var vs [64]int64
		b.ReportAllocs()
		for n := 0; n < b.N; n += len(vs) {
			q.PutN(ctx, vs[:]...)
			q.GetN(ctx, vs[:])
		}
	})
	for _, k := range []int{1, 2} {
		between := func(b *testing.B, put func(), get func()) {
			var all stdsync.WaitGroup
			for range k {
				all.Go(func() {
					for range b.N / k {
						put()
					}
				})
				all.Go(func() {
					for range b.N / k {
						get()
					}
				})
			}
			all.Wait()
		}
		b.Run(fmt.Sprintf("between=%d/with=queue", k), func(b *testing.B) {
			q := queueForTest[int64](b, newManager(b), 1024)
			between(b, func() { q.Put(ctx, 1) }, func() { q.Get(ctx) })
		})
		b.Run(fmt.Sprintf("between=%d/with=channel", k), func(b *testing.B) {
			c := make(chan int64, 1024)
			between(b, func() { c <- 1 }, func() { <-c })
		})
	}
}
