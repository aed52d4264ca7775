package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// triple and quad are elements that no instruction moves at once. (Named structs of this package are taken
// for handles, and refused.)
type triple = struct{ A, B, C int64 }

type quad [4]uint64

// torn reports whether q was put together from several quads: ours have four equal words.
func (q quad) torn() bool { return q != quad{q[0], q[0], q[0], q[0]} }

// mappedManager returns a Manager on memory that children can share.
func mappedManager(t testing.TB) *Manager {
	t.Helper()
	return managed(t, Must(shm.Anonymous(shm.Size(1<<20), shm.Limit(128<<20))))
}

// heapManager returns a Manager on Go memory, where the race detector looks.
func heapManager(t testing.TB) *Manager {
	t.Helper()
	return managed(t, Must(shm.Heap(shm.Size(32<<20))))
}

// managed returns a Manager on r, whose structures are checked when the test ends.
func managed(t testing.TB, r *shm.Region) *Manager {
	t.Helper()
	m, err := NewManager(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !m.closed.Load() {
			if err := m.Check(); err != nil {
				t.Errorf("at the end: %v", err)
			}
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// onBoth runs test on a mapped region and on one in Go memory.
func onBoth(t *testing.T, test func(t *testing.T, m *Manager)) {
	t.Run("memory=mapped", func(t *testing.T) { test(t, mappedManager(t)) })
	t.Run("memory=heap", func(t *testing.T) { test(t, heapManager(t)) })
}

// inTime returns a context that ends before the test's time is up.
func inTime(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// random returns a generator with a printed seed.
func random(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// panics returns what fn panics with, as text and as error.
func panics(t testing.TB, fn func()) (text string, err error) {
	t.Helper()
	defer func() {
		switch p := recover().(type) {
		case nil:
			t.Error("did not panic")
		case error:
			text, err = p.Error(), p
		default:
			text = fmt.Sprint(p)
		}
	}()
	fn()
	return "", nil
}

// until waits for a state that another process or goroutine brings about.
func until(t testing.TB, what string, state func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !state(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("gave up waiting until %s", what)
		}
	}
}

// killed starts fn in a process and kills it when state is reached.
func killed[A any](t testing.TB, fn *proc.Func[A], argument A, what string, state func() bool) {
	t.Helper()
	p, err := fn.Start(t.Context(), argument)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	until(t, what, func() bool {
		if _, ended := p.ExitCode(); ended {
			t.Fatalf("%s ended by itself before %s", p.Name(), what)
		}
		return state()
	})
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err == nil {
		t.Fatalf("%s was not killed", p.Name())
	}
}

var prefixSums = proc.Define("turn an array into its prefix sums", func(_ context.Context, a SharedArray[int64]) error {
	for i := range a.Len() - 1 {
		a.Set(i+1, a.At(i)+a.At(i+1))
	}
	return nil
})

var prefixSumsRaw = proc.Define("turn an array into its prefix sums, in place", func(_ context.Context, a SharedArray[int64]) error {
	v := a.View()
	for i := range v[1:] {
		v[i+1] += v[i]
	}
	return nil
})

func TestArrayChangedByChildIsSeenByParent(t *testing.T) {
	for name, child := range map[string]*proc.Func[SharedArray[int64]]{"through=methods": prefixSums, "through=view": prefixSumsRaw} {
		t.Run(name, func(t *testing.T) {
			a := Must(NewSharedArrayOf(mappedManager(t), []int64{680, 626, 934, 821, 150, 233, 548, 982, 714, 831}))
			if err := child.Run(inTime(t), a); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]int64{680, 1306, 2240, 3061, 3211, 3444, 3992, 4974, 5688, 6519}, slices.Collect(a.Values())); diff != "" {
				t.Errorf("sums (-want +got):\n%s", diff)
			}
		})
	}
}

func TestArrayMadeBySizeIsZeroInUsedMemory(t *testing.T) {
	onBoth(t, func(t *testing.T, m *Manager) {
		for range 3 {
			a := Must(NewSharedArray[int64](m, 1000))
			for i, v := range a.All() {
				if v != 0 {
					t.Fatalf("element %d of a new array is %d", i, v)
				}
			}
			a.With(func(v []int64) {
				for i := range v {
					v[i] = -1
				}
			})
			if err := a.Destroy(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestArrayIsAsASlice(t *testing.T) {
	onBoth(t, func(t *testing.T, m *Manager) {
		model := []float64{0, 1, 4, 9, 16, 25, 36, 49, 64, 81}
		a := Must(NewSharedArrayOf(m, model))
		check := func(what string) {
			t.Helper()
			if diff := cmp.Diff(model, slices.Collect(a.Values())); diff != "" {
				t.Errorf("after %s (-want +got):\n%s", what, diff)
			}
		}
		check("making")
		if a.Len() != 10 || a.At(3) != 9 {
			t.Errorf("Len %d, element 3 is %v", a.Len(), a.At(3))
		}
		a.Set(3, -9)
		model[3] = -9
		check("Set")
		a.CopyIn(5, []float64{1, 2, 3})
		copy(model[5:], []float64{1, 2, 3})
		check("CopyIn")
		part := make([]float64, 4)
		if n := a.CopyOut(part, 2); n != 4 || !slices.Equal(part, model[2:6]) {
			t.Errorf("CopyOut from 2 on: %d %v", n, part)
		}
		if n := a.CopyOut(part, 8); n != 2 || !slices.Equal(part[:n], model[8:]) {
			t.Errorf("CopyOut at the end: %d %v", n, part[:n])
		}
		if n := a.CopyOut(part, 10); n != 0 {
			t.Errorf("CopyOut behind the end: %d", n)
		}
		if got := Must(a.Slice(2, 6, 1)); !slices.Equal(got, model[2:6]) {
			t.Errorf("Slice(2, 6, 1) = %v", got)
		}
		for i, v := range a.All() {
			if v != model[i] {
				t.Errorf("All: element %d is %v", i, v)
			}
			if i == 5 {
				break
			}
		}
	})
}

// slices of Python's, to be compared with.
func TestArraySlicesAreClamped(t *testing.T) {
	const start, end = math.MaxInt, math.MinInt // of a slice that goes backwards
	a := Must(NewSharedArrayOf(heapManager(t), []int32{0, 1, 2, 3, 4}))
	for _, c := range []struct {
		start, stop, step int
		want              []int32
	}{
		{10, math.MaxInt, 1, []int32{}},
		{0, 10, 1, []int32{0, 1, 2, 3, 4}},
		{2, 4, 1, []int32{2, 3}},
		{4, 2, 1, []int32{}},
		{2, 2, 2, []int32{}},
		{2, 2, -2, []int32{}},
		{-2, math.MaxInt, 1, []int32{3, 4}},
		{-10, -3, 1, []int32{0, 1}},
		{0, 5, 2, []int32{0, 2, 4}},
		{1, 5, 2, []int32{1, 3}},
		{0, 5, math.MaxInt, []int32{0}},
		{start, end, -1, []int32{4, 3, 2, 1, 0}},
		{-1, -6, -1, []int32{4, 3, 2, 1, 0}},
		{3, 0, -1, []int32{3, 2, 1}},
		{start, end, -2, []int32{4, 2, 0}},
		{10, 1, -2, []int32{4, 2}},
		{0, 3, -1, []int32{}},
		{start, end, math.MinInt, []int32{4}},
		{-100, 100, -1, []int32{}},
	} {
		got, err := a.Slice(c.start, c.stop, c.step)
		if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
			t.Errorf("Slice(%d, %d, %d): %v (-want +got):\n%s", c.start, c.stop, c.step, err, diff)
		}
	}
	if _, err := a.Slice(0, 5, 0); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("step 0: %v", err)
	}
}

func TestTextInArray(t *testing.T) {
	onBoth(t, func(t *testing.T, m *Manager) {
		a := Must(NewSharedArray[byte](m, 10))
		put := func(s string) (err error) {
			a.With(func(v []byte) { err = PutText(v, s) })
			return err
		}
		whole := func() string {
			b := make([]byte, a.Len())
			a.CopyOut(b, 0)
			return string(b)
		}
		if err := put("hello worl"); err != nil {
			t.Fatal(err)
		}
		if err := put("howdy"); err != nil {
			t.Fatal(err)
		}
		if got, want := whole(), "howdy\x00worl"; got != want {
			t.Errorf("after a shorter text: %q, want %q", got, want)
		}
		if got := Text([]byte(whole())); got != "howdy" {
			t.Errorf("text %q", got)
		}
		if err := put("hello world"); !errors.Is(err, fs.ErrInvalid) || whole() != "howdy\x00worl" {
			t.Errorf("a longer text: %v, and the array holds %q", err, whole())
		}
	})
}

type place struct {
	Array SharedArray[int32]
	Index int
}

var placeSeed = proc.Define("place a seed", func(_ context.Context, p place) error {
	p.Array.Lock()
	defer p.Array.Unlock()
	v := p.Array.Locked()
	v.Set(p.Index, v.At(p.Index)+int32(p.Index)+1)
	return nil
})

func TestEachProcessWritesItsElement(t *testing.T) {
	a := Must(NewSharedArray[int32](mappedManager(t), 5))
	var places []place
	for i := range a.Len() {
		places = append(places, place{a, i})
	}
	if err := placeSeed.Run(inTime(t), places...); err != nil {
		t.Fatal(err)
	}
	if got := slices.Collect(a.Values()); !slices.Equal(got, []int32{1, 2, 3, 4, 5}) {
		t.Errorf("spots %v", got)
	}
}

type transfers struct {
	Accounts SharedArray[int64]
	Movers   AtomicInt // still at work
	Seed     uint64
}

var transfer = proc.Define("move amounts", func(_ context.Context, a transfers) error {
	defer a.Movers.Add(-1)
	r := rand.New(rand.NewPCG(a.Seed, 0))
	for range 2000 {
		from, to, amount := r.IntN(a.Accounts.Len()), r.IntN(a.Accounts.Len()), r.Int64N(100)
		if r.IntN(2) == 0 {
			a.Accounts.With(func(v []int64) {
				v[from] -= amount
				v[to] += amount
			})
			continue
		}
		a.Accounts.Lock()
		v := a.Accounts.Locked()
		v.Set(from, v.At(from)-amount)
		v.Set(to, v.At(to)+amount)
		a.Accounts.Unlock()
	}
	return nil
})

var audit = proc.Define("sum under the lock", func(_ context.Context, a transfers) error {
	for n := 0; ; n++ {
		done := a.Movers.Load() == 0
		var sum int64
		a.Accounts.Lock()
		for v := range a.Accounts.Locked().Values() {
			sum += v
		}
		a.Accounts.Unlock()
		if sum != 10_000 {
			return fmt.Errorf("sum %d in look %d", sum, n)
		}
		if done {
			return nil
		}
	}
})

func TestTransfersKeepTheSum(t *testing.T) {
	m := mappedManager(t)
	a := transfers{Accounts: Must(NewSharedArray[int64](m, 100)), Movers: Must(NewAtomicInt(m, 4))}
	a.Accounts.With(func(v []int64) {
		for i := range v {
			v[i] = 100
		}
	})
	auditor, err := audit.Start(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	var all []transfers
	for range 4 {
		a.Seed = rand.Uint64()
		all = append(all, a)
	}
	if err := errors.Join(transfer.Run(inTime(t), all...), auditor.Wait()); err != nil {
		t.Error(err)
	}
}

type heldArray struct {
	Array SharedArray[int64]
	Lock  Ref[shmsync.Mutex]
	State AtomicInt // 1: the lock is held, 2: let go
}

var holdCallersLock = proc.Define("hold the caller's lock", func(_ context.Context, a heldArray) error {
	a.Lock.Ptr().Lock()
	a.State.Store(1)
	for a.State.Load() != 2 {
		time.Sleep(time.Millisecond)
	}
	a.Array.Locked().Set(0, 1)
	a.Lock.Ptr().Unlock()
	return nil
})

func TestArrayOnCallersLock(t *testing.T) {
	m := mappedManager(t)
	lock := Must(New[shmsync.Mutex](m))
	a := heldArray{Must(NewSharedArray[int64](m, 1, WithMutex(lock))), lock, Must(NewAtomicInt(m, 0))}
	if a.Array.Mutex() != lock.Ptr() {
		t.Error("Mutex is not the caller's lock")
	}
	p, err := holdCallersLock.Start(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	until(t, "the child holds the lock", func() bool { return a.State.Load() == 1 })
	if a.Array.TryLock() {
		t.Error("TryLock took a lock that another process holds")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.Array.Update(ctx, func([]int64) error { t.Error("Update ran without the lock"); return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Update under a held lock: %v", err)
	}
	if got := a.Array.At(0); got != 0 { // does not wait
		t.Errorf("element 0 is %d", got)
	}
	set := make(chan struct{})
	go func() {
		a.Array.Set(0, 2)
		close(set)
	}()
	select {
	case <-set:
		t.Error("Set did not wait for the lock")
	case <-time.After(20 * time.Millisecond):
	}
	a.State.Store(2)
	<-set
	if err := p.Wait(); err != nil || a.Array.At(0) != 2 {
		t.Errorf("child: %v; element 0 is %d, want 2, the later one", err, a.Array.At(0))
	}
}

var dieInWith = proc.Define("die inside With", func(_ context.Context, a heldArray) error {
	a.Array.With(func(v []int64) {
		v[0] = 99
		a.State.Store(1)
		select {}
	})
	return nil
})

func TestDeathUnderCallersLockShowsUntilRecovered(t *testing.T) {
	m := mappedManager(t)
	lock := Must(New[shmsync.Mutex](m))
	a := heldArray{Must(NewSharedArrayOf(m, []int64{7}, WithMutex(lock))), lock, Must(NewAtomicInt(m, 0))}
	killed(t, dieInWith, a, "it is inside With", func() bool { return a.State.Load() == 1 })
	if err := a.Array.Update(t.Context(), func([]int64) error { return nil }); !errors.Is(err, shmsync.ErrInconsistent) {
		t.Errorf("Update after a death under the caller's lock: %v", err)
	}
	if _, err := panics(t, func() { a.Array.Set(0, 1) }); !errors.Is(err, shmsync.ErrInconsistent) {
		t.Errorf("Set after a death under the caller's lock: %v", err)
	}
	if got := a.Array.At(0); got != 7 {
		t.Errorf("element 0 is %d, committed was 7", got)
	}
	err := lock.Ptr().Recover(t.Context(), func(shm.Death) error {
		a.Array.Locked().Set(0, a.Array.At(0)+1) // past the repair that Lock would have made
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := a.Array.At(0); got != 8 {
		t.Errorf("element 0 is %d, want 8", got)
	}
	a.Array.Set(0, 3)
	if got := a.Array.At(0); got != 3 {
		t.Errorf("element 0 is %d, want 3", got)
	}
}

func TestArraySizes(t *testing.T) {
	m := heapManager(t)
	empty := Must(NewSharedArray[triple](m, 0))
	if n := empty.Len(); n != 0 {
		t.Errorf("length %d", n)
	}
	for range empty.All() {
		t.Error("an element of an empty array")
	}
	empty.With(func(v []triple) {
		if len(v) != 0 {
			t.Errorf("%d elements", len(v))
		}
	})
	if _, err := NewSharedArray[int64](m, -1); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("length −1: %v", err)
	}
	for _, n := range []int{1 << 30, math.MaxInt / 8, math.MaxInt} {
		if _, err := NewSharedArray[int64](m, n); !errors.Is(err, shm.ErrNoSpace) {
			t.Errorf("length %d: %v", n, err)
		}
	}
	if a := Must(NewSharedArray[struct{}](m, 5)); a.Len() != 5 || a.At(4) != (struct{}{}) {
		t.Error("five elements of no size")
	}
}

func TestArrayIndexMessages(t *testing.T) {
	a := Must(NewSharedArray[int64](heapManager(t), 3))
	for want, fn := range map[string]func(){
		"containers: SharedArray.At: index 3 out of range, length 3":            func() { a.At(3) },
		"containers: SharedArray.At: index -1 out of range, length 3":           func() { a.At(-1) },
		"containers: SharedArray.Set: index -1 out of range, length 3":          func() { a.Set(-1, 0) },
		"containers: SharedArray.CopyIn: 2 elements from index 2 on, length 3":  func() { a.CopyIn(2, []int64{1, 2}) },
		"containers: SharedArray.CopyOut: 0 elements from index 4 on, length 3": func() { a.CopyOut(nil, 4) },
		"containers: use of a zero handle; make one with New… or Find":          func() { SharedArray[int64]{}.At(0) },
		"containers: use of a zero handle; make one with New… or Find ":         func() { SharedArray[int64]{}.Set(0, 0) },
	} {
		if got, _ := panics(t, fn); got != strings.TrimSpace(want) {
			t.Errorf("panic %q, want %q", got, want)
		}
	}
	if !a.TryLock() { // none of these kept it
		t.Fatal("the lock is held")
	}
	a.Unlock()
}

// elements of every way to be stored, with a value for each number.
func testArrayModel[T comparable](t *testing.T, value func(uint64) T) {
	t.Run(reflect.TypeFor[T]().String(), func(t *testing.T) {
		onBoth(t, func(t *testing.T, m *Manager) {
			r := random(t)
			a := Must(NewSharedArray[T](m, 37))
			model := make([]T, a.Len())
			boom := errors.New("boom")
			for step := range 3000 {
				i, v := r.IntN(len(model)), value(r.Uint64())
				switch r.IntN(8) {
				case 0, 1:
					a.Set(i, v)
					model[i] = v
				case 2:
					src := make([]T, r.IntN(len(model)-i+1))
					for k := range src {
						src[k] = value(r.Uint64())
					}
					a.CopyIn(i, src)
					copy(model[i:], src)
				case 3:
					a.With(func(e []T) {
						e[i], e[0] = e[0], v
						model[i], model[0] = model[0], v
						if !slices.Equal(e, model) {
							t.Errorf("step %d: inside With %v, want %v", step, e, model)
						}
					})
				case 4:
					err := a.Update(t.Context(), func(e []T) error {
						e[i] = v
						return boom
					})
					if err != boom {
						t.Errorf("step %d: Update returned %v", step, err)
					}
				case 5:
					a.Lock()
					a.Locked().Set(i, v)
					a.Locked().CopyIn(0, []T{v})
					if a.Locked().At(i) != v {
						t.Errorf("step %d: in the view %v, want %v", step, a.Locked().At(i), v)
					}
					a.Unlock()
					model[i], model[0] = v, v
				case 6:
					dst := make([]T, r.IntN(50))
					if n := a.CopyOut(dst, i); !slices.Equal(dst[:n], model[i:min(len(model), i+len(dst))]) {
						t.Errorf("step %d: CopyOut %v", step, dst[:n])
					}
				case 7:
					if got := a.At(i); got != model[i] {
						t.Errorf("step %d: element %d is %v, want %v", step, i, got, model[i])
					}
				}
				if got := slices.Collect(a.Values()); !slices.Equal(got, model) {
					t.Fatalf("step %d:\n got %v\nwant %v", step, got, model)
				}
				if err := a.Check(); err != nil {
					t.Fatalf("step %d: %v", step, err)
				}
			}
		})
	})
}

func TestArrayAgainstModel(t *testing.T) {
	testArrayModel(t, func(n uint64) byte { return byte(n) })
	testArrayModel(t, func(n uint64) uint16 { return uint16(n) })
	testArrayModel(t, func(n uint64) [3]byte { return [3]byte{byte(n), byte(n >> 8), byte(n >> 16)} })
	testArrayModel(t, func(n uint64) float32 { return float32(uint32(n)) })
	testArrayModel(t, func(n uint64) int64 { return int64(n) })
	testArrayModel(t, func(n uint64) [3]uint32 { return [3]uint32{uint32(n), uint32(n >> 8), uint32(n >> 16)} })
	testArrayModel(t, func(n uint64) [11]byte { return [11]byte{byte(n), 10: byte(n >> 16)} })
	testArrayModel(t, func(n uint64) triple { return triple{int64(n), int64(n >> 1), int64(n >> 2)} })
}

func TestPanicInArrayWithRollsBack(t *testing.T) {
	onBoth(t, func(t *testing.T, m *Manager) {
		a := Must(NewSharedArrayOf(m, []int64{1, 2, 3}))
		text, _ := panics(t, func() {
			a.With(func(v []int64) {
				clear(v)
				if got := a.At(0); got != 1 {
					t.Errorf("a reader sees %d before With is done", got)
				}
				panic("boom")
			})
		})
		if text != "boom" {
			t.Errorf("panic %q", text)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			a.With(func(v []int64) {
				clear(v)
				runtime.Goexit()
			})
		}()
		<-done
		if got := slices.Collect(a.Values()); !slices.Equal(got, []int64{1, 2, 3}) {
			t.Errorf("elements %v", got)
		}
		if !a.TryLock() {
			t.Fatal("the lock is held")
		}
		a.Unlock()
	})
}

func TestArrayWritesInsideItsWithAreRefused(t *testing.T) {
	a := Must(NewSharedArray[int64](heapManager(t), 3))
	a.With(func(v []int64) {
		v[0] = 5
		if text, _ := panics(t, func() { a.Locked().Set(1, 1) }); !strings.Contains(text, "inside With") {
			t.Errorf("panic %q", text)
		}
	})
	if a.At(0) != 5 || a.At(1) != 0 {
		t.Errorf("elements %v", slices.Collect(a.Values()))
	}
}

type fill struct {
	Array SharedArray[quad]
	Done  AtomicInt // rounds known to be committed
	How   string
}

// fillForEver writes round numbers into all elements.
var fillForEver = proc.Define("fill an array for ever", func(_ context.Context, f fill) error {
	all := make([]quad, f.Array.Len())
	for n := uint64(f.Done.Load()) + 1; ; n++ {
		q := quad{n, n, n, n}
		switch f.How {
		case "With":
			f.Array.With(func(v []quad) {
				for i := range v {
					v[i] = q
				}
			})
		case "Set":
			for i := range all {
				f.Array.Set(i, q)
			}
		case "CopyIn":
			for i := range all {
				all[i] = q
			}
			f.Array.CopyIn(0, all)
		}
		f.Done.Store(int64(n))
	}
})

func TestArrayAfterKills(t *testing.T) {
	for _, how := range []string{"With", "Set", "CopyIn"} {
		t.Run("inside="+how, func(t *testing.T) {
			m := mappedManager(t)
			f := fill{Must(NewSharedArray[quad](m, 64)), Must(NewAtomicInt(m, 0)), how}
			for range 10 {
				before := f.Done.Load()
				killed(t, fillForEver, f, "it has written", func() bool { return f.Done.Load() > before+100 })
				done := uint64(f.Done.Load())
				seen := slices.Collect(f.Array.Values()) // without the lock
				f.Array.Set(0, f.Array.At(0))            // with it: repairs
				if err := f.Array.Check(); err != nil {
					t.Fatal(err)
				}
				if got := slices.Collect(f.Array.Values()); !slices.Equal(got, seen) {
					t.Errorf("repair has changed what was committed:\n%v\n%v", seen, got)
				}
				first := seen[0][0]
				if first < done || first > done+1 {
					t.Errorf("round %d is committed, %d was known to be", first, done)
				}
				for i, q := range seen {
					if q.torn() {
						t.Errorf("element %d is torn: %v", i, q)
					}
					switch {
					case q[0] == first:
					case how == "With":
						t.Errorf("element %d is of round %d, element 0 of %d: half of With", i, q[0], first)
					case q[0] != first-1 || i > 0 && seen[i-1][0] < q[0]:
						t.Errorf("element %d is of round %d, element 0 of %d", i, q[0], first)
					}
				}
				f.Done.Store(int64(first))
			}
		})
	}
}

// A stop is where a child stands still, to be killed.
type stop struct {
	Array  SharedArray[quad]
	Queue  SharedList[quad]
	Words  SharedList[string]
	Point  string
	Inside AtomicInt
}

func (s stop) here() {
	s.Inside.Store(1)
	select {}
}

var stopInArray = proc.Define("stop inside an array's operation", func(_ context.Context, s stop) error {
	a := s.Array
	switch s.Point {
	case "With, half done":
		a.With(func(v []quad) {
			v[0], v[1][2] = quad{}, 0
			s.here()
		})
	case "With, rollback half done":
		a.With(func(v []quad) {
			v[0], v[1] = quad{}, quad{}
			v[0] = quad{1, 1, 1, 1}
			s.here()
		})
	case "Set, element half written":
		a.Lock()
		a.replace(a.obj.words[arraySeq].Load(), Must(a.block(arrayScratch, 32)), 1, func() {
			a.View()[1][2] = 0
			s.here()
		})
	case "Set, before the sequence word":
		a.Lock()
		scratch := Must(a.block(arrayScratch, 32))
		writeElements(scratch, 0, []quad{{}})
		a.obj.words[arrayIndex].Store(1)
		s.here()
	}
	return errors.New("unknown point")
})

func TestArrayKilledAtPoints(t *testing.T) {
	for _, point := range []string{"With, half done", "With, rollback half done", "Set, element half written", "Set, before the sequence word"} {
		t.Run("point="+point, func(t *testing.T) {
			m := mappedManager(t)
			want := []quad{{1, 1, 1, 1}, {2, 2, 2, 2}, {3, 3, 3, 3}}
			s := stop{Array: Must(NewSharedArrayOf(m, want)), Point: point, Inside: Must(NewAtomicInt(m, 0))}
			killed(t, stopInArray, s, "it stands still", func() bool { return s.Inside.Load() == 1 })
			if got := slices.Collect(s.Array.Values()); !slices.Equal(got, want) {
				t.Errorf("readers see %v", got)
			}
			if got := s.Array.At(1); got != want[1] {
				t.Errorf("element 1 is %v", got)
			}
			s.Array.With(func(v []quad) { // takes the lock over
				if !slices.Equal(v, want) {
					t.Errorf("repaired to %v", v)
				}
				v[2] = quad{}
			})
			want[2] = quad{}
			if got := slices.Collect(s.Array.Values()); !slices.Equal(got, want) {
				t.Errorf("elements %v, want %v", got, want)
			}
			if err := s.Array.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

var fillSome = proc.Define("fill an array many times", func(_ context.Context, f fill) error {
	for n := uint64(1); f.Done.Load() == 0; n++ {
		q := quad{n, n, n, n}
		switch n % 4 {
		case 0:
			f.Array.CopyIn(0, []quad{q, q})
		case 1:
			f.Array.Set(int(n/4)%f.Array.Len(), q)
		default:
			f.Array.With(func(v []quad) {
				for i := range v {
					v[i] = q
				}
			})
		}
	}
	return nil
})

// A reader that copied across a whole change finds the sequence word changed: an old value coming back would
// let a torn copy pass.
func TestEveryChangeOfArrayMovesItsSequence(t *testing.T) {
	a := Must(NewSharedArray[quad](heapManager(t), 4))
	seen := map[uint64]string{a.obj.words[arraySeq].Load(): "making"}
	for _, change := range []struct {
		name string
		fn   func()
	}{
		{"Set", func() { a.Set(1, quad{}) }},
		{"With", func() { a.With(func([]quad) {}) }},
		{"With again", func() { a.With(func([]quad) {}) }},
		{"Update that fails", func() { a.Update(t.Context(), func([]quad) error { return fs.ErrInvalid }) }},
		{"CopyIn", func() { a.CopyIn(0, []quad{{}, {}}) }},
	} {
		change.fn()
		s := a.obj.words[arraySeq].Load()
		if before, ok := seen[s]; ok {
			t.Errorf("sequence after %s is that after %s", change.name, before)
		}
		seen[s] = change.name
	}
}

// Small elements share a word with neighbours that somebody may be writing through a view.
func TestSetLeavesNeighboursAlone(t *testing.T) {
	a := Must(NewSharedArray[byte](mappedManager(t), 8))
	view := a.View()
	var done atomic.Bool
	var sets atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for !done.Load() {
			a.Set(3, byte(sets.Add(1)))
		}
	})
	view[5] = 1
	for n := 0; sets.Load() < 300_000; n++ {
		if got := view[2] + view[5]; got != byte(n)+1 {
			t.Errorf("neighbour is %d after %d", got, n)
			break
		}
		view[2]++
	}
	done.Store(true)
	wg.Wait()
}

// readArray looks at all elements until stop.
func readArray(t *testing.T, a SharedArray[quad], rounds int) {
	dst := make([]quad, a.Len())
	for n := range rounds {
		if q := a.At(n % a.Len()); q.torn() {
			t.Errorf("At: torn %v", q)
			return
		}
		a.CopyOut(dst, 0)
		for _, q := range dst {
			if q.torn() {
				t.Errorf("CopyOut: torn %v", q)
				return
			}
		}
	}
}

func TestReadersOfArrayNeverSeeTornElements(t *testing.T) {
	rounds := 20_000
	if raceEnabled {
		rounds = 2000
	}
	t.Run("writer=process", func(t *testing.T) {
		m := mappedManager(t)
		f := fill{Array: Must(NewSharedArray[quad](m, 16)), Done: Must(NewAtomicInt(m, 0))}
		p, err := fillSome.Start(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Kill()
		until(t, "it writes", func() bool { return f.Array.At(0)[0] > 0 })
		readArray(t, f.Array, rounds)
		f.Done.Store(1)
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
	})
	t.Run("writers=goroutines", func(t *testing.T) {
		m := heapManager(t)
		a := Must(NewSharedArray[quad](m, 16))
		var done atomic.Bool
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for n := uint64(1); !done.Load(); n++ {
					q := quad{n, n, n, n}
					a.Set(int(n)%16, q)
					a.With(func(v []quad) { v[0], v[1] = q, q })
				}
			})
		}
		var readers sync.WaitGroup
		for range 2 {
			readers.Go(func() { readArray(t, a, rounds/4) })
		}
		readers.Wait()
		done.Store(true)
		wg.Wait()
	})
}

// Half of a With is never seen: both ends of a transfer move together.
func TestReadersOfArraySeeWholeWith(t *testing.T) {
	onBoth(t, func(t *testing.T, m *Manager) {
		a := Must(NewSharedArray[int64](m, 100))
		var done atomic.Bool
		var wg sync.WaitGroup
		wg.Go(func() {
			for !done.Load() {
				a.With(func(v []int64) {
					v[3]--
					runtime.Gosched()
					v[90]++
				})
			}
		})
		dst := make([]int64, a.Len())
		for range 3000 {
			a.CopyOut(dst, 0)
			if dst[3]+dst[90] != 0 {
				t.Errorf("half of With is seen: %d and %d", dst[3], dst[90])
				break
			}
		}
		done.Store(true)
		wg.Wait()
	})
}

func TestArrayAllocatesNothing(t *testing.T) {
	m := mappedManager(t)
	a, q := Must(NewSharedArray[int64](m, 1000)), Must(NewSharedArray[quad](m, 10))
	a.With(func([]int64) {})
	var sum int64
	for name, fn := range map[string]func(){
		"At":          func() { sum += a.At(5) },
		"Set":         func() { a.Set(5, 6) },
		"At, large":   func() { sum += int64(q.At(5)[0]) },
		"Set, large":  func() { q.Set(5, quad{1, 1, 1, 1}) },
		"With":        func() { a.With(func(v []int64) { v[0]++ }) },
		"Locked view": func() { a.Lock(); a.Locked().Set(1, a.Locked().At(2)); a.Unlock() },
	} {
		if n := testing.AllocsPerRun(100, fn); n != 0 && !raceEnabled {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestArrayOfNoUse(t *testing.T) {
	m := mappedManager(t)
	a, b := Must(NewSharedArray[int64](m, 3)), Must(NewSharedArray[int64](m, 3))
	if err := b.Destroy(); err != nil {
		t.Fatal(err)
	}
	reuse := Must(NewSharedArray[int64](m, 3)) // takes b's memory
	for name, fn := range map[string]func(a SharedArray[int64]){
		"At":     func(a SharedArray[int64]) { a.At(0) },
		"Set":    func(a SharedArray[int64]) { a.Set(0, 1) },
		"Len":    func(a SharedArray[int64]) { a.Len() },
		"With":   func(a SharedArray[int64]) { a.With(func([]int64) {}) },
		"CopyIn": func(a SharedArray[int64]) { a.CopyIn(0, []int64{1}) },
		"View":   func(a SharedArray[int64]) { a.View() },
		"Values": func(a SharedArray[int64]) { _ = slices.Collect(a.Values()) },
		"Locked": func(a SharedArray[int64]) { a.Locked() },
	} {
		if _, err := panics(t, func() { fn(b) }); !errors.Is(err, shm.ErrStale) {
			t.Errorf("%s of a destroyed array: %v", name, err)
		}
	}
	if err := b.Update(t.Context(), func([]int64) error { return nil }); !errors.Is(err, shm.ErrStale) {
		t.Errorf("Update of a destroyed array: %v", err)
	}
	if reuse.At(0) != 0 {
		t.Error("a stale handle wrote into another array")
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := panics(t, func() { a.At(0) }); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("At after Close: %v", err)
	}
	if _, err := panics(t, func() { a.Set(0, 1) }); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("Set after Close: %v", err)
	}
	if err := a.Update(t.Context(), func([]int64) error { return nil }); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("Update after Close: %v", err)
	}
	if _, err := a.Slice(0, 1, 1); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("Slice after Close: %v", err)
	}
}

func TestElementsThatAreRefused(t *testing.T) {
	m := heapManager(t)
	type pointing = struct {
		A [2]struct{ P *int }
	}
	type wrongSync = struct{ Mu sync.Mutex }
	type locked = struct{ Mu shmsync.Mutex }
	type counting = struct{ N atomic.Int64 }
	type texts = struct{ Name string }
	for name, c := range map[string]struct {
		make func() error
		want error
		says string
	}{
		"array of pointers":        {func() error { _, err := NewSharedArray[pointing](m, 1); return err }, shm.ErrNotPlain, "A[].P"},
		"array of standard locks":  {func() error { _, err := NewSharedArray[wrongSync](m, 1); return err }, shm.ErrStandardSync, "shmsync"},
		"array of locks":           {func() error { _, err := NewSharedArray[locked](m, 1); return err }, shm.ErrNotPlain, "Ref"},
		"array of atomics":         {func() error { _, err := NewSharedArray[counting](m, 1); return err }, shm.ErrNotPlain, "Ref"},
		"array of strings":         {func() error { _, err := NewSharedArray[string](m, 1); return err }, shm.ErrNotPlain, "string"},
		"list of pointers":         {func() error { _, err := NewSharedList[pointing](m); return err }, shm.ErrNotPlain, "A[].P"},
		"list of standard locks":   {func() error { _, err := NewSharedList[wrongSync](m); return err }, shm.ErrStandardSync, "shmsync"},
		"list of locks":            {func() error { _, err := NewSharedList[locked](m); return err }, shm.ErrNotPlain, "Ref"},
		"list of texts in structs": {func() error { _, err := NewSharedList[texts](m); return err }, shm.ErrNotPlain, "Name"},
		"list of lists":            {func() error { _, err := NewSharedList[[]int](m); return err }, shm.ErrNotPlain, "[]int"},
	} {
		err := c.make()
		var typed *shm.TypeError
		if !errors.Is(err, c.want) || !errors.As(err, &typed) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %v that says %q", name, err, c.want, c.says)
		}
	}
}

func TestArrayFullRegion(t *testing.T) {
	r, err := shm.Anonymous(shm.Size(1<<20), shm.Limit(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	m := managed(t, r)
	a := Must(NewSharedArray[byte](m, 600<<10)) // no room for a second one
	a.Set(1, 7)
	if _, err := panics(t, func() { a.With(func([]byte) { t.Error("With ran") }) }); !errors.Is(err, shm.ErrNoSpace) {
		t.Errorf("With without room for the snapshot: %v", err)
	}
	if err := a.Update(t.Context(), func([]byte) error { t.Error("Update ran"); return nil }); !errors.Is(err, shm.ErrNoSpace) {
		t.Errorf("Update without room for the snapshot: %v", err)
	}
	if a.At(1) != 7 {
		t.Error("the array has changed")
	}
	a.Set(1, 8) // the lock is free
}

func TestArrayByName(t *testing.T) {
	m := mappedManager(t)
	a := Must(NewSharedArrayOf(m, []int64{1, 2, 3}, Name("numbers")))
	if _, err := NewSharedArray[int64](m, 3, Name("numbers")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second one: %v", err)
	}
	b, err := NewSharedArray[int64](m, 100, Name("numbers"), OrOpen())
	if err != nil || b.Len() != 3 {
		t.Fatalf("opened: %v, length %d", err, b.Len())
	}
	b.Set(0, 9)
	if a.At(0) != 9 {
		t.Error("not the same array")
	}
	if _, err := NewSharedArray[uint64](m, 3, Name("numbers"), OrOpen()); !errors.Is(err, shm.ErrTypeMismatch) {
		t.Errorf("as another type: %v", err)
	}
	if _, err := NewSharedList[int64](m, Name("numbers"), OrOpen()); !errors.Is(err, shm.ErrTypeMismatch) {
		t.Errorf("as a list: %v", err)
	}
}
