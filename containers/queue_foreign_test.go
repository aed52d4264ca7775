package containers

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

// Sizes that would make the body's size overflow, so that it seems to fit, are refused.
func TestQueueOfImpossibleSizesIsNotOpened(t *testing.T) {
	q := queueForTest[int64](t, newHeapManager(t), 4)
	o := q.obj
	shape, size := o.words[queueShape].Load(), o.words[queueSize].Load()
	defer func() {
		o.words[queueShape].Store(shape)
		o.words[queueSize].Store(size)
	}()
	for _, w := range [][2]uint64{
		{1 << 33, 1<<30 | (1<<30-4)<<32}, // together 2^64 and some
		{1 << 33, 1<<30 | 16<<32},
		{8, 1<<30 | 16<<32}, // beyond the region
		{8, 4 | (maxLeases+1)<<32},
		{0, size}, {12, size}, {1<<40 - 8, size}, {^uint64(0), size}, {shape, 0}, {shape, 4}, {shape, 16 << 32}, {shape, ^uint64(0)},
		{8 | uint64(formString)<<40, size},
		{8 | uint64(formBytes+1)<<40, size},
		{8 | 1<<48, size},
	} {
		o.words[queueShape].Store(w[0])
		o.words[queueSize].Store(w[1])
		for name, err := range map[string]error{
			"open":   func() error { _, err := openQueue(q.s, o); return err }(),
			"repair": func() error { o.words[queueLeases].Store(tableOpen); return repairQueue(q.s, o) }(),
		} {
			if err == nil {
				t.Errorf("%s with shape %#x, size %#x: no error", name, w[0], w[1])
			}
		}
		o.words[queueLeases].Store(0)
	}
}

// Every word of a queue is damaged. Whatever is done with it then comes to an end, without a fault, and what errors
// there are say that it is damaged.
func TestDamagedQueueIsAnErrorAtMost(t *testing.T) {
	t.Run("int64", func(t *testing.T) { testDamagedQueue(t, func(n int) int64 { return int64(n) }) })
	t.Run("string", func(t *testing.T) { testDamagedQueue(t, func(n int) string { return longMessage(fmt.Sprint(n)) }) })
}

