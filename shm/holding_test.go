package shm_test

import (
	"context"
	"errors"
	"fmt"
	stdsync "sync"
	"testing"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// take makes the holding of an object that of nobody else.
func take(tb testing.TB, r *shm.Region, off shm.Offset) *shm.Holding {
	tb.Helper()
	for {
		h, err := r.Hold(off)
		if err != nil {
			tb.Fatal(err)
		}
		if h.Word.CompareAndSwap(shm.HoldingKey(off), shm.HoldingKey(off)|1) {
			return h
		}
	}
}

func giveBack(h *shm.Holding, off shm.Offset) {
	h.Words[0].Store(0)
	h.Word.CompareAndSwap(shm.HoldingKey(off)|1, shm.HoldingKey(off))
}

func newHolder(tb testing.TB) (*shm.Region, int) {
	tb.Helper()
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	must(tb, r, err)
	i, ok := r.Slot()
	if !ok {
		tb.Fatal("no slot")
	}
	return r, i
}

func TestEachObjectHasAHoldingOfItsOwn(t *testing.T) {
	r, slot := newHolder(t)
	const objects = 10_000
	all := map[*shm.Holding]shm.Offset{}
	for i := range shm.Offset(objects) {
		off := r.Data() + 8*i
		h := take(t, r, off)
		if other, taken := all[h]; taken {
			t.Fatalf("objects at %d and %d have one holding", other, off)
		}
		all[h] = off
		h.Words[0].Store(uint64(i))
	}
	for i := range shm.Offset(objects) {
		off := r.Data() + 8*i
		token, h := r.Share(slot, off)
		if token != shm.Self() || h == nil || all[h] != off || h.Words[0].Load() != uint64(i) {
			t.Fatalf("the share in the object at %d is %v of %v", off, h, token)
		}
		if again, err := r.Hold(off); again != h {
			t.Fatalf("a second holding for the object at %d: %v", off, err)
		}
	}
	if _, h := r.Share(slot, r.Data()+8*objects); h != nil {
		t.Error("a share in an object that nobody holds")
	}
}

// What is given up is used again: no more pages are taken however many objects there are one after another.
func TestHoldingsAreUsedAgain(t *testing.T) {
	r, _ := newHolder(t)
	for i := range shm.Offset(100_000) {
		off := r.Data() + 8*(i%131_000)
		giveBack(take(t, r, off), off)
	}
	if n := shm.SparePages(r); n != 0 {
		t.Errorf("%d spare pages are taken for one object at a time", n)
	}
}

func TestHoldingsRunOut(t *testing.T) {
	r, _ := newHolder(t)
	var kept []shm.Offset
	for i := range shm.Offset(1 << 17) {
		off := r.Data() + 8*i
		h, err := r.Hold(off)
		if errors.Is(err, shm.ErrNoSpace) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		h.Word.Add(1)
		kept = append(kept, off)
	}
	if len(kept) < 10_000 || len(kept) > 32+511*63 {
		t.Fatalf("%d holdings before there were none left", len(kept))
	}
	h, err := r.Hold(kept[0])
	if err != nil {
		t.Fatal(err)
	}
	h.Word.Add(^uint64(0)) // one is given back, and another object at its place in the page may have it
	if _, err := r.Hold(kept[0]); err != nil {
		t.Errorf("after one was given back: %v", err)
	}
}

func TestGoroutinesTakeHoldingsAtOnce(t *testing.T) {
	r, _ := newHolder(t)
	var wg stdsync.WaitGroup
	var mu stdsync.Mutex
	owner := map[*shm.Holding]int{}
	for g := range 8 {
		wg.Go(func() {
			for i := range 2000 {
				off := r.Data() + shm.Offset(8*(g+8*(i%500)))
				h := take(t, r, off)
				mu.Lock()
				if other, taken := owner[h]; taken {
					t.Errorf("goroutines %d and %d have one holding", g, other)
				}
				owner[h] = g
				mu.Unlock()
				mu.Lock()
				delete(owner, h)
				mu.Unlock()
				giveBack(h, off)
			}
		})
	}
	wg.Wait()
}

type shares struct {
	Region *shm.Region
	Count  int
}

// holdAndDie takes shares in so many objects, and keeps them until it is killed.
var holdAndDie = proc.Define("holdAndDie", func(ctx context.Context, a shares) error {
	for i := range shm.Offset(a.Count) {
		off := a.Region.Data() + 8 + 8*i
		h, err := a.Region.Hold(off)
		if err != nil {
			return err
		}
		h.Word.Add(1)
	}
	word(a.Region, 0).Store(1)
	<-ctx.Done()
	return nil
})

// The shares of a process are seen by others while it lives, and go with it; its pages serve others.
func TestHoldingsGoWithTheirProcess(t *testing.T) {
	r, slot := newHolder(t)
	const objects = 3000
	for round := range 3 {
		said := word(r, 0)
		said.Store(0)
		p := start(t, holdAndDie, shares{r, objects})
		wait(t, "the child holds", func() bool { return said.Load() == 1 })
		theirs := -1
		for i := range shm.Slots {
			if token, h := r.Share(i, r.Data()+8); i != slot && token != 0 && h != nil {
				theirs = i
			}
		}
		if theirs < 0 {
			t.Fatal("nobody has a share")
		}
		for i := range shm.Offset(objects) {
			if token, h := r.Share(theirs, r.Data()+8+8*i); token == 0 || h == nil || h.Word.Load()&shm.HoldingMask != 1 {
				t.Fatalf("round %d: no share in object %d", round, i)
			}
		}
		pages := shm.SparePages(r)
		if pages < objects/63-1 {
			t.Fatalf("%d spare pages for %d holdings", pages, objects)
		}
		deaths := r.Deaths().Load()
		p.Kill()
		<-p.Done()
		wait(t, "its death is known", func() bool { r.Scan(); return r.Deaths().Load() != deaths })
		wait(t, "its pages are free", func() bool { return shm.SparePages(r) == 0 })
		for i := range shm.Slots {
			if token, h := r.Share(i, r.Data()+8); i != slot && (token != 0 || h != nil) {
				t.Errorf("slot %d has a share of %v", i, token)
			}
		}
	}
}

// Whatever stands in the chain of a slot, looking for a share ends and leads nowhere else.
func TestAChainOfPagesThatIsWrittenOver(t *testing.T) {
	r, slot := newHolder(t)
	for i := range shm.Offset(500) {
		take(t, r, r.Data()+8*i)
	}
	for _, v := range []uint64{0, 1, 2, 300, 511, 512, 1 << 40, ^uint64(0)} {
		shm.SetChain(r, slot, v)
		for i := range shm.Offset(600) {
			if _, h := r.Share(slot, r.Data()+8*i); h != nil && h.Word.Load()&^shm.HoldingMask != shm.HoldingKey(r.Data()+8*i) {
				t.Fatal("another object's holding")
			}
		}
	}
	shm.LoopChain(r, slot)
	if _, h := r.Share(slot, r.Data()+8*131_000); h != nil {
		t.Error("a share in an object that nobody holds")
	}
}

func TestNoHoldingsWithoutASlot(t *testing.T) {
	r, err := shm.Heap()
	must(t, r, err)
	if _, err := r.Hold(r.Data()); err == nil {
		t.Error("a holding in a region of one process")
	}
	n, _ := newHolder(t)
	n.Close()
	if _, err := n.Hold(n.Data()); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("in a closed region: %v", err)
	}
}

func BenchmarkHold(b *testing.B) {
	for _, n := range []shm.Offset{1, 30, 1000, 10_000} {
		b.Run(fmt.Sprintf("held=%d", n), func(b *testing.B) {
			r, _ := newHolder(b)
			for i := range n {
				take(b, r, r.Data()+8*i)
			}
			for i := 0; b.Loop(); i++ {
				r.Hold(r.Data() + 8*(shm.Offset(i)%n))
			}
		})
	}
}
