package containers

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// several are the objects of a transaction, and what it makes of them.
type several struct {
	M    *Manager
	N    SharedInt
	V    Shared[[5]int64]
	A    SharedArray[int32] // two elements in a word, and several words
	B    SharedArray[[3]int64]
	One  SharedArray[int16]
	Kill int // at this store
}

func newSeveral(m *Manager) several {
	return several{M: m, N: Must(NewSharedInt(m, 1)), V: Must(NewShared(m, [5]int64{1, 1, 1, 1, 1})), A: Must(NewSharedArrayOf(m, []int32{1, 1, 1, 1, 1})),
		B: Must(NewSharedArrayOf(m, [][3]int64{{1, 1, 1}, {1, 1, 1}})), One: Must(NewSharedArrayOf(m, []int16{1, 7, 7}))}
}

// set gives all objects the same number, v.
func (s several) set(tx *Tx, v int64) {
	s.N.In(tx).Add(v - s.N.In(tx).Load())
	s.V.In(tx).With(func(a *[5]int64) {
		for i := range a {
			a[i] = v
		}
	})
	for i := range s.A.Len() {
		s.A.In(tx).Set(i, int32(v))
	}
	for i := range s.B.Len() {
		s.B.In(tx).Set(i, [3]int64{v, v, v})
	}
	s.One.In(tx).Set(0, int16(v))
}

// get returns the number that all objects have, each as it is read without its lock.
func (s several) get(t *testing.T) int64 {
	t.Helper()
	v, a, b := s.N.Load(), slices.Collect(s.A.Values()), slices.Collect(s.B.Values())
	w := int32(v)
	if s.V.Load() != [5]int64{v, v, v, v, v} || !slices.Equal(a, []int32{w, w, w, w, w}) || !slices.Equal(b, [][3]int64{{v, v, v}, {v, v, v}}) ||
		!slices.Equal(slices.Collect(s.One.Values()), []int16{int16(v), 7, 7}) {
		t.Fatalf("number %d, value %v, arrays %v, %v and %v", v, s.V.Load(), a, b, slices.Collect(s.One.Values()))
	}
	return v
}

func (s several) check(t *testing.T) {
	t.Helper()
	if err := errors.Join(s.A.Check(), s.B.Check(), s.One.Check(), s.M.Check()); err != nil {
		t.Fatal(err)
	}
}

func TestTransactionHappensAsAWhole(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		s := newSeveral(m)
		if err := m.Update(t.Context(), func(tx *Tx) error {
			s.set(tx, 2)
			n, v, a, b := s.N.In(tx), s.V.In(tx), s.A.In(tx), s.B.In(tx)
			if n.Load() != 2 || v.Load()[4] != 2 || a.At(4) != 2 || a.Len() != 5 || b.At(1) != [3]int64{2, 2, 2} {
				t.Error("a transaction does not see what it has done")
			}
			v.Store([5]int64{2, 2, 2, 2, 2})
			n.Store(2)
			if got := s.get(t); got != 1 {
				t.Errorf("others see %d before the end", got)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if got := s.get(t); got != 2 {
			t.Errorf("after it: %d", got)
		}
		s.check(t)
	})
}

func TestTransactionThatFailsHasNotHappened(t *testing.T) {
	m := newHeapManager(t)
	s := newSeveral(m)
	other := Must(NewSharedInt(newHeapManager(t), 1))
	gone := Must(NewSharedInt(m, 1))
	if err := gone.Destroy(); err != nil {
		t.Fatal(err)
	}
	mine := errors.New("mine")
	for name, c := range map[string]struct {
		fn   func(tx *Tx) error
		want error
	}{
		"error":          {func(*Tx) error { return mine }, mine},
		"another region": {func(tx *Tx) error { other.In(tx).Add(1); return nil }, fs.ErrInvalid},
		"destroyed":      {func(tx *Tx) error { gone.In(tx).Add(1); return nil }, shm.ErrStale},
		"panic let pass by nobody": {func(tx *Tx) error {
			defer func() { recover() }()
			gone.In(tx).Add(1)
			return nil
		}, shm.ErrStale},
	} {
		if err := m.Update(t.Context(), func(tx *Tx) error { s.set(tx, 2); return c.fn(tx) }); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if got := s.get(t); got != 1 {
			t.Errorf("%s: %d", name, got)
		}
	}
	var kept *Tx
	func() {
		defer func() {
			if r := recover(); r != "mine" {
				t.Errorf("panic with %v", r)
			}
		}()
		m.Update(t.Context(), func(tx *Tx) error { kept = tx; s.set(tx, 2); panic("mine") })
	}()
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a Tx can be used after its end")
			}
		}()
		s.N.In(kept)
	}()
	if got := s.get(t); got != 1 {
		t.Errorf("after a panic: %d", got)
	}
	if err := m.Update(t.Context(), func(tx *Tx) error { s.set(tx, 3); return nil }); err != nil || s.get(t) != 3 {
		t.Errorf("the next one: %v, and %d", err, s.get(t))
	}
	s.check(t)
}

