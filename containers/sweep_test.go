package containers

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// objectsIn returns how many live objects there are.
func objectsIn(tb testing.TB, m *Manager) (n int) {
	tb.Helper()
	s := Must(m.space())
	if err := s.heap.Each(func(off shm.Offset, _ uint64, isObject bool) {
		if o, err := shm.At[object](s.region, off); isObject && err == nil && o.gen.Load()&1 == 1 {
			n++
		}
	}); err != nil {
		tb.Fatal(err)
	}
	return n
}

// wantSwept checks that Sweep destroys n objects.
func wantSwept(tb testing.TB, m *Manager, n int) {
	tb.Helper()
	before := objectsIn(tb, m)
	got, err := m.Sweep(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	if after := objectsIn(tb, m); got != n || after != before-n {
		tb.Fatalf("%d objects are destroyed, and there are %d after %d; want %d destroyed", got, after, before, n)
	}
}

type number = SharedInt

// A leading is a value with a Link in it.
type leading struct {
	N  int64
	To Link[number]
}

// An estate is what a process leaves.
type estate struct {
	M     *Manager
	Links SharedList[leading]
	Map   SharedMap[int64, Link[number]]
	Items SharedList[Item]
	Value Shared[leading]
	Array SharedArray[leading]
	Queue SharedQueue[Link[number]]
	Ready Ref[shmsync.CountingSemaphore]
}

func newEstate(m *Manager) estate {
	return estate{
		M: m, Links: Must(NewSharedList[leading](m)), Map: Must(NewSharedMap[int64, Link[number]](m)), Items: Must(NewSharedList[Item](m)),
		Value: Must(NewShared(m, leading{})), Array: Must(NewSharedArray[leading](m, 3)), Queue: Must(NewSharedQueue[Link[number]](m, 4)),
		Ready: Must(New[shmsync.CountingSemaphore](m, Init(func(s *shmsync.CountingSemaphore) error { return s.Init(0) }))),
	}
}

// untold makes objects of all kinds that nobody is told of.
func untold(m *Manager) (n int, err error) {
	list, err1 := NewSharedList[string](m)
	lock, err2 := New[shmsync.Mutex](m)
	guarded, err3 := NewShared(m, [4]int64{1}, WithMutex(lock))
	queue, err4 := NewSharedQueue[string](m, 4)
	counts, err5 := NewSharedMap[string, string](m)
	_, err6 := NewSharedArray[[5]int64](m, 100)
	_, err7 := NewSharedRing[int64](m, 8)
	_, err8 := NewAtomicInt(m, 1)
	if err := errors.Join(err1, err2, err3, err4, err5, err6, err7, err8); err != nil {
		return 0, err
	}
	for i := range uint64(20) {
		if err := errors.Join(list.Append(textOf(i)), counts.Put(textOf(i), textOf(i))); err != nil {
			return 0, err
		}
	}
	guarded.Lock() // and never unlocks
	return 8, queue.Put(context.Background(), textOf(30))
}

// toldOf makes an object for each way in which another one refers to it, and returns their number.
func (e estate) toldOf() (n int, err error) {
	var errs []error
	make := func() Link[number] {
		n++
		h, err := NewSharedInt(e.M, int64(n))
		errs = append(errs, err)
		return LinkTo(h)
	}
	errs = append(errs, e.Links.Append(leading{To: make()}), e.Map.Put(1, make()))
	item, err := ItemOf(make())
	errs = append(errs, err, e.Items.Append(item))
	e.Value.Store(leading{To: make()})
	e.Array.Set(1, leading{To: make()})
	h, err := NewSharedInt(e.M, 7)
	n++
	bytes, err2 := h.MarshalBinary() // as a message to somebody
	item, err3 := ItemOf(bytes)
	errs = append(errs, err, err2, err3, e.Items.Append(item), e.Queue.Put(context.Background(), make()))
	return n, errors.Join(errs...)
}

// linkedRing makes two lists that refer to each other, and to nothing else.
func linkedRing(m *Manager) error {
	a, err1 := NewSharedList[Item](m)
	b, err2 := NewSharedList[Item](m)
	toA, err3 := ItemOf(LinkTo(a))
	toB, err4 := ItemOf(LinkTo(b))
	return errors.Join(err1, err2, err3, err4, a.Append(toB), b.Append(toA))
}

var leavesOrphans = proc.Define("leaves orphans", func(ctx context.Context, e estate) error {
	if _, err := untold(e.M); err != nil {
		return err
	}
	if _, err := e.toldOf(); err != nil {
		return err
	}
	if err := linkedRing(e.M); err != nil {
		return err
	}
	h, err := NewSharedInt(e.M, 1) // told in a message that nobody has
	if err == nil {
		_, err = h.MarshalText()
	}
	if err != nil {
		return err
	}
	if _, err := NewSharedInt(e.M, 1, Name("named")); err != nil {
		return err
	}
	kill()
	return nil
})

var waitsForReady = proc.Define("has the region open", func(ctx context.Context, e estate) error { return e.Ready.Ptr().Acquire(ctx) })

// What a killed process leaves is destroyed when nobody can use it any more: at once what it has told nobody of, and what others may have
// handles on when there are no others; never what has a name, or a Link leads to, until that is gone.
func TestSweepDestroysWhatNobodyCanUse(t *testing.T) {
	if raceEnabled {
		t.Skip("processes; the race detector makes them start slowly")
	}
	m := newManager(t)
	e := newEstate(m)
	wantSwept(t, m, 0) // the creator of all lives
	other, err := waitsForReady.Start(deadline(t), e)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Kill()
	until(t, "the other one has the region open", func() bool { return len(Must(m.Region().Attachments())) == 2 })
	wantKilled(t, leavesOrphans.Run(deadline(t), e))
	wantSwept(t, m, 8) // those of untold
	wantSwept(t, m, 0)
	e.Ready.Ptr().Release(1)
	if err := other.Wait(); err != nil {
		t.Fatal(err)
	}
	wantSwept(t, m, 3) // the ring, and the one whose handle was encoded
	look := func(l Link[number], want int64) {
		t.Helper()
		if h, err := l.In(m); err != nil || h.Load() != want {
			t.Fatalf("the object that a Link leads to: %v", err)
		}
	}
	look(e.Links.At(0).To, 1)
	fromMap, _ := e.Map.Get(1)
	look(fromMap, 2)
	item, err := ItemAs[Link[number]](e.Items.At(0))
	if err != nil {
		t.Fatal(err)
	}
	look(item, 3)
	look(e.Value.Load().To, 4)
	look(e.Array.At(1).To, 5)

	// One reference after the other goes.
	e.Links.Pop()
	wantSwept(t, m, 1)
	e.Map.Delete(1)
	wantSwept(t, m, 1)
	e.Items.PopAt(0)
	wantSwept(t, m, 1)
	e.Value.Store(leading{})
	wantSwept(t, m, 1)
	e.Array.Set(1, leading{})
	wantSwept(t, m, 1)
	e.Items.Clear()
	wantSwept(t, m, 1)
	if err := e.Queue.Destroy(); err != nil {
		t.Fatal(err)
	}
	wantSwept(t, m, 1)
	if err := m.Unlink("named"); err != nil {
		t.Fatal(err)
	}
	wantSwept(t, m, 1)
	if _, err := item.In(m); !errors.Is(err, shm.ErrStale) {
		t.Errorf("a Link to what is destroyed: %v", err)
	}
}

// What only orphans refer to goes with them; what an orphan that stays refers to stays.
func TestSweepFollowsLinks(t *testing.T) {
	m := newHeapManager(t)
	root := Must(NewSharedList[Link[SharedList[Link[number]]]](m, Name("root")))
	dead := func(b base) { b.obj.creator.Store(0x1234560 | b.obj.creator.Load()&passedOn) }
	chain := func() (SharedList[Link[number]], number) {
		list, n := Must(NewSharedList[Link[number]](m)), Must(NewSharedInt(m, 1))
		if err := list.Append(LinkTo(n)); err != nil {
			t.Fatal(err)
		}
		return list, n
	}
	kept, keptToo := chain()
	lost, lostToo := chain()
	if err := root.Append(LinkTo(kept)); err != nil {
		t.Fatal(err)
	}
	LinkTo(lost)
	for _, b := range []base{kept.base, keptToo.base, lost.base, lostToo.base} {
		dead(b)
	}
	wantSwept(t, m, 2)
	if kept.Len() != 1 || keptToo.Load() != 1 {
		t.Error("what is linked is gone")
	}
	root.Clear()
	wantSwept(t, m, 2)
	wantErrors(t, shm.ErrStale, map[string]func() error{
		"list":   func() error { kept.Len(); return nil },
		"number": func() error { keptToo.Load(); return nil },
	})
}

// A Link may stand anywhere in what an object has: in the block of a long string too, as key or value of a map, and where one piece that Sweep looks at
// ends and the next begins.
func TestSweepFindsReferencesWhereverTheyStand(t *testing.T) {
	m := newHeapManager(t)
	encoded := func() string {
		n := Must(NewSharedInt(m, 1))
		b := Must(n.MarshalBinary())
		n.obj.creator.Store(0x1234560 | passedOn)
		return string(b)
	}
	texts := Must(NewSharedMap[string, string](m))
	array := Must(NewSharedArray[byte](m, 3*4096))
	for i := range 40 { // each place around the end of the first piece
		array.CopyIn(0, []byte(strings.Repeat("x", 4096-30+i)+encoded()))
		wantSwept(t, m, min(i, 1))
	}
	array.Destroy()
	wantSwept(t, m, 1)
	if err := errors.Join(texts.Put(encoded(), "key"), texts.Put("value", encoded())); err != nil {
		t.Fatal(err)
	}
	wantSwept(t, m, 0)
	texts.Delete("value")
	wantSwept(t, m, 1)
	texts.Clear()
	wantSwept(t, m, 1)
}

// An orphan that somebody has found while others are being destroyed stays.
func TestSweepLeavesWhatIsFoundMeanwhile(t *testing.T) {
	m := newHeapManager(t)
	both := []number{Must(NewSharedInt(m, 1)), Must(NewSharedInt(m, 2))}
	for _, n := range both {
		n.obj.creator.Store(0x1234560)
	}
	txn.OnStore = func(unsafe.Pointer, uintptr) { // one of them is about to go
		txn.OnStore = nil
		for _, n := range both {
			n.passOn()
		}
	}
	defer func() { txn.OnStore = nil }()
	wantSwept(t, m, 1)
	wantSwept(t, m, 1) // nobody else has the region open
}

// A lock that is held by somebody is waited for until the context ends, and nothing happens to what an object may refer to into which Sweep could not look.
func TestSweepThatCannotLookKeepsWhatItDoesNotKnow(t *testing.T) {
	m := newHeapManager(t)
	list := Must(NewSharedList[leading](m))
	n := Must(NewSharedInt(m, 1))
	LinkTo(n)
	n.obj.creator.Store(0x1234560 | passedOn)
	untold := Must(NewSharedInt(m, 1))
	untold.obj.creator.Store(0x1234560)
	list.Lock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := m.Sweep(ctx); got != 1 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d destroyed, %v", got, err)
	}
	list.Unlock()
	wantSwept(t, m, 1)
}

