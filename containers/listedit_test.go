package containers

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shmkit/shmkit/shm"
)

// clampInsert is where Python's insert puts an element.
func clampInsert(i, n int) int {
	if i < 0 {
		i = max(0, i+n)
	}
	return min(i, n)
}

// testEditsModel compares random changes in the middle with those of a slice.
func testEditsModel[T comparable](t *testing.T, value func(r *rand.Rand) T, compare func(a, b T) int) {
	t.Run(fmt.Sprintf("%T", *new(T)), func(t *testing.T) {
		bothManagers(t, func(t *testing.T, m *Manager) {
			r := random(t)
			l := Must(NewSharedList[T](m))
			var model []T
			steps, most := 500, 1500
			if raceEnabled {
				steps, most = 150, 300
			}
			for step := range steps {
				n := len(model)
				i := r.IntN(3*n+10) - n - 5 // outside too
				var what string
				switch op := r.IntN(12); {
				case op < 4 && n < most:
					vs := make([]T, 1+r.IntN(4)*r.IntN(60)*r.IntN(2))
					for k := range vs {
						vs[k] = value(r)
					}
					what = fmt.Sprintf("Insert(%d) of %d", i, len(vs))
					if err := l.Insert(i, vs...); err != nil {
						t.Fatalf("step %d: %s: %v", step, what, err)
					}
					model = slices.Insert(model, clampInsert(i, n), vs...)
				case op < 7:
					what = fmt.Sprintf("PopAt(%d)", i)
					got, ok := l.PopAt(i)
					k := i
					if k < 0 {
						k += n
					}
					if want := k >= 0 && k < n; ok != want || ok && got != model[k] {
						t.Fatalf("step %d: %s of %d: %v, %v", step, what, n, got, ok)
					} else if ok {
						model = slices.Delete(model, k, k+1)
					}
				case op == 7 && n > 0:
					v := model[r.IntN(n)]
					what = fmt.Sprint("Remove ", v)
					k := slices.Index(model, v)
					if got := Index[T](l, v); got != k {
						t.Fatalf("step %d: Index %d, want %d", step, got, k)
					}
					if !Remove[T](l, v) {
						t.Fatalf("step %d: %s: none", step, what)
					}
					model = slices.Delete(model, k, k+1)
				case op == 8 && r.IntN(8) == 0:
					what = "Truncate"
					k := r.IntN(n + 2)
					l.Truncate(k)
					model = model[:min(k, n)]
				case op == 9 && r.IntN(4) == 0:
					what = "Reverse"
					if err := l.Reverse(); err != nil {
						t.Fatal(err)
					}
					slices.Reverse(model)
				case op == 10 && r.IntN(8) == 0:
					what = "SortFunc"
					if err := l.SortFunc(compare); err != nil {
						t.Fatal(err)
					}
					slices.SortStableFunc(model, compare)
				case op == 11:
					a, b := r.IntN(3*n+10)-n-5, r.IntN(3*n+10)-n-5
					from, k := clampSlice(n, a, b, 1)
					if got := l.Slice(a, b); !slices.Equal(got, model[from:from+k]) {
						t.Fatalf("step %d: Slice(%d, %d) of %d: %v, want %v", step, a, b, n, got, model[from:from+k])
					}
				default:
					for range r.IntN(20) { // so that chunks begin and end anywhere
						if len(model) > 0 {
							l.PopFirst()
							model = model[1:]
						}
					}
				}
				if got := l.Slice(0, len(model)+1); !slices.Equal(got, model) {
					t.Fatalf("step %d, after %s (-want +got):\n%s", step, what, cmp.Diff(model, got))
				}
				if step%50 == 0 {
					if got := slices.Collect(l.Values()); !slices.Equal(got, model) {
						t.Fatalf("step %d, after %s: Values (-want +got):\n%s", step, what, cmp.Diff(model, got))
					}
					if err := l.Check(); err != nil {
						t.Fatalf("step %d, after %s: %v", step, what, err)
					}
				}
			}
			nothingLost(t, m)
		})
	})
}

func textFrom(r *rand.Rand) string {
	n := r.IntN(20)
	if r.IntN(3) == 0 {
		n = r.IntN(100)
	}
	return strings.Repeat(string(rune('a'+r.IntN(26))), n)
}

func compareQuads(a, b quad) int { return cmp2(a[0]%16, b[0]%16) }

