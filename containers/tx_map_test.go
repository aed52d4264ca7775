package containers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

// Transactions do the same things at random to a map and to Go's own, and now and then change their mind.
func TestMapInTransactionsIsLikeAGoMap(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		t.Run("text", func(t *testing.T) {
			text := func(i int) string { return strings.Repeat("x", i%37) + fmt.Sprint(i) }
			mapInTransactions(t, m, text, text)
		})
		t.Run("words", func(t *testing.T) {
			mapInTransactions(t, m, func(i int) int64 { return int64(i) }, func(i int) int64 { return int64(-i) })
		})
		t.Run("wide", func(t *testing.T) {
			mapInTransactions(t, m, func(i int) [3]int32 { return [3]int32{1: int32(i)} }, func(i int) [5]int64 { return [5]int64{4: int64(i)} })
		})
	})
}

func mapInTransactions[K, V comparable](t *testing.T, m *Manager, key func(i int) K, value func(i int) V) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	h := Must(NewSharedMap[K, V](m))
	model := map[K]V{}
	changed := errors.New("changed its mind")
	for round := range 120 {
		span := 10 << (round / 15)
		now := maps.Clone(model)
		err := m.Update(context.Background(), func(tx *Tx) error {
			v := h.In(tx)
			for range rng.IntN(2 * span) {
				k := key(rng.IntN(span))
				want, has := now[k]
				switch rng.IntN(4) {
				case 0:
					if got, ok := v.Get(k); got != want || ok != has || v.Contains(k) != has {
						t.Fatalf("round %d: Get(%v) = %v, %v, want %v, %v", round, k, got, ok, want, has)
					}
				case 1:
					if v.Delete(k) != has {
						t.Fatalf("round %d: Delete(%v) is not %v", round, k, has)
					}
					delete(now, k)
				default:
					now[k] = value(rng.IntN(1000))
					v.Put(k, now[k])
				}
			}
			if v.Len() != len(now) || !maps.Equal(maps.Collect(v.All()), now) {
				t.Fatalf("round %d: %d keys within the transaction, want %d", round, v.Len(), len(now))
			}
			if !maps.Equal(maps.Collect(h.All()), model) {
				t.Fatalf("round %d: others see a part of the transaction", round)
			}
			if rng.IntN(4) == 0 {
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
		if got := maps.Collect(h.All()); !maps.Equal(got, model) || h.Len() != len(model) {
			t.Fatalf("round %d: %d keys, counted as %d, want %d", round, len(got), h.Len(), len(model))
		}
		if err := h.Check(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	if len(model) < 300 {
		t.Errorf("%d keys are too few to show anything", len(model))
	}
}

// A transaction that takes keys out of a map, replaces and adds others, and acknowledges messages is cut off before each of its
// stores: all of that has happened then, or nothing, and no memory is lost.
func TestMapAndLeasesOfATransactionChangeTogether(t *testing.T) {
	long := func(i int) string { return fmt.Sprintf("%d: %s", i, strings.Repeat("long ", 8)) }
	type world struct {
		m      *Manager
		counts SharedMap[string, string]
		wide   SharedMap[int64, [4]int64]
		queue  SharedQueue[string]
		leases []*Lease[string]
	}
	furnish := func() world {
		m := briefManager(t)
		w := world{m: m, counts: Must(NewSharedMap[string, string](m)), wide: Must(NewSharedMap[int64, [4]int64](m)), queue: Must(NewSharedQueue[string](m, 4))}
		for i := range 12 {
			if err := w.counts.Put(long(i), long(-i)); err != nil {
				t.Fatal(err)
			}
			if err := w.wide.Put(int64(i), [4]int64{int64(i)}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 3 {
			if err := w.queue.Put(t.Context(), long(i)); err != nil {
				t.Fatal(err)
			}
			w.leases = append(w.leases, Must(w.queue.Lease(t.Context())))
		}
		return w
	}
	change := func(w world) error {
		return w.m.Update(t.Context(), func(tx *Tx) error {
			counts, wide := w.counts.In(tx), w.wide.In(tx)
			for i := range 20 {
				switch k := long(2 * i); i % 3 {
				case 0:
					counts.Delete(k)
					wide.Delete(int64(i))
				case 1:
					counts.Put(k, fmt.Sprint(i))
					wide.Put(int64(i), [4]int64{1, 2, 3, int64(i)})
				default:
					counts.Put(k, long(i))
					wide.Put(int64(100+i), [4]int64{3: int64(i)})
				}
			}
			return errors.Join(w.leases[0].In(tx).Done(), w.leases[2].In(tx).Done())
		})
	}
	sorted := func(w world) string {
		var all []string
		for k, v := range w.counts.All() {
			all = append(all, k+" = "+v)
		}
		for k, v := range w.wide.All() {
			all = append(all, fmt.Sprint(k, v))
		}
		slices.Sort(all)
		return fmt.Sprintln(strings.Join(all, "\n"), w.queue.Unfinished(), w.counts.Len(), w.wide.Len())
	}
	w := furnish()
	before := sorted(w)
	if err := change(w); err != nil {
		t.Fatal(err)
	}
	after := sorted(w)
	w.m.Close()
	if before == after {
		t.Fatal("the transaction does nothing")
	}
	seen := map[string]int{} // how many stores it takes depends on where the keys come to lie, and that on the region
	step := 1
	for k := 0; ; k += step {
		if testing.Short() {
			step = 7
		}
		w := furnish()
		cut := cutAt(k, func() { change(w) })
		for _, b := range []base{w.counts.base, w.wide.base, w.queue.base} {
			if !b.mu.TryLock() { // as its dead owner left it
				b.mu.Unlock()
				b.mu.Lock()
			}
			if err := b.settle(); err != nil {
				t.Fatal(err)
			}
			b.mu.Unlock()
		}
		got := sorted(w)
		if got != before && got != after || !cut && got != after {
			t.Fatalf("cut off at store %d it is\n%s, before it was\n%s", k, got, before)
		}
		seen[got]++
		if err := errors.Join(w.counts.Check(), w.wide.Check(), w.queue.Check()); err != nil {
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

// A map that never had a key has no memory where one could lie.
func TestTransactionPutsAndDeletesInAnEmptyMap(t *testing.T) {
	m := newManager(t)
	h := Must(NewSharedMap[string, string](m))
	err := m.Update(t.Context(), func(tx *Tx) error {
		h.In(tx).Put("nobody", "nothing")
		h.In(tx).Delete("nobody")
		return nil
	})
	if err != nil || h.Len() != 0 {
		t.Errorf("%v, %d keys", err, h.Len())
	}
	if err := h.Check(); err != nil {
		t.Error(err)
	}
}

func TestLeaseEndsOnceInTransactionsToo(t *testing.T) {
	m := newManager(t)
	q := Must(NewSharedQueue[int64](m, 4))
	if err := q.Put(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	l := Must(q.Lease(t.Context()))
	done := func(tx *Tx) error { return l.In(tx).Done() }
	err := m.Update(t.Context(), func(tx *Tx) error { return errors.Join(done(tx), done(tx)) })
	if !errors.Is(err, ErrLeaseEnded) {
		t.Errorf("twice in a transaction: %v, want %v", err, ErrLeaseEnded)
	}
	if q.Unfinished() != 1 {
		t.Fatalf("%d messages, want 1: the transaction failed", q.Unfinished())
	}
	joined := make(chan error, 1)
	go func() { joined <- q.Join(t.Context()) }()
	if err := m.Update(t.Context(), done); err != nil {
		t.Fatal(err)
	}
	if err := <-joined; err != nil { // it may have waited
		t.Error(err)
	}
	if err := m.Update(t.Context(), done); !errors.Is(err, ErrLeaseEnded) {
		t.Errorf("in a second transaction: %v, want %v", err, ErrLeaseEnded)
	}
	if err := l.Done(); !errors.Is(err, ErrLeaseEnded) {
		t.Errorf("after the transaction: %v, want %v", err, ErrLeaseEnded)
	}
}

func TestTransactionOverAMapInAFullRegionChangesNothing(t *testing.T) {
	m := newManager(t, shm.Size(256<<10), shm.Limit(256<<10))
	h := Must(NewSharedMap[int64, string](m))
	put := func(from, to int64) error {
		return m.Update(t.Context(), func(tx *Tx) error {
			for i := from; i < to; i++ {
				h.In(tx).Put(i, strings.Repeat("x", 500))
			}
			return nil
		})
	}
	if err := put(0, 50); err != nil {
		t.Fatal(err)
	}
	before := maps.Collect(h.All())
	if err := put(40, 1000); !errors.Is(err, shm.ErrNoSpace) {
		t.Fatalf("%v, want %v", err, shm.ErrNoSpace)
	}
	if !maps.Equal(maps.Collect(h.All()), before) {
		t.Error("a part of the transaction has happened")
	}
	if err := put(50, 60); err != nil {
		t.Errorf("a smaller one: %v", err)
	}
}
