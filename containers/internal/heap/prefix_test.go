package heap

import (
	"flag"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

var exhaustive = flag.Bool("exhaustive", false, "kill at every store of the recovery, not at some hundred for each operation")

const (
	deadSlot  = 7
	survivor  = 0
	survivor2 = 3
)

// scenarios are what a process is killed in. Each starts from what prepare, of the same process, leaves.
var scenarios = map[string]struct {
	size, limit uint64
	prepare     func(w *world, p *Heap) error
	do          func(w *world, p *Heap) error
}{
	"first block of a heap":        {0, 0, nothing, func(w *world, p *Heap) error { return w.create(p, 0, 64, 64) }},
	"first block of a larger heap": {1280 << 10, 1280 << 10, nothing, func(w *world, p *Heap) error { return w.create(p, 0, 64, 64) }}, // two segments at once
	"first block of a process": {0, 0, func(w *world, p *Heap) error {
		return w.create(w.process(1), 1, 64, 64)
	}, func(w *world, p *Heap) error { return w.create(p, 0, 64, 64) }},
	"block from a magazine":        {0, 0, warm, func(w *world, p *Heap) error { return w.create(p, 0, 64, 64) }},
	"block of a kilobyte":          {0, 0, warm, func(w *world, p *Heap) error { return w.create(p, 0, 1000, 64) }},
	"aligned to a page":            {0, 0, warm, func(w *world, p *Heap) error { return w.create(p, 0, 100, 4096) }},
	"block of two in a span":       {0, 0, warm, func(w *world, p *Heap) error { return w.create(p, 0, 10240, 64) }},
	"run of pages":                 {0, 0, warm, func(w *world, p *Heap) error { return w.create(p, 0, 40_000, 64) }},
	"run that the heap grows for":  {64 << 10, 1 << 20, warm, func(w *world, p *Heap) error { return w.create(p, 0, 300_000, 64) }},
	"run that needs a new segment": {64 << 10, 3 << 20, warm, func(w *world, p *Heap) error { return w.create(p, 0, 1_100_000, 64) }},
	"magazine empty": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.fill(p, 1, 16, 64)) // as many as fill takes
	}, func(w *world, p *Heap) error { return w.create(p, 0, 64, 64) }},
	"span exhausted": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.fill(p, 1, 64, 64))
	}, func(w *world, p *Heap) error { return w.create(p, 0, 64, 64) }},
	"last block of a span": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.fill(p, 1, 6, 1280))
	}, func(w *world, p *Heap) error { return w.create(p, 0, 1280, 64) }},
	"free into a magazine": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.create(p, 0, 64, 64))
	}, func(w *world, p *Heap) error { return w.destroy(p, 0) }},
	"free into a full magazine": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.fill(p, 0, 8, 1024), w.empty(p, 1, 7), w.fill(p, 10, 9, 1024), w.empty(p, 10, 9))
	}, func(w *world, p *Heap) error { return w.destroy(p, 0) }},
	"free ends a span": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.fill(p, 0, 4, 4096), w.empty(p, 1, 2))
	}, func(w *world, p *Heap) error { return w.destroy(p, 0, 3) }},
	"free of a full span's block": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.fill(p, 0, 12, 2048), w.empty(p, 0, 1), w.empty(p, 5, 1))
	}, func(w *world, p *Heap) error { return w.destroy(p, 2, 4) }},
	"free a run": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.create(p, 0, 40_000, 64))
	}, func(w *world, p *Heap) error { return w.destroy(p, 0) }},
	"one operation, many blocks": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.fill(p, 0, 3, 200), w.create(p, 3, 33_000, 64))
	}, func(w *world, p *Heap) (err error) {
		w.lock(&w.th.mu)
		l, err := p.Enter()
		if err != nil {
			return err
		}
		defer leave(l, &err)
		defer w.unlock(&w.th.mu)
		err = first(w.createIn(p, l, 20, 64, 64), w.createIn(p, l, 21, 35_000, 64), w.destroyIn(p, l, 0), w.createIn(p, l, 22, 200, 8),
			w.destroyIn(p, l, 3), w.destroyIn(p, l, 1), w.createIn(p, l, 23, 2000, 64))
		if err == nil {
			l.Commit()
		}
		return err
	}},
	"rolled back": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.change(p, 0, 64, true))
	}, func(w *world, p *Heap) error { return w.change(p, 0, 35_000, false) }},
	"pair, the first time": {0, 0, warm, func(w *world, p *Heap) error { return w.change(p, 0, 64, true) }},
	"pair, again": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.change(p, 0, 64, true))
	}, func(w *world, p *Heap) error { return w.change(p, 0, 640, true) }},
	"object": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.createObject(p, 1))
	}, func(w *world, p *Heap) error { return w.createObject(p, 0) }},
	"object from a new span": {0, 0, warm, func(w *world, p *Heap) error { return w.createObject(p, 0) }},
	"object freed": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.createObject(p, 0))
	}, func(w *world, p *Heap) error { return w.destroyObject(p, 0) }},
	"object freed into a full magazine": {0, 0, func(w *world, p *Heap) error {
		err := warm(w, p)
		for i := range 7 {
			err = first(err, w.createObject(p, i))
		}
		for i := 1; i < 7; i++ {
			err = first(err, w.destroyObject(p, i))
		}
		return err
	}, func(w *world, p *Heap) error { return w.destroyObject(p, 0) }},
	"alloc alone": {0, 0, warm, func(w *world, p *Heap) (err error) {
		w.loose, err = p.Alloc(64)
		return err
	}},
	"alloc alone, larger": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.create(p, 1, 640, 64))
	}, func(w *world, p *Heap) (err error) {
		w.loose, err = p.Alloc(600)
		return err
	}},
	"text": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.place(p, 64))
	}, func(w *world, p *Heap) error { return w.place(p, 41) }},
	"text where something was": {0, 0, func(w *world, p *Heap) error {
		if err := first(warm(w, p), w.create(p, 0, 64, 64)); err != nil {
			return err
		}
		b, err := w.r.Bytes(shm.Offset(w.th.table[0].Load()), 64)
		copy(b, strings.Repeat("?", 64))
		return first(err, w.destroy(p, 0))
	}, func(w *world, p *Heap) error { return w.place(p, 62) }},
	"larger text, magazine empty": {0, 0, warm, func(w *world, p *Heap) error { return w.place(p, 1000) }},
	"free alone": {0, 0, func(w *world, p *Heap) (err error) {
		w.loose, err = p.Alloc(64)
		return err
	}, func(w *world, p *Heap) error { return p.Free(w.loose) }},
	"free alone into a full magazine": {0, 0, func(w *world, p *Heap) (err error) {
		var loose [6]shm.Offset
		for i := range loose {
			if loose[i], err = p.Alloc(2000); err != nil {
				return err
			}
		}
		w.loose = loose[0]
		return first(p.Free(loose[3]), p.Free(loose[4]), p.Free(loose[5]), p.Free(loose[1]), p.Free(loose[2]))
	}, func(w *world, p *Heap) error { return p.Free(w.loose) }},
	"free a run alone": {0, 0, func(w *world, p *Heap) (err error) {
		w.loose, err = p.Alloc(40_000)
		return err
	}, func(w *world, p *Heap) error { return p.Free(w.loose) }},
	"operation with a long log": {144 << 10, 144 << 10, func(w *world, p *Heap) error {
		return first(warm(w, p), w.fill(p, 0, 2, 64))
	}, func(w *world, p *Heap) error { return w.long(p, 187) }},
	"rolled back with a long log": {144 << 10, 144 << 10, func(w *world, p *Heap) error {
		return first(warm(w, p), w.fill(p, 0, 2, 64))
	}, func(w *world, p *Heap) error { return w.long(p, -187) }},
	"magazine filled from three spans": {0, 0, apart, func(w *world, p *Heap) error {
		return w.create(p, 20, 1000, 64)
	}},
	"flush into three spans": {0, 0, func(w *world, p *Heap) error {
		return first(apart(w, p), w.create(p, 20, 1000, 64), w.empty(p, 1, 2), w.empty(p, 5, 1))
	}, func(w *world, p *Heap) error { return first(w.create(p, 21, 64, 64), p.Flush()) }},
	"magazine filled beside another lane": {0, 0, besideLane(func(w *world, p *Heap) error {
		return w.create(p, 1, 64, 64)
	}), func(w *world, p *Heap) error { return w.create(p, 0, 64, 64) }},
	"magazine filled from another lane's span": {0, 0, besideLane(func(w *world, p *Heap) error {
		return first(apartOf(w, p, passMost), w.fill(p, 80, 1, 32_000))
	}), func(w *world, p *Heap) error { return w.create(p, 60, 1000, 64) }},
	"magazine filled from a dead process' span": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.create(w.process(1), 1, 320, 64))
	}, func(w *world, p *Heap) error { return w.create(p, 0, 320, 64) }},
	"flush": {0, 0, func(w *world, p *Heap) error {
		return first(warm(w, p), w.fill(p, 0, 3, 2048), w.empty(p, 0, 2), w.create(p, 5, 4096, 64))
	}, func(w *world, p *Heap) error {
		l, err := p.Enter() // a process has no lane before its first operation
		if err != nil {
			return err
		}
		return first(l.Leave(), p.Flush())
	}},
}

