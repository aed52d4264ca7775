package containers

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"strings"
	stdsync "sync"
	"testing"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

func TestNilStandsForTheProcessOwnManager(t *testing.T) {
	var wg stdsync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := NewSharedInt(nil, 0, Name("own"), OrOpen()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n := Must(Find[SharedInt](nil, "own"))
	n.Add(5)
	if got := Must(Find[SharedInt](nil, "own")).Load(); got != 5 {
		t.Errorf("two handles on one object: %d, want 5", got)
	}
	if (*Manager)(nil).Region().Name() != "" {
		t.Error("the process' own region has a name")
	}
	if err := n.Destroy(); err != nil {
		t.Error(err)
	}
}

type settersUp struct {
	Region string
	Times  int
}

var setUpAndCount = proc.Define("set up and count", func(_ context.Context, a settersUp) error {
	m, err := OpenManager(a.Region)
	if err != nil {
		return err
	}
	defer m.Close()
	n, err := NewSharedInt(m, 0, Name("count"), OrOpen())
	if err != nil {
		return err
	}
	for range a.Times {
		n.Add(1)
	}
	return m.Check()
})

func TestProcessesRaceToSetUpARegion(t *testing.T) {
	ownDir(t)
	for range 5 {
		var args []settersUp
		for range 4 {
			args = append(args, settersUp{"raced", 500})
		}
		if err := setUpAndCount.Run(deadline(t), args...); err != nil {
			t.Fatal(err)
		}
		m := Must(OpenManager("raced"))
		if got := Must(Find[SharedInt](m, "count")).Load(); got != 2000 {
			t.Errorf("4 processes counted to 500 each: %d", got)
		}
		m.Close()
		if err := shm.Remove("raced"); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever a creator that died half-way has written, the next one begins anew.
func TestHalfDoneSetUpIsFinished(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	r, err := shm.Anonymous()
	if err != nil {
		t.Fatal(err)
	}
	b := Must(r.Bytes(r.Data(), r.Size()))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	m := manageForTest(t, r)
	for range 100 {
		n := Must(NewSharedInt(m, 7))
		v := Must(NewShared(m, [20]int64{}))
		r := Must(New[[100]byte](m))
		if n.Load() != 7 || v.Load() != [20]int64{} || *r.Ptr() != [100]byte{} {
			t.Fatalf("seed %d: new objects hold old bytes", seed)
		}
	}
}

func TestNamesAreExclusive(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		n := Must(NewSharedInt(m, 1, Name("n")))
		if _, err := NewSharedInt(m, 2, Name("n")); !errors.Is(err, fs.ErrExist) {
			t.Errorf("second object of that name: %v, want ErrExist", err)
		}
		same := Must(NewSharedInt(m, 2, Name("n"), OrOpen()))
		if same.Load() != 1 {
			t.Errorf("OrOpen changed the value to %d", same.Load())
		}
		same.Add(1)
		if found := Must(Find[SharedInt](m, "n")); found.Load() != 2 || n.Load() != 2 {
			t.Errorf("found %d, made %d, want 2", found.Load(), n.Load())
		}
		if _, err := Find[SharedInt](m, "m"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("no such name: %v, want ErrNotExist", err)
		}
		if _, err := NewSharedInt(m, 3, OrOpen()); err != nil {
			t.Errorf("OrOpen without a name: %v", err)
		}
	})
}

func TestBadNamesAreRefused(t *testing.T) {
	m := newHeapManager(t)
	for _, name := range []string{"", strings.Repeat("x", 201), "a\nb", "a\x00", "\xff"} {
		if _, err := NewSharedInt(m, 0, Name(name)); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("New with name %q: %v, want ErrInvalid", name, err)
		}
		if _, err := Find[SharedInt](m, name); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Find %q: %v, want ErrInvalid", name, err)
		}
		if err := m.Unlink(name); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Unlink %q: %v, want ErrInvalid", name, err)
		}
	}
	for _, name := range []string{"a", "äöü/1 2", strings.Repeat("x", 200)} {
		Must(NewSharedInt(m, 0, Name(name)))
		Must(Find[SharedInt](m, name))
	}
}

