package bench_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shmkit/shmkit/bench"
	"github.com/shmkit/shmkit/shm"
)

// skipUnsupported skips the test where the system lacks what a case needs.
func skipUnsupported(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, bench.ErrNotTraced) {
		t.Skip(err)
	}
}

func sum(shares []int64) (total int64) {
	for _, n := range shares {
		total += n
	}
	return total
}

func TestContentionCountsEveryRound(t *testing.T) {
	for _, c := range []bench.Contention{
		{Lock: bench.Shmkit, Procs: 3, Goroutines: 1, Rounds: 1_000_000}, // enough for them to meet
		{Lock: bench.Shmkit, Procs: 2, Goroutines: 2, Rounds: 20_001, Inside: 200 * time.Nanosecond, Outside: 100 * time.Nanosecond},
		{Lock: bench.Futex, Procs: 2, Goroutines: 2, Rounds: 1_000_000},
		{Lock: bench.Standard, Procs: 1, Goroutines: 3, Rounds: 20_000},
		{Lock: bench.Shmkit, Procs: 4, Goroutines: 1, Rounds: 1}, // fewer than processes
	} {
		t.Run(fmt.Sprintf("lock=%s/procs=%d/goroutines=%d/rounds=%d", c.Lock, c.Procs, c.Goroutines, c.Rounds), func(t *testing.T) {
			opened := 0
			res, err := c.Run(t.Context(), func() { opened++ })
			skipUnsupported(t, err)
			if err != nil {
				t.Fatal(err)
			}
			if opened != 1 || res.Elapsed <= 0 || len(res.Shares) != c.Procs*c.Goroutines ||
				sum(res.Shares) != c.Rounds || res.Taken != c.Rounds || res.Total != c.Rounds {
				t.Errorf("opened %d times; %+v", opened, res)
			}
			if n := int64(res.Waits.Count()); n < c.Rounds/64 || n > c.Rounds/16+int64(c.Procs*c.Goroutines) {
				t.Errorf("looked at %d of %d waits, want one of 64 to one of 16", n, c.Rounds)
			}
			if res.Longest <= 0 || res.Even < 1/float64(len(res.Shares))-1e-9 || res.Even > 1+1e-9 || res.CPU == 0 {
				t.Errorf("longest wait %v, fairness %v, processor time %v", res.Longest, res.Even, res.CPU)
			}
		})
	}
}

func TestContentionByTheClockCountsItsWindowsOnly(t *testing.T) {
	c := bench.Contention{Lock: bench.Shmkit, Procs: 2, Goroutines: 1, Windows: 3, Window: 40 * time.Millisecond}
	res, err := c.Run(t.Context(), func() {})
	if err != nil {
		t.Fatal(err)
	}
	if res.Elapsed < 3*39*time.Millisecond || res.Taken < 1 || sum(res.Shares) != res.Taken || res.Total < res.Taken {
		t.Errorf("%+v", res)
	}
}

func TestContentionWorksInsideForAsLongAsItSays(t *testing.T) {
	c := bench.Contention{Lock: bench.Shmkit, Procs: 2, Goroutines: 1, Rounds: 200, Inside: 100 * time.Microsecond}
	res, err := c.Run(t.Context(), func() {})
	if err != nil {
		t.Fatal(err)
	}
	if least := 200 * 70 * time.Microsecond; res.Elapsed < least { // a processor may turn out faster than measured
		t.Errorf("200 sections of 100 µs, one after the other, took %v", res.Elapsed)
	}
}

