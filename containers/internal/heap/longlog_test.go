package heap

import (
	"errors"
	"testing"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// long is an operation with n entries, and some more of each kind in the extension of its log; if n is negative it is rolled back.
func (w *world) long(p *Heap, n int) (err error) {
	w.lock(&w.th.mu)
	q := &w.th.pairs[0]
	w.lock(&q.mu)
	l, err := p.Enter()
	if err != nil {
		return err
	}
	defer func() {
		if n < 0 {
			err = errors.Join(err, l.Rollback())
		}
		w.unlock(&q.mu)
		w.unlock(&w.th.mu)
		leave(l, &err)
	}()
	v := q.a.Load()
	for i := range max(n, -n) {
		if err := l.Set(&q.version, uint64(i)); err != nil {
			return err
		}
	}
	err = first(w.createIn(p, l, 20, 64, 64), l.Set(&q.a, v+1), w.destroyIn(p, l, 0), // 192 by now
		w.createIn(p, l, 21, 5000, 64), w.createIn(p, l, 22, 64, 64), l.Set(&q.b, v+1), w.destroyIn(p, l, 1), l.Later(&q.version, v+1))
	if err == nil && n > 0 {
		l.Commit()
	}
	return err
}

// A log that is full ends the operation without a trace, and what it took of memory is there for the next one.
func TestLogTakes65472Entries(t *testing.T) {
	w := newWorld(t, 4<<20, 4<<20)
	p := w.process(survivor)
	if err := warm(w, p); err != nil {
		t.Fatal(err)
	}
	before, err := w.state(p)
	if err != nil {
		t.Fatal(err)
	}
	q := &w.th.pairs[0]
	fill := func(most int) (n int, err error) {
		l, err := p.Enter()
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, l.Leave()) }()
		for n < most {
			if err := l.Set(&q.a, uint64(n+1)); err != nil {
				return n, err
			}
			n++
		}
		return n, l.Later(&q.b, uint64(n))
	}
	for range 2 {
		if n, err := fill(1 << 20); !errors.Is(err, txn.ErrLogFull) || n != 65472 {
			t.Fatalf("after %d entries: %v, want %v after 65472", n, err, txn.ErrLogFull)
		}
	}
	if after, err := w.state(p); err != nil || after != before {
		t.Errorf("after a full log: %s (%v), want %s", after, err, before)
	}
	if err := p.Check(); err != nil {
		t.Error(err)
	}
	// The next process in the slot has the extensions, and one that dies there is undone by others.
	p = w.process(survivor)
	l, err := p.Enter()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 65472 {
		if err := l.Set(&q.a, uint64(i+1)); err != nil {
			t.Fatal(i, err)
		}
	}
	next := w.process(survivor2)
	if err := w.recover(next, false, survivor); err != nil {
		t.Fatal(err)
	}
	if after, err := w.state(next); err != nil || after != before {
		t.Errorf("after the recovery of a full log: %s (%v), want %s", after, err, before)
	}
}

// An operation that needs more log than there is memory for has not happened.
func TestLongLogInAFullRegion(t *testing.T) {
	w := newWorld(t, 96<<10, 96<<10)
	p := w.process(survivor)
	if err := warm(w, p); err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; w.create(p, n, 4096, 64) == nil; n++ {
	}
	before, err := w.state(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.long(p, 300); !errors.Is(err, shm.ErrNoSpace) {
		t.Fatalf("with %d blocks of a page: %v, want %v", n, err, shm.ErrNoSpace)
	}
	if after, err := w.state(p); err != nil || after != before {
		t.Errorf("after it: %s (%v), want %s", after, err, before)
	}
	if err := first(w.empty(p, 0, n), w.create(p, 0, 64, 64), w.create(p, 1, 64, 64)); err != nil {
		t.Fatal(err)
	}
	if err := w.long(p, 300); err != nil {
		t.Error(err)
	}
}

// A block that an operation frees twice is refused, however many it frees.
func TestFreedTwiceInALongOperation(t *testing.T) {
	w := newWorld(t, 256<<10, 256<<10)
	p := w.process(survivor)
	l, err := p.Enter()
	if err != nil {
		t.Fatal(err)
	}
	var blocks []shm.Offset
	for range 300 {
		off, err := p.AllocIn(l, 64, 64)
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, off)
	}
	l.Commit()
	if err := l.Leave(); err != nil {
		t.Fatal(err)
	}
	if l, err = p.Enter(); err != nil {
		t.Fatal(err)
	}
	for _, off := range blocks {
		if err := p.FreeIn(l, off); err != nil {
			t.Fatal(err)
		}
		if err := p.FreeIn(l, blocks[0]); !errors.Is(err, shm.ErrCorrupt) {
			t.Fatalf("freed twice: %v", err)
		}
		if err := p.FreeIn(l, off); !errors.Is(err, shm.ErrCorrupt) {
			t.Fatalf("freed twice: %v", err)
		}
	}
	l.Commit()
	if err := l.Leave(); err != nil {
		t.Fatal(err)
	}
	if err := p.Check(); err != nil {
		t.Error(err)
	}
}

// Where extensions are is foreign input to whoever recovers: what cannot be is an error.
func TestExtensionsOfADeadLogAreForeignInput(t *testing.T) {
	w := newWorld(t, 256<<10, 256<<10)
	p := w.process(deadSlot)
	if err := warm(w, p); err != nil {
		t.Fatal(err)
	}
	q := &w.th.pairs[0]
	l, err := p.Enter()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 600 {
		if err := l.Set(&q.a, uint64(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	lane := l.Number()
	m := w.save()
	word := func(k int) uint64 {
		p, err := txn.MoreWord(w.r, deadSlot, lane, k)
		if err != nil {
			t.Fatal(err)
		}
		return p.Load()
	}
	first, second := word(0), word(1)
	for name, c := range map[string]struct {
		k   int
		off uint64
	}{
		"none":                      {0, 0},
		"no second one":             {1, 0},
		"outside the region":        {0, 1 << 50},
		"at the end of the region":  {1, uint64(w.r.Data()) + w.r.Size() - 4096},
		"in the middle of a line":   {0, first + 8},
		"the first one again":       {1, first},
		"half over the first one":   {1, first + 2048},
		"half before the first one": {1, first - 4096},
		"before the data":           {1, 64},
		"around the address space":  {1, ^uint64(127)},
		"the second in the first":   {0, second},
	} {
		w.restore(m)
		at, err := txn.MoreWord(w.r, deadSlot, lane, c.k)
		if err != nil {
			t.Fatal(err)
		}
		at.Store(c.off)
		if err := txn.Undo(w.r, deadSlot, w.process(survivor)); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("%s: undo gives %v, want %v", name, err, shm.ErrCorrupt)
		}
	}
	w.restore(m)
	if err := txn.Undo(w.r, deadSlot, w.process(survivor)); err != nil || q.a.Load() != 0 {
		t.Errorf("as it was: undo gives %v and leaves %d", err, q.a.Load())
	}
}