func TestManyNames(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		name := func(i int) string {
			return "name " + strings.Repeat("i", i%7) + string(rune('0'+i%10)) + string(rune('a'+i/10%26)) + string(rune('a'+i/260))
		}
		for i := range 1000 {
			Must(NewSharedInt(m, int64(i), Name(name(i))))
		}
		for i := 0; i < 1000; i += 3 {
			if err := m.Unlink(name(i)); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 1000 {
			n, err := Find[SharedInt](m, name(i))
			if i%3 == 0 {
				if !errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("%q was unlinked: %v", name(i), err)
				}
			} else if err != nil || n.Load() != int64(i) {
				t.Fatalf("%q: %v", name(i), err)
			}
		}
	})
}

func TestAnotherTypeIsRefusedAndBothAreShown(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		type point struct{ X, Y int32 }
		type swapped struct{ Y, X int32 }
		Must(NewShared(m, point{1, 2}, Name("p")))
		Must(NewSharedInt(m, 5, Name("n")))
		_, err := Find[Shared[swapped]](m, "p")
		var te *shm.TypeError
		if !errors.Is(err, shm.ErrTypeMismatch) || !errors.As(err, &te) {
			t.Fatalf("%v, want a TypeError that is ErrTypeMismatch", err)
		}
		for _, text := range []string{"struct{Y int32 @0; X int32 @4}", "struct{X int32 @0; Y int32 @4}", `"p"`} {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%q does not say %q", err, text)
			}
		}
		try := func(_ any, err error) error { return err }
		for what, err := range map[string]error{
			"another number":      try(Find[SharedNumber[float64]](m, "n")),
			"another kind":        try(Find[Shared[int64]](m, "n")),
			"lock-free":           try(Find[AtomicInt](m, "n")),
			"a reference":         try(Find[Ref[int64]](m, "n")),
			"OrOpen, other type":  try(NewShared(m, swapped{}, Name("p"), OrOpen())),
			"OrOpen, other kind":  try(NewAtomicInt(m, 1, Name("n"), OrOpen())),
			"a link to it":        try(Link[AtomicInt](LinkTo(Must(Find[SharedInt](m, "n")))).In(m)),
			"its encoding":        new(SharedNumber[float64]).UnmarshalBinary(Must(Must(Find[SharedInt](m, "n")).MarshalBinary())),
			"its encoding, other": new(AtomicInt).UnmarshalText(Must(Must(Find[SharedInt](m, "n")).MarshalText())),
		} {
			if !errors.Is(err, shm.ErrTypeMismatch) {
				t.Errorf("%s: %v, want ErrTypeMismatch", what, err)
			}
		}
		if n := Must(Find[SharedInt](m, "n")); n.Load() != 5 {
			t.Errorf("the refused changed the value to %d", n.Load())
		}
	})
}

func TestUnlinkedObjectLivesOn(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		n := Must(NewSharedInt(m, 1, Name("n")))
		if err := m.Unlink("n"); err != nil {
			t.Fatal(err)
		}
		if err := m.Unlink("n"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("second Unlink: %v, want ErrNotExist", err)
		}
		other := Must(NewSharedInt(m, 7, Name("n")))
		if n.Add(1) != 2 || other.Load() != 7 {
			t.Errorf("%d and %d, want 2 and 7", n.Load(), other.Load())
		}
	})
}