// cmp2 compares numbers; package cmp of the tests is another one.
func cmp2(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func TestListIsEditedAsASliceIs(t *testing.T) {
	testEditsModel(t, func(r *rand.Rand) int64 { return r.Int64N(1000) }, func(a, b int64) int { return int(a/10 - b/10) })
	testEditsModel(t, func(r *rand.Rand) quad { n := r.Uint64N(1000); return quad{n, n, n, n} }, compareQuads)
	testEditsModel(t, textFrom, func(a, b string) int { return strings.Compare(a[:min(1, len(a))], b[:min(1, len(b))]) })
}

func TestInsertIsClampedAsPythonDoes(t *testing.T) {
	l := Must(NewSharedList[int64](newHeapManager(t)))
	for _, i := range []int{0, 1, -2, -200, 200} {
		if err := l.Insert(i, int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	// [0], [0 1], [-2 0 1], [-200 -2 0 1], …
	if got, want := slices.Collect(l.Values()), []int64{-200, -2, 0, 1, 200}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if err := l.Insert(2); err != nil || l.Len() != 5 {
		t.Errorf("insert nothing: %v, length %d", err, l.Len())
	}
}

func TestRemoveTakesTheFirstEqualOne(t *testing.T) {
	l := Must(NewSharedList[string](newHeapManager(t)))
	if err := l.AppendN("a", "b", "a", "c"); err != nil {
		t.Fatal(err)
	}
	if !Remove[string](l, "a") || Remove[string](l, "missing") {
		t.Error("Remove says the opposite")
	}
	if got := slices.Collect(l.Values()); !slices.Equal(got, []string{"b", "a", "c"}) {
		t.Errorf("%q", got)
	}
	for _, i := range []int{99, 3, -4} {
		if v, ok := l.PopAt(i); ok {
			t.Errorf("PopAt(%d) = %q", i, v)
		}
	}
	for i, want := range map[int]string{0: "b", -1: "c"} {
		if v, ok := l.PopAt(i); !ok || v != want {
			t.Errorf("PopAt(%d) = %q, %v", i, v, ok)
		}
	}
	l.Clear()
	if v, ok := l.PopAt(0); ok {
		t.Errorf("PopAt of an empty list: %q", v)
	}
}

func TestIndexAndCountWithinBounds(t *testing.T) {
	l := Must(NewSharedList[int64](newHeapManager(t)))
	if err := l.AppendN(-2, -1, 0, 0, 1, 2); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		v            int64
		bounds       []int
		index, count int
	}{
		{0, nil, 2, 2}, {0, []int{2}, 2, 2}, {0, []int{3}, 3, 1}, {0, []int{-3}, 3, 1}, {0, []int{3, 4}, 3, 1}, {0, []int{4}, -1, 0},
		{0, []int{-4, -3}, 2, 1}, {0, []int{0, 2}, -1, 0}, {2, []int{-100, 100}, 5, 1}, {7, nil, -1, 0}, {0, []int{5, 1}, -1, 0}, {-2, []int{-6, -5}, 0, 1},
	} {
		if i, n := Index[int64](l, c.v, c.bounds...), Count[int64](l, c.v, c.bounds...); i != c.index || n != c.count {
			t.Errorf("%d within %v: index %d, count %d, want %d, %d", c.v, c.bounds, i, n, c.index, c.count)
		}
	}
	if text, _ := panics(t, func() { Index[int64](l, 0, 1, 2, 3) }); text != "containers: SharedList.IndexFunc: 3 bounds, at most 2 are allowed" {
		t.Errorf("panic %q", text)
	}
	if text, _ := panics(t, func() { l.Truncate(-1) }); text != "containers: SharedList.Truncate: to -1 elements" {
		t.Errorf("panic %q", text)
	}
	if !l.TryLock() {
		t.Fatal("the lock is held after a panic")
	}
	l.Unlock()
}

// What a caller's function does wrong leaves the list as it was, and its lock free.
func TestListOutlivesPanicsOfCallers(t *testing.T) {
	m := newHeapManager(t)
	l := Must(NewSharedList[string](m))
	want := []string{"d", "a long string, with a block of its own", "b", "c", "a", "another long string, with its own block"}
	if err := l.AppendN(want...); err != nil {
		t.Fatal(err)
	}
	calls := 0
	fails := func(n int) func() bool {
		calls = 0
		return func() bool {
			if calls++; calls == n {
				panic("cannot be compared")
			}
			return false
		}
	}
	for name, fn := range map[string]func(){
		"SortFunc":   func() { f := fails(4); l.SortFunc(func(a, b string) int { f(); return strings.Compare(a, b) }) },
		"RemoveFunc": func() { f := fails(3); l.RemoveFunc(func(string) bool { return f() }) },
		"IndexFunc":  func() { f := fails(3); l.IndexFunc(func(string) bool { return f() }) },
		"in a view": func() {
			f := fails(3)
			l.With(func(v ListView[string]) { v.SortFunc(func(a, b string) int { f(); return strings.Compare(a, b) }) })
		},
	} {
		if text, _ := panics(t, fn); text != "cannot be compared" {
			t.Errorf("%s: panic %q", name, text)
		}
		if got := slices.Collect(l.Values()); !slices.Equal(got, want) {
			t.Fatalf("%s: %q, want %q", name, got, want)
		}
		if !l.TryLock() {
			t.Fatalf("%s: the lock is held", name)
		}
		l.Unlock()
	}
	if err := errors.Join(Sort[string](l), l.Check()); err != nil || !slices.IsSorted(l.Slice(0, 6)) {
		t.Errorf("%v, %q", err, l.Slice(0, 6))
	}
}

func TestListViewEditsUnderTheLock(t *testing.T) {
	l := Must(NewSharedList[int64](newHeapManager(t)))
	l.With(func(v ListView[int64]) {
		if l.TryLock() {
			t.Error("the lock is free inside With")
		}
		if err := errors.Join(v.AppendN(5, 3, 1), v.Insert(1, 9, 8), Sort[int64](v), v.Reverse()); err != nil {
			t.Fatal(err)
		}
		if got := v.Slice(0, 9); !slices.Equal(got, []int64{9, 8, 5, 3, 1}) {
			t.Errorf("%v", got)
		}
		if e, ok := v.PopAt(2); !ok || e != 5 || !Remove[int64](v, 8) || Remove[int64](v, 8) || Index[int64](v, 3) != 1 || Count[int64](v, 3) != 1 {
			t.Errorf("%v", v.Slice(0, 9))
		}
		v.Truncate(2)
	})
	if got := l.Slice(0, 9); !slices.Equal(got, []int64{9, 3}) {
		t.Errorf("%v", got)
	}
}

func TestEditsOfAListOfNoUse(t *testing.T) {
	m := newManager(t)
	l, gone := Must(NewSharedList[string](m)), Must(NewSharedList[string](m))
	if err := gone.Destroy(); err != nil {
		t.Fatal(err)
	}
	check := func(l SharedList[string], want error) {
		t.Helper()
		wantErrors(t, want, map[string]func() error{
			"Insert":     func() error { return l.Insert(0, "") },
			"PopAt":      func() error { l.PopAt(0); return nil },
			"RemoveFunc": func() error { l.RemoveFunc(func(string) bool { return true }); return nil },
			"Truncate":   func() error { l.Truncate(0); return nil },
			"Reverse":    func() error { return l.Reverse() },
			"SortFunc":   func() error { return l.SortFunc(strings.Compare) },
			"IndexFunc":  func() error { l.IndexFunc(func(string) bool { return true }); return nil },
			"CountFunc":  func() error { l.CountFunc(func(string) bool { return true }); return nil },
			"Slice":      func() error { l.Slice(0, 1); return nil },
		})
	}
	check(gone, shm.ErrStale)
	v := l.Locked() // for the sake of the test; nobody else is here
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	check(l, shm.ErrClosed)
	wantErrors(t, shm.ErrClosed, map[string]func() error{
		"Insert":   func() error { return v.Insert(0, "") },
		"PopAt":    func() error { v.PopAt(0); return nil },
		"Truncate": func() error { v.Truncate(0); return nil },
		"Reverse":  func() error { return v.Reverse() },
		"SortFunc": func() error { return v.SortFunc(strings.Compare) },
	})
}

// In a full region a change that needs memory is an error and changes nothing, and a smaller one works; taking out needs hardly any.
func TestListEditsInAFullRegion(t *testing.T) {
	m := newManager(t, shm.Size(1<<20), shm.Limit(1<<20))
	l, texts := Must(NewSharedList[int64](m)), Must(NewSharedList[string](m))
	long := strings.Repeat("long ", 200)
	var err error
	for i := int64(0); i < 40_000; i++ {
		if err := l.Append(i); err != nil {
			t.Fatal(err)
		}
	}
	for n := 0; err == nil; n++ {
		if n < 20 {
			err = texts.Append(long)
		} else {
			err = texts.Append(strings.Repeat("x", 140))
		}
	}
	if !errors.Is(err, shm.ErrNoSpace) {
		t.Fatal(err)
	}
	before, texted := l.Slice(0, l.Len()), texts.Slice(0, texts.Len())
	same := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, shm.ErrNoSpace) {
			t.Errorf("%s: %v, want %v", what, err, shm.ErrNoSpace)
		}
		if !slices.Equal(l.Slice(0, l.Len()), before) || !slices.Equal(texts.Slice(0, texts.Len()), texted) {
			t.Fatalf("%s has changed something", what)
		}
		if err := errors.Join(l.Check(), texts.Check()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		nothingLost(t, m)
	}
	same("Reverse", l.Reverse())
	same("Sort", Sort[int64](l))
	same("Insert of many", l.Insert(5, make([]int64, 100_000)...))
	same("Insert of long strings", texts.Insert(1, long, long, long, long, long, long, long, long))
	same("Insert of long strings in front", texts.Insert(0, long, long, long, long, long, long, long, long))
	texts.Pop() // a small block is enough for what follows
	if v, ok := l.PopAt(20_000); !ok || v != 20_000 {
		t.Errorf("PopAt: %d, %v", v, ok)
	}
	if v, ok := texts.PopAt(2); !ok || v != long {
		t.Errorf("PopAt: %q, %v", v, ok)
	}
	for range 600 {
		texts.Pop()
	}
	if err := errors.Join(l.Insert(9, -1), texts.Insert(1, "short", long), texts.Reverse(), Sort[string](texts)); err != nil {
		t.Error(err)
	}
}