// The context ends the waiting for a lock, and nothing else.
func TestTransactionWaitsForALockUntilTheContextEnds(t *testing.T) {
	m := newHeapManager(t)
	a, b := Must(NewSharedInt(m, 1)), Must(NewSharedInt(m, 1))
	var ctx context.Context
	for _, locked := range []SharedInt{a, b} { // one of them is waited for in order, the other one is not
		var cancel func()
		ctx, cancel = context.WithCancel(t.Context())
		locked.Lock()
		time.AfterFunc(5*time.Millisecond, cancel)
		err := m.Update(ctx, func(tx *Tx) error {
			a.In(tx).Add(1)
			b.In(tx).Add(1)
			return nil
		})
		locked.Unlock()
		if !errors.Is(err, context.Canceled) || a.Load() != 1 || b.Load() != 1 {
			t.Errorf("%v, and %d and %d", err, a.Load(), b.Load())
		}
		a, b = b, a
	}
	if err := m.Update(ctx, func(tx *Tx) error { a.In(tx).Add(1); b.In(tx).Add(1); return nil }); err != nil {
		t.Errorf("under an ended context, with all locks free: %v", err)
	}
}

// A region that is closed inside is an error.
func TestTransactionInARegionThatIsClosedInside(t *testing.T) {
	m := newManager(t)
	s := newSeveral(m)
	err := m.Update(t.Context(), func(tx *Tx) error { s.set(tx, 2); return m.Close() })
	if !errors.Is(err, shm.ErrClosed) {
		t.Errorf("%v, want %v", err, shm.ErrClosed)
	}
	if err := m.Update(t.Context(), func(tx *Tx) error { return nil }); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("then %v, want %v", err, shm.ErrClosed)
	}
}

