package bench_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/shmkit/shmkit/bench"
)

// near reports whether got is want, within so much of it.
func near(got, want, within float64) bool { return math.Abs(got-want) <= within*want }

// answered runs subjects made for the test as one case.
func answered(t *testing.T, rounds int, window time.Duration, subjects ...bench.Subject) *bench.Result {
	t.Helper()
	c := bench.Case{Name: "known/procs=2", Subjects: subjects}
	res, err := c.Run(t.Context(), bench.Effort{Rounds: rounds, Window: window}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func contention(by string, role bench.Role, c bench.Contention) bench.Subject {
	return bench.Subject{By: by, Role: role, Run: func(ctx context.Context, window time.Duration) (*bench.Sample, error) {
		c.Windows, c.Window = 1, window
		res, err := c.Run(ctx, func() {})
		if err != nil {
			return nil, err
		}
		return &bench.Sample{Ops: res.Taken, Elapsed: res.Elapsed, Shares: res.Shares, Waits: res.Waits, Longest: res.Longest, CPU: res.CPU, Switches: res.Switches, Total: res.Total}, nil
	}}
}

func TestALockThatSleepsAMillisecondIsReportedSo(t *testing.T) {
	res := answered(t, 3, 40*time.Millisecond,
		contention("sleeps", bench.Ours, bench.Contention{Lock: bench.Sleepy, Procs: 2, Goroutines: 1}))
	e := res.Entries[0]
	// Nothing can be faster; how much slower the machine's sleep makes it is not known, but the waits tell the same.
	if e.NsPerOp < 1e6 || e.OpsPerS > 1000 || !near(e.OpsPerS*e.NsPerOp, 1e9, 1e-6) {
		t.Errorf("%v ns, %v a second: want 1 ms and more, 1000 and less", e.NsPerOp, e.OpsPerS)
	}
	if e.P50 < 0.8e6 || e.P99 < e.P50 || e.Longest < e.P50 {
		t.Errorf("waits of %v, %v, longest %v ns: want 1 ms and more", e.P50, e.P99, e.Longest)
	}
	if e.Known && e.CPU > 1000 { // asleep all the time: a millisecond would be 1000 s for a million
		t.Errorf("%v processor seconds for a million operations of one that sleeps", e.CPU)
	}
	if e.Known && e.Switch < 0.9 {
		t.Errorf("%v context switches for each time that it sleeps", e.Switch)
	}
}

func TestAnUnfairLockIsReportedSo(t *testing.T) {
	res := answered(t, 3, 30*time.Millisecond,
		contention("unfair", bench.Ours, bench.Contention{Lock: bench.Unfair, Procs: 4, Goroutines: 1}))
	e := res.Entries[0]
	// The first of four has it all, but for a single time of the others: the index is 1/4.
	if !near(e.Jain, 0.25, 0.05) || !near(e.Most, 4, 0.05) || e.Least > 0.05 {
		t.Errorf("Jain %v, shares %v to %v; want 0.25, and 0 to 4 times an even one", e.Jain, e.Least, e.Most)
	}
	window := 100 * time.Millisecond
	fair := answered(t, 1, window, contention("fair", bench.Ours, bench.Contention{Lock: bench.Turns, Procs: 4, Goroutines: 1})).Entries[0]
	even := fair.OpsPerS * window.Seconds() / 4 // a busy machine makes few turns, and has a low Jain index then
	if (fair.Most-fair.Least)*even > 2.5 {      // a turn, and a count may be read a turn late
		t.Errorf("of a lock that goes round they have %v to %v of %v turns", fair.Least, fair.Most, even)
	}
}

func TestAThrottledSourceIsReportedSo(t *testing.T) {
	// The source gives one every millisecond of its own clock, whatever else the machine does.
	throttled := func(every time.Duration) func(context.Context, time.Duration) (*bench.Sample, error) {
		return func(_ context.Context, window time.Duration) (*bench.Sample, error) {
			queue := make(chan time.Time, 1<<16)
			s := &bench.Sample{CPU: -1}
			begin := time.Now()
			for due := begin.Add(every); due.Sub(begin) <= window; due = due.Add(every) {
				time.Sleep(time.Until(due))
				queue <- due
				<-queue
				s.Ops++
				s.Waits.Add(every)
				s.Elapsed = due.Sub(begin)
			}
			return s, nil
		}
	}
	res := answered(t, 5, 20*time.Millisecond,
		bench.Subject{By: "thousand", Role: bench.Ours, Run: throttled(time.Millisecond)},
		bench.Subject{By: "half", Role: bench.Peer, Run: throttled(2 * time.Millisecond)},
		bench.Subject{By: "twice", Role: bench.Floor, Run: throttled(time.Millisecond / 2)})
	if len(res.Entries) != 3 || res.Entries[0].By != "thousand" || res.Entries[1].By != "twice" || res.Entries[2].By != "half" {
		t.Fatalf("%+v", res.Entries)
	}
	thousand, twice, half := res.Entries[0], res.Entries[1], res.Entries[2]
	if !near(thousand.OpsPerS, 1000, 0.001) || !near(half.OpsPerS, 500, 0.001) || !near(twice.OpsPerS, 2000, 0.001) {
		t.Errorf("%v, %v, %v a second; want 1000, 500, 2000", thousand.OpsPerS, half.OpsPerS, twice.OpsPerS)
	}
	if !near(thousand.ToFloor, 2, 0.001) || !near(half.ToOurs, 2, 0.001) || !near(half.ToFloor, 4, 0.001) || !near(thousand.ToOurs, 1, 0.001) {
		t.Errorf("ratios %v, %v, %v, %v; want 2, 2, 4, 1", thousand.ToFloor, half.ToOurs, half.ToFloor, thousand.ToOurs)
	}
	if thousand.Spread > 0.001 || thousand.Known || !near(thousand.P50, 1e6, 0.19) {
		t.Errorf("%+v", thousand)
	}
}

func TestRatiosAreOfTheSameRoundAndNoiseIsTold(t *testing.T) {
	// The machine is three times slower in every second round, for both: ratios do not care.
	slow := func(ns time.Duration) func(context.Context, time.Duration) (*bench.Sample, error) {
		round := 0
		return func(context.Context, time.Duration) (*bench.Sample, error) {
			round++
			return &bench.Sample{Ops: 10, Elapsed: 10 * ns * time.Duration(1+2*(round%2)), CPU: -1}, nil
		}
	}
	res := answered(t, 6, time.Millisecond,
		bench.Subject{By: "ours", Role: bench.Ours, Run: slow(100)},
		bench.Subject{By: "peer", Role: bench.Peer, Run: slow(150)})
	ours, peer := res.Entries[0], res.Entries[1]
	if !near(peer.ToOurs, 1.5, 1e-9) || peer.Noise > 1e-9 || ours.Spread < 0.9 {
		t.Errorf("ratio %v ± %v, spread of the times %v; want 1.5 ± 0, and 1", peer.ToOurs, peer.Noise, ours.Spread)
	}
}

func TestWhatIsMissingIsSkippedAndWhatFailsFails(t *testing.T) {
	one := func(context.Context, time.Duration) (*bench.Sample, error) {
		return &bench.Sample{Ops: 1, Elapsed: 1}, nil
	}
	fails := errors.New("it broke")
	res := answered(t, 2, time.Millisecond,
		bench.Subject{By: "ours", Role: bench.Ours, Run: one},
		bench.Subject{By: "absent", Role: bench.Peer, Need: func() error { return errors.New("it is not installed") }},
		bench.Subject{By: "elsewhere", Role: bench.Peer, Run: func(context.Context, time.Duration) (*bench.Sample, error) {
			return nil, errors.ErrUnsupported
		}},
		bench.Subject{By: "last", Role: bench.Peer, Run: one})
	if len(res.Entries) != 2 || res.Entries[1].Rounds != 2 || len(res.Skipped) != 2 || res.Skipped[0].Why != "it is not installed" {
		t.Errorf("%+v", res)
	}
	c := bench.Case{Name: "known", Subjects: []bench.Subject{{By: "ours", Run: func(context.Context, time.Duration) (*bench.Sample, error) { return nil, fails }}}}
	if _, err := c.Run(t.Context(), bench.Quick, func() {}); !errors.Is(err, fails) || !strings.Contains(err.Error(), "known/by=ours") {
		t.Errorf("a subject that fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.Subjects[0].Run = one
	if _, err := c.Run(ctx, bench.Quick, func() {}); !errors.Is(err, context.Canceled) {
		t.Errorf("under an ended context: %v", err)
	}
}

func TestEveryCaseHasOneOfOursAndAQuestion(t *testing.T) {
	quick := 0
	for _, c := range bench.Cases() {
		if c.Asks == "" || len(c.Subjects) == 0 || c.Subjects[0].Role != bench.Ours {
			t.Errorf("%s: asks %q, %d subjects, ours not the first", c.Name, c.Asks, len(c.Subjects))
		}
		for _, part := range c.Parts() {
			if !strings.Contains(part, "=") {
				t.Errorf("%s: %q is not key=value", c.Name, part)
			}
		}
		if c.Quick {
			quick++
		}
	}
	if quick < 10 {
		t.Errorf("%d quick cases", quick)
	}
}
