package txn

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
)

// A bench is a region with words, and lanes for two slots that need no heap: there are no blocks.
type bench struct {
	t *testing.T
	r *shm.Region
	w *benchWords
}

type benchWords struct {
	seq   atomic.Uint64    // odd while the others are half changed; by Until
	set   [3]atomic.Uint64 // by Set
	later [3]atomic.Uint64 // by Later
	twice atomic.Uint64    // by Set, Later and Set again
}

const (
	benchSlot  = 5
	benchOther = 6
)

func newBench(t *testing.T) *bench {
	t.Helper()
	r, err := shm.Heap(shm.Size(128<<10), shm.Limit(128<<10))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	b := &bench{t: t, r: r}
	if b.w, err = shm.At[benchWords](r, r.Data()); err != nil {
		t.Fatal(err)
	}
	return b
}

// Lines and Memory have one place for each slot, and one lane.
func (b *bench) Lines(slot int) error {
	b.r.Lanes(slot).Store(uint64(b.r.Data()) + 8192*uint64(2*(slot-benchSlot)+1))
	return nil
}

func (b *bench) Memory(slot, lane int) error {
	if lane != 0 {
		return shm.ErrNoSpace
	}
	w, err := MemoryWord(b.r, slot, lane)
	if err == nil {
		w.Store(b.r.Lanes(slot).Load() + 8192)
	}
	return err
}

func (b *bench) More(*Lane, int) error            { return shm.ErrNoSpace }
func (b *bench) Taken(*Lane, Entry) (bool, error) { return false, shm.ErrCorrupt }
func (b *bench) Given(*Lane, Entry) (bool, error) { return false, shm.ErrCorrupt }
func (b *bench) Give(*Lane, Entry, uint64) error  { return shm.ErrCorrupt }
func (b *bench) Empty(op, l *Lane) error          { return nil }
func (b *bench) lanes(slot int) *Lanes            { return NewLanes(b.r, slot, b) }
func (w *benchWords) values() (all [8]uint64) {
	for i, p := range w.all() {
		all[i] = p.Load()
	}
	return all
}

func (w *benchWords) all() [8]*atomic.Uint64 {
	return [8]*atomic.Uint64{&w.seq, &w.set[0], &w.set[1], &w.set[2], &w.later[0], &w.later[1], &w.later[2], &w.twice}
}

// operation is a change of all words by Set, Until and Later, as containers do it.
func (b *bench) operation(s *Lanes, commit bool) (err error) {
	l, err := s.Enter()
	if err != nil {
		return err
	}
	defer func() {
		if left := l.Leave(); err == nil {
			err = left
		}
	}()
	w := b.w
	seq := w.seq.Load()
	for _, err := range []error{
		l.Until(&w.seq, seq+1, seq+2),
		l.Set(&w.set[0], w.set[0].Load()+1),
		l.Set(&w.twice, 50),
		l.Later(&w.later[0], w.later[0].Load()+1),
		l.Set(&w.set[1], w.set[1].Load()+1),
		l.Later(&w.twice, 55),
		l.Later(&w.twice, 60),
		l.Set(&w.twice, 70),
		l.Later(&w.later[1], w.later[1].Load()+1),
		l.Later(&w.seq, seq+2),
		l.Set(&w.set[2], w.set[2].Load()+1),
		l.Later(&w.later[2], w.later[2].Load()+1), // after seq
	} {
		if err != nil {
			return err
		}
	}
	if commit {
		l.Commit()
	}
	return nil
}

// states runs do, and returns the data before each of its stores and after the last.
func (b *bench) states(do func() error) (all [][]byte) {
	b.t.Helper()
	data, err := b.r.Bytes(b.r.Data(), b.r.Size())
	if err != nil {
		b.t.Fatal(err)
	}
	keep := func(unsafe.Pointer, uintptr) { all = append(all, bytes.Clone(data)) }
	OnStore = keep
	err = do()
	OnStore = nil
	if err != nil {
		b.t.Fatal(err)
	}
	keep(nil, 0)
	return all
}

func (b *bench) restore(state []byte) {
	b.t.Helper()
	data, err := b.r.Bytes(b.r.Data(), b.r.Size())
	if err != nil {
		b.t.Fatal(err)
	}
	copy(data, state)
}

