package bench

import (
	"sync"
	"time"
)

// spin computes for n rounds of a loop whose steps wait for each other and touch no memory. The
// result keeps the compiler from dropping it.
//
//go:noinline
func spin(n int) uint64 {
	x := uint64(n) | 1
	for range n {
		x = x*6364136223846793005 + 1442695040888963407
	}
	return x
}

// rate is how many rounds of spin a nanosecond has, on this processor: the best of several tries,
// since whatever else runs makes it look slower.
var rate = sync.OnceValue(func() float64 {
	const rounds = 20_000 // some 30 µs
	best := 0.0
	for range 30 {
		begin := time.Now()
		spin(rounds)
		best = max(best, rounds/float64(max(time.Since(begin), 1)))
	}
	return best
})

// work returns how many rounds of spin take about d.
func work(d time.Duration) int { return int(float64(d)*rate() + 0.5) }
