package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// drained takes all messages.
func drained[T any](t *testing.T, q SharedQueue[T]) (all []T) {
	t.Helper()
	for {
		v, ok, err := q.TryGet()
		if err != nil && !errors.Is(err, ErrQueueClosed) {
			t.Fatal(err)
		}
		if !ok {
			return all
		}
		all = append(all, v)
	}
}

// Messages put in a transaction come when it happens, in order, around the end of the ring; those of one that fails do not come.
func TestPutInATransactionComesWithIt(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		t.Run("int64", func(t *testing.T) { testPutInTransactions(t, m, func(n int) int64 { return int64(n) }, equal) })
		t.Run("struct", func(t *testing.T) {
			testPutInTransactions(t, m, func(n int) letter { return letterOf(int64(n)) }, equal)
		})
		t.Run("string", func(t *testing.T) { testPutInTransactions(t, m, longText, equal) })
		t.Run("bytes", func(t *testing.T) {
			testPutInTransactions(t, m, func(n int) []byte { return []byte(longText(n)) }, func(a, b []byte) bool { return string(a) == string(b) })
		})
	})
}

func testPutInTransactions[T any](t *testing.T, m *Manager, of func(int) T, same func(a, b T) bool) {
	q, n := queueForTest[T](t, m, 5), Must(NewSharedInt(m, 0))
	mind := errors.New("changed its mind")
	put := 0
	for round := range 30 {
		k := round % 6
		err := m.Update(t.Context(), func(tx *Tx) error {
			v := q.In(tx)
			for i := range k {
				message := of(put + i)
				if err := v.Put(message); err != nil {
					return err
				}
				if b, ok := any(message).([]byte); ok {
					clear(b) // the transaction has a copy
				}
			}
			if v.Len() != k || q.Len() != 0 {
				t.Errorf("round %d: the transaction sees %d messages, others %d, want %d and none", round, v.Len(), q.Len(), k)
			}
			n.In(tx).Add(int64(k))
			if round%4 == 3 {
				return mind
			}
			return nil
		})
		if round%4 == 3 {
			k = 0
			if err != mind {
				t.Fatal(err)
			}
		} else if err != nil {
			t.Fatal(err)
		}
		got := drained(t, q)
		if len(got) != k {
			t.Fatalf("round %d: %d messages came, want %d", round, len(got), k)
		}
		for i, v := range got {
			if !same(v, of(put+i)) {
				t.Errorf("round %d: message %d is %v", round, i, v)
			}
		}
		if put += k; n.Load() != int64(put) {
			t.Fatalf("round %d: %d messages came, %d are counted", round, put, n.Load())
		}
	}
}

