package shm_test

import (
	"testing"

	"github.com/shmkit/shmkit/shm"
)

// What do the calls cost that programs make now and then?
func BenchmarkRegion(b *testing.B) {
	dir := named(b)
	check := func(b *testing.B, err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	b.Run("op=create+remove", func(b *testing.B) {
		for b.Loop() {
			r, err := shm.Create("a", dir)
			check(b, err)
			check(b, shm.Remove("a", dir))
			check(b, r.Close())
		}
	})
	b.Run("op=anonymous+close", func(b *testing.B) {
		for b.Loop() {
			r, err := shm.Anonymous()
			check(b, err)
			check(b, r.Close())
		}
	})
	r, err := shm.Create("r", dir)
	check(b, err)
	check(b, r.Close())
	b.Run("op=open+close", func(b *testing.B) { // takes its slot back
		for b.Loop() {
			r, err := shm.Open("r", dir)
			check(b, err)
			check(b, r.Close())
		}
	})
	r, err = shm.Open("r", dir)
	check(b, err)
	b.Run("op=second-handle", func(b *testing.B) {
		for b.Loop() {
			again, err := shm.Open("r", dir)
			check(b, err)
			check(b, again.Close())
		}
	})
	b.Run("op=grow-by-64KiB", func(b *testing.B) {
		for b.Loop() {
			if r.Size() > 1<<30 {
				b.StopTimer()
				check(b, shm.Remove("r", dir))
				check(b, r.Close())
				r, err = shm.Create("r", dir)
				check(b, err)
				b.StartTimer()
			}
			check(b, r.Grow(r.Size()+64<<10))
		}
	})
	b.Run("op=exclusive", func(b *testing.B) {
		for b.Loop() {
			check(b, r.Exclusive(func() error { return nil }))
		}
	})
	b.Run("op=sweep", func(b *testing.B) {
		for b.Loop() {
			shm.Sweep(r)
		}
	})
	b.Run("op=at", func(b *testing.B) {
		for b.Loop() {
			if _, err := shm.At[uint64](r, r.Data()+64); err != nil {
				b.Fatal(err)
			}
		}
	})
	check(b, r.Close())
}
