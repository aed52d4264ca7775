package bench_test

import (
	"fmt"
	"testing"

	"github.com/shmkit/shmkit/bench"
)

// What does it cost to signal one who waits, and to wait for its answer? The bare futex, in the same run, is the floor
// across processes.
func BenchmarkRoundTrips(b *testing.B) {
	for _, procs := range []int{1, 2} {
		b.Run(fmt.Sprintf("procs=%d", procs), func(b *testing.B) {
			c := bench.RoundTrips{Procs: procs, Rounds: int64(b.N)}
			res := must[*bench.RoundTripsResult](b)(c.Run(b.Context(), startTimer(b)))
			b.ReportMetric(0, "ns/op") // of both ways together
			b.ReportMetric(us(res.Cond)/float64(b.N), "cond-us")
			b.ReportMetric(us(res.Futex)/float64(b.N), "futex-us")
			b.ReportMetric(us(res.CondRound.Quantile(.5)), "cond-p50-us")
			b.ReportMetric(us(res.FutexRound.Quantile(.5)), "futex-p50-us")
			b.ReportMetric(float64(res.Cond)/float64(res.Futex), "ratio")
		})
	}
}

func TestRoundTripsCountEveryTurn(t *testing.T) {
	for _, c := range []bench.RoundTrips{{Procs: 1, Rounds: 250}, {Procs: 2, Rounds: 250}, {Procs: 2, Rounds: 1}} {
		opened := 0
		res, err := c.Run(t.Context(), func() { opened++ })
		skipUnsupported(t, err)
		if err != nil {
			t.Fatal(err)
		}
		if blocks := uint64(c.Rounds+99) / 100; opened != 1 || res.Cond <= 0 || res.Futex <= 0 ||
			res.CondRound.Count() != blocks || res.FutexRound.Count() != blocks {
			t.Errorf("%+v: opened %d times, %v and %v", c, opened, res.Cond, res.Futex)
		}
	}
	for _, c := range []bench.RoundTrips{{}, {Procs: 3, Rounds: 1}, {Procs: 1}} {
		if _, err := c.Run(t.Context(), func() {}); err == nil {
			t.Errorf("%+v was run", c)
		}
	}
}
