package bench_test

import (
	"flag"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shmkit/shmkit/bench"
)

func TestMain(m *testing.M) {
	bench.Main()
	code := m.Run()
	bench.Close()
	os.Exit(code)
}

// Every case, every subject of it beside the one that is its measure: rounds of both take turns, and ns/op is of
// the subject alone. A part by= at the end of the name says whose it is; sub-benchmarks of the same
// case compare. Python, Redis and Boost, which take long to begin with, are skipped when -benchtime is less than
// 100 ms. Rounds last a fifth of -benchtime, and at least 4 ms.
//
//	x-floor       ns/op by that of what the machine takes at least, in the same run; x-shmkit where there is no such
//	spread        how far half of the rounds are apart, by the median
//	jain          how even the shares are: 1 when they are, 1/n when one of n has all
//	share-least   the smallest share, of an even one; share-most the largest
//	ns-p50 …      waits, within 19 %; ns-longest that of all
//	cpu-s/Mop     processor time for a million operations
//	switches/op   context switches for an operation
func BenchmarkCases(b *testing.B) {
	for _, c := range bench.Cases() {
		for i := range c.Subjects {
			s := c.Subjects[i]
			b.Run("case="+c.Name+"/by="+s.By, func(b *testing.B) { beside(b, &c, s) })
		}
	}
}

// slowBenchtime is the least -benchtime for which what is slow to begin with is started.
const slowBenchtime = 100 * time.Millisecond

// beside runs the subject, and its measure, until the time is over.
func beside(b *testing.B, c *bench.Case, s bench.Subject) {
	if s.Slow && benchtime() < slowBenchtime {
		b.Skipf("started only for a -benchtime of %v and more", slowBenchtime)
	}
	pair := bench.Case{Name: c.Name, Subjects: []bench.Subject{s}}
	measure := ""
	for _, role := range []bench.Role{bench.Floor, bench.Ours} {
		for _, other := range c.Subjects {
			if measure == "" && other.Role == role && other.By != s.By && s.Role != bench.Floor && other.Ready() == nil {
				measure = other.By
				pair.Subjects = append(pair.Subjects, other)
			}
		}
	}
	t := pair.Tally()
	for b.Loop() {
		if err := t.Round(b.Context(), max(benchtime()/5, 4*time.Millisecond), func() {}); err != nil {
			b.Fatal(err)
		}
	}
	res := t.Result()
	for _, skipped := range res.Skipped {
		if skipped.By == s.By {
			b.Skip(skipped.Why)
		}
	}
	var e bench.Entry
	for _, entry := range res.Entries {
		if entry.By == s.By {
			e = entry
		}
	}
	report := func(v float64, unit string) {
		if v != 0 {
			b.ReportMetric(v, unit)
		}
	}
	b.ReportMetric(e.NsPerOp, "ns/op")
	report(e.OpsPerS, "ops/s")
	report(e.Bytes/1e6, "MB/s")
	if e.Role != bench.Floor {
		report(e.ToFloor, "x-floor")
	}
	if e.Role == bench.Peer {
		report(e.ToOurs, "x-shmkit")
	}
	report(e.Spread, "spread")
	report(e.Jain, "jain")
	report(e.Least, "share-least")
	report(e.Most, "share-most")
	report(e.P50, "ns-p50")
	report(e.P99, "ns-p99")
	report(e.P999, "ns-p99.9")
	report(e.Longest, "ns-longest")
	report(e.CPU, "cpu-s/Mop")
	report(e.Switch, "switches/op")
	for unit, v := range e.Extra {
		b.ReportMetric(v, unit)
	}
}

// benchtime is what -benchtime says; a number of rounds (100x) is no time.
func benchtime() time.Duration {
	v := flag.Lookup("test.benchtime").Value.String()
	if n, ok := strings.CutSuffix(v, "x"); ok {
		if _, err := strconv.Atoi(n); err == nil {
			return 200 * time.Millisecond
		}
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		return time.Second
	}
	return d
}