// Sweep is cut off before each of its stores: every object is there or not, and the next Sweep goes on.
func TestSweepIsCutOffAnywhere(t *testing.T) {
	furnish := func() (m *Manager, others int) {
		m = briefManager(t)
		Must(NewSharedInt(m, 1, Name("named")))
		Must(NewSharedList[string](m))
		others = objectsIn(t, m)
		if _, err := untold(m); err != nil {
			t.Fatal(err)
		}
		var e estate
		e.M, e.Links = m, Must(NewSharedList[leading](m))
		if err := e.Links.Append(leading{To: LinkTo(Must(NewSharedInt(m, 1)))}); err != nil {
			t.Fatal(err)
		}
		s := Must(m.space())
		n := 0
		if err := s.heap.Each(func(off shm.Offset, _ uint64, isObject bool) {
			if !isObject {
				return
			}
			o := Must(shm.At[object](s.region, off))
			if n++; n > others && o.gen.Load()&1 == 1 && o.words[nameWord].Load() == 0 {
				o.creator.Store(0x1234560 | o.creator.Load()&passedOn)
				o.mu.TryLock()
				o.mu.Unlock() // of this process, which is not dead
			}
		}); err != nil {
			t.Fatal(err)
		}
		return m, others
	}
	partly, step := 0, 1
	if testing.Short() || raceEnabled {
		step = 5
	}
	for k, cut := 0, true; cut; k += step {
		m, others := furnish()
		all := objectsIn(t, m)
		cut = cutAt(k, func() {
			if n, err := m.Sweep(context.Background()); err != nil || n != all-others {
				t.Fatalf("%d of %d destroyed, %v", n, all-others, err)
			}
		})
		s := Must(m.space())
		if err := s.heap.Each(func(off shm.Offset, _ uint64, isObject bool) {
			if isObject {
				o := Must(shm.At[object](s.region, off))
				o.mu.TryLock()
				o.mu.Unlock()
			}
		}); err != nil {
			t.Fatal(err)
		}
		s.root.mu.TryLock()
		if err := s.finishDestroy(); err != nil {
			t.Fatal(err)
		}
		s.root.mu.Unlock()
		nothingLost(t, m)
		if now := objectsIn(t, m); now < others || !cut && now != others {
			t.Fatalf("cut off at store %d there are %d objects", k, now)
		} else if others < now && now < all {
			partly++
		}
		if n, err := m.Sweep(context.Background()); err != nil || objectsIn(t, m) != others {
			t.Fatalf("cut off at store %d; the next one destroys %d, %v; %d are left, want %d", k, n, err, objectsIn(t, m), others)
		}
		nothingLost(t, m)
		m.Close()
	}
	if partly < 5 {
		t.Errorf("only %d times some were left: the test shows little", partly)
	}
}