func TestDestroyedObjectIsStale(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		s := Must(m.space())
		Must(NewSharedInt(m, 0)) // the first object brings a slab, and the layouts of each type stay
		Must(NewShared(m, [100]byte{}))
		Must(New[tallied](m))
		Must(NewAtomicInt(m, 0))
		before := Must(s.heap.Usage())
		n := Must(NewSharedInt(m, 1, Name("n")))
		v := Must(NewShared(m, [100]byte{1}))
		r := Must(New[tallied](m))
		a := Must(NewAtomicInt(m, 1))
		encoded := Must(n.MarshalBinary())
		link := LinkTo(n)
		for _, h := range []interface{ Destroy() error }{n, v, r, a} {
			if err := h.Destroy(); err != nil {
				t.Fatal(err)
			}
		}
		stale := map[string]func() error{
			"SharedInt.Load":    func() error { n.Load(); return nil },
			"SharedInt.Add":     func() error { n.Add(1); return nil },
			"SharedInt.With":    func() error { n.With(func(*int64) {}); return nil },
			"SharedInt.Update":  func() error { return n.Update(t.Context(), func(*int64) error { return nil }) },
			"SharedInt.Lock":    func() error { n.Lock(); return nil },
			"SharedInt.TryLock": func() error { n.TryLock(); return nil },
			"SharedInt.Locked":  func() error { n.Locked(); return nil },
			"SharedInt.Destroy": func() error { return n.Destroy() },
			"SharedInt.Marshal": func() error { _, err := n.MarshalBinary(); return err },
			"decoding":          func() error { return new(SharedInt).UnmarshalBinary(encoded) },
			"Link":              func() error { _, err := link.In(m); return err },
			"Shared.Load":       func() error { v.Load(); return nil },
			"Shared.Store":      func() error { v.Store([100]byte{}); return nil },
			"Ref.Ptr":           func() error { r.Ptr(); return nil },
			"Atomic.Load":       func() error { a.Load(); return nil },
			"Atomic.Add":        func() error { a.Add(1); return nil },
		}
		wantErrors(t, shm.ErrStale, stale)
		if _, err := Find[SharedInt](m, "n"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the name of a destroyed object: %v, want ErrNotExist", err)
		}
		after := Must(s.heap.Usage())
		if after.LiveBlocks != before.LiveBlocks || after.Objects != before.Objects {
			t.Errorf("destroying does not free: %+v, before %+v", after, before)
		}
		// What is made in their place is not theirs.
		fresh := []SharedInt{}
		for range 8 {
			fresh = append(fresh, Must(NewSharedInt(m, 9)))
		}
		wantErrors(t, shm.ErrStale, stale)
		for _, f := range fresh {
			if f.Load() != 9 {
				t.Errorf("a stale handle changed a new object to %d", f.Load())
			}
		}
		Must(NewSharedInt(m, 3, Name("n")))
	})
}

func TestDestroyWaitsForTheLock(t *testing.T) {
	n := Must(NewSharedInt(newHeapManager(t), 0))
	n.Lock()
	gone := make(chan error)
	go func() { gone <- n.Destroy() }()
	for range 100 {
		select {
		case err := <-gone:
			t.Fatalf("Destroy under a held lock: %v", err)
		default:
			n.Locked().Add(1)
		}
	}
	n.Unlock()
	if err := <-gone; err != nil {
		t.Error(err)
	}
}

func TestLockInUseIsNotDestroyed(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		lock := Must(New[shmsync.Mutex](m))
		a := Must(NewSharedInt(m, 0, WithMutex(lock)))
		b := Must(NewShared(m, 1, WithMutex(lock), Name("b")))
		for i, h := range []interface{ Destroy() error }{a, b} {
			if err := lock.Destroy(); !errors.Is(err, fs.ErrInvalid) {
				t.Fatalf("the lock of %d objects was destroyed: %v", 2-i, err)
			}
			lock.Ptr().Lock()
			lock.Ptr().Unlock()
			if err := h.Destroy(); err != nil {
				t.Fatal(err)
			}
		}
		if err := lock.Destroy(); err != nil {
			t.Error(err)
		}
		if _, err := NewSharedInt(m, 0, WithMutex(lock)); err == nil {
			t.Error("a destroyed lock is used")
		}
	})
}

