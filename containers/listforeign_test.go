package containers

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"testing"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// settlingList returns a list whose writer stands still in the middle of a plan, as a kill leaves it.
func settlingList(t *testing.T) (l SharedList[int64], m *Manager, plan addr) {
	m = briefManager(t)
	l = Must(NewSharedList[int64](m))
	if err := l.AppendN(make([]int64, 3000)...); err != nil {
		t.Fatal(err)
	}
	seq := &l.obj.words[listSeq]
	txn.OnStore = func(unsafe.Pointer, uintptr) {
		if seq.Load()&listMode == listSettling {
			panic(errCut)
		}
	}
	if text, _ := panics(t, func() { l.PopAt(1600) }); text != errCut.Error() {
		t.Fatalf("panic %q", text)
	}
	txn.OnStore = nil
	takeOver(l.base)
	return l, m, Must(addrAt(l.s.region, l.obj.words[listPlanAt].Load(), 8*planWords))
}

// A plan that others have written over is an error, or does some harm to this list: never a fault, and never without end.
func TestDamagedPlanOfAListIsAnErrorAtMost(t *testing.T) {
	values := []uint64{0, 1, 2, 7, 63, 64, 1 << 20, 1 << 40, 1 << 61, 1 << 62, firstSlot + 1, firstSlot + 1<<30, firstSlot + 1<<61, 1 << 63, math.MaxInt64, ^uint64(0), ^uint64(0) - 4}
	refused := 0
	step := 1
	if testing.Short() || raceEnabled {
		step = 3
	}
	for i := range planWords {
		for k := 0; k < len(values); k += step {
			l, m, plan := settlingList(t)
			word(plan, i).Store(values[k])
			if i == planLast && k%2 == 0 { // and what is to be moved with it
				word(plan, planUpto).Store(values[k])
			}
			for what, call := range map[string]func() error{
				"settle": func() error { return l.settle() },
				"Len":    func() error { l.Len(); return nil },
				"Get":    func() error { l.Get(0); l.Get(1700); l.Get(-1); return nil },
				"Slice":  func() error { l.Slice(0, math.MaxInt); return nil },
				"Check":  func() error { l.mu.TryLock(); defer l.mu.Unlock(); return l.deque().check() },
			} {
				err := error(nil)
				if p := panicOf(t, func() { err = call() }); p != nil {
					err = p
				}
				if err != nil && !errors.Is(err, shm.ErrCorrupt) {
					t.Errorf("word %d is %#x: %s: %v", i, values[k], what, err)
				}
				if err != nil {
					refused++
				}
			}
			m.Close()
		}
	}
	if refused < 50 {
		t.Errorf("only %d calls were refused: the test shows little", refused)
	}
}

// The ends of a list that others have written over are an error where they are counted, never a loop, nor a block of the program's memory
// that is too large for it.
func TestDamagedEndsOfAListAreRefused(t *testing.T) {
	for _, last := range []uint64{firstSlot + 1<<30, firstSlot + 1<<45, firstSlot + 1<<61} {
		m := briefManager(t)
		l, texts := Must(NewSharedList[int64](m)), Must(NewSharedList[string](m))
		if err := errors.Join(l.AppendN(3, 1, 2), texts.AppendN("a", "b", "c")); err != nil {
			t.Fatal(err)
		}
		l.obj.words[listLast].Store(last)
		texts.obj.words[listLast].Store(last)
		wantErrors(t, shm.ErrCorrupt, map[string]func() error{
			"Len":     func() error { l.Len(); return nil },
			"All":     func() error { _ = slices.Collect(l.Values()); return nil },
			"Index":   func() error { Index[int64](l, 77); return nil },
			"Slice":   func() error { l.Slice(0, math.MaxInt); return nil },
			"Sort":    func() error { return Sort[int64](l) },
			"Reverse": func() error { return l.Reverse() },
			"PopAt":   func() error { l.PopAt(1); return nil },
			"Destroy": func() error { return texts.Destroy() },
		})
		m.Close()
	}
}

// A comparison that takes elements off through the view is noticed: what it took off must not come back.
func TestSortWhoseComparisonChangesTheListIsRefused(t *testing.T) {
	for what, change := range map[string]func(v ListView[string]){
		"Pop":    func(v ListView[string]) { v.Pop() },
		"Append": func(v ListView[string]) { v.Append("z") },
		"Set":    func(v ListView[string]) { v.Set(0, textOf(3)) },
	} {
		m := newHeapManager(t)
		l := Must(NewSharedList[string](m))
		if err := l.AppendN(textOf(2), textOf(1), textOf(0)); err != nil {
			t.Fatal(err)
		}
		l.With(func(v ListView[string]) {
			once := false
			text, _ := panics(t, func() {
				v.SortFunc(func(a, b string) int {
					if !once {
						once = true
						change(v)
					}
					return cmp.Compare(a, b)
				})
			})
			if text == "" {
				t.Errorf("%s: no panic", what)
			}
		})
		if err := l.Check(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}