var makesNamed = proc.Define("makes a named object and dies", func(_ context.Context, e estate) error {
	if _, err := NewSharedInt(e.M, 5, Name("found")); err != nil {
		return err
	}
	kill()
	return nil
})

var findsNamed = proc.Define("finds a named object", func(ctx context.Context, e estate) error {
	n, err := Find[SharedInt](e.M, "found")
	if err != nil {
		return err
	}
	e.Links.Append(leading{N: n.Load()})
	if err := e.Ready.Ptr().Acquire(ctx); err != nil {
		return err
	}
	n.Add(1) // panics if it is gone
	return nil
})

// An object whose name is taken away lives on for those who have found it.
func TestSweepLeavesWhatOthersHaveFound(t *testing.T) {
	if raceEnabled {
		t.Skip("processes; the race detector makes them start slowly")
	}
	m := newManager(t)
	e := newEstate(m)
	wantKilled(t, makesNamed.Run(deadline(t), e))
	p, err := findsNamed.Start(deadline(t), e)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	until(t, "it has found the object", func() bool { return e.Links.Len() > 0 })
	if err := m.Unlink("found"); err != nil {
		t.Fatal(err)
	}
	wantSwept(t, m, 0)
	e.Ready.Ptr().Release(1)
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	wantSwept(t, m, 1)
}

