package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"time"
)

// Effort is how much is done for each case.
type Effort struct {
	Rounds int           // of each subject
	Window time.Duration // of each round
}

// What shmkit bench does. With Quick a machine of two processors is done in less than a minute.
var (
	Full  = Effort{Rounds: 5, Window: 120 * time.Millisecond}
	Quick = Effort{Rounds: 3, Window: 25 * time.Millisecond}
)

// A Result is what came of one case.
type Result struct {
	Name    string    `json:"name"`
	Asks    string    `json:"asks,omitempty"`
	Entries []Entry   `json:"entries"`
	Skipped []Skipped `json:"skipped,omitempty"`
	// Load is how much longer a counted loop on every processor took between the rounds than at its best
	// in this whole run: 0 on a quiet machine, 1 when half of it was somebody else's. The median.
	Load float64 `json:"load"`
}

// An Entry is what one subject came to: medians over its rounds, unless said otherwise.
type Entry struct {
	By      string  `json:"by"`
	Role    Role    `json:"role"`
	Rounds  int     `json:"rounds"`
	OpsPerS float64 `json:"ops_per_s"`
	NsPerOp float64 `json:"ns_per_op"`
	// ToFloor and ToOurs are its time for an operation by that of the floor, and of ours, in the same
	// round: medians. 0 if there is no such subject.
	ToFloor float64 `json:"to_floor,omitempty"`
	ToOurs  float64 `json:"to_ours,omitempty"`
	Spread  float64 `json:"spread"`                     // of ns_per_op over the rounds: half of them are this far apart
	Noise   float64 `json:"noise"`                      // the same of to_ours; of ours, of to_floor
	Jain    float64 `json:"jain,omitempty"`             // how even the shares are
	Least   float64 `json:"smallest_share,omitempty"`   // of an even share
	Most    float64 `json:"largest_share,omitempty"`    // of an even share
	P50     float64 `json:"p50_ns,omitempty"`           // of all rounds together
	P99     float64 `json:"p99_ns,omitempty"`           //
	P999    float64 `json:"p999_ns,omitempty"`          //
	Longest float64 `json:"longest_ns,omitempty"`       // of all rounds
	CPU     float64 `json:"cpu_s_per_mop,omitempty"`    // processor seconds for a million operations
	Switch  float64 `json:"switches_per_op,omitempty"`  // context switches for one operation
	Bytes   float64 `json:"bytes_per_s,omitempty"`      //
	Known   bool    `json:"cpu_and_switches_are_known"` // or the two above are 0 because nobody says

	Extra map[string]float64 `json:"extra,omitempty"`
	Waits [][2]float64       `json:"waits,omitempty"` // how many (second) were shorter than so many ns (first)
}

// Skipped is a subject that could not be run here.
type Skipped struct {
	By  string `json:"by"`
	Why string `json:"why"`
}

// Run runs one case. step is called after each round of a subject.
func (c *Case) Run(ctx context.Context, e Effort, step func()) (*Result, error) {
	t := c.Tally()
	for range max(e.Rounds, 1) {
		if err := t.Round(ctx, e.Window, step); err != nil {
			return nil, err
		}
	}
	return t.Result(), nil
}

// A Tally is what a case has come to until now.
type Tally struct {
	c       *Case
	takers  []*taking
	skipped []Skipped
	loads   []float64
}

// Tally begins to run the case: it finds out who can answer it here.
func (c *Case) Tally() *Tally {
	t := &Tally{c: c}
	for i := range c.Subjects {
		s := &c.Subjects[i]
		if err := s.Ready(); err != nil {
			t.skipped = append(t.skipped, Skipped{s.By, err.Error()})
			continue
		}
		t.takers = append(t.takers, &taking{Subject: s})
	}
	return t
}

// Round runs each subject once, each time in another order. A subject that fails fails the case; one that finds
// that the system lacks something is skipped from then on. step is called after each subject.
func (t *Tally) Round(ctx context.Context, window time.Duration, step func()) error {
	t.loads = append(t.loads, load())
	turns := slices.Clone(t.takers)
	for i := range turns {
		s := turns[(i+len(t.loads)-1)%len(turns)]
		sample, err := s.Run(ctx, max(window, t.c.Least))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, ErrNotTraced) {
			t.skipped = append(t.skipped, Skipped{s.By, err.Error()})
			t.takers = slices.DeleteFunc(t.takers, func(other *taking) bool { return other == s })
		} else if err != nil {
			return fmt.Errorf("bench: %s/by=%s: %w", t.c.Name, s.By, err)
		}
		s.samples = append(s.samples, sample)
		step()
	}
	return nil
}

// Result sums up. Ours come first, then the floor, then peers.
func (t *Tally) Result() *Result {
	res := &Result{Name: t.c.Name, Asks: t.c.Asks, Skipped: t.skipped, Load: middle(t.loads)}
	takers := slices.Clone(t.takers)
	slices.SortStableFunc(takers, func(a, b *taking) int { return roleOrder(a.Role) - roleOrder(b.Role) })
	first := func(r Role) *taking {
		if i := slices.IndexFunc(takers, func(t *taking) bool { return t.Role == r }); i >= 0 {
			return takers[i]
		}
		return nil
	}
	ours, floor := first(Ours), first(Floor)
	for _, s := range takers {
		res.Entries = append(res.Entries, s.entry(ours, floor))
	}
	return res
}