func TestCasesRefuseWhatTheyCannotRun(t *testing.T) {
	ctx, no := t.Context(), func() {}
	refused := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s ran", what)
		}
	}
	for _, c := range []bench.Contention{
		{Lock: bench.Shmkit, Procs: 0, Goroutines: 1, Rounds: 1},
		{Lock: bench.Shmkit, Procs: -1, Goroutines: -1, Rounds: 1},
		{Lock: bench.Shmkit, Procs: 65, Goroutines: 1, Rounds: 1},
		{Lock: bench.Shmkit, Procs: 1, Goroutines: 1},
		{Lock: bench.Shmkit, Procs: 1, Goroutines: 1, Rounds: -1},
		{Lock: bench.Standard, Procs: 2, Goroutines: 1, Rounds: 1},
		{Lock: "wish", Procs: 1, Goroutines: 1, Rounds: 1},
	} {
		_, err := c.Run(ctx, no)
		refused(fmt.Sprintf("%+v", c), err)
	}
	_, err := bench.Sleeper{Lock: bench.Shmkit, Goroutines: 1}.Run(ctx, no)
	refused("a sleeper without rounds", err)
	_, err = bench.Handoffs{Lock: bench.Shmkit, Procs: 3, Rounds: 1}.Run(ctx, no)
	refused("a hand-off between three", err)
	for _, c := range []bench.Trips{
		{Way: bench.ByCond, Procs: 2}, {Way: bench.ByCond, Procs: 3, Window: 1}, {Way: bench.ByChannel, Procs: 2, Window: 1},
		{Way: "shouting", Procs: 1, Window: 1},
	} {
		_, err = c.Run(ctx)
		refused(fmt.Sprintf("%+v", c), err)
	}
	_, err = bench.Crowd{Lock: bench.Standard, Goroutines: 1, Locks: 1}.Run(ctx, no)
	refused("a crowd at a lock of another process' memory", err)
	_, err = bench.Crowd{Lock: bench.Shmkit, Goroutines: 1, Locks: 1 << 20}.Run(ctx, no)
	refused("a crowd at more locks than there are", err)
	_, err = bench.Kills{Rounds: 1}.Run(ctx, no)
	refused("a kill without waiters", err)
	_, err = bench.Starts{}.Run(ctx)
	refused("no start", err)
	for _, c := range []bench.Contention{
		{Lock: bench.ShmkitRW, Procs: 1, Goroutines: 1, Rounds: 1},
		{Lock: bench.StandardRW, Procs: 2, Goroutines: 1, Windows: 1, Window: 1},
		{Lock: bench.Loops, Procs: 1, Goroutines: 1, Writes: 1, Windows: 1, Window: 1},
		{Lock: bench.ShmkitRW, Procs: 1, Goroutines: 1, Writes: 101, Windows: 1, Window: 1},
	} {
		_, err = c.Run(ctx, no)
		refused(fmt.Sprintf("%+v", c), err)
	}
	_, err = bench.Attaches{Rounds: 1}.Run(ctx)
	refused("attaching in no way", err)
}

func TestSleeperWaitsAsOftenAsItWasTold(t *testing.T) {
	for _, lock := range bench.Locks {
		t.Run("lock="+lock, func(t *testing.T) {
			c := bench.Sleeper{Lock: lock, Goroutines: 3, Inside: 100 * time.Nanosecond, Pause: 2 * time.Millisecond, Rounds: 5}
			res, err := c.Run(t.Context(), func() {})
			skipUnsupported(t, err)
			if err != nil {
				t.Fatal(err)
			}
			if res.Waits.Count() != 5 || res.Longest <= 0 || res.Waits.Quantile(1) < res.Longest || res.Hammers < 3 {
				t.Errorf("%d waits, longest %v, %d times by the others", res.Waits.Count(), res.Longest, res.Hammers)
			}
		})
	}
}

func TestHandoffsAreWaitedForAtEveryStep(t *testing.T) {
	for _, c := range []bench.Handoffs{
		{Lock: bench.Shmkit, Procs: 1, Rounds: 1001},
		{Lock: bench.Shmkit, Procs: 2, Rounds: 1001},
		{Lock: bench.Futex, Procs: 2, Rounds: 1000},
		{Lock: bench.Standard, Procs: 1, Rounds: 1000},
		{Lock: bench.Shmkit, Procs: 2, Rounds: 1},
	} {
		t.Run(fmt.Sprintf("lock=%s/procs=%d/rounds=%d", c.Lock, c.Procs, c.Rounds), func(t *testing.T) {
			res, err := c.Run(t.Context(), func() {})
			skipUnsupported(t, err)
			if err != nil {
				t.Fatal(err)
			}
			// The first step, and those after the other party's last one, are onto a lock that nobody let go.
			if n := int64(res.Passes.Count()); n > c.Rounds || n < c.Rounds-3 || res.Elapsed <= 0 {
				t.Errorf("%d locks passed in %d steps, %v", n, c.Rounds, res.Elapsed)
			}
		})
	}
}

