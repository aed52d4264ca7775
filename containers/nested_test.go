package containers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

type (
	innerList = SharedList[int64]
	innerMap  = SharedMap[int64, int64]
)

// A nest is containers in containers.
type nest struct {
	M     *Manager
	Lists SharedList[Link[innerList]]
	Maps  SharedMap[string, Link[innerMap]]
	Of    SharedList[Link[innerMap]]
}

var changesInner = proc.Define("changes what is inside", func(_ context.Context, n nest) error {
	list, err := n.Lists.At(-1).In(n.M)
	if err != nil {
		return err
	}
	if got := slices.Collect(list.Values()); !slices.Equal(got, []int64{1, 2, 3}) {
		return fmt.Errorf("the inner list is %v", got)
	}
	l, ok := n.Maps.Get("a")
	if !ok {
		return errors.New("there is no inner map")
	}
	inner, err := l.In(n.M)
	if err != nil {
		return err
	}
	other, err := NewSharedList[int64](n.M) // which lives on when this process, its maker, is gone
	if err != nil {
		return err
	}
	return errors.Join(list.Append(4), inner.Put(2, 20), other.Append(7), n.Lists.Append(LinkTo(other)))
})

// A change through any path is seen through all; what is inside lives on when the outer entry, or the first handle, or its maker is gone.
func TestContainersInsideContainers(t *testing.T) {
	m := newManager(t)
	n := nest{m, Must(NewSharedList[Link[innerList]](m)), Must(NewSharedMap[string, Link[innerMap]](m)), Must(NewSharedList[Link[innerMap]](m))}
	list, inner := Must(NewSharedList[int64](m)), Must(NewSharedMap[int64, int64](m))
	err := errors.Join(list.AppendN(1, 2, 3), inner.Put(1, 10), n.Lists.Append(LinkTo(list)),
		n.Maps.Put("a", LinkTo(inner)), n.Maps.Put("b", LinkTo(inner)), n.Of.Append(LinkTo(inner)))
	if err != nil {
		t.Fatal(err)
	}
	copied := list.Slice(0, 9)
	if err := changesInner.Run(deadline(t), n); err != nil {
		t.Fatal(err)
	}
	copied[0] = 100
	if got := slices.Collect(list.Values()); !slices.Equal(got, []int64{1, 2, 3, 4}) {
		t.Errorf("the inner list is %v", got)
	}
	b, _ := n.Maps.Get("b")
	want := map[int64]int64{1: 10, 2: 20}
	for what, l := range map[string]Link[innerMap]{"another key": b, "a list": n.Of.At(0)} {
		if got := maps.Collect(Must(l.In(m)).All()); !maps.Equal(got, want) {
			t.Errorf("by %s: %v", what, got)
		}
	}
	if got := slices.Collect(Must(n.Lists.At(1).In(m)).Values()); !slices.Equal(got, []int64{7}) {
		t.Errorf("the list that the child has made: %v", got)
	}
	inner = innerMap{}
	n.Maps.Clear()
	if got := maps.Collect(Must(n.Of.At(0).In(m)).All()); !maps.Equal(got, want) {
		t.Errorf("when the outer entries are gone: %v", got)
	}
	if err := n.Maps.Destroy(); err != nil || !maps.Equal(maps.Collect(Must(b.In(m)).All()), want) {
		t.Errorf("when the outer map is gone: %v", err)
	}
}

var emptiesMap = proc.Define("reads a map in all ways, and empties it", func(_ context.Context, h SharedMap[int64, string]) error {
	want := map[int64]string{65: "A", 66: "B", 67: "C", 68: "D", 69: "E"}
	keys, values := slices.Sorted(h.Keys()), slices.Sorted(h.Values())
	if got := maps.Collect(h.All()); !maps.Equal(got, want) || !slices.Equal(keys, []int64{65, 66, 67, 68, 69}) || !slices.Equal(values, []string{"A", "B", "C", "D", "E"}) {
		return fmt.Errorf("%v, keys %v, values %v", got, keys, values)
	}
	if v, ok := h.Get(66); v != "B" || !ok || h.Len() != 5 || !h.Contains(69) || h.Contains(70) {
		return fmt.Errorf("key 66 has %q, %v, of %d", v, ok, h.Len())
	}
	for len(want) > 0 {
		k, v, ok := h.PopItem()
		if !ok || v != want[k] {
			return fmt.Errorf("popped %d, %q, %v", k, v, ok)
		}
		delete(want, k)
	}
	if _, _, ok := h.PopItem(); ok {
		return errors.New("popped from an empty map")
	}
	return nil
})