// Whatever store an operation is cut off at, and the recovery after it: all words are as before or as after. What Until counts up never comes back to
// where it was once anybody may have seen the change, and what Later stores nobody sees whose operation is undone, nor out of order.
func TestKillAtEveryStoreOfUntilAndLater(t *testing.T) {
	for _, commit := range []bool{true, false} {
		t.Run(fmt.Sprintf("commit=%v", commit), func(t *testing.T) {
			b := newBench(t)
			if err := b.operation(b.lanes(benchSlot), true); err != nil { // makes the lane, and words of which none is 0
				t.Fatal(err)
			}
			before := b.w.values()
			if want := [8]uint64{2, 1, 1, 1, 1, 1, 1, 60}; before != want {
				t.Fatalf("an operation leaves %v, want %v", before, want)
			}
			b.w.twice.Store(40)
			before[7] = 40
			after := [8]uint64{4, 2, 2, 2, 2, 2, 2, 60}
			undone := before
			undone[0] = 4
			own := b.lanes(benchSlot)
			states := b.states(func() error { return b.operation(own, commit) })
			if got, want := b.w.values(), map[bool][8]uint64{true: after, false: undone}[commit]; got != want {
				t.Fatalf("after the operation the words are %v, want %v", got, want)
			}
			saw := map[[8]uint64]int{}
			// Later words that are new have new ones before them. What is undone has a new seq too, whatever words are by Set, which readers without
			// the lock never look at.
			inOrder := func(k, j int, seen [8]uint64) {
				t.Helper()
				fresh := true
				for _, i := range []int{4, 5, 0, 6} {
					now := seen[i] == after[i]
					if now && !fresh && [3]uint64(seen[4:7]) != [3]uint64(undone[4:7]) {
						t.Fatalf("cut off at store %d, recovery at %d: later words are stored out of order: %v", k, j, seen)
					}
					fresh = now
				}
			}
			for k, state := range states {
				b.restore(state)
				seen := b.w.values() // by who reads without a lock
				inOrder(k, -1, seen)
				recovery := b.states(func() error { return Undo(b.r, benchSlot, b) })
				judge := func(j int) [8]uint64 {
					t.Helper()
					got := b.w.values()
					saw[got]++
					switch {
					case got == after || got == undone:
					case got == before && seen == before: // nobody has seen a change
					default:
						t.Fatalf("cut off at store %d, recovery at %d: words are %v, were seen as %v, want %v or %v", k, j, got, seen, undone, after)
					}
					if seen[4] == after[4] && got != after {
						t.Fatalf("cut off at store %d, recovery at %d: a later word was seen as stored, and the operation is undone: %v", k, j, got)
					}
					return got
				}
				first := judge(-1)
				for j, half := range recovery {
					b.restore(half)
					inOrder(k, j, b.w.values())
					if err := Undo(b.r, benchSlot, b); err != nil {
						t.Fatal(err)
					}
					if got := judge(j); got != first {
						t.Fatalf("cut off at store %d: recovery leaves %v, and %v when it is cut off at store %d and run again", k, first, got, j)
					}
				}
				if err := Drain(b.r, benchSlot, b, b.lanes(benchOther)); err != nil {
					t.Fatal(err)
				}
				if got := b.w.values(); got != first {
					t.Fatalf("cut off at store %d: the third phase changes %v to %v", k, first, got)
				}
			}
			if saw[undone] == 0 || saw[before] == 0 || commit && saw[after] == 0 {
				t.Errorf("outcomes %v", saw)
			}
			t.Logf("%d stores, outcomes %v", len(states)-1, saw)
		})
	}
}

// Until stores back what it was told to, whatever the word was.
func TestUntilGoesToWhereItWasTold(t *testing.T) {
	b := newBench(t)
	b.w.seq.Store(7)
	l, err := b.lanes(benchSlot).Enter()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Until(&b.w.seq, 8, 100); err != nil || b.w.seq.Load() != 8 {
		t.Fatal(err, b.w.seq.Load())
	}
	if err := l.Leave(); err != nil || b.w.seq.Load() != 100 {
		t.Errorf("rolled back to %d, want 100 (%v)", b.w.seq.Load(), err)
	}
	if err := l.Until(&b.w.seq, 9, 200); err != nil {
		t.Fatal(err)
	}
	l.Commit()
	if err := l.Leave(); err != nil || b.w.seq.Load() != 9 {
		t.Errorf("committed as %d, want 9 (%v)", b.w.seq.Load(), err)
	}
}

// Later changes nothing before the commit, and all of it before Commit returns, in order, the last of two for one word.
func TestLaterWaitsForTheCommit(t *testing.T) {
	b := newBench(t)
	l, err := b.lanes(benchSlot).Enter()
	if err != nil {
		t.Fatal(err)
	}
	for v := uint64(1); v <= 2; v++ {
		for i := range b.w.later {
			if err := l.Later(&b.w.later[i], v); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := b.w.values(); got != [8]uint64{} {
		t.Errorf("before the commit the words are %v", got)
	}
	var order []int
	OnStore = func(p unsafe.Pointer, _ uintptr) {
		for i := range b.w.later {
			if p == unsafe.Pointer(&b.w.later[i]) {
				order = append(order, i)
			}
		}
	}
	l.Commit()
	OnStore = nil
	if got := b.w.values(); got != [8]uint64{4: 2, 5: 2, 6: 2} {
		t.Errorf("after the commit the words are %v", got)
	}
	if want := []int{0, 1, 2, 0, 1, 2}; fmt.Sprint(order) != fmt.Sprint(want) {
		t.Errorf("stored in order %v, want %v", order, want)
	}
	if err := l.Leave(); err != nil {
		t.Error(err)
	}
	if err := l.Later(&b.w.later[0], 9); err != nil {
		t.Fatal(err)
	}
	if err := l.Leave(); err != nil || b.w.later[0].Load() != 2 {
		t.Errorf("rolled back to %d (%v)", b.w.later[0].Load(), err)
	}
}
