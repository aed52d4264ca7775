package containers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

// Transactions do the same things at random to a list and to a slice, and now and then change their mind.
func TestListInTransactionsIsLikeASlice(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		t.Run("words", func(t *testing.T) { listInTransactions(t, m, func(r *rand.Rand) int64 { return r.Int64() }) })
		t.Run("wide", func(t *testing.T) {
			listInTransactions(t, m, func(r *rand.Rand) quad { n := r.Uint64(); return quad{n, n, n, n} })
		})
		t.Run("text", func(t *testing.T) { listInTransactions(t, m, textFrom) })
	})
}

func listInTransactions[T comparable](t *testing.T, m *Manager, value func(r *rand.Rand) T) {
	r := random(t)
	h := Must(NewSharedList[T](m))
	var model []T
	changed := errors.New("changed its mind")
	long := 0
	for round := range 150 {
		now := slices.Clone(model)
		kinds := 1 + r.IntN(6) // of one thing only, or of all
		err := m.Update(context.Background(), func(tx *Tx) error {
			v := h.In(tx)
			for range r.IntN(80) {
				e := value(r)
				i := r.IntN(2*len(now)+6) - len(now) - 3
				k := i
				if k < 0 {
					k += len(now)
				}
				inside := k >= 0 && k < len(now)
				switch op := r.IntN(kinds + 1); {
				case op < 2:
					v.Append(e)
					now = append(now, e)
				case op == 2 && inside:
					v.Set(i, e)
					now[k] = e
				case op == 3:
					got, ok := v.Pop()
					if ok != (len(now) > 0) || ok && got != now[len(now)-1] {
						t.Fatalf("round %d: Pop = %v, %v of %v", round, got, ok, now)
					}
					now = now[:max(0, len(now)-1)]
				case op == 4:
					got, ok := v.PopFirst()
					if ok != (len(now) > 0) || ok && got != now[0] {
						t.Fatalf("round %d: PopFirst = %v, %v of %v", round, got, ok, now)
					}
					now = now[min(1, len(now)):]
				default:
					if got, ok := v.Get(i); ok != inside || ok && got != now[k] {
						t.Fatalf("round %d: Get(%d) = %v, %v of %v", round, i, got, ok, now)
					}
				}
			}
			if v.Len() != len(now) || !slices.Equal(slices.Collect(v.Values()), now) {
				t.Fatalf("round %d: the transaction sees %v, want %v", round, slices.Collect(v.Values()), now)
			}
			if !slices.Equal(h.Slice(0, len(model)+1), model) {
				t.Fatalf("round %d: others see a part of the transaction", round)
			}
			if r.IntN(4) == 0 {
				return changed
			}
			return nil
		})
		switch {
		case err == nil:
			model = now
		case err != changed:
			t.Fatal(err)
		}
		if got := h.Slice(0, len(model)+1); !slices.Equal(got, model) {
			t.Fatalf("round %d: %v, want %v", round, got, model)
		}
		if err := h.Check(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		long = max(long, len(model))
	}
	if long < 300 {
		t.Errorf("%d elements are too few to show anything", long)
	}
	nothingLost(t, m)
}

// A transaction that notes in a list what it has counted in a map, and acknowledges the message, is cut off before each of its stores, and so is the repair: all of that has
// happened then, or nothing.
func TestListMapAndLeaseOfATransactionChangeTogether(t *testing.T) {
	long := func(i int) string { return fmt.Sprintf("%d: %s", i, strings.Repeat("long ", 8)) }
	type world struct {
		m      *Manager
		log    SharedList[string]
		counts SharedMap[string, string]
		queue  SharedQueue[string]
		lease  *Lease[string]
	}
	furnish := func() world {
		m := briefManager(t)
		w := world{m: m, log: Must(NewSharedList[string](m)), counts: Must(NewSharedMap[string, string](m)), queue: Must(NewSharedQueue[string](m, 4))}
		if err := errors.Join(w.log.AppendN(long(0), "1", long(2), long(3)), w.counts.Put(long(1), "1"), w.queue.Put(t.Context(), long(1))); err != nil {
			t.Fatal(err)
		}
		w.lease = Must(w.queue.Lease(t.Context()))
		return w
	}
	change := func(w world) error {
		return w.m.Update(t.Context(), func(tx *Tx) error {
			w.counts.In(tx).Put(w.lease.Value, "2")
			l := w.log.In(tx)
			l.PopFirst()
			l.Set(1, "counted")
			l.Append(w.lease.Value)
			return w.lease.In(tx).Done()
		})
	}
	describe := func(w world) string {
		n, _ := w.counts.Get(long(1))
		return fmt.Sprintln(w.log.Slice(0, 9), n, w.queue.Unfinished())
	}
	w := furnish()
	before := describe(w)
	if err := change(w); err != nil {
		t.Fatal(err)
	}
	after := describe(w)
	w.m.Close()
	r := random(t)
	seen := map[string]int{}
	for k := 0; ; k++ {
		if testing.Short() {
			k += r.IntN(3)
		}
		w := furnish()
		cut := cutTorn(k, func() { change(w) })
		cutTorn(r.IntN(20), func() { w.log.settle() })
		for _, b := range []base{w.log.base, w.counts.base, w.queue.base} {
			takeOver(b)
			b.mu.Lock()
			if err := b.settle(); err != nil {
				t.Fatal(err)
			}
			b.mu.Unlock()
		}
		got := describe(w)
		if got != before && got != after || !cut && got != after {
			t.Fatalf("cut off at store %d it is\n%s, before it was\n%s", k, got, before)
		}
		seen[got]++
		if err := errors.Join(w.log.Check(), w.counts.Check(), w.queue.Check()); err != nil {
			t.Fatalf("cut off at store %d: %v", k, err)
		}
		nothingLost(t, w.m)
		if err := w.m.Close(); err != nil {
			t.Fatal(err)
		}
		if !cut {
			break
		}
	}
	bothSeen(t, seen, before, after)
}

func TestTransactionOverAListInAFullRegionChangesNothing(t *testing.T) {
	m := newManager(t, shm.Size(256<<10), shm.Limit(256<<10))
	texts, numbers := Must(NewSharedList[string](m)), Must(NewSharedList[int64](m))
	add := func(n int) error {
		return m.Update(t.Context(), func(tx *Tx) error {
			for i := range n {
				numbers.In(tx).Append(int64(i))
				texts.In(tx).Append(strings.Repeat("x", 100))
			}
			return nil
		})
	}
	if err := add(50); err != nil {
		t.Fatal(err)
	}
	live := liveBlocks(t, m)
	if err := add(5000); !errors.Is(err, shm.ErrNoSpace) {
		t.Fatalf("%v, want %v", err, shm.ErrNoSpace)
	}
	if texts.Len() != 50 || numbers.Len() != 50 {
		t.Errorf("%d and %d elements: a part of the transaction has happened", texts.Len(), numbers.Len())
	}
	if n := liveBlocks(t, m); n > live+2 { // a directory has grown
		t.Errorf("%d blocks are in use, %d were", n, live)
	}
	if err := add(60); err != nil {
		t.Errorf("a smaller one: %v", err)
	}
}

func TestTransactionOverListPanicsOutsideIt(t *testing.T) {
	m := newHeapManager(t)
	l := Must(NewSharedList[int64](m))
	if err := l.AppendN(1, 2); err != nil {
		t.Fatal(err)
	}
	for want, fn := range map[string]func(v TxList[int64]){
		"containers: SharedList.At: index 2 out of range [-2, 1]":   func(v TxList[int64]) { v.At(2) },
		"containers: SharedList.Set: index -3 out of range [-2, 1]": func(v TxList[int64]) { v.Set(-3, 0) },
		"containers: SharedList.At: index 0 of an empty list":       func(v TxList[int64]) { v.Pop(); v.Pop(); v.At(0) },
	} {
		if got, _ := panics(t, func() {
			m.Update(t.Context(), func(tx *Tx) error { l.In(tx).Append(3); l.In(tx).Pop(); fn(l.In(tx)); return nil })
		}); got != want {
			t.Errorf("panic %q, want %q", got, want)
		}
	}
	if got := l.Slice(0, 9); !slices.Equal(got, []int64{1, 2}) {
		t.Errorf("%v", got)
	}
	if !l.TryLock() {
		t.Fatal("the lock is held")
	}
	l.Unlock()
}