func TestTripsAreAnsweredByEveryWay(t *testing.T) {
	for _, c := range []bench.Trips{
		{Way: bench.ByCounting, Procs: 1}, {Way: bench.ByCounting, Procs: 2},
		{Way: bench.ByCond, Procs: 1}, {Way: bench.ByCond, Procs: 2},
		{Way: bench.ByBarrier, Procs: 1}, {Way: bench.ByBarrier, Procs: 2},
		{Way: bench.ByEvent, Procs: 1}, {Way: bench.ByEvent, Procs: 2},
		{Way: bench.ByFutex, Procs: 1}, {Way: bench.ByFutex, Procs: 2},
		{Way: bench.ByPipe, Procs: 1}, {Way: bench.ByPipe, Procs: 2},
		{Way: bench.BySocket, Procs: 1}, {Way: bench.BySocket, Procs: 2},
		{Way: bench.ByChannel, Procs: 1}, {Way: bench.ByStdCond, Procs: 1},
	} {
		t.Run(fmt.Sprintf("way=%s/procs=%d", c.Way, c.Procs), func(t *testing.T) {
			c.Window = 3 * time.Millisecond
			res, err := c.Run(t.Context())
			skipUnsupported(t, err)
			if err != nil {
				t.Fatal(err)
			}
			if res.Trips < 1 || int64(res.Waits.Count()) != res.Trips || res.Elapsed < c.Window || res.Longest <= 0 || res.CPU == 0 {
				t.Errorf("%d trips in %v, %d looked at, longest %v, processor time %v", res.Trips, res.Elapsed, res.Waits.Count(), res.Longest, res.CPU)
			}
		})
	}
}

func TestCrowdCountsThreads(t *testing.T) {
	t.Run("a thread for each goroutine", func(t *testing.T) {
		c := bench.Crowd{Lock: bench.Futex, Goroutines: 100, Locks: 3, Hold: time.Millisecond}
		res, err := c.Run(t.Context(), func() {})
		skipUnsupported(t, err)
		if err != nil {
			t.Fatal(err)
		}
		if res.Threads < 80 || res.Peak < res.Threads || res.Drain <= 0 { // some threads were idle before
			t.Errorf("100 goroutines that each block a thread: %+v", *res)
		}
	})
	t.Run("a thread for all", func(t *testing.T) {
		c := bench.Crowd{Lock: bench.Shmkit, Goroutines: 500, Locks: 1, Hold: time.Millisecond}
		res, err := c.Run(t.Context(), func() {})
		if err != nil {
			t.Fatal(err)
		}
		if res.Threads > 20 || res.Peak < res.Threads || res.Drain <= 0 {
			t.Errorf("500 goroutines that wait for one lock: %+v", *res)
		}
	})
}

func TestKillsAreOutlivedByAllWhoWait(t *testing.T) {
	for _, c := range []bench.Kills{
		{Waiters: 1, Rounds: 4},
		{Waiters: 3, Waited: 5 * time.Millisecond, Rounds: 3},
	} {
		t.Run(fmt.Sprintf("waiters=%d", c.Waiters), func(t *testing.T) {
			res, err := c.Run(t.Context(), func() {})
			if err != nil {
				t.Fatal(err)
			}
			if len(res.First) != c.Rounds || len(res.Last) != c.Rounds || len(res.Waited) != c.Rounds {
				t.Fatalf("%d kills: %+v", c.Rounds, *res)
			}
			for i := range c.Rounds {
				if res.First[i] <= 0 || res.Last[i] < res.First[i] || res.Waited[i] < c.Waited {
					t.Errorf("kill %d after %v: first %v, last %v", i, res.Waited[i], res.First[i], res.Last[i])
				}
			}
		})
	}
}

func TestKillFloorKillsAndFindsTheByteFree(t *testing.T) {
	took, err := bench.KillFloor(t.Context(), 3)
	skipUnsupported(t, err)
	if err != nil || len(took) != 3 {
		t.Fatal(took, err)
	}
	for _, d := range took {
		if d <= 0 {
			t.Errorf("free %v after the kill", d)
		}
	}
}

func TestStartsTimeBothKindsOfProcess(t *testing.T) {
	for _, c := range []bench.Starts{{Rounds: 2}, {Rounds: 2, Region: true}, {Rounds: 2, Bare: true}} {
		res, err := c.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i := range c.Rounds {
			if len(res.Running) != c.Rounds || res.Running[i] <= 0 || res.Ended[i] < res.Running[i] {
				t.Errorf("%+v: %+v", c, *res)
			}
		}
	}
}

func TestAttachesLeaveNothingBehind(t *testing.T) {
	for _, how := range []string{bench.ByName, bench.ByFile} {
		res, err := bench.Attaches{How: how, Rounds: 27}.Run(t.Context()) // more than one process
		if err != nil {
			t.Fatal(err)
		}
		if res.Open <= 0 || res.Close <= 0 || res.Both < max(res.Open, res.Close) || res.First <= 0 || res.Bare < 0 {
			t.Errorf("how %s: %+v", how, *res)
		}
	}
	left, err := shm.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range left {
		if strings.HasPrefix(r.Name, fmt.Sprintf("bench-attach-%d-", os.Getpid())) {
			t.Errorf("%s was left behind", r.Path)
		}
	}
}