func TestNewLockIsUnlocked(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		for range 40 {
			lock := Must(New[shmsync.Mutex](m))
			if !lock.Ptr().TryLock() {
				t.Fatal("a new lock is held")
			}
			lock.Ptr().Unlock()
			if err := lock.Destroy(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestClosedManagerAnswersErrClosed(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		n := Must(NewSharedInt(m, 1, Name("n")))
		v := Must(NewShared(m, [100]byte{1}))
		r := Must(New[tallied](m))
		a := Must(NewAtomicInt(m, 1))
		encoded := Must(n.MarshalBinary())
		link := LinkTo(n)
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		wantErrors(t, shm.ErrClosed, map[string]func() error{
			"SharedInt.Load":    func() error { n.Load(); return nil },
			"SharedInt.Add":     func() error { n.Add(1); return nil },
			"SharedInt.With":    func() error { n.With(func(*int64) {}); return nil },
			"SharedInt.Update":  func() error { return n.Update(t.Context(), func(*int64) error { return nil }) },
			"SharedInt.Lock":    func() error { n.Lock(); return nil },
			"SharedInt.Destroy": func() error { return n.Destroy() },
			"SharedInt.Marshal": func() error { _, err := n.MarshalBinary(); return err },
			"Shared.Load":       func() error { v.Load(); return nil },
			"Shared.Store":      func() error { v.Store([100]byte{}); return nil },
			"Ref.Ptr":           func() error { r.Ptr(); return nil },
			"Atomic.Load":       func() error { a.Load(); return nil },
			"Atomic.Add":        func() error { a.Add(1); return nil },
			"New":               func() error { _, err := NewSharedInt(m, 0); return err },
			"Find":              func() error { _, err := Find[SharedInt](m, "n"); return err },
			"Unlink":            func() error { return m.Unlink("n") },
			"Check":             func() error { return m.Check() },
			"Link":              func() error { _, err := link.In(m); return err },
			"Marshal":           func() error { _, err := m.MarshalBinary(); return err },
			"zero Manager":      func() error { _, err := NewSharedInt(new(Manager), 0); return err },
		})
		if err := new(SharedInt).UnmarshalBinary(encoded); !errors.Is(err, shm.ErrNotAttached) {
			t.Errorf("decoding a handle of a region that is gone: %v, want ErrNotAttached", err)
		}
		if err := m.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if err := new(Manager).Close(); err != nil {
			t.Errorf("Close of a zero Manager: %v", err)
		}
	})
}

func TestManagersOnOneRegionShareIt(t *testing.T) {
	ownDir(t)
	a, b := Must(OpenManager("shared")), Must(OpenManager("shared"))
	n := Must(NewSharedInt(a, 1, Name("n")))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if n.Add(1) != 2 {
		t.Error("a handle is gone with one of two Managers")
	}
	if _, err := Find[SharedInt](a, "n"); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("the closed one: %v, want ErrClosed", err)
	}
	if Must(Find[SharedInt](b, "n")).Load() != 2 {
		t.Error("the other one sees another value")
	}
	b.Close()
	wantErrors(t, shm.ErrClosed, map[string]func() error{"Load": func() error { n.Load(); return nil }})

	// Opening it again brings the object back, for new handles only.
	c := Must(OpenManager("shared"))
	defer c.Close()
	if Must(Find[SharedInt](c, "n")).Load() != 2 {
		t.Error("the value did not outlive the Managers")
	}
	wantErrors(t, shm.ErrClosed, map[string]func() error{"old handle": func() error { n.Load(); return nil }})
}

func TestUserClosingTheRegionDoesNotFault(t *testing.T) {
	m := newManager(t)
	n := Must(NewSharedInt(m, 1))
	m.Region().Close()
	if n.Add(1) != 2 {
		t.Error("the space lives as long as its Manager")
	}
}