func nothing(*world, *Heap) error { return nil }

// warm makes the process' first lane.
func warm(w *world, p *Heap) error { return w.create(p, 90, 64, 64) }

// apart leaves three spans of four blocks, of which one is free in each, and an empty magazine.
func apart(w *world, p *Heap) error { return first(warm(w, p), apartOf(w, p, 3)) }

func apartOf(w *world, p *Heap, spans int) error {
	if err := w.fill(p, 0, 4*spans, 1000); err != nil {
		return err
	}
	for i := range spans {
		if err := w.empty(p, 4*i, 1); err != nil {
			return err
		}
	}
	return p.Flush()
}

// besideLane has prepare run in the second lane of the process, while the first one, which the operation will have, is in use.
func besideLane(prepare func(w *world, p *Heap) error) func(w *world, p *Heap) error {
	return func(w *world, p *Heap) error {
		l, err := p.Enter()
		if err != nil {
			return err
		}
		return first(prepare(w, p), l.Leave())
	}
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *world) fill(p *Heap, from, n int, size uint64) error {
	for i := range n {
		if err := w.create(p, from+i, size, 64); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) empty(p *Heap, from, n int) error {
	for i := range n {
		if err := w.destroy(p, from+i); err != nil {
			return err
		}
	}
	return nil
}

// Whatever store a process is killed at, and whatever store of the recovery its recoverer: each object is as before the
// operation or as after it, no block is lost, and no lock is held.
func TestKillAtEveryStoreLeavesBeforeOrAfter(t *testing.T) {
	if raceEnabled {
		t.Skip("nothing runs at once here, and it takes long")
	}
	points, deep := 0, 0
	for _, name := range sortedKeys(scenarios) {
		t.Run(name, func(t *testing.T) {
			n, m := killEverywhere(t, name)
			points, deep = points+n, deep+m
		})
	}
	t.Logf("killed at %d stores of %d operations, and at %d of recoveries", points, len(scenarios), deep)
}

func killEverywhere(t *testing.T, name string) (points, deep int) {
	sc := scenarios[name]
	size, limit := sc.size, sc.limit
	if size == 0 {
		size, limit = 224<<10, 224<<10
	}
	w := newWorld(t, size, limit)
	if err := sc.prepare(w, w.process(deadSlot)); err != nil {
		t.Fatal(err)
	}
	p := w.process(deadSlot)
	before, err := w.state(p)
	if err != nil {
		t.Fatal(err)
	}
	states, err := w.run(p, func() error { return sc.do(w, p) })
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	after, err := w.state(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("before:\n%safter:\n%s", before, after)
	if len(states) < 5 {
		t.Fatalf("%d stores", len(states)-1)
	}
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	sawBefore, sawAfter := 0, 0
	judge := func(p *Heap, k, j int) {
		t.Helper()
		u, err := p.Usage()
		if err != nil {
			t.Fatalf("killed at store %d, recoverer at %d: %v", k, j, err)
		}
		if !u.Exact || u.Cached != u.Slots[survivor]+u.Slots[survivor2]+u.Slots[1] || u.Owed != 0 {
			t.Fatalf("killed at store %d, recoverer at %d: magazines of the dead are not empty: %+v", k, j, u)
		}
		got, err := w.state(p)
		switch {
		case err != nil:
			t.Fatalf("killed at store %d, recoverer at %d: %v", k, j, err)
		case got == before:
			sawBefore++
		case got == after:
			sawAfter++
		default:
			t.Fatalf("killed at store %d, recoverer at %d: neither before nor after:\n%s", k, j, got)
		}
		for name, mu := range w.locks(p) {
			if !mu.TryLock() {
				t.Fatalf("killed at store %d, recoverer at %d: lock %q is stuck", k, j, name)
			}
			mu.Unlock()
		}
	}
	for k, m := range states {
		points++
		w.restore(m)
		q := w.process(survivor)
		if !*exhaustive && rng.IntN(len(states)) >= 10 {
			if err := w.recover(q, false, deadSlot); err != nil {
				t.Fatalf("killed at store %d: %v", k, err)
			}
			judge(q, k, -1)
			continue
		}
		undoneAt := -1
		var v *watch
		undoneMark = func() { undoneAt = len(v.all) - 1 }
		v = w.watch(q)
		rec, err := func() ([]memory, error) {
			txnOnStore(v.step)
			defer txnOnStore(nil)
			err := w.recover(q, false, deadSlot)
			v.step(nil, 0)
			if err == nil {
				err = v.failed
			}
			return v.all[1:], err
		}()
		undoneMark = nil
		if err != nil {
			t.Fatalf("killed at store %d: %v", k, err)
		}
		judge(q, k, -1)
		// The survivor is killed at each of its stores, and the next one begins anew.
		for j := range rec {
			if !*exhaustive && rng.IntN(len(rec)) >= 12 {
				continue
			}
			deep++
			w.restore(rec[j])
			q := w.process(survivor2)
			var err error
			if j < undoneAt {
				err = w.recover(q, false, deadSlot, survivor)
			} else {
				err = w.recover(q, true, deadSlot, survivor)
			}
			if err != nil {
				t.Fatalf("seed %d: killed at store %d, recoverer at %d of %d: %v", seed, k, j, len(rec), err)
			}
			judge(q, k, j)
		}
	}
	if before != after && (sawBefore == 0 || sawAfter == 0) {
		t.Errorf("%d times as before, %d as after: there is no commit", sawBefore, sawAfter)
	}
	t.Logf("%d stores, %d kills of a recoverer; %d as before, %d as after", len(states)-1, deep, sawBefore, sawAfter)
	return points, deep
}
