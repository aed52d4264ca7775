package containers

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/txn"
)

var exhaustive = flag.Bool("exhaustive", false, "cut off at every store of a repair, not at one for each store of a call")

// cutTorn runs fn up to its k'th store, and reports whether it came so far. If that is of many bytes in no order, all of them are
// something else afterwards: a kill leaves any part of them written, so nobody may count on what they were. The operation under way is then undone, or
// finished, as survivors do it.
func cutTorn(k int, fn func()) (cut bool) {
	n := 0
	txn.OnStore = func(p unsafe.Pointer, size uintptr) {
		if n++; n <= k {
			return
		}
		txn.OnStore = nil
		if size > 64 { // else it is a word, or a line of the heap's
			for i := range int(size / 8) {
				word(p, i).Store(0xdeadbeefdeadbeef)
			}
		}
		panic(errCut)
	}
	defer func() {
		txn.OnStore = nil
		if v := recover(); v == errCut {
			cut = true
		} else if v != nil {
			panic(v)
		}
	}()
	fn()
	return false
}

// takeOver takes b's lock as its dead owner left it, if it is held, and frees it again.
func takeOver(b base) {
	b.mu.TryLock()
	b.mu.Unlock()
}

// An edit is a change of a list, by which value(i) makes elements.
type edit[T any] struct {
	name string
	do   func(l brokenList[T], value func(i int) T) error
}

func editsOf[T cmp.Ordered | quad](compare func(a, b T) int) []edit[T] {
	some := func(value func(int) T, n int) []T {
		vs := make([]T, n)
		for i := range vs {
			vs[i] = value(1000 + i)
		}
		return vs
	}
	return []edit[T]{
		{"append", func(l brokenList[T], v func(int) T) error { return l.Append(v(1000)) }},
		{"append many", func(l brokenList[T], v func(int) T) error { return l.AppendN(some(v, 40)...) }},
		{"insert behind the middle", func(l brokenList[T], v func(int) T) error { return l.Insert(l.Len()/2+2, v(1000)) }},
		{"insert before the middle", func(l brokenList[T], v func(int) T) error { return l.Insert(3, some(v, 3)...) }},
		{"insert many", func(l brokenList[T], v func(int) T) error { return l.Insert(l.Len()-4, some(v, 40)...) }},
		{"insert in front", func(l brokenList[T], v func(int) T) error { return l.Insert(0, some(v, 2)...) }},
		{"take out behind the middle", func(l brokenList[T], v func(int) T) error { l.PopAt(l.Len()/2 + 1); return nil }},
		{"take out before the middle", func(l brokenList[T], v func(int) T) error { l.PopAt(l.Len()/2 - 2); return nil }},
		{"remove", func(l brokenList[T], v func(int) T) error {
			n := 0
			l.RemoveFunc(func(T) bool { n++; return n == 5 })
			return nil
		}},
		{"truncate", func(l brokenList[T], v func(int) T) error { l.Truncate(l.Len() - 6); return nil }},
		{"reverse", func(l brokenList[T], v func(int) T) error { return l.Reverse() }},
		{"transaction that appends", func(l brokenList[T], v func(int) T) error {
			return l.m.Update(context.Background(), func(tx *Tx) error {
				for _, e := range some(v, 40) {
					l.In(tx).Append(e)
				}
				return nil
			})
		}},
		{"transaction that pops", func(l brokenList[T], v func(int) T) error {
			return l.m.Update(context.Background(), func(tx *Tx) error { l.In(tx).Pop(); l.In(tx).Pop(); return nil })
		}},
		{"transaction that pops first", func(l brokenList[T], v func(int) T) error {
			return l.m.Update(context.Background(), func(tx *Tx) error { l.In(tx).PopFirst(); l.In(tx).PopFirst(); return nil })
		}},
		{"transaction of everything", func(l brokenList[T], v func(int) T) error {
			return l.m.Update(context.Background(), func(tx *Tx) error {
				w := l.In(tx)
				w.PopFirst()
				w.Pop()
				w.Pop()
				w.Append(v(1000)) // in the place of another one
				w.Set(3, v(1001))
				w.Set(-5, v(1002))
				for _, e := range some(v, 5) {
					w.Append(e)
				}
				return nil
			})
		}},
		{"sort", func(l brokenList[T], v func(int) T) error { return l.SortFunc(compare) }},
	}
}

// A brokenList is a list in a region of its own: an operation that is cut off may take its lane with it, as a kill does.
type brokenList[T any] struct {
	SharedList[T]
	m *Manager
}

