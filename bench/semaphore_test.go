package bench_test

import (
	"fmt"
	"testing"

	"github.com/shmkit/shmkit/bench"
)

// What does a permit cost that nobody else wants, beside a lock?
func BenchmarkPermits(b *testing.B) {
	res := must[*bench.PermitsResult](b)(bench.Permits{Batches: 200, Rounds: max(1, min(b.N, 20_000))}.Run(b.Context()))
	ns := func(d interface{ Nanoseconds() int64 }) float64 {
		return float64(d.Nanoseconds()) / float64(res.Rounds)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ns(res.Mutex), "mutex-ns")
	b.ReportMetric(ns(res.Semaphore), "semaphore-ns")
	b.ReportMetric(ns(res.Counting), "counting-ns")
	b.ReportMetric(ns(res.Group), "group-ns")
	b.ReportMetric(ns(res.Semaphore)/ns(res.Mutex), "semaphore/mutex")
}

// How often can processes take permits between them? With one permit it is a lock; with as many as there are
// processes nobody ever waits.
func BenchmarkLending(b *testing.B) {
	for _, kind := range []string{bench.Owned, bench.Ownerless} {
		for _, procs := range []int{1, 2, 4, 8} {
			for _, permits := range []int{1, procs} {
				if procs == 1 && permits == 1 && kind != bench.Owned {
					continue
				}
				b.Run(fmt.Sprintf("kind=%s/procs=%d/permits=%d", kind, procs, permits), func(b *testing.B) {
					each := max(1, int64(b.N/procs))
					res := must[*bench.LendingResult](b)(bench.Lending{Kind: kind, Procs: procs, Permits: permits, Rounds: each}.Run(b.Context(), startTimer(b)))
					b.ReportMetric(float64(res.Taken)/res.Elapsed.Seconds()/1e6, "M/s")
				})
				if procs == 1 {
					break
				}
			}
		}
	}
}

// What does it cost to wake another process through a semaphore, there and back?
func BenchmarkPingPong(b *testing.B) {
	must[any](b)(func() (any, error) { return bench.PingPong{Rounds: b.N}.Run(b.Context(), startTimer(b)) }())
}

func TestPermitsTellWhatPairsCost(t *testing.T) {
	res, err := bench.Permits{Batches: 3, Rounds: 100}.Run(t.Context())
	if err != nil || res.Mutex <= 0 || res.Semaphore <= 0 || res.Counting <= 0 || res.Group <= 0 {
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := (bench.Permits{}).Run(t.Context()); err == nil {
		t.Error("no batches: no error")
	}
}

func TestLendingCountsWhatIsTaken(t *testing.T) {
	for _, kind := range []string{bench.Owned, bench.Ownerless} {
		res, err := bench.Lending{Kind: kind, Procs: 3, Permits: 2, Rounds: 1000}.Run(t.Context(), func() {})
		if err != nil || res.Taken != 3000 {
			t.Errorf("%s: %+v, %v", kind, res, err)
		}
	}
	if _, err := (bench.Lending{Kind: "other", Procs: 1, Permits: 1, Rounds: 1}).Run(t.Context(), func() {}); err == nil {
		t.Error("an unknown kind: no error")
	}
}

func TestPingPongComesBack(t *testing.T) {
	if d, err := (bench.PingPong{Rounds: 50}).Run(t.Context(), func() {}); err != nil || d <= 0 {
		t.Error(d, err)
	}
}