var closesManager = proc.Define("closes a region, and lives on", func(ctx context.Context, name string) error {
	m, err := OpenManager(name)
	if err == nil {
		err = m.Close()
	}
	if err == nil {
		<-ctx.Done()
	}
	return err
})

// A process that has closed the region has no handles any more, though it lives.
func TestSweepDoesNotMindWhoHasClosedTheRegion(t *testing.T) {
	ownDir(t)
	m := Must(OpenManager("left"))
	defer m.Close()
	p, err := closesManager.Start(deadline(t), "left")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	until(t, "it has closed the region", func() bool {
		all := Must(m.Region().Attachments())
		return slices.ContainsFunc(all, func(a shm.Attachment) bool { return a.Token != shm.Self() && a.Closed })
	})
	n := Must(NewSharedInt(m, 1))
	LinkTo(n)
	n.obj.creator.Store(0x1234560 | passedOn)
	wantSwept(t, m, 1)
	if !p.Alive() {
		t.Error("it does not live: the test shows nothing")
	}
}

type sweeping struct {
	M  *Manager
	At int
}

var diesSweeping = proc.Define("dies in a Sweep", func(ctx context.Context, s sweeping) error {
	n := 0
	txn.OnStore = func(unsafe.Pointer, uintptr) {
		if n++; n > s.At {
			kill()
		}
	}
	defer func() { txn.OnStore = nil }()
	_, err := s.M.Sweep(ctx)
	return err
})