// A transaction for which there is no memory has not happened.
func TestTransactionInAFullRegion(t *testing.T) {
	m := newHeapManager(t, shm.Size(1<<20), shm.Limit(1<<20))
	n, a := Must(NewSharedInt(m, 1)), Must(NewSharedArray[int64](m, 8000))
	var blocks []SharedArray[int64]
	for {
		b, err := NewSharedArray[int64](m, 500)
		if err != nil {
			break
		}
		blocks = append(blocks, b)
	}
	change := func(tx *Tx) error {
		n.In(tx).Add(1)
		a.In(tx).Set(0, n.In(tx).Load())
		a.In(tx).Set(7999, n.In(tx).Load())
		return nil
	}
	if err := m.Update(t.Context(), change); !errors.Is(err, shm.ErrNoSpace) {
		t.Fatalf("%v, want %v", err, shm.ErrNoSpace)
	}
	if n.Load() != 1 || a.At(0) != 0 || a.At(7999) != 0 {
		t.Errorf("%d, %d, %d after it", n.Load(), a.At(0), a.At(7999))
	}
	for _, b := range blocks {
		if err := b.Destroy(); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Update(t.Context(), change); err != nil || n.Load() != 2 || a.At(0) != 2 || a.At(7999) != 2 {
		t.Errorf("with memory: %v, and %d, %d, %d", err, n.Load(), a.At(0), a.At(7999))
	}
	if err := m.Update(t.Context(), func(tx *Tx) error {
		v := a.In(tx)
		for i := range v.Len() {
			v.Set(i, 5)
		}
		return nil
	}); err != nil || a.At(4000) != 5 {
		t.Errorf("8000 words at once: %v", err)
	}
}

// One that changes more words than a log takes has not happened.
func TestTransactionOfTooManyWords(t *testing.T) {
	m := newHeapManager(t, shm.Limit(8<<20))
	n, a := Must(NewSharedInt(m, 1)), Must(NewSharedArray[int64](m, 70_000))
	if err := m.Update(t.Context(), func(tx *Tx) error {
		n.In(tx).Add(1)
		v := a.In(tx)
		for i := range v.Len() {
			v.Set(i, 5)
		}
		return nil
	}); !errors.Is(err, shm.ErrNoSpace) {
		t.Fatalf("%v, want %v", err, shm.ErrNoSpace)
	}
	if n.Load() != 1 || a.At(0) != 0 || a.At(69_999) != 0 {
		t.Errorf("%d, %d, %d after it", n.Load(), a.At(0), a.At(69_999))
	}
	if err := a.Check(); err != nil {
		t.Error(err)
	}
}

// A caller's lock that several objects use is taken once.
func TestTransactionOverObjectsWithOneLock(t *testing.T) {
	m := newHeapManager(t)
	lock := Must(New[shmsync.Mutex](m))
	a, b := Must(NewSharedInt(m, 1, WithMutex(lock))), Must(NewSharedInt(m, 1, WithMutex(lock)))
	if err := m.Update(t.Context(), func(tx *Tx) error { b.In(tx).Add(1); a.In(tx).Add(1); return nil }); err != nil || a.Load()+b.Load() != 4 {
		t.Errorf("%v, and %d and %d", err, a.Load(), b.Load())
	}
	if !lock.Ptr().TryLock() {
		t.Error("the lock is held")
	}
}

var diesInCommit = proc.Define("dies in a commit", func(ctx context.Context, s several) error {
	n := 0
	txn.OnStore = func(unsafe.Pointer, uintptr) {
		if n == s.Kill {
			kill()
		}
		n++
	}
	defer func() { txn.OnStore = nil }()
	return s.M.Update(ctx, func(tx *Tx) error { s.set(tx, 2); return nil })
})

// Whatever store of a commit a process is killed at: all objects are as before, or all as after, each whole for those who read without its lock, and
// no memory is lost.
func TestKillAtEveryStoreOfACommit(t *testing.T) {
	if raceEnabled {
		t.Skip("processes, one at a time; the race detector makes them start slowly")
	}
	seen := map[int64]int{}
	for k := 0; ; k++ {
		m := newManager(t, shm.Limit(4<<20)) // all of them are there until the test ends, on 32 bits too
		s := newSeveral(m)
		s.Kill = k
		err := diesInCommit.Run(deadline(t), s)
		if err == nil {
			if k < 20 {
				t.Fatalf("only %d stores", k)
			}
			t.Logf("%d stores", k)
			break
		}
		wantKilled(t, err)
		if err := m.Update(t.Context(), func(tx *Tx) error { // takes the locks from the dead, so after its recovery
			s.N.In(tx)
			s.V.In(tx)
			s.A.In(tx)
			s.B.In(tx)
			s.One.In(tx)
			return nil
		}); err != nil {
			t.Fatalf("killed at store %d: %v", k, err)
		}
		seen[s.get(t)]++
		s.check(t)
		if err := m.Update(t.Context(), func(tx *Tx) error { s.set(tx, 3); return nil }); err != nil || s.get(t) != 3 {
			t.Fatalf("killed at store %d, then %v", k, err)
		}
		s.check(t)
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if seen[1] == 0 || seen[2] == 0 || len(seen) != 2 {
		t.Errorf("left as they were, or as they were to be: %v", seen)
	}
}

type bank struct {
	M        *Manager
	Accounts [4]SharedInt
	Seed     int
}

func (b bank) transfer(ctx context.Context, i int) error {
	from, to := b.Accounts[i%4], b.Accounts[(i/4+i+1)%4]
	return b.M.Update(ctx, func(tx *Tx) error {
		from.In(tx).Add(-1)
		to.In(tx).Add(1)
		return nil
	})
}

func (b bank) sum(t *testing.T) (sum int64) {
	t.Helper()
	if err := b.M.Update(deadline(t), func(tx *Tx) error {
		sum = 0
		for i := range b.Accounts {
			sum += b.Accounts[3-i].In(tx).Load()
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return sum
}

func newBank(m *Manager) bank {
	b := bank{M: m}
	for i := range b.Accounts {
		b.Accounts[i] = Must(NewSharedInt(m, 100))
	}
	return b
}

// Goroutines that lock the same objects in opposite orders all get through, and one who adds up sees none half done.
func TestTransactionsInOppositeOrders(t *testing.T) {
	b := newBank(newHeapManager(t))
	var wg sync.WaitGroup
	var done atomic.Int64
	for g := range 4 {
		wg.Go(func() {
			for i := range 300 {
				if err := b.transfer(deadline(t), i*7+g); err != nil {
					t.Error(err)
				}
				done.Add(1)
			}
		})
	}
	for done.Load() < 1200 && !t.Failed() {
		if got := b.sum(t); got != 400 {
			t.Errorf("sum %d", got)
		}
	}
	wg.Wait()
}

var banker = proc.Define("banker", func(ctx context.Context, b bank) error {
	for i := b.Seed; ctx.Err() == nil; i++ {
		if err := b.transfer(ctx, i); err != nil {
			return err
		}
	}
	return nil
})

// Two processes transfer, and are killed all the time: nothing is lost.
func TestKilledProcessesLoseNoMoney(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector does not look into mapped memory, and makes processes start slowly")
	}
	b := newBank(newManager(t))
	for round := range 12 {
		var running []*proc.Process
		for range 2 {
			b.Seed += 11
			p, err := banker.Start(deadline(t), b)
			if err != nil {
				t.Fatal(err)
			}
			running = append(running, p)
		}
		was := b.Accounts[0].Load()
		for i := 0; i < 1+round*5 || b.Accounts[0].Load() == was; i++ { // until somebody is at work
			if got := b.sum(t); got != 400 {
				t.Fatalf("sum %d", got)
			}
		}
		for _, p := range running {
			if err := p.Kill(); err != nil {
				t.Fatal(err)
			}
			wantKilled(t, p.Wait())
			p.Close()
		}
		if got := b.sum(t); got != 400 {
			t.Fatalf("sum %d after kills", got)
		}
	}
}

// Readers without the lock see each array as before a transaction or as after it.
func TestReadersSeeNoHalfTransactionOfAnArray(t *testing.T) {
	m := newHeapManager(t)
	a := Must(NewSharedArray[int64](m, 40))
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		defer stop.Store(true)
		for k := range int64(2000) {
			if err := m.Update(t.Context(), func(tx *Tx) error {
				v := a.In(tx)
				for i := range v.Len() {
					v.Set(i, k)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		}
	})
	dst := make([]int64, 40)
	for !stop.Load() {
		a.CopyOut(dst, 0)
		for _, v := range dst {
			if v != dst[0] {
				t.Fatalf("torn: %v", dst)
			}
		}
	}
	wg.Wait()
}