// cutEverywhere cuts do off before each of its stores, and at some store of the repair that follows, or at each of them: the list is as before or as
// after, at once for those who read without the lock, it stays so, and no memory is lost.
func cutEverywhere[T comparable](t *testing.T, furnish func() brokenList[T], do func(l brokenList[T]) error) {
	t.Helper()
	r := random(t)
	look := func(l brokenList[T]) []T { return append(slices.Collect(l.Values()), l.Slice(0, l.Len())...) }
	end := func(l brokenList[T]) {
		if err := l.Check(); err != nil {
			t.Fatal(err)
		}
		nothingLost(t, l.m)
		if err := l.m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l := furnish()
	before := look(l)
	if err := do(l); err != nil {
		t.Fatal(err)
	}
	after := look(l)
	end(l)
	if slices.Equal(before, after) {
		t.Fatal("it does nothing: the test shows nothing")
	}
	happened, needed, repairs, most, stores := false, 0, 0, 0, 0
	for k, cut := 0, true; cut; k++ {
		j := 0
		if !*exhaustive {
			j = r.IntN(most + 2)
			if testing.Short() {
				k += r.IntN(1 + min(k, 10))
			}
		}
		for again := true; again && cut; j++ {
			l := furnish()
			cut = cutTorn(k, func() { do(l) })
			was := look(l) // before anybody repairs
			if l.obj.words[listSeq].Load()&listMode != listStable {
				needed++
			}
			again = cut && cutTorn(j, func() {
				if err := l.settle(); err != nil {
					t.Error(err)
				}
			})
			then := look(l)
			takeOver(l.base)
			l.Lock() // this process is not dead, so nobody repairs it
			if err := l.settle(); err != nil {
				t.Fatalf("cut off at store %d, and at store %d of the repair: %v", k, j, err)
			}
			l.Unlock()
			finally := look(l)
			if slices.Equal(was, after) {
				happened = true
			} else if !slices.Equal(was, before) || happened {
				t.Fatalf("cut off at store %d it is\n%v, before it was\n%v\nthen\n%v", k, was, before, after)
			}
			if !slices.Equal(then, was) || !slices.Equal(finally, was) {
				t.Fatalf("cut off at store %d it was\n%v, after that at store %d of the repair\n%v, and in the end\n%v", k, was, j, then, finally)
			}
			end(l)
			if again {
				repairs++
				most = max(most, j)
			}
			if !*exhaustive {
				if most < 12 && again {
					most = 12 // there are more
				}
				break
			}
		}
		stores = k
	}
	if !happened && stores > 1 || repairs == 0 && needed > 3 { // else one store does it
		t.Errorf("cut off at %d stores, and %d repairs too, and it happened: %v; the test shows nothing", stores, repairs, happened)
	}
}

func testEditsCutEverywhere[T cmp.Ordered | quad](t *testing.T, sizes []int, value func(i int) T, compare func(a, b T) int) {
	for _, n := range sizes {
		for _, e := range editsOf(compare) {
			t.Run(fmt.Sprintf("%T/of=%d/%s", *new(T), n, strings.ReplaceAll(e.name, " ", "-")), func(t *testing.T) {
				if raceEnabled && n > 20 {
					t.Skip("too slow with the race detector; the short list takes the same ways")
				}
				furnish := func() brokenList[T] {
					m := briefManager(t)
					l := Must(NewSharedList[T](m))
					all := make([]T, n+5)
					for i := range all {
						all[i] = value(i * 7 % (n + 5))
					}
					if err := l.AppendN(all...); err != nil {
						t.Fatal(err)
					}
					for range 5 { // begins inside a chunk
						l.PopFirst()
					}
					return brokenList[T]{l, m}
				}
				cutEverywhere(t, furnish, func(l brokenList[T]) error { return e.do(l, value) })
			})
		}
	}
}

// The short list's elements lie in one chunk, those of the long one in three, so that elements move across.
func TestListEditsHappenWholeOrNotAtAll(t *testing.T) {
	testEditsCutEverywhere(t, []int{18, 1200}, func(i int) int64 { return int64(i) }, cmp.Compare[int64])
	testEditsCutEverywhere(t, []int{18, 300}, func(i int) quad { n := uint64(i); return quad{n, n, n, n} }, func(a, b quad) int { return cmp.Compare(a[0], b[0]) })
	testEditsCutEverywhere(t, []int{18, 290}, func(i int) string {
		if i%3 == 0 {
			return fmt.Sprint(i)
		}
		return fmt.Sprintf("%d, which has a block of its own", i)
	}, cmp.Compare[string])
}
