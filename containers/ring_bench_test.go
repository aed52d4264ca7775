package containers

import "testing"

// What does a message cost alone: no line moves between processors.
func BenchmarkRing(b *testing.B) {
	p, c := endsOf(b, ringForTest[int64](b, newManager(b), 1024))
	ctx := b.Context()
	b.Run("batch=1", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			p.Put(ctx, int64(i))
			c.Get(ctx)
		}
	})
	b.Run("batch=64", func(b *testing.B) {
		var vs [64]int64
		b.ReportAllocs()
		for n := 0; n < b.N; n += len(vs) {
			p.PutN(ctx, vs[:]...)
			c.GetN(ctx, vs[:])
		}
	})
	b.Run("between", func(b *testing.B) {
		go func() {
			for range b.N {
				p.Put(ctx, 1)
			}
		}()
		for range b.N {
			c.Get(ctx)
		}
	})
}
