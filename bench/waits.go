package bench

import (
	"math"
	"math/bits"
	"time"
)

// Waits is a histogram of durations. Bucket i counts those from 2^(i/4) ns to less than 2^((i+1)/4):
// a quantile is right within 19 %. It is plain data, for shared memory; one goroutine at a time.
type Waits [4 * 63]uint64

// Add counts one duration.
func (w *Waits) Add(d time.Duration) { w[bucket(max(d, 1))]++ }

// bucket returns the bucket of d, which is positive: four times its base-2 logarithm, rounded down.
func bucket(d time.Duration) int {
	n := bits.Len64(uint64(d)) - 1
	i := 4 * n
	switch mantissa := uint64(d) << (63 - n); { // 2^63 times a number from 1 to less than 2
	case mantissa >= 15511800964685064949: // 2^0.75
		i += 3
	case mantissa >= 13043817825332782213: // 2^0.5
		i += 2
	case mantissa >= 10968499650544839024: // 2^0.25
		i++
	}
	return i
}

// Merge adds the counts of another histogram.
func (w *Waits) Merge(other *Waits) {
	for i, n := range other {
		w[i] += n
	}
}

// Count returns how many durations were counted.
func (w *Waits) Count() (n uint64) {
	for _, k := range w {
		n += k
	}
	return n
}

// Quantile returns the upper end of the bucket in which the q'th part of the durations ends, 0 < q <= 1.
// It is 0 if none were counted.
func (w *Waits) Quantile(q float64) time.Duration {
	rest := int64(math.Ceil(q * float64(w.Count())))
	if rest == 0 {
		return 0
	}
	for i, n := range w {
		if rest -= int64(n); rest <= 0 {
			return time.Duration(math.Exp2(float64(i+1) / 4))
		}
	}
	return math.MaxInt64
}

// curve returns how many of the durations, as a part of all, are shorter than the upper end of each bucket that
// has some, in ns.
func (w *Waits) curve() (points [][2]float64) {
	all, n := float64(w.Count()), uint64(0)
	for i, k := range w {
		if n += k; k > 0 {
			points = append(points, [2]float64{math.Exp2(float64(i+1) / 4), float64(n) / all})
		}
	}
	return points
}
