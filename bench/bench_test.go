package bench_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/bench"
	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

func TestMain(m *testing.M) {
	bench.Main()
	os.Exit(m.Run())
}

// startTimer is called by a case when its gate opens: what came before is not measured.
func startTimer(b *testing.B) func() {
	b.StopTimer()
	return func() {
		b.ResetTimer()
		b.StartTimer()
	}
}

// must ends the benchmark with an error, and skips it where the system lacks something.
func must[T any](b *testing.B) func(T, error) T {
	return func(res T, err error) T {
		b.Helper()
		b.StopTimer()
		if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, bench.ErrNotTraced) {
			b.Skip(err)
		}
		if err != nil {
			b.Fatal(err)
		}
		return res
	}
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }
func us(d time.Duration) float64 { return d.Seconds() * 1e6 }

// What does a lock cost that nobody else wants? sync.Mutex, which works in one process only, is the
// measure; the futex is the floor across processes; flock is what processes lock with otherwise.
func BenchmarkUncontended(b *testing.B) {
	b.Run("lock=shmkit", func(b *testing.B) {
		mu := inRegion[shmsync.Mutex](b)
		b.ReportAllocs()
		for b.Loop() {
			mu.Lock()
			mu.Unlock()
		}
	})
	b.Run("lock=futex", func(b *testing.B) {
		mu := must[bench.FutexLock](b)(bench.NewFutexLock(inRegion[futexWord](b)))
		b.StartTimer()
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

type futexWord = atomic.Uint32

// inRegion returns a T in a region that lasts as long as the benchmark.
func inRegion[T any](b *testing.B) *T {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	t, err := shm.At[T](r, r.Data())
	if err != nil {
		b.Fatal(err)
	}
	return t
}

// sections are the work of those who contend: none; all of it with the lock held, so that a lock does
// best that keeps to one processor; as much without it, so that two processors could do more than one.
var sections = []struct{ inside, outside time.Duration }{
	{0, 0},
	{200 * time.Nanosecond, 0},
	{200 * time.Nanosecond, 200 * time.Nanosecond},
}

// report says what a contention found.
//
//	ops/s       times that the lock was taken, by all together
//	fairness    Jain's index of the shares: 1 when they are even, 1/n when one of n has all
//	ms-longest  longest time that one of them was not served, the time in which it did not run included
//	µs-p99.9    999 of 1000 waits were shorter, within 19 %
//	cpu-s/Mop   processor time for a million times taking the lock, the work included
func report(b *testing.B, res *bench.ContentionResult) {
	b.ReportMetric(float64(res.Elapsed)/float64(max(res.Taken, 1)), "ns/op") // without the processes' ends
	b.ReportMetric(float64(res.Taken)/res.Elapsed.Seconds(), "ops/s")
	b.ReportMetric(res.Even, "fairness")
	b.ReportMetric(ms(res.Longest), "ms-longest")
	b.ReportMetric(us(res.Waits.Quantile(0.999)), "µs-p99.9")
	if res.CPU >= 0 {
		b.ReportMetric(res.CPU.Seconds()/float64(res.Total)*1e6, "cpu-s/Mop")
	}
}

// How often can processes take one lock between them, b.N times in all, how evenly, how long does one
// wait, and what does it cost? procs=1 is one process alone. With lock=sync.Mutex, procs counts
// goroutines of one process: the peer of those who need no second process.
func BenchmarkContended(b *testing.B) {
	for _, s := range sections {
		for _, procs := range []int{1, 2, 4, 8, 16} {
			for _, lock := range bench.Locks {
				b.Run(fmt.Sprintf("inside=%v/outside=%v/procs=%d/lock=%s", s.inside, s.outside, procs, lock), func(b *testing.B) {
					c := bench.Contention{Lock: lock, Procs: procs, Goroutines: 1, Inside: s.inside, Outside: s.outside, Rounds: int64(b.N)}
					if lock == bench.Standard {
						c.Procs, c.Goroutines = 1, procs
					}
					report(b, must[*bench.ContentionResult](b)(c.Run(b.Context(), startTimer(b))))
				})
			}
		}
	}
}

// The same for goroutines of one process: what does a lock for processes cost those who do not need
// one?
func BenchmarkGoroutines(b *testing.B) {
	for _, s := range sections {
		for _, goroutines := range []int{2, 4, 8} {
			for _, lock := range []string{bench.Shmkit, bench.Standard} {
				b.Run(fmt.Sprintf("inside=%v/outside=%v/goroutines=%d/lock=%s", s.inside, s.outside, goroutines, lock), func(b *testing.B) {
					c := bench.Contention{Lock: lock, Procs: 1, Goroutines: goroutines, Inside: s.inside, Outside: s.outside, Rounds: int64(b.N)}
					report(b, must[*bench.ContentionResult](b)(c.Run(b.Context(), startTimer(b))))
				})
			}
		}
	}
}

// What do eight processes get in a second of the clock? A round of this benchmark is a second (and a
// tenth before it, which does not count), whatever b.N; fairness is that of the least even second.
func BenchmarkSecond(b *testing.B) {
	for _, s := range sections {
		for _, lock := range []string{bench.Shmkit, bench.Futex} {
			b.Run(fmt.Sprintf("inside=%v/outside=%v/procs=8/lock=%s", s.inside, s.outside, lock), func(b *testing.B) {
				c := bench.Contention{Lock: lock, Procs: 8, Goroutines: 1, Inside: s.inside, Outside: s.outside, Windows: b.N, Window: time.Second}
				report(b, must[*bench.ContentionResult](b)(c.Run(b.Context(), startTimer(b))))
			})
		}
	}
}

// How long does a process wait that wants the lock once in 10 ms, when eight goroutines of another
// process hammer it? Each of the b.N rounds is one wait.
func BenchmarkSleeper(b *testing.B) {
	for _, inside := range []time.Duration{0, 200 * time.Nanosecond} {
		for _, lock := range bench.Locks {
			b.Run(fmt.Sprintf("inside=%v/goroutines=8/lock=%s", inside, lock), func(b *testing.B) {
				c := bench.Sleeper{Lock: lock, Goroutines: 8, Inside: inside, Pause: 10 * time.Millisecond, Rounds: b.N}
				res := must[*bench.SleeperResult](b)(c.Run(b.Context(), startTimer(b)))
				b.ReportMetric(us(min(res.Waits.Quantile(0.5), res.Longest)), "µs-median")
				b.ReportMetric(us(min(res.Waits.Quantile(0.99), res.Longest)), "µs-p99")
				b.ReportMetric(us(res.Longest), "µs-longest")
			})
		}
	}
}

// How long are the others held up when the holder of a lock is killed? Each of the b.N rounds is one
// kill: -benchtime 100x kills a hundred. first is from the call of kill until one of the waiters has
// the lock, last until all have had it; waited is how long they had waited when the kill came: from
// waited=0 to half a millisecond longer, from waited=100ms to a tenth of a second longer. The floor is
// the kernel: how long the dead process' byte lock is taken.
func BenchmarkKill(b *testing.B) {
	b.Run("lock=byte", func(b *testing.B) {
		took := must[[]time.Duration](b)(bench.KillFloor(b.Context(), b.N))
		b.ReportMetric(us(quantile(took, 0.5)), "µs-first-median")
		b.ReportMetric(us(quantile(took, 0.99)), "µs-first-p99")
	})
	for _, w := range []struct{ least, spread time.Duration }{
		{0, 500 * time.Microsecond},
		{100 * time.Millisecond, 100 * time.Millisecond},
	} {
		for _, waiters := range []int{1, 4} {
			b.Run(fmt.Sprintf("lock=shmkit/waited=%v/waiters=%d", w.least, waiters), func(b *testing.B) {
				c := bench.Kills{Waiters: waiters, Waited: w.least, Spread: w.spread, Rounds: b.N}
				res := must[*bench.KillsResult](b)(c.Run(b.Context(), startTimer(b)))
				b.ReportMetric(us(quantile(res.First, 0.5)), "µs-first-median")
				b.ReportMetric(us(quantile(res.First, 0.99)), "µs-first-p99")
				b.ReportMetric(us(quantile(res.Last, 0.5)), "µs-last-median")
				b.ReportMetric(us(quantile(res.Waited, 0.5)), "µs-waited-median")
			})
		}
	}
}

// quantile returns the smallest duration that is not less than the q'th part of all.
func quantile(ds []time.Duration, q float64) time.Duration {
	ds = slices.Sorted(slices.Values(ds))
	return ds[min(int(q*float64(len(ds))), len(ds)-1)]
}

// How many threads does it cost when goroutines wait for locks that another process holds? A round is
// the whole experiment, which takes half a second; threads is how many more the process has while all
// wait, threads-peak when all have had their lock. A lock that only knows the futex costs a thread for
// each goroutine, so there are fewer of them.
func BenchmarkCrowd(b *testing.B) {
	for _, c := range []bench.Crowd{
		{Lock: bench.Shmkit, Goroutines: 10_000, Locks: 1},
		{Lock: bench.Shmkit, Goroutines: 10_000, Locks: 1000},
		{Lock: bench.Futex, Goroutines: 500, Locks: 1},
	} {
		b.Run(fmt.Sprintf("goroutines=%d/locks=%d/lock=%s", c.Goroutines, c.Locks, c.Lock), func(b *testing.B) {
			c.Hold = 300 * time.Millisecond
			var threads, peak int
			var drain time.Duration
			for b.Loop() {
				res, err := c.Run(b.Context(), func() {})
				if errors.Is(err, errors.ErrUnsupported) {
					b.Skip(err)
				}
				if err != nil {
					b.Fatal(err)
				}
				threads, peak, drain = max(threads, res.Threads), max(peak, res.Peak), max(drain, res.Drain)
			}
			b.ReportMetric(float64(threads), "threads")
			b.ReportMetric(float64(peak), "threads-peak")
			b.ReportMetric(ms(drain), "ms-drain")
		})
	}
}

// What does it cost to hand a lock to one who waits for it, in the same process and in another one?
// ns/op is a step of one of the two parties, its dwelling included. passed is from just before the
// release until the other party has the lock: with a dwell of 100 µs, when the other one has long gone
// to sleep, that is the cost of waking it.
func BenchmarkHandoff(b *testing.B) {
	for _, dwell := range []time.Duration{0, 100 * time.Microsecond} {
		for _, c := range []bench.Handoffs{
			{Procs: 1, Lock: bench.Shmkit},
			{Procs: 1, Lock: bench.Futex},
			{Procs: 1, Lock: bench.Standard},
			{Procs: 2, Lock: bench.Shmkit},
			{Procs: 2, Lock: bench.Futex},
		} {
			b.Run(fmt.Sprintf("dwell=%v/procs=%d/lock=%s", dwell, c.Procs, c.Lock), func(b *testing.B) {
				c.Dwell, c.Rounds = dwell, int64(b.N)
				res := must[*bench.HandoffsResult](b)(c.Run(b.Context(), startTimer(b)))
				b.ReportMetric(float64(res.Elapsed)/float64(b.N), "ns/op")
				b.ReportMetric(float64(res.Passes.Quantile(0.5)), "ns-passed-median")
				b.ReportMetric(float64(res.Passes.Quantile(0.99)), "ns-passed-p99")
			})
		}
	}
}

// What does a round trip of two processes cost at a barrier, beside the bare futex? x-futex is the median
// over turns of both, one after the other.
func BenchmarkBarrier(b *testing.B) {
	turns := min(max(b.N/100, 1), 1000)
	res := must[*bench.BarriersResult](b)(bench.Barriers{Turns: turns, Rounds: max(b.N/turns, 1)}.Run(b.Context(), startTimer(b)))
	b.ReportMetric(float64(res.Barrier), "ns/op")
	b.ReportMetric(float64(res.Futex), "ns-futex")
	b.ReportMetric(res.Ratio, "x-futex")
}

// What does the start of a process cost, beside os/exec of this program that does nothing? Each round
// starts one of both. ns/op is from Start to the return of Wait, µs-running to the first sign of life
// of the function; x-bare is ns/op by that of os/exec in the same rounds. All are medians.
func BenchmarkStart(b *testing.B) {
	for _, region := range []bool{false, true} {
		b.Run(fmt.Sprintf("region=%v", region), func(b *testing.B) {
			res := must[*bench.StartsResult](b)(bench.Starts{Rounds: b.N, Region: region}.Run(b.Context()))
			b.ReportMetric(float64(res.Ended), "ns/op")
			b.ReportMetric(us(res.Running), "µs-running")
			b.ReportMetric(float64(res.BareEnded), "ns-bare")
			b.ReportMetric(us(res.BareRunning), "µs-bare-running")
			b.ReportMetric(float64(res.Ended)/float64(res.BareEnded), "x-bare")
			b.ReportMetric(float64(res.Running)/float64(res.BareRunning), "x-bare-running")
		})
	}
}

// What does it cost to attach to a region for the first time, and to close it, beside the bare system
// calls open, fstat, mmap, munmap and close on the same file? All are medians; first is the very
// first region of a process.
func BenchmarkAttach(b *testing.B) {
	for _, how := range []string{bench.ByName, bench.ByFile} {
		b.Run("how="+how, func(b *testing.B) {
			res := must[*bench.AttachesResult](b)(bench.Attaches{How: how, Rounds: b.N}.Run(b.Context()))
			b.ReportMetric(float64(res.Both), "ns/op")
			b.ReportMetric(us(res.Open), "µs-open")
			b.ReportMetric(us(res.First), "µs-open-first")
			b.ReportMetric(us(res.Close), "µs-close")
			b.ReportMetric(us(res.Bare), "µs-bare")
		})
	}
}

// How many system calls does a call make on a lock that nobody else wants? A round is the whole
// experiment.
func BenchmarkSyscalls(b *testing.B) {
	var all []bench.SyscallsResult
	for b.Loop() {
		res, err := bench.Syscalls{Rounds: 1000}.Run(b.Context())
		if errors.Is(err, bench.ErrNotTraced) {
			b.Skip(err)
		}
		if err != nil {
			b.Fatal(err)
		}
		all = res
	}
	for _, r := range all {
		b.ReportMetric(r.PerOp, r.Call+"-syscalls/op")
	}
}

// How does reading scale with processes? Independent loops say how many processors there are to have.
func BenchmarkReaders(b *testing.B) {
	c := bench.Readers{Procs: []int{1, 2, 4}, Cycles: b.N, Window: 20 * time.Millisecond}
	res := must[*bench.ReadersResult](b)(c.Run(b.Context()))
	for _, kind := range bench.ReadKinds {
		for i, n := range c.Procs {
			b.ReportMetric(res.Rates[kind][i]/1e6, fmt.Sprintf("%s/%d-M/s", kind, n))
		}
	}
	for i, n := range c.Procs[1:] {
		b.ReportMetric(res.Scaling(bench.ReadShmkit, i+1)/res.Scaling(bench.ReadLoops, i+1), fmt.Sprintf("scaling/%d-of-loops", n))
	}
}