func TestFullRegionRefusesAndStaysAsItWas(t *testing.T) {
	for _, open := range []func(...shm.Option) (*shm.Region, error){shm.Heap, shm.Anonymous} {
		r, err := open(shm.Size(32<<10), shm.Limit(96<<10))
		if err != nil {
			t.Fatal(err)
		}
		m := manageForTest(t, r)
		n := Must(NewSharedInt(m, 1, Name("n")))
		s := Must(m.space())
		try := func(_ any, err error) error { return err }
		try(NewShared(m, [64 << 10]byte{})) // so that the type's layout is stored
		before := Must(s.heap.Usage())
		for what, err := range map[string]error{
			"unnamed": try(NewShared(m, [64 << 10]byte{})),
			"named":   try(NewShared(m, [64 << 10]byte{}, Name("huge"))),
			"in use":  try(New[[64 << 10]byte](m)),
		} {
			if !errors.Is(err, shm.ErrNoSpace) {
				t.Errorf("%s: %v, want ErrNoSpace", what, err)
			}
		}
		after := Must(s.heap.Usage())
		if after.LiveBlocks != before.LiveBlocks || after.Objects != before.Objects {
			t.Errorf("refused objects left something: %+v, before %+v", after, before)
		}
		if n.Add(1) != 2 {
			t.Error("a full region's objects are of no use")
		}
		var filled []Shared[[1000]byte]
		for {
			v, err := NewShared(m, [1000]byte{})
			if errors.Is(err, shm.ErrNoSpace) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			filled = append(filled, v)
		}
		if len(filled) < 20 {
			t.Errorf("96 KiB hold %d values of 2 KB", len(filled))
		}
		for _, v := range filled {
			v.Store([1000]byte{1}) // needs no room
			if err := v.Destroy(); err != nil {
				t.Fatal(err)
			}
		}
		Must(New[[30 << 10]byte](m))
	}
}

type parcel struct {
	N    SharedInt // before M: it is not M that opens the region
	M    *Manager
	List []Shared[[2]int64]
	Map  map[string]AtomicInt
	Ref  Ref[tallied]
	Zero SharedInt
	None *Manager
}

var openParcel = proc.Define("open parcel", func(_ context.Context, p parcel) error {
	p.N.Add(1)
	for _, s := range p.List {
		s.With(func(v *[2]int64) { v[0]++ })
	}
	p.Map["a"].Add(1)
	p.Ref.Ptr().Hits.Add(1)
	switch {
	case Must(Find[SharedInt](p.M, "n")).Load() != 2:
		return errors.New("the Manager leads to another number")
	case p.None != nil || p.Zero.obj != nil:
		return errors.New("nothing came as something")
	}
	if err := p.M.Close(); err != nil {
		return err
	}
	p.N.Load() // came before the Manager and does not need it
	return nil
})

func TestHandlesArriveInAnotherProcess(t *testing.T) {
	m, other := newManager(t), newManager(t)
	p := parcel{
		M:    m,
		N:    Must(NewSharedInt(m, 1, Name("n"))),
		List: []Shared[[2]int64]{Must(NewShared(m, [2]int64{1, 1})), Must(NewShared(other, [2]int64{1, 1}))},
		Map:  map[string]AtomicInt{"a": Must(NewAtomicInt(other, 1))},
		Ref:  Must(New[tallied](other)),
	}
	if err := openParcel.Run(deadline(t), p); err != nil {
		t.Fatal(err)
	}
	if p.N.Load() != 2 || p.List[0].Load()[0] != 2 || p.List[1].Load()[0] != 2 || p.Map["a"].Load() != 2 || p.Ref.Ptr().Hits.Load() != 1 {
		t.Error("what the child did is not seen")
	}
}

