package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// newMap makes a map that is checked when the test ends.
func newMap[K comparable, V any](tb testing.TB, m *Manager, opts ...Option) SharedMap[K, V] {
	tb.Helper()
	h, err := NewSharedMap[K, V](m, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := h.Check(); err != nil && !errors.Is(err, shm.ErrClosed) && !errors.Is(err, shm.ErrStale) {
			tb.Error(err)
		}
	})
	return h
}

// blocks returns how many blocks of memory are in use.
func blocks(tb testing.TB, m *Manager) uint64 {
	tb.Helper()
	s, err := m.space()
	if err != nil {
		tb.Fatal(err)
	}
	u, err := s.heap.Usage()
	if err != nil {
		tb.Fatal(err)
	}
	return u.LiveBlocks
}

type pair32 struct {
	A, B int32
	C    [3]int64
}

func wide32(i int) [4]int64 { return [4]int64{int64(i), int64(i) * 3, ^int64(i), int64(i) << 20} }

// someText returns strings of which some are short, some just not, and some long; each i has its own.
func someText(i int) string { return strings.Repeat("x", i%37) + fmt.Sprint(i) }

func TestShortTextsAreTheirBytesAndTheirLength(t *testing.T) {
	all := []byte("\xff0123456789abc\xee")
	for n := range textInline + 1 {
		b := all[len(all)-n:]
		var want [2]uint64
		for i, c := range b {
			want[i/8] |= uint64(c) << (i % 8 * 8)
		}
		if n <= 8 && shortWord(b) != want[0] {
			t.Errorf("%q as a word: %#x, want %#x", b, shortWord(b), want[0])
		}
		want[1] |= uint64(n) << 56
		if got := packShort(b); got != want {
			t.Errorf("%q: %#x, want %#x", b, got, want)
		}
	}
}

func TestMapIsLikeAGoMap(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		t.Run("int64 int64", func(t *testing.T) {
			likeGo(t, m, func(i int) int64 { return int64(i) }, func(i int) int64 { return -int64(i) })
		})
		t.Run("uint8 bool", func(t *testing.T) {
			likeGo(t, m, func(i int) uint8 { return uint8(i) }, func(i int) bool { return i&1 == 0 })
		})
		t.Run("int32 wide", func(t *testing.T) { likeGo(t, m, func(i int) int32 { return int32(i) }, wide32) })
		t.Run("string int64", func(t *testing.T) { likeGo(t, m, someText, func(i int) int64 { return int64(i) }) })
		t.Run("string string", func(t *testing.T) { likeGo(t, m, someText, someText) })
		t.Run("[3]byte string", func(t *testing.T) {
			likeGo(t, m, func(i int) [3]byte { return [3]byte{byte(i), byte(i >> 8), 7} }, someText)
		})
		t.Run("struct [12]byte", func(t *testing.T) {
			likeGo(t, m, func(i int) pair32 { return pair32{A: int32(i), C: [3]int64{2: int64(i)}} }, func(i int) [12]byte { return [12]byte{11: byte(i)} })
		})
		t.Run("[13]byte struct{}", func(t *testing.T) {
			likeGo(t, m, func(i int) [13]byte { return [13]byte{0: byte(i), 12: byte(i >> 8)} }, func(i int) struct{} { return struct{}{} })
		})
		t.Run("large values", func(t *testing.T) {
			likeGo(t, m, func(i int) int64 { return int64(i % 100) }, func(i int) [3000]byte { return [3000]byte{7: byte(i), 2999: byte(i)} })
		})
	})
}