func TestChildReadsAndEmptiesAMap(t *testing.T) {
	h := newMap[int64, string](t, newManager(t))
	for k := int64(65); k < 70; k++ {
		if err := h.Put(k, string(rune(k))); err != nil {
			t.Fatal(err)
		}
	}
	if err := emptiesMap.Run(deadline(t), h); err != nil {
		t.Fatal(err)
	}
	if h.Len() != 0 || len(maps.Collect(h.All())) != 0 {
		t.Errorf("%d keys are left", h.Len())
	}
}

// A workshop is one of each of what a Manager makes.
type workshop struct {
	M       *Manager
	Lock    Ref[shmsync.Mutex]
	Permits Ref[shmsync.CountingSemaphore]
	Owned   Ref[shmsync.Semaphore]
	Cond    Ref[shmsync.Cond]
	Event   Ref[shmsync.Event]
	Barrier Ref[shmsync.Barrier]
	Value   Shared[[3]int64]
	Array   SharedArray[int64]
	Queues  SharedList[Link[SharedQueue[int64]]]
	ByName  SharedMap[string, Link[SharedQueue[int64]]]
}

var worksThere = proc.Define("uses everything that a manager makes", func(ctx context.Context, w workshop) error {
	if err := w.Event.Ptr().Wait(ctx); err != nil {
		return err
	}
	if err := errors.Join(w.Permits.Ptr().Acquire(ctx), w.Owned.Ptr().Acquire(ctx, 2)); err != nil { // one for the parent to release; and two that come back
		return err
	}
	byIndex, err1 := w.Queues.At(0).In(w.M)
	l, _ := w.ByName.Get("jobs")
	byName, err2 := l.In(w.M)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	job, err := byIndex.Get(ctx)
	if err != nil {
		return err
	}
	w.Array.Set(1, job)
	w.Value.With(func(v *[3]int64) { v[1] = job + 1 })
	if err := byName.Put(ctx, job+2); err != nil {
		return err
	}
	if _, err := w.Barrier.Ptr().Wait(ctx); err != nil {
		return err
	}
	if err := w.Lock.Ptr().LockContext(ctx); err != nil {
		return err
	}
	defer w.Lock.Ptr().Unlock()
	w.Array.Set(2, 1) // what the parent waits for
	w.Cond.Ptr().Signal()
	return nil
})

// What a Manager has made is used by a child as it would be by this process: locks of all kinds, values, arrays, and queues that stand in lists and maps.
func TestChildUsesWhatAManagerMakes(t *testing.T) {
	m := newManager(t)
	queue := Must(NewSharedQueue[int64](m, 4))
	w := workshop{
		M:       m,
		Lock:    Must(New[shmsync.Mutex](m)),
		Permits: Must(New[shmsync.CountingSemaphore](m)),
		Owned:   Must(New[shmsync.Semaphore](m, Init(func(s *shmsync.Semaphore) error { return s.Init(2) }))),
		Cond:    Must(New[shmsync.Cond](m)),
		Event:   Must(New[shmsync.Event](m)),
		Barrier: Must(New[shmsync.Barrier](m, Init(func(b *shmsync.Barrier) error { return b.Init(2) }))),
		Value:   Must(NewShared(m, [3]int64{})),
		Array:   Must(NewSharedArray[int64](m, 3)),
		Queues:  Must(NewSharedList[Link[SharedQueue[int64]]](m)),
		ByName:  Must(NewSharedMap[string, Link[SharedQueue[int64]]](m)),
	}
	ctx := deadline(t)
	if err := errors.Join(w.Queues.Append(LinkTo(queue)), w.ByName.Put("jobs", LinkTo(queue)), queue.Put(ctx, 41)); err != nil {
		t.Fatal(err)
	}
	p, err := worksThere.Start(ctx, w)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	w.Event.Ptr().Set()
	if _, err := w.Barrier.Ptr().Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := queue.Get(ctx); got != 43 || err != nil || w.Array.At(1) != 41 || w.Value.Load() != [3]int64{1: 42} {
		t.Errorf("message %d, %v; %d, %v", got, err, w.Array.At(1), w.Value.Load())
	}
	if err := w.Lock.Ptr().LockContext(ctx); err != nil {
		t.Fatal(err)
	}
	if woken, err := w.Cond.Ptr().WaitFor(ctx, w.Lock.Ptr(), func() bool { return w.Array.At(2) == 1 }); err != nil || !woken {
		t.Fatalf("woken: %v, %v", woken, err)
	}
	w.Lock.Ptr().Unlock()
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	// A permit without an owner is for whoever releases it; those of a dead process come back by themselves; a lock is its owner's.
	if w.Permits.Ptr().Value() != 0 || w.Permits.Ptr().AcquireTimeout(0) {
		t.Error("the permit that the child has taken is there")
	}
	w.Permits.Ptr().Release(1)
	if !w.Permits.Ptr().AcquireTimeout(0) {
		t.Error("the permit that the child has taken cannot be released")
	}
	if !w.Owned.Ptr().AcquireTimeout(2, 30*time.Second) {
		t.Error("the permits of the child do not come back")
	}
	w.Owned.Ptr().Release(2)
	for what, again := range map[string]func(){
		"semaphore": func() { w.Owned.Ptr().Release(1) },
		"lock":      func() { w.Lock.Ptr().Unlock() },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: a second release is taken", what)
				}
			}()
			again()
		}()
	}
}