// A transaction does not wait for room. It is told, and may go on without.
func TestPutInATransactionIntoAFullQueue(t *testing.T) {
	m := newManager(t)
	q := queueForTest[int64](t, m, 3)
	Must(q.TryPut(1))
	var errs [4]error
	var ok bool
	if err := m.Update(t.Context(), func(tx *Tx) (err error) {
		for i := range errs {
			errs[i] = q.In(tx).Put(int64(2 + i))
		}
		ok, err = q.In(tx).TryPut(9)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if errs[0] != nil || errs[1] != nil || !errors.Is(errs[2], ErrQueueFull) || !errors.Is(errs[3], ErrQueueFull) || ok {
		t.Errorf("%v, and TryPut: %v", errs, ok)
	}
	if got := drained(t, q); !slices.Equal(got, []int64{1, 2, 3}) {
		t.Errorf("got %v", got)
	}
	if err := m.Update(t.Context(), func(tx *Tx) error { // no message is lost that was put before
		for i := range int64(4) {
			if err := q.In(tx).Put(i); err != nil {
				return err
			}
		}
		return nil
	}); !errors.Is(err, ErrQueueFull) || q.Len() != 0 {
		t.Errorf("%v, and %d messages came", err, q.Len())
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Update(t.Context(), func(tx *Tx) error { return q.In(tx).Put(1) }); !errors.Is(err, ErrQueueClosed) {
		t.Errorf("into a closed queue: %v", err)
	}
	if err := m.Update(t.Context(), func(tx *Tx) error { _, err := q.In(tx).TryPut(1); return err }); !errors.Is(err, ErrQueueClosed) {
		t.Errorf("TryPut into a closed queue: %v", err)
	}
}

func TestQueueThatCannotJoinATransaction(t *testing.T) {
	m := newManager(t)
	other := queueForTest[int64](t, newHeapManager(t), 3)
	gone := queueForTest[int64](t, m, 3)
	if err := gone.Destroy(); err != nil {
		t.Fatal(err)
	}
	fine := queueForTest[int64](t, m, 3)
	for want, q := range map[error]SharedQueue[int64]{fs.ErrInvalid: other, shm.ErrStale: gone} {
		err := m.Update(t.Context(), func(tx *Tx) error { return errors.Join(fine.In(tx).Put(1), q.In(tx).Put(1)) })
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	if fine.Len() != 0 || other.Len() != 0 {
		t.Error("a part of the transaction has happened")
	}
	small := newManager(t, shm.Size(256<<10), shm.Limit(256<<10))
	texts, n := queueForTest[string](t, small, 9), Must(NewSharedInt(small, 0))
	err := small.Update(t.Context(), func(tx *Tx) error {
		n.In(tx).Add(1)
		return errors.Join(texts.In(tx).Put(strings.Repeat("x", 1000)), texts.In(tx).Put(strings.Repeat("x", 1<<20)))
	})
	if !errors.Is(err, shm.ErrNoSpace) || texts.Len() != 0 || n.Load() != 0 {
		t.Errorf("a message greater than the region: %v; %d messages came, %d are counted", err, texts.Len(), n.Load())
	}
}

// A transaction that acknowledges a message of one queue, puts others into that and into a second one, and counts, is cut off before each of its
// stores: all of that has happened then, or nothing, and no memory is lost.
func TestLeaseAndPutsOfATransactionHappenTogether(t *testing.T) {
	long := func(i int) string { return fmt.Sprintf("%d: %s", i, strings.Repeat("long ", 8)) }
	type world struct {
		m       *Manager
		in, out SharedQueue[string]
		plain   SharedQueue[int64]
		n       SharedInt
		lease   *Lease[string]
	}
	furnish := func() world {
		m := briefManager(t)
		w := world{m: m, in: Must(NewSharedQueue[string](m, 4)), out: Must(NewSharedQueue[string](m, 3)), plain: Must(NewSharedQueue[int64](m, 3)), n: Must(NewSharedInt(m, 0))}
		if _, err := w.in.PutN(t.Context(), long(0), long(1)); err != nil {
			t.Fatal(err)
		}
		w.lease = Must(w.in.Lease(t.Context()))
		Must(w.plain.PutN(t.Context(), 1, 2)) // so that others come around the end of the ring
		Must(w.plain.Get(t.Context()))
		return w
	}
	change := func(w world) error {
		return w.m.Update(t.Context(), func(tx *Tx) error {
			w.n.In(tx).Add(1)
			out, plain := w.out.In(tx), w.plain.In(tx)
			return errors.Join(out.Put(long(2)), out.Put("short"), plain.Put(3), plain.Put(4), w.in.In(tx).Put(w.lease.Value+"again"), w.lease.In(tx).Done())
		})
	}
	describe := func(w world) string { // and takes all
		lens := fmt.Sprint(w.in.Unfinished(), w.out.Unfinished(), w.plain.Unfinished(), w.n.Load())
		return fmt.Sprintf("%s %q %q %v", lens, drained(t, w.in), drained(t, w.out), drained(t, w.plain))
	}
	w := furnish()
	before := describe(w)
	w.m.Close()
	w = furnish()
	if err := change(w); err != nil {
		t.Fatal(err)
	}
	after := describe(w)
	w.m.Close()
	seen := map[string]int{}
	for k := 0; ; k++ {
		w := furnish()
		cut := cutTorn(k, func() { change(w) })
		for _, b := range []base{w.in.base, w.out.base, w.plain.base, w.n.base} {
			takeOver(b)
			b.mu.Lock()
			if err := b.settle(); err != nil {
				t.Fatal(err)
			}
			b.mu.Unlock()
		}
		if err := errors.Join(w.in.Check(), w.out.Check(), w.plain.Check()); err != nil {
			t.Fatalf("cut off at store %d: %v", k, err)
		}
		nothingLost(t, w.m)
		got := describe(w)
		if got != before && got != after || !cut && got != after {
			t.Fatalf("cut off at store %d it is\n%s, before it was\n%s", k, got, before)
		}
		seen[got]++
		if err := w.m.Close(); err != nil {
			t.Fatal(err)
		}
		if !cut {
			break
		}
	}
	bothSeen(t, seen, before, after)
}

type queueCommit struct {
	M *Manager
	Q SharedQueue[int64]
}

// putsInTransaction puts 7 in a transaction, and dies when that has happened, before it can wake anybody.
var putsInTransaction = proc.Define("puts in a transaction", func(ctx context.Context, c queueCommit) error {
	w := c.Q.q.word(queueTail)
	dieAfter(w, w.Load()+1)
	return c.M.Update(ctx, func(tx *Tx) error { return c.Q.In(tx).Put(7) })
})

// Those who wait for messages are woken when a transaction has put some, each of them, and also if it is killed before it could do that.
func TestPutInATransactionWakesThoseWhoWait(t *testing.T) {
	m := newManager(t)
	q := queueForTest[int64](t, m, 4)
	ctx := deadline(t)
	got := make(chan int64, 3)
	wait := func() {
		v, err := q.Get(ctx)
		if err != nil {
			t.Error(err)
		}
		got <- v
	}
	for range 2 {
		go wait()
	}
	untilWaiting(t, q.q, waitMessage, 2)
	if err := m.Update(ctx, func(tx *Tx) error { return errors.Join(q.In(tx).Put(1), q.In(tx).Put(2)) }); err != nil {
		t.Fatal(err)
	}
	if a, b := <-got, <-got; a+b != 3 {
		t.Errorf("got %d and %d", a, b)
	}
	go wait()
	untilWaiting(t, q.q, waitMessage, 1)
	wantKilled(t, putsInTransaction.Run(ctx, queueCommit{m, q}))
	if v := <-got; v != 7 {
		t.Errorf("got %d", v)
	}
}

// Those who wait for a message's end, or for a place to note a lease, go on when a transaction has ended one.
func TestLeaseThatEndsInATransactionWakesThoseWhoWait(t *testing.T) {
	m := newManager(t)
	ctx := deadline(t)
	joined, leased := queueForTest[int64](t, m, 1), queueForTest[int64](t, m, 1)
	lease := func(q SharedQueue[int64], v int64) *Lease[int64] {
		if err := q.Put(ctx, v); err != nil {
			t.Fatal(err)
		}
		return Must(q.Lease(ctx))
	}
	last, first := lease(joined, 1), lease(leased, 0)
	for i := range int64(minLeases - 1) {
		lease(leased, i)
	}
	if err := leased.Put(ctx, 99); err != nil {
		t.Fatal(err)
	}
	done, got := make(chan error, 1), make(chan *Lease[int64], 1)
	go func() { done <- joined.Join(ctx) }()
	go func() { got <- Must(leased.Lease(ctx)) }()
	untilWaiting(t, joined.q, waitJoin, 1)
	untilWaiting(t, leased.q, waitEntry, 1)
	if err := m.Update(ctx, func(tx *Tx) error { return errors.Join(last.In(tx).Done(), first.In(tx).Done()) }); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if l := <-got; l.Value != 99 {
		t.Errorf("lease of %d", l.Value)
	}
}