func testDamagedQueue[T any](t *testing.T, of func(n int) T) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	values := []func(w uint64) uint64{
		func(w uint64) uint64 { return w + 1 },
		func(w uint64) uint64 { return w - 1 },
		func(w uint64) uint64 { return w ^ 1<<62 },
		func(w uint64) uint64 { return w | tableOpen },
		func(uint64) uint64 { return 0 },
		func(uint64) uint64 { return 3 },
		func(uint64) uint64 { return 4096 },
		func(uint64) uint64 { return ^uint64(0) },
		func(uint64) uint64 { return ^uint64(0) >> 1 },
		func(uint64) uint64 { return 1<<63 | 5 },
		func(uint64) uint64 { return outOfLine<<56 | 1<<20 },
	}
	if testing.Short() {
		values = values[3:8]
	}
	damaged := 0
	for at := 0; ; at++ {
		for i, value := range values {
			r, err := shm.Heap(shm.Size(512 << 10))
			if err != nil {
				t.Fatal(err)
			}
			m := Must(NewManager(r))
			q := Must(NewSharedQueue[T](m, 4))
			Must(q.PutN(ended, of(1), of(2), of(3), of(4)))
			var mine, more [4]*Lease[T]
			for k := range mine {
				mine[k] = Must(q.Lease(ended))
			}
			Must(q.PutN(ended, of(5), of(6), of(7)))
			if err := errors.Join(mine[2].Return(), mine[1].Return(), mine[0].Done()); err != nil {
				t.Fatal(err)
			}
			var words []*atomic.Uint64
			for k := queueHead; k <= queueWaiting; k++ {
				words = append(words, q.q.word(k))
			}
			words = append(words, q.q.table(tableFree), q.q.table(tableUsed), q.q.table(tableReturned), q.q.table(tableDeaths))
			for e := range uint64(4) {
				p := Must(q.q.entry(e))
				for k := range leaseHead {
					words = append(words, word(p, k))
				}
				if q.q.form != formPlain {
					words = append(words, word(plus(p, leaseSlot), 0), word(plus(p, leaseSlot), 1))
				}
			}
			if q.q.form != formPlain {
				for v := range uint64(4) {
					words = append(words, word(q.q.slot(v), 0), word(q.q.slot(v), 1))
				}
			}
			if at == len(words) {
				if damaged == 0 {
					t.Error("nothing was damaged")
				}
				m.Close()
				return
			}
			words[at].Store(value(words[at].Load()))
			damaged++
			step := func(what string, err error) {
				for _, fine := range []error{nil, shm.ErrCorrupt, context.Canceled, ErrQueueClosed, ErrLeaseEnded, shm.ErrStale, shm.ErrNoSpace} {
					if errors.Is(err, fine) {
						return
					}
				}
				t.Errorf("word %d, damage %d: %s: %v", at, i, what, err)
			}
			opened := func() error { _, err := openQueue(q.s, q.obj); return err }
			step("open", opened())
			step("repair", repairQueue(q.s, q.obj))
			step("Check", q.Check())
			q.Len()
			q.Unfinished()
			step("Return", mine[3].Return())
			for k := range more {
				l, _, err := q.TryLease()
				step("TryLease", err)
				more[k] = l
			}
			step("Put", q.Put(ended, of(8)))
			_, err = q.PutN(ended, of(9), of(10), of(11), of(12), of(13))
			step("PutN", err)
			for k, l := range more {
				if l == nil {
					continue
				}
				if k%2 == 0 {
					step("Done", l.Done())
				} else {
					step("Return", l.Return())
				}
			}
			_, err = q.Get(ended)
			step("Get", err)
			_, err = q.GetN(ended, make([]T, 9))
			step("GetN", err)
			step("Join", q.Join(ended))
			q.acquire("bury")
			step("bury", q.q.bury())
			q.q.open()
			step("rebuild", q.q.rebuild())
			q.release()
			step("Close", q.Close())
			_, err = q.GetN(ended, make([]T, 9))
			step("GetN", err)
			step("Destroy", q.Destroy())
			m.Close()
		}
	}
}

// The turns of an entry come again some day; the old lease is over all the same.
func TestLeaseDoesNotComeAgainWithTheTurnsOfItsEntry(t *testing.T) {
	q := queueForTest[int64](t, newHeapManager(t), 4)
	ctx := deadline(t)
	Must(q.PutN(ctx, 1, 2))
	old := Must(q.Lease(ctx))
	p := Must(q.q.entry(old.entry))
	before := word(p, leaseControl).Load()
	if err := old.Done(); err != nil {
		t.Fatal(err)
	}
	word(p, leaseControl).Store(before&^(oneTurn-1) - oneTurn)
	l := Must(q.Lease(ctx))
	if l.entry != old.entry || l.control != old.control {
		t.Fatal("the turn is not the same: the test shows nothing")
	}
	if err := old.Done(); !errors.Is(err, ErrLeaseEnded) {
		t.Errorf("Done of the old one: %v", err)
	}
	if err := l.Done(); err != nil {
		t.Error(err)
	}
}

// An entry that is said to be free, and is not, keeps its message.
func TestLeaseTakesNoEntryThatIsInUse(t *testing.T) {
	q := queueForTest[int64](t, newHeapManager(t), 4)
	ctx := deadline(t)
	Must(q.PutN(ctx, 1, 2))
	l := Must(q.Lease(ctx))
	q.q.table(tableFree).Store(l.entry + 1)
	if _, ok, err := q.TryLease(); ok || !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("lease in an entry in use: %v, %v", ok, err)
	}
	q.q.table(tableFree).Store(0)
	if err := l.Return(); err != nil {
		t.Error(err)
	}
	for want := range int64(2) {
		if v, ok, err := q.TryGet(); v != want+1 || !ok || err != nil {
			t.Errorf("got %d, %v, %v", v, ok, err)
		}
	}
}