// likeGo does the same things at random to a map and to Go's own.
func likeGo[K, V comparable](t *testing.T, m *Manager, key func(i int) K, value func(i int) V) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	before := blocks(t, m)
	h := newMap[K, V](t, m)
	model := map[K]V{}
	span, steps := 20, 6000
	if sizeOf[V]() > 1000 { // what the race detector copies word by word
		steps = 900
	}
	for step := range steps {
		if step%1500 == 1499 {
			span *= 4
		}
		k, v := key(rng.IntN(span)), value(rng.IntN(1000))
		want, has := model[k]
		switch op := rng.IntN(100); {
		case op < 40:
			if err := h.Put(k, v); err != nil {
				t.Fatal(err)
			}
			model[k] = v
		case op < 60:
			if h.Delete(k) != has {
				t.Fatalf("step %d: Delete(%v) is not %v", step, k, has)
			}
			delete(model, k)
		case op < 75:
			if got, ok := h.Get(k); got != want || ok != has || h.Contains(k) != has {
				t.Fatalf("step %d: Get(%v) = %v, %v, want %v, %v", step, k, got, ok, want, has)
			}
		case op < 80:
			got, loaded, err := h.GetOrPut(k, v)
			if !has {
				want, model[k] = v, v
			}
			if got != want || loaded != has || err != nil {
				t.Fatalf("step %d: GetOrPut(%v) = %v, %v, %v, want %v, %v", step, k, got, loaded, err, want, has)
			}
		case op < 85:
			old := value(rng.IntN(3))
			swapped, err := CompareAndSwap(h, k, old, v)
			if err != nil || swapped != (has && want == old) {
				t.Fatalf("step %d: CompareAndSwap(%v, %v) = %v, %v; it was %v, %v", step, k, old, swapped, err, want, has)
			}
			if swapped {
				model[k] = v
			}
		case op < 92:
			fail := errors.New("not this time")
			if rng.IntN(2) == 0 {
				fail = nil
				model[k] = v
			}
			err := h.Update(t.Context(), k, func(e *V, ok bool) error {
				if *e != want || ok != has {
					t.Errorf("step %d: Update(%v) of %v, %v, want %v, %v", step, k, *e, ok, want, has)
				}
				*e = v
				return fail
			})
			if err != fail {
				t.Fatalf("step %d: Update: %v", step, err)
			}
		case op < 96:
			k, v, ok := h.PopItem()
			if want, has := model[k]; ok != (len(model) > 0) || ok && (!has || v != want) {
				t.Fatalf("step %d: PopItem = %v, %v, %v, want %v, %v", step, k, v, ok, want, has)
			}
			delete(model, k)
		case op < 97 && rng.IntN(8) == 0:
			h.Clear()
			clear(model)
		}
		if h.Len() != len(model) {
			t.Fatalf("step %d: %d keys, want %d", step, h.Len(), len(model))
		}
		if step%200 == 0 {
			if err := h.Check(); err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
			if diff := cmp.Diff(model, maps.Collect(h.All())); diff != "" {
				t.Fatalf("step %d (-want +got):\n%s", step, diff)
			}
		}
	}
	if err := h.Check(); err != nil {
		t.Fatal(err)
	}
	if err := h.Destroy(); err != nil {
		t.Fatal(err)
	}
	if after := blocks(t, m); after > before+4 { // the layout, and the lane's
		t.Errorf("%d blocks before, %d after the map was destroyed", before, after)
	}
}

// A hundred thousand keys put in and taken out again take no more memory each time; this is every kind of segment, and a directory of some size.
func TestMapGrowsAndItsMemoryIsUsedAgain(t *testing.T) {
	m := newManager(t)
	h := newMap[int64, int64](t, m)
	n := 100_000
	if testing.Short() || raceEnabled {
		n = 20_000
	}
	var peak uint64
	for round := range 3 {
		for i := range int64(n) {
			if err := h.Put(i, -i); err != nil {
				t.Fatal(err)
			}
		}
		if h.Len() != n {
			t.Fatalf("%d keys, want %d", h.Len(), n)
		}
		if err := h.Check(); err != nil {
			t.Fatal(err)
		}
		if now := blocks(t, m); round == 0 {
			peak = now
		} else if now > peak {
			t.Errorf("round %d takes %d blocks, the first took %d", round, now, peak)
		}
		switch round {
		case 0:
			for i := range int64(n) {
				if v, ok := h.Get(i); v != -i || !ok || !h.Delete(i) {
					t.Fatalf("key %d: %v, %v", i, v, ok)
				}
			}
		case 1:
			seen := map[int64]bool{}
			for range n {
				k, v, ok := h.PopItem()
				if !ok || v != -k || seen[k] {
					t.Fatalf("PopItem: %d, %d, %v", k, v, ok)
				}
				seen[k] = true
			}
			if _, _, ok := h.PopItem(); ok {
				t.Error("an item of an empty map")
			}
		}
		if round < 2 && h.Len() != 0 {
			t.Errorf("%d keys are left", h.Len())
		}
	}
	h.Clear()
	if h.Len() != 0 || len(slices.Collect(h.Keys())) != 0 {
		t.Error("keys in a map that was cleared")
	}
}