func TestUncontendedCallsMakeNoSystemCall(t *testing.T) {
	const rounds = 1000
	res, err := bench.Syscalls{Rounds: rounds}.Run(t.Context())
	skipUnsupported(t, err)
	if err != nil {
		t.Fatal(err)
	}
	control := false
	for _, r := range res {
		switch {
		case r.Call != bench.Control && r.PerOp != 0:
			t.Errorf("%s: %v system calls each, in the best of several batches of %d", r.Call, r.PerOp, rounds)
		case r.Call == bench.Control:
			if control = true; r.PerOp < 1 {
				t.Errorf("a call that makes a system call was seen to make %v", r.PerOp)
			}
		}
	}
	if !control || len(res) < 6 {
		t.Errorf("%d kinds of calls were traced, the control among them: %v", len(res), control)
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
		if got := bench.Jain(c.shares); math.Abs(got-c.want) > 1e-12 {
			t.Errorf("Jain of %v = %v, want %v", c.shares, got, c.want)
		}
	}
}

func TestWaitsQuantilesAreRightWithinAQuarterOctave(t *testing.T) {
	var all bench.Waits
	if got := all.Quantile(0.5); got != 0 {
		t.Errorf("the median of nothing is %v", got)
	}
	for d := time.Duration(1); d < time.Hour; d += d/7 + 1 {
		var w bench.Waits
		w.Add(d)
		if got := w.Quantile(0.5); float64(got) < float64(d)-1 || float64(got) > float64(d)*1.1893 { // 2^(1/4)
			t.Errorf("%v alone has the median %v", d, got)
		}
	}
	for range 999 {
		all.Add(100)
	}
	all.Add(time.Millisecond)
	var other bench.Waits
	other.Add(time.Second)
	for _, c := range []struct {
		q        float64
		from, to time.Duration
	}{{0.5, 100, 119}, {0.999, 100, 119}, {1, time.Millisecond, 1190 * time.Microsecond}} {
		if got := all.Quantile(c.q); got < c.from || got > c.to {
			t.Errorf("quantile %v is %v, want %v to %v", c.q, got, c.from, c.to)
		}
	}
	all.Merge(&other)
	if got := all.Quantile(1); all.Count() != 1001 || got < time.Second {
		t.Errorf("merged: %d counted, longest %v", all.Count(), got)
	}
	all.Add(-1) // a clock that was set back
	all.Add(math.MaxInt64)
	if all.Count() != 1003 {
		t.Errorf("%d counted", all.Count())
	}
}

func TestReadersAndWritersAreCounted(t *testing.T) {
	for _, c := range []bench.Contention{
		{Lock: bench.ShmkitRW, Procs: 2, Goroutines: 2, Writes: 10},
		{Lock: bench.ShmkitRW, Procs: 1, Goroutines: 1, Writes: 0},
		{Lock: bench.StandardRW, Procs: 1, Goroutines: 2, Writes: 50},
		{Lock: bench.Loops, Procs: 2, Goroutines: 1},
	} {
		t.Run(fmt.Sprintf("lock=%s/writes=%d", c.Lock, c.Writes), func(t *testing.T) {
			c.Windows, c.Window = 2, 10*time.Millisecond
			res, err := c.Run(t.Context(), func() {})
			if err != nil {
				t.Fatal(err)
			}
			wrote := float64(res.Wrote) / float64(res.Total) * 100
			if res.Taken < 1 || math.Abs(wrote-float64(c.Writes)) > 5 {
				t.Errorf("%d times, %.1f %% of them to write", res.Taken, wrote)
			}
		})
	}
}

func TestLocksOnFilesExclude(t *testing.T) {
	for _, lock := range []string{bench.Flock, bench.OFD} {
		c := bench.Contention{Lock: lock, Procs: 2, Goroutines: 2, Rounds: 2000}
		res, err := c.Run(t.Context(), func() {})
		skipUnsupported(t, err)
		if err != nil {
			t.Fatal(err)
		}
		if res.Taken != c.Rounds || sum(res.Shares) != c.Rounds {
			t.Errorf("%s: %+v", lock, res)
		}
	}
}