func TestHandlesAreEncodedAsReferences(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		n := Must(NewSharedInt(m, 1))
		var binary, text SharedInt
		if err := binary.UnmarshalBinary(Must(n.MarshalBinary())); err != nil {
			t.Fatal(err)
		}
		if err := text.UnmarshalText(Must(n.MarshalText())); err != nil {
			t.Fatal(err)
		}
		var tree struct {
			N, Zero SharedInt
			S       Shared[int]
		}
		in := tree
		in.N, in.S = n, Must(NewShared(m, 5))
		if err := json.Unmarshal(Must(json.Marshal(in)), &tree); err != nil {
			t.Fatal(err)
		}
		n.Add(1)
		if binary != n || text != n || tree.N != n || tree.S.Load() != 5 || tree.Zero != (SharedInt{}) {
			t.Errorf("%v, %v, %v came back", binary, text, tree)
		}
		for _, bad := range []string{"x", strings.Repeat("x", 40), "\x01" + strings.Repeat("\x00", 60)} {
			if err := new(SharedInt).UnmarshalBinary([]byte(bad)); err == nil {
				t.Errorf("%q was decoded", bad)
			}
		}
		// A flipped byte is an error, or another name for the same object, never a fault.
		data := Must(n.MarshalBinary())
		for i := range data {
			for bit := range 8 {
				flipped := append([]byte(nil), data...)
				flipped[i] ^= 1 << bit
				var h SharedInt
				if err := h.UnmarshalBinary(flipped); err == nil && h != n {
					t.Errorf("byte %d, bit %d: decoded to another object", i, bit)
				}
			}
		}
		if err := m.UnmarshalBinary(nil); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("decoding into a Manager in use: %v", err)
		}
	})
}

func TestLinksNestObjects(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		type node struct {
			Value int64
			Next  Link[SharedInt]
		}
		n := Must(NewSharedInt(m, 5))
		s := Must(NewShared(m, node{1, LinkTo(n)}))
		if got := Must(s.Load().Next.In(m)); got != n {
			t.Errorf("the link leads to %v, want %v", got, n)
		}
		var zero Link[SharedInt]
		if _, err := zero.In(m); !zero.IsZero() || LinkTo(SharedInt{}) != zero || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("zero Link: %v", err)
		}
		if _, err := (Link[SharedInt]{12345, 1}).In(m); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("Link to nowhere: %v, want ErrCorrupt", err)
		}
	})
}

var lookOnly = proc.Define("look only", func(_ context.Context, region string) error {
	m, err := OpenManager(region, shm.ReadOnly())
	if err != nil {
		return err
	}
	defer m.Close()
	n, err := Find[SharedInt](m, "n")
	if err != nil {
		return err
	}
	v, err := Find[Shared[[3]int64]](m, "v")
	if err != nil {
		return err
	}
	a, err := Find[AtomicInt](m, "a")
	if err != nil {
		return err
	}
	if n.Load() != 5 || v.Load() != [3]int64{1, 2, 3} || a.Load() != 6 {
		return errors.New("other values")
	}
	var errs []error
	for _, call := range []func() error{
		func() error { n.Add(1); return nil },
		func() error { v.Store([3]int64{}); return nil },
		func() error { return v.Update(context.Background(), func(*[3]int64) error { return nil }) },
		func() error { a.Add(1); return nil },
		func() error { return n.Destroy() },
		func() error { return m.Unlink("n") },
		func() error { _, err := NewSharedInt(m, 1); return err },
	} {
		func() {
			var err error
			defer func() {
				if v := recover(); v != nil {
					err = v.(error)
				}
				if !errors.Is(err, fs.ErrPermission) {
					errs = append(errs, errors.Join(errors.New("a write to a read-only region"), err))
				}
			}()
			err = call()
		}()
	}
	if n.TryLock() {
		errs = append(errs, errors.New("TryLock in a read-only region"))
	}
	return errors.Join(errs...)
})

func TestReadOnlyRegionIsReadAndNotWritten(t *testing.T) {
	ownDir(t)
	m := Must(OpenManager("looked-at"))
	defer m.Close()
	Must(NewSharedInt(m, 5, Name("n")))
	Must(NewShared(m, [3]int64{1, 2, 3}, Name("v")))
	Must(NewAtomicInt(m, 6, Name("a")))
	if err := lookOnly.Run(deadline(t), "looked-at"); err != nil {
		t.Error(err)
	}
}