func TestMapRefusesTypesThatCannotBe(t *testing.T) {
	type padded struct {
		A int8
		B int64
	}
	type tail struct {
		A int64
		B int8
	}
	type deep struct{ A [2]struct{ F float32 } }
	type blank struct {
		A int32
		_ int32
	}
	m := newManager(t)
	refused := func(path string, err error) {
		t.Helper()
		var wrong *shm.TypeError
		if !errors.As(err, &wrong) || !errors.Is(err, shm.ErrNotPlain) || !strings.HasSuffix(wrong.Path, path) {
			t.Errorf("%v, want a TypeError at %s", err, path)
		}
	}
	_, err := NewSharedMap[float64, int](m)
	refused("float64", err)
	_, err = NewSharedMap[complex64, int](m)
	refused("complex64", err)
	_, err = NewSharedMap[padded, int](m)
	refused("padded.B", err)
	_, err = NewSharedMap[tail, int](m)
	refused("tail", err)
	_, err = NewSharedMap[deep, int](m)
	refused("deep.A[].F", err)
	_, err = NewSharedMap[blank, int](m)
	refused("blank._", err)
	_, err = NewSharedMap[*int, int](m)
	refused("*int", err)
	_, err = NewSharedMap[any, int](m)
	refused("interface {}", err)
	_, err = NewSharedMap[int, map[int]int](m)
	refused("map[int]int", err)
	_, err = NewSharedMap[struct{ S string }, int](m)
	refused(".S", err)
	if _, err := NewSharedMap[int64, float64](m); err != nil {
		t.Errorf("floats as values: %v", err)
	}
	if _, err := NewSharedMap[[1 << 12]int64, int](m); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("keys of 32 KiB: %v", err)
	}
	newMap[int64, int64](t, m, Name("m"))
	if _, err := Find[SharedMap[int64, uint64]](m, "m"); !errors.Is(err, shm.ErrTypeMismatch) {
		t.Errorf("opened with another type: %v", err)
	}
}

func TestMapWithoutRoomIsUnharmed(t *testing.T) {
	m := newManager(t, shm.Size(256<<10), shm.Limit(256<<10))
	h := newMap[int64, [4]int64](t, m)
	n := 0
	for ; ; n++ {
		err := h.Put(int64(n), wide32(n))
		if errors.Is(err, shm.ErrNoSpace) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n < 1000 || h.Len() != n {
		t.Fatalf("full at %d keys, of which there are %d", n, h.Len())
	}
	if err := h.Check(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if v, ok := h.Get(int64(i)); !ok || v != wide32(i) {
			t.Fatalf("key %d is %v, %v", i, v, ok)
		}
	}
	// A value of several words is replaced by another slot, which there may be no room for either.
	err := h.Put(7, wide32(8))
	if v, ok := h.Get(7); !ok || err == nil && v != wide32(8) || err != nil && (v != wide32(7) || !errors.Is(err, shm.ErrNoSpace)) {
		t.Errorf("replaced: %v, %v (%v)", v, ok, err)
	}
	h.Clear()
	for i := range n / 2 { // the pieces that the memory is in now are others
		if err := h.Put(int64(i), wide32(i)); err != nil {
			t.Fatalf("key %d, of %d that fit before: %v", i, n, err)
		}
	}
}

func TestMapFullOfTextIsUnharmed(t *testing.T) {
	m := newManager(t, shm.Size(256<<10), shm.Limit(256<<10))
	h := newMap[string, string](t, m)
	long := strings.Repeat("x", 1000)
	n := 0
	for h.Put(fmt.Sprint("a key of more than fifteen bytes ", n), long) == nil {
		n++
	}
	if h.Len() != n || n < 50 {
		t.Fatalf("full at %d keys, of which there are %d", n, h.Len())
	}
	for range h.Keys() {
		n--
	}
	if n != 0 {
		t.Errorf("%d keys too many", -n)
	}
	if err := h.Check(); err != nil {
		t.Fatal(err)
	}
	if !h.Delete("a key of more than fifteen bytes 3") {
		t.Fatal("a key is missing")
	}
	if err := h.Put("a key of more than fifteen bytes 3", "smaller"); err != nil {
		t.Error(err)
	}
}

func TestMapIteratorVisitsWhatStaysOnce(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		h := newMap[int64, int64](t, m)
		const stay = 3000
		for i := range int64(stay) {
			h.Put(i, i)
		}
		seen := map[int64]int{}
		const first, last = int64(1 << 40), int64(1<<40 + 20_000)
		added := first
		for k, v := range h.All() {
			if v != k {
				t.Fatalf("key %d has %d", k, v)
			}
			if seen[k]++; seen[k] > 1 {
				t.Fatalf("key %d is visited again", k)
			}
			// The segments ahead, and those behind, are split meanwhile. A loop that adds more than
			// it visits goes on for long, since what it adds ahead of itself it visits too.
			for i := 0; i < 10 && added < last; i++ {
				h.Put(added, added)
				if added%2 == 1 {
					h.Delete(added - 1)
				}
				added++
			}
		}
		if added != last {
			t.Errorf("the loop saw %d keys, and added %d", len(seen), added-first)
		}
		for i := range int64(stay) {
			if seen[i] != 1 {
				t.Errorf("key %d was visited %d times", i, seen[i])
			}
		}
		for k := range h.All() {
			h.Clear()
			h.Put(k, 0) // the map is one segment again
			break
		}
		for range h.All() {
			h.Clear()
		}
	})
}

