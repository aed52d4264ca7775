package bench_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/shmkit/shmkit/bench"
	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

func TestMain(m *testing.M) {
	proc.Main()
	os.Exit(m.Run())
}

// What does a lock cost that nobody else wants? sync.Mutex, which works in one process only, is the
// measure; flock is what processes lock with otherwise.
func BenchmarkUncontended(b *testing.B) {
	b.Run("lock=shmkit", func(b *testing.B) {
		r, err := shm.Anonymous(shm.Limit(1 << 20))
		if err != nil {
			b.Fatal(err)
		}
		defer r.Close()
		mu, err := shm.At[shmsync.Mutex](r, r.Data())
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			mu.Lock()
			mu.Unlock()
		}
	})
	b.Run("lock=sync.Mutex", func(b *testing.B) {
		mu := new(sync.Mutex)
		b.ReportAllocs()
		for b.Loop() {
			mu.Lock()
			mu.Unlock()
		}
	})
	b.Run("lock=flock", func(b *testing.B) {
		l, err := bench.NewFileLock()
		if err != nil {
			b.Skip("flock: ", err)
		}
		defer l.Close()
		b.ReportAllocs()
		for b.Loop() {
			if err := l.Lock(); err != nil {
				b.Fatal(err)
			}
			if err := l.Unlock(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// How often can processes take one lock between them, how evenly, and how long does one wait at worst?
func BenchmarkContended(b *testing.B) {
	for _, procs := range []int{1, 2, 4, 8} {
		b.Run(fmt.Sprintf("lock=shmkit/procs=%d", procs), func(b *testing.B) {
			b.StopTimer()
			c, err := bench.Contend(b.Context(), procs, int64(b.N), func() {
				b.ResetTimer()
				b.StartTimer()
			})
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			b.ReportMetric(float64(c.Elapsed)/float64(b.N), "ns/op") // without the processes' ends
			b.ReportMetric(float64(b.N)/c.Elapsed.Seconds(), "ops/s")
			b.ReportMetric(c.Jain(), "fairness")
			b.ReportMetric(c.Longest.Seconds()*1e3, "ms-longest-wait")
		})
	}
}

func TestContendCountsEveryRound(t *testing.T) {
	const rounds = 20_000
	c, err := bench.Contend(context.Background(), 3, rounds, func() {})
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, n := range c.Shares {
		total += n
	}
	if total != rounds || c.Elapsed <= 0 || c.Longest <= 0 || c.Longest > c.Elapsed+time.Millisecond {
		t.Errorf("%d rounds of %d in %v, longest wait %v", total, rounds, c.Elapsed, c.Longest)
	}
}

func TestContendRefusesWhatItCannotRun(t *testing.T) {
	for _, procs := range []int{-1, 0, 65} {
		if _, err := bench.Contend(context.Background(), procs, 1, func() {}); err == nil {
			t.Errorf("%d processes ran", procs)
		}
	}
}

func TestJainIsOneForEvenSharesAndOneOverNForAllToOne(t *testing.T) {
	for _, c := range []struct {
		shares []int64
		want   float64
	}{
		{[]int64{5, 5, 5, 5}, 1},
		{[]int64{20, 0, 0, 0}, 0.25},
		{[]int64{3, 1}, 0.8},
		{[]int64{0, 0}, 0},
	} {
		r := bench.Contention{Shares: c.shares}
		if got := r.Jain(); math.Abs(got-c.want) > 1e-12 {
			t.Errorf("Jain of %v = %v, want %v", c.shares, got, c.want)
		}
	}
}