func roleOrder(r Role) int { return slices.Index([]Role{Ours, Floor, Peer}, r) }

// A taking is what a subject has come to until now.
type taking struct {
	*Subject
	samples []*Sample
}

// entry sums up.
func (t *taking) entry(ours, floor *taking) Entry {
	e := Entry{By: t.By, Role: t.Role, Rounds: len(t.samples), Known: true}
	var (
		waits               Waits
		cost, bytes         []float64
		jain, least, most   []float64
		cpu, switches       []float64
		extra               = map[string][]float64{}
		toFloor, toOurs, of []float64
	)
	for i, s := range t.samples {
		cost = append(cost, s.NsPerOp())
		if s.Bytes > 0 {
			bytes = append(bytes, float64(s.Bytes)/s.NsPerOp()*1e9)
		}
		if len(s.Shares) > 1 {
			jain = append(jain, Jain(s.Shares))
			even := float64(max(total(s.Shares), 1)) / float64(len(s.Shares))
			least = append(least, float64(slices.Min(s.Shares))/even)
			most = append(most, float64(slices.Max(s.Shares))/even)
		}
		waits.Merge(&s.Waits)
		e.Longest = max(e.Longest, float64(s.Longest))
		if s.CPU < 0 || s.Switches < 0 {
			e.Known = false
		}
		n := float64(max(s.Total, s.Ops, 1))
		cpu, switches = append(cpu, s.CPU.Seconds()/n*1e6), append(switches, float64(s.Switches)/n)
		for unit, v := range s.Extra {
			extra[unit] = append(extra[unit], v)
		}
		toOurs = ratio(toOurs, s, ours, i)
		toFloor = ratio(toFloor, s, floor, i)
	}
	e.NsPerOp, e.Spread = middle(cost), spread(cost)
	if e.NsPerOp > 0 {
		e.OpsPerS = 1e9 / e.NsPerOp
	}
	e.ToOurs, e.ToFloor, e.Bytes = middle(toOurs), middle(toFloor), middle(bytes)
	if of = toOurs; t == ours {
		of = toFloor
	}
	e.Noise = spread(of)
	e.Jain, e.Least, e.Most = middle(jain), middle(least), middle(most)
	if e.Known {
		e.CPU, e.Switch = middle(cpu), middle(switches)
	}
	if waits.Count() > 0 {
		// The upper end of a bucket may lie beyond the longest of all.
		most := e.Longest
		if most == 0 {
			most = math.Inf(1)
		}
		e.P50 = min(float64(waits.Quantile(0.5)), most)
		e.P99 = min(float64(waits.Quantile(0.99)), most)
		e.P999 = min(float64(waits.Quantile(0.999)), most)
		e.Waits = waits.curve()
	}
	for unit, vs := range extra {
		if e.Extra == nil {
			e.Extra = map[string]float64{}
		}
		e.Extra[unit] = middle(vs)
	}
	return e
}

// ratio adds what s takes for an operation, by what the other took in the same round, if both took some time.
func ratio(all []float64, s *Sample, other *taking, round int) []float64 {
	if other == nil || other.samples[round].NsPerOp() <= 0 || s.NsPerOp() <= 0 {
		return all
	}
	return append(all, s.NsPerOp()/other.samples[round].NsPerOp())
}

func total(shares []int64) (n int64) {
	for _, x := range shares {
		n += x
	}
	return n
}

// middle returns the median; 0 if there is nothing.
func middle(xs []float64) float64 { return between(xs, 0.5) }

// between returns the q'th quantile of xs, between two of them where it falls there; 0 if there is nothing.
func between(xs []float64, q float64) float64 {
	if len(xs) == 0 {
		return 0
	}
	xs = slices.Sorted(slices.Values(xs))
	at := q * float64(len(xs)-1)
	i := min(int(at), len(xs)-1)
	j := min(i+1, len(xs)-1)
	return xs[i] + (at-float64(i))*(xs[j]-xs[i])
}

// spread returns how far the quarters of xs are apart, by the median: half of all lie in between.
func spread(xs []float64) float64 {
	m := middle(xs)
	if m == 0 {
		return 0
	}
	return (between(xs, 0.75) - between(xs, 0.25)) / m
}

// bestLoop is the shortest time that load's loop has taken in this process.
var bestLoop struct {
	sync.Mutex
	d time.Duration
}

// load says how busy the machine is with something else: how much longer a counted loop on all processors
// takes than the best such loop so far. Some ms.
func load() float64 {
	procs := runtime.GOMAXPROCS(0)
	rounds := work(2 * time.Millisecond)
	begin := time.Now()
	var wg sync.WaitGroup
	for range procs {
		wg.Go(func() { spin(rounds) })
	}
	wg.Wait()
	d := time.Since(begin)
	bestLoop.Lock()
	defer bestLoop.Unlock()
	if bestLoop.d == 0 || d < bestLoop.d {
		bestLoop.d = d
	}
	return float64(d)/float64(bestLoop.d) - 1
}
