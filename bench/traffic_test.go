package bench

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

func TestTrafficLosesNoPut(t *testing.T) {
	for _, c := range []Traffic{
		{By: Shmkit, Procs: 2, Keys: 1000, Writes: 50},
		{By: Shmkit, Procs: 1, Keys: 100, Writes: 0},
		{By: ByGuardedMap, Procs: 2, Keys: 1000, Writes: 10},
		{By: BySyncMap, Procs: 3, Keys: 999, Writes: 100},
	} {
		t.Run(fmt.Sprintf("by=%s/procs=%d/writes=%d", c.By, c.Procs, c.Writes), func(t *testing.T) {
			c.Window = 10 * time.Millisecond
			res, err := c.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			wrote := float64(res.Wrote) / float64(res.Total) * 100
			if res.Total < 64 || res.Done > res.Total || len(res.Shares) != c.Procs || res.Elapsed < c.Window || res.CPU == 0 || math.Abs(wrote-float64(c.Writes)) > 10 {
				t.Errorf("%.1f %% put, %+v", wrote, res)
			}
		})
	}
	for _, c := range []Traffic{{}, {By: Shmkit, Procs: 2, Keys: 3, Window: 1}, {By: "ferry", Procs: 1, Keys: 1, Window: 1}} {
		if _, err := c.Run(t.Context()); err == nil {
			t.Errorf("%+v was run", c)
		}
	}
}

// A lossyDict loses one of its puts, or answers with the value of another key, and ends the case after some.
type lossyDict struct {
	guardedDict
	x          *crossing
	puts, lose int
	mixUp      bool
}

func (d *lossyDict) put(k, v int64) error {
	if d.puts++; d.puts == 3000 {
		d.x.stop.Store(true)
	}
	if d.puts == d.lose {
		return nil
	}
	return d.guardedDict.put(k, v)
}

func (d *lossyDict) get(k int64) (int64, bool) {
	if d.mixUp && k == 7 {
		k = 8
	}
	return d.guardedDict.get(k)
}

func TestTrafficSeesAPutThatWasLost(t *testing.T) {
	for _, d := range []struct {
		*lossyDict
		says string
	}{
		{&lossyDict{lose: 2990}, "which was put last"},
		{&lossyDict{mixUp: true}, "key 7 has"},
		{&lossyDict{}, ""},
	} {
		d.x, d.m = new(crossing), map[int64]int64{}
		c := Traffic{By: "lossy", Procs: 2, Keys: 1000, Writes: 50}
		if err := fillDict(&d.guardedDict, c.Keys); err != nil {
			t.Fatal(err)
		}
		err := c.drive(d.x, d.lossyDict, 1)
		if (err == nil) != (d.says == "") || err != nil && !strings.Contains(err.Error(), d.says) {
			t.Errorf("%v, want %q", err, d.says)
		}
	}
}

func TestMapsAreGoneThroughKeyByKey(t *testing.T) {
	for _, n := range []int{100, 1000, keyed} {
		seen := make([]bool, n)
		for i := range n {
			seen[scattered(i, n)] = true
		}
		c := Traffic{Procs: 2, Keys: n}
		own := make([]bool, n)
		for i := range int64(n / 2) {
			own[c.ownKey(1, i+5)] = true
		}
		for k := range seen {
			if !seen[k] || own[k] != (k%2 == 1) {
				t.Fatalf("key %d of %d: come by %t, own %t", k, n, seen[k], own[k])
			}
		}
	}
}

func TestCallsOfMapsAreChecked(t *testing.T) {
	for _, call := range []mapCall{mapGet, mapSet, mapInsert} {
		for _, s := range call.subjects(1000) {
			sample, err := s.Run(t.Context(), 3*time.Millisecond)
			if err != nil || sample.Ops < 1 || sample.Elapsed <= 0 {
				t.Errorf("%s by %s: %+v, %v", call, s.By, sample, err)
			}
		}
	}
	forgets := &lossyDict{guardedDict: guardedDict{m: map[int64]int64{}}, x: new(crossing), lose: 1040}
	b, err := mapSet.on(forgets, 1000, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.calls(40); err == nil {
		t.Error("a put that did nothing was not noticed")
	}
	for _, s := range replaced(func(n int) int { return 16 + n%100 }) {
		sample, err := s.Run(t.Context(), 3*time.Millisecond)
		if err != nil || sample.Ops < 1 {
			t.Errorf("replaced by %s: %+v, %v", s.By, sample, err)
		}
	}
}
