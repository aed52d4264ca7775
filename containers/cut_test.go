package containers

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/txn"
)

// cutAt runs fn up to its k'th store, and reports whether it came so far. The operation that is under way is then undone, or finished, as
// survivors do it.
func cutAt(k int, fn func()) (cut bool) {
	n := 0
	txn.OnStore = func(unsafe.Pointer, uintptr) {
		if n++; n > k {
			txn.OnStore = nil
			panic(errCut)
		}
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

// bothSeen fails the test unless what was cut off has been found as before it and as after it. How often is for chance to say:
// how many stores it takes depends on where things come to lie, and a short run looks at some of them only.
func bothSeen(t *testing.T, seen map[string]int, before, after string) {
	t.Helper()
	t.Logf("cut off %d times, of which it had happened %d times", seen[before]+seen[after], seen[after])
	if before == after || seen[before] == 0 || seen[after] < 2 { // it is seen once when it is not cut off
		t.Error("that shows nothing")
	}
}

// Each call is cut off before each of its stores: the objects are then as before it or as after it, and no memory is lost.
func TestCallsHappenWholeOrNotAtAllAndLoseNothing(t *testing.T) {
	long := func(i int) string { return fmt.Sprintf("%d: %s", i, strings.Repeat("long ", 8)) }
	type world struct {
		m     *Manager
		texts SharedList[string]
		plain SharedList[int64]
		wide  SharedList[quad]
		array SharedArray[quad]
		lock  SharedInt
	}
	furnish := func() world {
		m := briefManager(t)
		w := world{m: m, texts: Must(NewSharedList[string](m, Name("texts"))), plain: Must(NewSharedList[int64](m)), wide: Must(NewSharedList[quad](m)),
			array: Must(NewSharedArray[quad](m, 3)), lock: Must(NewSharedInt(m, 0, Name("number")))}
		for i := range 3 {
			if err := w.texts.AppendN(long(i), "short"); err != nil {
				t.Fatal(err)
			}
		}
		for i := range int64(1024) { // both chunks are full
			if err := w.plain.Append(i); err != nil {
				t.Fatal(err)
			}
		}
		w.wide.AppendN(quad{1, 1, 1, 1}, quad{2, 2, 2, 2})
		return w
	}
	many := make([]string, 250) // more than one log has room for
	for i := range many {
		many[i] = long(i)
	}
	describe := func(w world) string {
		names := ""
		if l, err := Find[SharedList[string]](w.m, "texts"); err == nil {
			names += fmt.Sprint("texts ", slices.Collect(l.Values()))
		}
		for _, n := range []string{"number", "new"} {
			if v, err := Find[SharedInt](w.m, n); err == nil {
				names += fmt.Sprint(n, v.Load())
			}
		}
		return fmt.Sprintln(names, w.plain.Len(), w.plain.At(0), w.plain.At(-1), slices.Collect(w.wide.Values()), slices.Collect(w.array.Values()))
	}
	for name, do := range map[string]func(w world) error{
		"new":            func(w world) error { _, err := NewSharedInt(w.m, 7, Name("new")); return err },
		"unlink":         func(w world) error { return w.m.Unlink("number") },
		"destroy":        func(w world) error { return w.texts.Destroy() },
		"append":         func(w world) error { return w.texts.Append("x") },
		"append long":    func(w world) error { return w.texts.Append(long(9)) },
		"append a chunk": func(w world) error { return w.plain.Append(9) },
		"append many":    func(w world) error { return w.texts.AppendN(many...) },
		"set":            func(w world) error { return w.wide.Set(0, quad{3, 3, 3, 3}) },
		"set long":       func(w world) error { return w.texts.Set(0, long(7)) },
		"set short":      func(w world) error { return w.texts.Set(0, "y") },
		"pop":            func(w world) error { w.plain.Pop(); return nil },
		"pop first":      func(w world) error { w.texts.PopFirst(); return nil },
		"clear":          func(w world) error { w.texts.Clear(); return nil },
		"with":           func(w world) error { w.array.With(func(v []quad) { v[1] = quad{4, 4, 4, 4} }); return nil },
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			w := furnish()
			before := describe(w)
			if err := do(w); err != nil {
				t.Fatal(err)
			}
			after := describe(w)
			w.m.Close()
			was := before
			step := 1
			for k := 0; ; k += step {
				if k >= 60 && testing.Short() {
					step = 37
				}
				w := furnish()
				cut := cutAt(k, func() { do(w) })
				for _, b := range []base{w.texts.base, w.plain.base, w.wide.base, w.array.base} {
					if !b.mu.TryLock() { // as its dead owner left it
						b.mu.Unlock()
						b.mu.Lock()
					}
					if err := b.settle(); err != nil {
						t.Fatal(err)
					}
					b.mu.Unlock()
				}
				s := Must(w.m.space())
				if err := s.lockRoot(); err != nil {
					t.Fatal(err)
				}
				if err := s.finishDestroy(); err != nil {
					t.Fatal(err)
				}
				s.root.mu.Unlock()
				switch got := describe(w); {
				case got == was:
				case was == before && got == after:
					was = after
				default:
					t.Fatalf("cut off at store %d it is\n%s, before it was\n%s", k, got, was)
				}
				nothingLost(t, w.m)
				if err := w.m.Close(); err != nil {
					t.Fatal(err)
				}
				if !cut {
					break
				}
			}
			if was != after || before == after {
				t.Error("the call does nothing: the test shows nothing")
			}
		})
	}
}