var holdsLock = proc.Define("holds a lock", func(ctx context.Context, w workshop) error {
	w.Lock.Ptr().Lock()
	w.Event.Ptr().Set()
	err := w.Permits.Ptr().Acquire(ctx)
	w.Lock.Ptr().Unlock()
	return err
})

// A Mutex is its owner's: who has not locked it cannot unlock it, and the owner has it still.
func TestParentCannotUnlockTheLockOfAChild(t *testing.T) {
	m := newManager(t)
	w := workshop{
		M: m, Lock: Must(New[shmsync.Mutex](m)), Event: Must(New[shmsync.Event](m)),
		Permits: Must(New[shmsync.CountingSemaphore](m, Init(func(s *shmsync.CountingSemaphore) error { return s.Init(0) }))),
	}
	ctx := deadline(t)
	p, err := holdsLock.Start(ctx, w)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	if err := w.Event.Ptr().Wait(ctx); err != nil {
		t.Fatal(err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the parent has unlocked the lock of its child")
			}
		}()
		w.Lock.Ptr().Unlock()
	}()
	if w.Lock.Ptr().TryLock() {
		t.Error("the lock is free")
	}
	w.Permits.Ptr().Release(1)
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	if !w.Lock.Ptr().TryLock() {
		t.Error("the lock is held")
	}
}

// A list of items, empty or copied under another name.
func TestItemsAreCopiedAndSoughtInLists(t *testing.T) {
	m := newManager(t)
	l := Must(NewSharedList[Item](m, Name("items")))
	equal := func(v any) func(Item) bool { return func(it Item) bool { return slices.Equal(it, Must(ItemOf(v))) } }
	if l.Len() != 0 || l.CountFunc(equal(7)) != 0 || l.IndexFunc(equal(7)) != -1 {
		t.Error("something in an empty list")
	}
	if _, ok := l.Get(0); ok {
		t.Error("an element of an empty list")
	}
	for _, v := range []any{"text", []byte("x"), 2.5, 7, nil, true, 7} {
		if err := l.Append(Must(ItemOf(v))); err != nil {
			t.Fatal(err)
		}
	}
	if l.CountFunc(equal(7)) != 2 || l.IndexFunc(equal(7)) != 3 || l.IndexFunc(equal(7), 4) != 6 || l.IndexFunc(equal(nil)) != 4 || l.IndexFunc(equal("7")) != -1 {
		t.Error("elements are not found where they are")
	}
	other := Must(NewSharedList[Item](m, Name("copy")))
	if err := errors.Join(other.Extend(l.Values()), other.Set(0, Must(ItemOf(1))), Must(Find[SharedList[Item]](m, "items")).Set(-1, Must(ItemOf("seven")))); err != nil {
		t.Fatal(err)
	}
	if got, err := ItemAs[string](l.At(0)); got != "text" || err != nil {
		t.Errorf("the first one is %q, %v after a change of the copy", got, err)
	}
	if got, err := ItemAs[string](l.At(6)); got != "seven" || err != nil {
		t.Errorf("the last one is %q, %v after a change through another handle", got, err)
	}
	if got, err := ItemAs[int](other.At(6)); got != 7 || err != nil {
		t.Errorf("that of the copy is %d, %v", got, err)
	}
}

// A Manager that is shut down is of no use, and its name can be used again at once, for another region.
func TestNameOfAClosedManagerIsUsedAgain(t *testing.T) {
	ownDir(t)
	for round := range int64(5) {
		m := Must(OpenManager("again"))
		n := Must(NewSharedInt(m, round, Name("n")))
		if err := errors.Join(m.Close(), m.Close(), shm.Remove("again")); err != nil {
			t.Fatal(err)
		}
		wantErrors(t, shm.ErrClosed, map[string]func() error{
			"Add":    func() error { n.Add(1); return nil },
			"Update": func() error { return n.Update(t.Context(), func(*int64) error { return nil }) },
			"New":    func() error { _, err := NewSharedInt(m, 1); return err },
			"Names":  func() error { _, err := m.Names(); return err },
		})
	}
}