func TestMapPanicInACallbackChangesNothing(t *testing.T) {
	h := newMap[int64, [4]int64](t, newManager(t))
	h.Put(1, wide32(1))
	for _, fn := range []func(){
		func() {
			h.Update(context.Background(), 1, func(v *[4]int64, ok bool) error { *v = wide32(2); panic("x") })
		},
		func() {
			h.Update(context.Background(), 2, func(v *[4]int64, ok bool) error { *v = wide32(2); panic("x") })
		},
		func() { h.With(func(v MapView[int64, [4]int64]) { panic("x") }) },
	} {
		func() {
			defer func() { recover() }()
			fn()
			t.Error("no panic")
		}()
	}
	if v, ok := h.Get(1); v != wide32(1) || !ok || h.Contains(2) {
		t.Errorf("key 1 is %v, %v, key 2 is there: %v", v, ok, h.Contains(2))
	}
	if !h.TryLock() {
		t.Fatal("the lock is held")
	}
	v := h.Locked()
	v.Put(3, wide32(3))
	h.Unlock()
	if v, _ := h.Get(3); v != wide32(3) {
		t.Errorf("put under the lock: %v", v)
	}
}

func TestMapHandlesOfNoUseSaySo(t *testing.T) {
	m := newManager(t)
	h := newMap[int64, int64](t, m)
	calls := map[string]func() error{
		"Get":      func() error { h.Get(1); return nil },
		"Put":      func() error { return h.Put(1, 1) },
		"Delete":   func() error { h.Delete(1); return nil },
		"GetOrPut": func() error { _, _, err := h.GetOrPut(1, 1); return err },
		"Update":   func() error { return h.Update(t.Context(), 1, func(*int64, bool) error { return nil }) },
		"PopItem":  func() error { h.PopItem(); return nil },
		"Keys": func() error {
			for range h.Keys() {
				break
			}
			return nil
		},
		"Clear": func() error { h.Clear(); return nil },
		"Len":   func() error { h.Len(); return nil },
		"Check": func() error { return h.Check() },
		"CompareAndSwap": func() error {
			_, err := CompareAndSwap(h, 1, 1, 1)
			return err
		},
	}
	for i := range int64(100) {
		h.Put(i, i)
	}
	h.Destroy()
	wantErrors(t, shm.ErrStale, calls)
	m.Close()
	wantErrors(t, shm.ErrClosed, calls)
}

func TestMapOfPlainValuesAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("not so in race builds")
	}
	m := newManager(t)
	h, w := newMap[int64, int64](t, m), newMap[pair32, [4]int64](t, m)
	text := newMap[string, int64](t, m)
	for i := range 1000 {
		h.Put(int64(i), 1)
		w.Put(pair32{A: int32(i)}, wide32(i))
		text.Put(someText(i), 1)
	}
	i := 0
	for name, fn := range map[string]func(){
		"Get":       func() { h.Get(7) },
		"Get wide":  func() { w.Get(pair32{A: 7}) },
		"Get text":  func() { text.Get("some key") },
		"Put":       func() { h.Put(7, 8) },
		"Put wide":  func() { w.Put(pair32{A: 7}, wide32(7)) },
		"Put text":  func() { text.Put("some key", 5) },
		"Put, gone": func() { i++; h.Put(int64(1000+i%3), 1); h.Delete(int64(1000 + i%3)) },
	} {
		if n := testing.AllocsPerRun(200, fn); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

// Readers beside writers that delete, put again, replace and split see every value whole, and a key that stays always.
func TestMapReadersSeeWholeValues(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		h := newMap[int64, [4]int64](t, m)
		texts := newMap[string, string](t, m)
		long := func(i int) string { return strings.Repeat(string(rune('a'+i%26)), 20+i%9) }
		h.Put(-1, wide32(0))
		texts.Put("a key that always stays, and is long", long(0))
		var stop atomic.Bool
		var wg sync.WaitGroup
		for r := range 2 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(r), 7))
				for !stop.Load() {
					k := int64(rng.IntN(30))
					if v, ok := h.Get(k); ok && v != wide32(int(v[0])) {
						t.Errorf("key %d: torn %v", k, v)
						return
					}
					if v, ok := h.Get(-1); !ok || v != wide32(int(v[0])) {
						t.Errorf("the key that stays: %v, %v", v, ok)
						return
					}
					if s, ok := texts.Get("a key that always stays, and is long"); !ok || s != strings.Repeat(s[:1], len(s)) {
						t.Errorf("the text that stays: %q, %v", s, ok)
						return
					}
					if s, ok := texts.Get(long(int(k))); ok && s != strings.Repeat(s[:1], len(s)) {
						t.Errorf("torn text %q", s)
						return
					}
				}
			})
		}
		rng := rand.New(rand.NewPCG(9, 9))
		steps := 60_000
		if testing.Short() || raceEnabled {
			steps = 8_000
		}
		for i := range steps {
			k := int64(rng.IntN(30))
			h.Put(k, wide32(i))
			h.Put(-1, wide32(i))
			h.Delete(int64(rng.IntN(30)))
			if i%4 == 0 {
				texts.Put(long(int(k)), long(i))
				texts.Put("a key that always stays, and is long", long(i))
				texts.Delete(long(rng.IntN(30)))
			}
			if i%50 == 0 { // more segments, that are freed again
				for j := range int64(40) {
					h.Put(1000+int64(i)+j, wide32(i))
				}
			}
			if i%1000 == 999 {
				h.With(func(v MapView[int64, [4]int64]) {
					for k := range v.Keys() {
						if k >= 1000 {
							v.Delete(k)
						}
					}
				})
			}
		}
		stop.Store(true)
		wg.Wait()
	})
}

type mapJob struct {
	Counts SharedMap[string, int64]
	Own    SharedMap[int64, [4]int64]
	Who    int
}

var countInMap = proc.Define("count in a map", func(ctx context.Context, j mapJob) error {
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for g := range 2 {
		wg.Go(func() {
			for i := range 200 {
				err := j.Counts.Update(ctx, fmt.Sprint("word ", i%10), func(n *int64, ok bool) error { *n++; return nil })
				k := int64(j.Who)<<32 | int64(g)<<16 | int64(i)
				errs[g] = errors.Join(errs[g], err, j.Own.Put(k, wide32(i)))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
})

func TestMapIsSharedByProcesses(t *testing.T) {
	m := newManager(t)
	j := mapJob{Counts: newMap[string, int64](t, m), Own: newMap[int64, [4]int64](t, m)}
	jobs := []mapJob{j, j, j}
	for i := range jobs {
		jobs[i].Who = i
	}
	if err := countInMap.Run(deadline(t), jobs...); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if n, _ := j.Counts.Get(fmt.Sprint("word ", i)); n != 3*2*20 {
			t.Errorf("word %d was counted %d times", i, n)
		}
	}
	if j.Own.Len() != 3*2*200 {
		t.Errorf("%d keys", j.Own.Len())
	}
}