var leavesUntold = proc.Define("leaves what nobody knows", func(_ context.Context, m *Manager) error {
	if _, err := untold(m); err != nil {
		return err
	}
	kill()
	return nil
})

// Who sweeps is killed too.
func TestKilledSweepsLoseNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("processes; the race detector makes them start slowly")
	}
	m := newManager(t)
	Must(NewSharedInt(m, 1))
	for at := 7; at < 120; at += 29 {
		wantKilled(t, leavesUntold.Run(deadline(t), m))
		wantKilled(t, diesSweeping.Run(deadline(t), sweeping{m, at}))
		nothingLost(t, m)
		if _, err := m.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := objectsIn(t, m); n != 1 {
			t.Fatalf("%d objects are left", n)
		}
		nothingLost(t, m)
	}
}

// Two processes that sweep at once destroy each object once.
func TestProcessesSweepAtOnce(t *testing.T) {
	if raceEnabled {
		t.Skip("processes; the race detector makes them start slowly")
	}
	m := newManager(t)
	for range 3 {
		wantKilled(t, leavesUntold.Run(deadline(t), m))
	}
	errs := make(chan error, 1)
	go func() { errs <- diesSweeping.Run(deadline(t), sweeping{m, 1 << 30}, sweeping{m, 1 << 30}) }()
	n, err := m.Sweep(t.Context())
	if err := errors.Join(err, <-errs); err != nil {
		t.Fatal(err)
	}
	if left := objectsIn(t, m); n > 24 || left != 0 {
		t.Errorf("%d destroyed, %d left", n, left)
	}
}

func TestObjectsArePassedOnByHandlesAndLinks(t *testing.T) {
	m := newManager(t)
	told := func(h SharedInt) bool { return h.obj.creator.Load()&passedOn != 0 }
	untold := Must(NewSharedInt(m, 1, Name("n")))
	if again := Must(Find[SharedInt](m, "n")); told(again) {
		t.Error("its creator has found it, nobody else")
	}
	linked := Must(NewSharedInt(m, 1))
	LinkTo(linked)
	encoded := Must(NewSharedInt(m, 1))
	Must(encoded.MarshalBinary())
	written := Must(NewSharedInt(m, 1))
	Must(written.MarshalText())
	if got := []bool{told(untold), told(linked), told(encoded), told(written)}; !slices.Equal(got, []bool{false, true, true, true}) {
		t.Errorf("passed on: %v", got)
	}
	gone := Must(NewSharedInt(m, 1))
	gone.Destroy()
	LinkTo(gone)
	if told(gone) {
		t.Error("a header that is free says that somebody knows it")
	}
}
