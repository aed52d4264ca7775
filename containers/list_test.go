package containers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// intact checks the list's structure and the memory it holds: nothing but what can be reached from it was taken since the
// heap had base live blocks.
func intact[T any](t testing.TB, l SharedList[T], base uint64) {
	t.Helper()
	if err := l.Check(); err != nil {
		t.Fatal(err)
	}
	reachable := uint64(1) // the directory
	if l.obj.words[listScratch].Load() != 0 {
		reachable++
	}
	d := l.deque()
	for c := range Must(d.capacity()) {
		if Must(d.chunk(c)).Load() != 0 {
			reachable++
		}
	}
	first, last, _ := d.ends()
	for v := first; v < last; v++ {
		if Must(d.blockIn(v)) != 0 {
			reachable++
		}
	}
	u, err := l.s.heap.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if got := u.LiveBlocks - u.OwedBlocks - base; got != reachable {
		t.Errorf("%d blocks live, %d reachable", got, reachable)
	}
}

// liveBlocks returns how many blocks of m's heap are in use, and not about to be free.
func liveBlocks(t testing.TB, m *Manager) uint64 {
	t.Helper()
	u, err := Must(m.space()).heap.Usage()
	if err != nil {
		t.Fatal(err)
	}
	return u.LiveBlocks - u.OwedBlocks
}

func TestListIsAsASlice(t *testing.T) {
	onBoth(t, func(t *testing.T, m *Manager) {
		l := Must(NewSharedList[int](m))
		var second SharedList[int]
		if err := second.UnmarshalText(Must(l.MarshalText())); err != nil {
			t.Fatal(err)
		}
		var model []int
		check := func(what string, err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			for name, h := range map[string]SharedList[int]{"the list": l, "a second handle": second} {
				if got := slices.Collect(h.Values()); !slices.Equal(got, model) || h.Len() != len(model) {
					t.Errorf("%s after %s: %v, want %v", name, what, got, model)
				}
			}
		}
		check("making", nil)
		for i := range 10 {
			model = append(model, i)
		}
		check("filling", l.AppendN(model...))
		model = append(model, 10, 11, 12)
		check("extending", second.Extend(slices.Values([]int{10, 11, 12})))
		model = append(model, model...)
		check("doubling", l.Extend(l.Values()))
		model = append(model, 99)
		check("appending", second.Append(99))
		model[0], model[len(model)-1] = -1, -2
		check("setting", errors.Join(l.Set(0, -1), second.Set(-1, -2)))
		if got := l.At(-len(model)); got != -1 {
			t.Errorf("first element from the end: %d", got)
		}
		if v, ok := l.Pop(); !ok || v != -2 {
			t.Errorf("Pop: %d %v", v, ok)
		}
		if v, ok := second.PopFirst(); !ok || v != -1 {
			t.Errorf("PopFirst: %d %v", v, ok)
		}
		model = model[1 : len(model)-1]
		check("popping", nil)
		l.Clear()
		model = nil
		check("clearing", nil)
		if v, ok := l.Pop(); ok {
			t.Errorf("Pop of an empty list: %d", v)
		}
		if v, ok := l.PopFirst(); ok {
			t.Errorf("PopFirst of an empty list: %d", v)
		}
		check("adding nothing", errors.Join(l.AppendN(), l.Extend(l.Values())))
	})
}

type appender struct {
	List SharedList[[2]int]
	ID   int
}

var append100 = proc.Define("append 100 items", func(_ context.Context, a appender) error {
	for i := range 100 {
		if err := a.List.Append([2]int{a.ID, i}); err != nil {
			return err
		}
	}
	return nil
})

func TestAppendsOfProcessesKeepTheirOrder(t *testing.T) {
	l := Must(NewSharedList[[2]int](mappedManager(t)))
	if err := append100.Run(inTime(t), appender{l, 0}, appender{l, 1}, appender{l, 2}); err != nil {
		t.Fatal(err)
	}
	var next [3]int
	for _, v := range l.All() {
		if v[1] != next[v[0]] {
			t.Fatalf("process %d: item %d where %d should be", v[0], v[1], next[v[0]])
		}
		next[v[0]]++
	}
	if next != [3]int{100, 100, 100} || l.Len() != 300 {
		t.Errorf("items of each process %v, length %d", next, l.Len())
	}
}

var report = proc.Define("add a headline", func(_ context.Context, l SharedList[string]) error {
	l.Lock()
	defer l.Unlock()
	v := l.Locked()
	return v.Append(fmt.Sprintf("headline %d, which is too long for a slot", v.Len()))
})

func TestStringsAppendedByChildren(t *testing.T) {
	l := Must(NewSharedList[string](mappedManager(t)))
	if err := report.Run(inTime(t), l, l, l); err != nil {
		t.Fatal(err)
	}
	want := []string{"headline 0, which is too long for a slot", "headline 1, which is too long for a slot", "headline 2, which is too long for a slot"}
	if diff := cmp.Diff(want, slices.Collect(l.Values())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// testListModel compares random operations with those on a slice.
func testListModel[T any](t *testing.T, equal func(a, b T) bool, value func(*rand.Rand) T) {
	t.Run(fmt.Sprintf("%T", *new(T)), func(t *testing.T) {
		onBoth(t, func(t *testing.T, m *Manager) {
			r := random(t)
			l := Must(NewSharedList[T](m))
			base := liveBlocks(t, m) - 1 // the directory
			if l.obj.words[listScratch].Load() != 0 {
				base--
			}
			model := []T{}
			same := func(step int, want, got T) {
				t.Helper()
				if !equal(want, got) {
					t.Fatalf("step %d: %v, want %v", step, got, want)
				}
			}
			long := 0
			steps := 6000
			if raceEnabled {
				steps = 600
			}
			for step := range steps {
				v := value(r)
				i := 0
				if n := len(model); n > 0 {
					i = r.IntN(2*n) - n
				}
				k := (i + len(model)) % max(1, len(model)) // from the beginning
				switch op := r.IntN(20); {
				case op < 4:
					if err := l.Append(v); err != nil {
						t.Fatal(err)
					}
					model = append(model, v)
				case op < 6 && len(model) < 2500:
					vs := make([]T, r.IntN(200)*r.IntN(10))
					for k := range vs {
						vs[k] = value(r)
					}
					if err := l.AppendN(vs...); err != nil {
						t.Fatal(err)
					}
					model = append(model, vs...)
				case op < 8 && len(model) > 0:
					if err := l.Set(i, v); err != nil {
						t.Fatal(err)
					}
					model[k] = v
				case op < 10 && len(model) > 0:
					same(step, model[k], l.At(i))
				case op < 14:
					for range r.IntN(150) {
						var got T
						var ok bool
						if op < 12 {
							got, ok = l.Pop()
						} else {
							got, ok = l.PopFirst()
						}
						if ok != (len(model) > 0) {
							t.Fatalf("step %d: popped %v of %d elements", step, ok, len(model))
						}
						if !ok {
							break
						}
						if op < 12 {
							same(step, model[len(model)-1], got)
							model = model[:len(model)-1]
						} else {
							same(step, model[0], got)
							model = model[1:]
						}
					}
				case op == 14 && r.IntN(20) == 0:
					l.Clear()
					model = []T{}
				case op == 15:
					l.With(func(w ListView[T]) {
						if err := w.Append(v); err != nil {
							t.Error(err)
						}
						first, _ := w.PopFirst()
						if err := errors.Join(w.AppendN(v, first), w.Set(-1, v)); err != nil {
							t.Error(err)
						}
						same(step, v, w.At(w.Len()-1))
					})
					model = append(append(model, v)[1:], v, v)
				case op == 16 && len(model) < 2000:
					if err := l.Extend(l.Values()); err != nil {
						t.Fatal(err)
					}
					model = append(model, model...)
				}
				if l.Len() != len(model) {
					t.Fatalf("step %d: length %d, want %d", step, l.Len(), len(model))
				}
				if long = max(long, len(model)); step%100 == 0 {
					got := []T{}
					for i, v := range l.All() {
						if i != len(got) {
							t.Fatalf("step %d: index %d of element %d", step, i, len(got))
						}
						got = append(got, v)
					}
					if !slices.EqualFunc(model, got, equal) {
						t.Fatalf("step %d (-want +got):\n%s", step, cmp.Diff(model, got))
					}
					intact(t, l, base)
				}
			}
			l.Clear()
			intact(t, l, base)
			if err := l.Destroy(); err != nil {
				t.Fatal(err)
			}
			if n := liveBlocks(t, m); n != base {
				t.Errorf("%d blocks live after Destroy, %d before", n, base)
			}
			t.Logf("longest: %d", long)
		})
	})
}

func same[T comparable](a, b T) bool { return a == b }

func TestListAgainstModel(t *testing.T) {
	text := func(r *rand.Rand) []byte {
		b := make([]byte, r.IntN(20))
		if r.IntN(3) == 0 {
			b = make([]byte, r.IntN(200))
		}
		for i := range b {
			b[i] = byte(r.Uint32()) // zeros too
		}
		return b
	}
	testListModel(t, same[int64], func(r *rand.Rand) int64 { return r.Int64() })
	testListModel(t, same[byte], func(r *rand.Rand) byte { return byte(r.Uint32()) })
	testListModel(t, same[triple], func(r *rand.Rand) triple { return triple{r.Int64(), r.Int64(), r.Int64()} })
	testListModel(t, same[[5]uint16], func(r *rand.Rand) [5]uint16 { return [5]uint16{uint16(r.Uint32()), 4: uint16(r.Uint32())} })
	testListModel(t, same[[70]int64], func(r *rand.Rand) [70]int64 { return [70]int64{7: r.Int64(), 69: r.Int64()} })
	testListModel(t, same[string], func(r *rand.Rand) string { return string(text(r)) })
	testListModel(t, bytes.Equal, text)
}

func TestQueueOfElementsReusesItsChunks(t *testing.T) {
	m := heapManager(t)
	l := Must(NewSharedList[string](m))
	for i := range 100 {
		if err := l.Append(fmt.Sprintf("a string that has a block of its own, %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	before := liveBlocks(t, m)
	for i := range 20_000 {
		v, _ := l.PopFirst()
		if want := fmt.Sprintf("a string that has a block of its own, %d", i); v != want {
			t.Fatalf("got %q, want %q", v, want)
		}
		if err := l.Append(fmt.Sprintf("a string that has a block of its own, %d", i+100)); err != nil {
			t.Fatal(err)
		}
	}
	if after := liveBlocks(t, m); after > before+2 {
		t.Errorf("%d blocks, %d before", after, before)
	}
	if n := Must(l.deque().capacity()); n != 1<<firstDirLog2 {
		t.Errorf("the directory has grown to %d chunks", n)
	}
}

func TestListIndexMessages(t *testing.T) {
	m := heapManager(t)
	l, empty := Must(NewSharedList[int64](m)), Must(NewSharedList[string](m))
	if err := l.AppendN(1, 2, 3); err != nil {
		t.Fatal(err)
	}
	for want, fn := range map[string]func(){
		"containers: SharedList.At: index 3 out of range [-3, 2]":       func() { l.At(3) },
		"containers: SharedList.At: index -4 out of range [-3, 2]":      func() { l.At(-4) },
		"containers: SharedList.Set: index 3 out of range [-3, 2]":      func() { l.Set(3, 0) },
		"containers: SharedList.At: index 0 of an empty list":           func() { empty.At(0) },
		"containers: SharedList.Set: index -1 of an empty list":         func() { empty.Set(-1, "") },
		"containers: use of a zero handle; make one with New… or Find":  func() { SharedList[int64]{}.At(0) },
		"containers: use of a zero handle; make one with New… or Find ": func() { SharedList[string]{}.Append("") },
	} {
		if got, _ := panics(t, fn); got != strings.TrimSpace(want) {
			t.Errorf("panic %q, want %q", got, want)
		}
	}
	for i, want := range map[int]int64{0: 1, 2: 3, -1: 3, -3: 1} {
		if v, ok := l.Get(i); !ok || v != want {
			t.Errorf("Get(%d) = %d %v", i, v, ok)
		}
	}
	for _, i := range []int{3, -4} {
		if v, ok := l.Get(i); ok {
			t.Errorf("Get(%d) = %d", i, v)
		}
	}
	for _, l := range []interface{ TryLock() bool }{l, empty} {
		if !l.TryLock() { // none of these kept it
			t.Fatal("a lock is held")
		}
	}
	l.Unlock()
	empty.Unlock()
}

func TestStringsComeBackAsTheyWere(t *testing.T) {
	onBoth(t, func(t *testing.T, m *Manager) {
		l := Must(NewSharedList[string](m))
		var want []string
		for _, n := range []int{0, 1, 7, 8, 14, 15, 16, 17, 63, 64, 65, 4095, 4096, 4097, 100_000} {
			for _, c := range []string{"x", "\x00", "ß"} {
				s := strings.Repeat(c, n)
				want = append(want, s, s[:min(n, len(s))])
			}
		}
		if err := l.Extend(slices.Values(want)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, slices.Collect(l.Values())); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		b := Must(NewSharedList[[]byte](m))
		data := []byte("a slice of bytes, longer than a slot")
		if err := b.AppendN(nil, []byte{}, data); err != nil {
			t.Fatal(err)
		}
		data[0] = 'X'
		b.At(2)[1] = 'Y' // a copy of the caller's
		if got := string(b.At(2)); got != "a slice of bytes, longer than a slot" {
			t.Errorf("the list shares memory with its users: %q", got)
		}
		if b.At(0) == nil || len(b.At(0))+len(b.At(1)) != 0 {
			t.Error("an empty slice of bytes")
		}
		type title string
		titles := Must(NewSharedList[title](m))
		if err := titles.Append("a type of one's own that is a string"); err != nil || titles.At(0) != "a type of one's own that is a string" {
			t.Errorf("%v, %q", err, titles.At(0))
		}
	})
}

func TestListChangedWhileIterated(t *testing.T) {
	onBoth(t, func(t *testing.T, m *Manager) {
		l := Must(NewSharedList[int](m))
		for i := range 2000 {
			if err := l.Append(i); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		for _, v := range l.All() { // ends, though the list grows all the time
			if err := l.Append(v); err != nil {
				t.Fatal(err)
			}
			n++
		}
		if n != 2000 || l.Len() != 4000 {
			t.Errorf("%d positions visited, length %d", n, l.Len())
		}
		last := -1
		for i, v := range l.All() {
			if i >= 2000 {
				break
			}
			if v != i || v <= last {
				t.Fatalf("index %d: %d after %d", i, v, last)
			}
			last = v
			l.PopFirst()
			l.PopFirst()
		}
		l.Clear()
		for range l.All() {
			t.Error("an element of an empty list")
		}
		if err := l.AppendN(make([]int, 3000)...); err != nil {
			t.Fatal(err)
		}
		n = 0
		for range l.All() {
			if n++; n == 1 {
				l.Clear()
			}
		}
		if n > 600 {
			t.Errorf("%d elements visited of a list cleared after the first", n)
		}
	})
}

func TestListWithHoldsTheLock(t *testing.T) {
	l := Must(NewSharedList[int](heapManager(t)))
	text, _ := panics(t, func() {
		l.With(func(v ListView[int]) {
			if l.TryLock() {
				t.Error("the lock is free inside With")
			}
			if err := v.Append(1); err != nil {
				t.Error(err)
			}
			panic("boom")
		})
	})
	if text != "boom" {
		t.Errorf("panic %q", text)
	}
	if !l.TryLock() {
		t.Fatal("the lock is held after a panic")
	}
	l.Unlock()
	if l.Len() != 1 { // a step that was done stays done
		t.Errorf("length %d", l.Len())
	}
}

type listWork struct {
	Plain SharedList[quad]
	Texts SharedList[string]
	Lists SharedList[int64]
	Done  AtomicInt
	How   string
}

// textOf makes a string for n that has a block of its own, and one of any length.
func textOf(n uint64) string { return fmt.Sprintf("%020d", n) + strings.Repeat("x", int(n%100)) }

var workForEver = proc.Define("work on a list for ever", func(_ context.Context, w listWork) error {
	for n := uint64(w.Done.Load()) + 1; ; n++ {
		q := quad{n, n, n, n}
		var err error
		switch w.How {
		case "Append":
			err = w.Lists.Append(int64(n))
		case "AppendN":
			err = w.Texts.AppendN(textOf(n), textOf(n), textOf(n))
		case "Set":
			for i := range w.Plain.Len() {
				err = errors.Join(err, w.Plain.Set(i, q))
			}
		case "Set strings":
			for i := range w.Texts.Len() {
				err = errors.Join(err, w.Texts.Set(i, textOf(n)))
			}
		case "queue":
			if err = w.Texts.Append(textOf(n)); n > 600 {
				w.Texts.PopFirst()
			}
		case "stack":
			for range 20 {
				err = errors.Join(err, w.Plain.Append(q))
			}
			for range 20 {
				w.Plain.Pop()
			}
		case "Clear":
			for k := range 30 {
				err = errors.Join(err, w.Texts.Append(textOf(uint64(k))))
			}
			w.Texts.Clear()
		case "With":
			w.Lists.With(func(v ListView[int64]) {
				err = errors.Join(v.Append(int64(n)), v.Append(-int64(n)))
				v.PopFirst()
			})
		}
		if err != nil {
			return err
		}
		w.Done.Store(int64(n))
	}
})

// A killed state is what a list is after its writer was killed.
type killedState struct {
	*testing.T
	listWork
	done uint64
}

// settled returns when what the dead one has committed is there for all to see: until somebody takes the lock, readers may see
// what was before.
func (s killedState) settled() {
	s.Texts.Lock()
	s.Texts.Unlock()
}

func TestListAfterKills(t *testing.T) {
	type state = killedState
	equal := func(s state, got string, n uint64) {
		s.Helper()
		if got != textOf(n) {
			s.Errorf("%q, want %q", got, textOf(n))
		}
	}
	for how, check := range map[string]func(s state){
		"Append": func(s state) {
			for i, v := range s.Lists.All() {
				if v != int64(i)+1 {
					s.Fatalf("element %d is %d", i, v)
				}
			}
			if n := uint64(s.Lists.Len()); n != s.done && n != s.done+1 {
				s.Errorf("%d elements, %d were known to be appended", n, s.done)
			}
			s.Done.Store(int64(s.Lists.Len()))
		},
		"AppendN": func(s state) {
			for i, v := range s.Texts.All() {
				equal(s, v, uint64(i/3)+1)
			}
			s.settled()
			if n := uint64(s.Texts.Len()); n != 3*s.done && n != 3*s.done+3 {
				s.Errorf("%d elements, %d were known to be appended: a part of AppendN", n, 3*s.done)
			}
			s.Done.Store(int64(s.Texts.Len() / 3))
		},
		"Set": func(s state) {
			for i, q := range s.Plain.All() {
				if q.torn() || q[0] < s.done || q[0] > s.done+1 {
					s.Errorf("element %d is %v after round %d", i, q, s.done)
				}
			}
			s.Done.Store(int64(s.Plain.At(0)[0]))
		},
		"Set strings": func(s state) {
			for _, v := range s.Texts.All() {
				if v != textOf(s.done) && v != textOf(s.done+1) {
					s.Errorf("element %q after round %d", v, s.done)
				}
			}
			s.Done.Store(int64(s.done + 1))
			s.Texts.Set(0, textOf(s.done+1))
		},
		"queue": func(s state) {
			var first, k uint64
			for _, v := range s.Texts.All() {
				if k == 0 {
					fmt.Sscanf(v[:20], "%d", &first)
				}
				equal(s, v, first+k)
				k++
			}
			s.settled()
			fmt.Sscanf(s.Texts.At(0)[:20], "%d", &first) // that may be the next one now
			last := first + uint64(s.Texts.Len()) - 1
			if last != s.done && last != s.done+1 {
				s.Errorf("last is %d, %d was known to be there", last, s.done)
			}
			s.Done.Store(int64(last))
		},
		"stack": func(s state) {
			for i, q := range s.Plain.All() {
				if i >= 8 && (q.torn() || q[0] != s.done+1) {
					s.Errorf("element %d is %v after round %d", i, q, s.done)
				}
			}
			for s.Plain.Len() > 8 {
				s.Plain.Pop()
			}
		},
		"Clear": func(s state) {
			for i, v := range s.Texts.All() {
				equal(s, v, uint64(i))
			}
			s.Texts.Clear()
		},
		"With": func(s state) {
			if s.Lists.Len() == 0 {
				s.Error("empty")
			}
		},
	} {
		t.Run("inside="+strings.ReplaceAll(how, " ", "-"), func(t *testing.T) {
			m := mappedManager(t)
			w := listWork{How: how, Done: Must(NewAtomicInt(m, 0))}
			var base uint64
			switch how {
			case "Append", "With":
				w.Lists = Must(NewSharedList[int64](m))
				base = liveBlocks(t, m) - 1
			case "Set", "stack":
				w.Plain = Must(NewSharedList[quad](m))
				base = liveBlocks(t, m) - 2
				for range 8 {
					if err := w.Plain.Append(quad{}); err != nil {
						t.Fatal(err)
					}
				}
			default:
				w.Texts = Must(NewSharedList[string](m))
				base = liveBlocks(t, m) - 2
				if how == "Set strings" {
					if err := w.Texts.AppendN(textOf(0), textOf(0), textOf(0)); err != nil {
						t.Fatal(err)
					}
				}
			}
			for range 8 {
				before := w.Done.Load()
				killed(t, workForEver, w, "it has worked", func() bool { return w.Done.Load() > before+300 })
				s := state{t, w, uint64(w.Done.Load())}
				check(s) // before anybody repairs, and while doing so
				switch {
				case w.Plain.obj != nil:
					intact(t, w.Plain, base)
				case w.Texts.obj != nil:
					intact(t, w.Texts, base)
				default:
					intact(t, w.Lists, base)
				}
			}
		})
	}
}

var stopInList = proc.Define("stop inside a list's operation", func(_ context.Context, s stop) error {
	q, w := s.Queue.deque(), s.Words.deque()
	first, last := w.o.words[listFirst].Load(), w.o.words[listLast].Load()
	switch s.Point {
	case "With":
		s.Words.With(func(v ListView[string]) {
			v.Append("a step that was done stays done")
			s.here()
		})
	case "Set, half written":
		s.Queue.Lock()
		q.replace(q.o.words[listFirst].Load()+1, Must(q.slot(q.o.words[listFirst].Load()+1)), func(p addr) {
			word(p, 2).Store(0)
			s.here()
		})
	case "Set of a string, half written":
		s.Words.Lock()
		return w.s.change(func(tx *txn.Lane) error {
			slot := Must(packText(tx, w, "another one, also in a block of its own"))
			w.replacing(first+1, Must(w.slot(first+1)), Must(w.scratch()), w.seq().Load()+2*listChange, func(p addr) {
				word(p, 0).Store(slot[0])
				s.here()
			})
			return nil
		})
	case "AppendN, two of three":
		s.Words.Lock()
		if err := w.s.change(func(tx *txn.Lane) error {
			for v := last; v < last+2; v++ {
				text := "one of three, in a block of its own"
				if err := s.Words.fill(tx, w, Must(w.slot(v)), &text); err != nil {
					return err
				}
			}
			return tx.Set(&w.o.words[listLimbo], last+2)
		}); err != nil {
			return err
		}
		s.here()
	case "AppendN, published":
		s.Words.Lock()
		w.o.words[listLimbo].Store(last)
		s.here()
	case "Clear, before the commit":
		s.Words.Lock()
		w.o.words[listLimbo].Store(last)
		publish(w.seq(), w.seq().Load()+listChange|listMoving)
		s.here()
	case "Clear, nothing freed yet":
		s.Words.Lock()
		w.o.words[listLimbo].Store(last)
		publish(w.seq(), w.seq().Load()+listChange|listMoving)
		w.o.words[listLast].Store(first)
		s.here()
	case "Pop, not committed":
		s.Words.Lock()
		return w.s.change(func(tx *txn.Lane) error {
			if err := w.moveIn(tx, &w.o.words[listLast], last-1); err != nil {
				return err
			}
			if err := w.s.heap.FreeIn(tx, shm.Offset(Must(w.blockIn(last-1)))); err != nil {
				return err
			}
			s.here()
			return nil
		})
	}
	return errors.New("unknown point")
})

func TestListKilledAtPoints(t *testing.T) {
	words := []string{"short", "a string with a block of its own", "", "another string with its block"}
	for point, want := range map[string][]string{
		"With":                          append(slices.Clone(words), "a step that was done stays done"),
		"Set, half written":             words,
		"Set of a string, half written": words,
		"AppendN, two of three":         words,
		"AppendN, published":            words,
		"Clear, before the commit":      words,
		"Clear, nothing freed yet":      nil,
		"Pop, not committed":            words,
	} {
		t.Run("point="+strings.ReplaceAll(point, " ", "-"), func(t *testing.T) {
			m := mappedManager(t)
			quads := []quad{{1, 1, 1, 1}, {2, 2, 2, 2}, {3, 3, 3, 3}}
			s := stop{Queue: Must(NewSharedList[quad](m)), Point: point, Inside: Must(NewAtomicInt(m, 0))}
			if err := s.Queue.AppendN(quads...); err != nil {
				t.Fatal(err)
			}
			s.Words = Must(NewSharedList[string](m))
			base := liveBlocks(t, m) - 2
			if err := s.Words.AppendN(words...); err != nil {
				t.Fatal(err)
			}
			killed(t, stopInList, s, "it stands still", func() bool { return s.Inside.Load() == 1 })
			for what, look := range map[string]func(){
				"before repair": func() {},
				"after repair": func() {
					if err := errors.Join(s.Words.Append("more"), s.Queue.Append(quad{})); err != nil {
						t.Fatal(err)
					}
					if v, ok := s.Words.Pop(); !ok || v != "more" {
						t.Errorf("popped %q", v)
					}
					s.Queue.Pop()
				},
			} {
				look()
				if got := slices.Collect(s.Words.Values()); !slices.Equal(got, want) {
					t.Errorf("%s: %q, want %q", what, got, want)
				}
				if got := slices.Collect(s.Queue.Values()); !slices.Equal(got, quads) {
					t.Errorf("%s: %v, want %v", what, got, quads)
				}
				if got := s.Queue.At(1); got != quads[1] {
					t.Errorf("%s: element 1 is %v", what, got)
				}
			}
			intact(t, s.Words, base)
			if err := s.Queue.Check(); err != nil {
				t.Error(err)
			}
			if err := s.Words.Destroy(); err != nil {
				t.Fatal(err)
			}
			if n := liveBlocks(t, m); n > base {
				t.Errorf("%d blocks live after Destroy, %d before", n, base)
			}
		})
	}
}

var churn = proc.Define("pop and append", func(_ context.Context, w listWork) error {
	for n := uint64(1); w.Done.Load() == 0; n++ {
		churnOnce(w.Plain, w.Texts, n)
	}
	return nil
})

// churnOnce replaces elements in every way there is.
func churnOnce(l SharedList[quad], texts SharedList[string], n uint64) {
	q := quad{n, n, n, n}
	l.Pop()
	err := l.Append(q)
	l.PopFirst()
	err = errors.Join(err, l.AppendN(q))
	if l.Len() > 0 {
		err = errors.Join(err, l.Set(int(n)%8, q))
	}
	texts.PopFirst()
	err = errors.Join(err, texts.Append(strings.Repeat(string(rune('a'+n%26)), 8+int(n)%57)))
	if n%1000 == 0 {
		l.Clear()
		err = errors.Join(err, l.AppendN(make([]quad, 600)...))
	}
	if err != nil {
		panic(err)
	}
}

// readList looks at all elements.
func readList(t *testing.T, l SharedList[quad], texts SharedList[string], rounds int) {
	for n := range rounds {
		for i := range 8 {
			if q, ok := l.Get(i - 4); ok && q.torn() {
				t.Errorf("Get: torn %v", q)
				return
			}
		}
		for s := range texts.Values() {
			if s != strings.Repeat(s[:1], len(s)) || len(s) < 8 || len(s) > 64 {
				t.Errorf("torn string %q", s)
				return
			}
		}
		if n%10 == 0 {
			for q := range l.Values() {
				if q.torn() {
					t.Errorf("Values: torn %v", q)
					return
				}
			}
		}
	}
}

func TestReadersOfListNeverSeeTornElements(t *testing.T) {
	rounds := 10_000
	if raceEnabled {
		rounds = 500
	}
	lists := func(t *testing.T, m *Manager) (SharedList[quad], SharedList[string]) {
		l, texts := Must(NewSharedList[quad](m)), Must(NewSharedList[string](m))
		for range 8 {
			if err := errors.Join(l.Append(quad{}), texts.Append("aaaaaaaaaaaaaaaaa")); err != nil {
				t.Fatal(err)
			}
		}
		return l, texts
	}
	t.Run("writer=process", func(t *testing.T) {
		m := mappedManager(t)
		w := listWork{Done: Must(NewAtomicInt(m, 0)), Lists: Must(NewSharedList[int64](m))}
		w.Plain, w.Texts = lists(t, m)
		p, err := churn.Start(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Kill()
		until(t, "it writes", func() bool { q, _ := w.Plain.Get(0); return q[0] > 0 })
		readList(t, w.Plain, w.Texts, rounds)
		w.Done.Store(1)
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
		if err := errors.Join(w.Plain.Check(), w.Texts.Check()); err != nil {
			t.Error(err)
		}
	})
	t.Run("writers=goroutines", func(t *testing.T) {
		l, texts := lists(t, heapManager(t))
		var done atomic.Bool
		var wg, readers sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for n := uint64(1); !done.Load(); n++ {
					q := quad{n, n, n, n}
					l.Pop()
					if err := l.Append(q); err != nil {
						t.Error(err)
					}
					l.With(func(v ListView[quad]) { v.Set(0, q) })
					texts.PopFirst()
					if err := texts.Append(strings.Repeat(string(rune('a'+n%26)), 8+int(n)%57)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for range 2 {
			readers.Go(func() { readList(t, l, texts, rounds/4) })
		}
		readers.Wait()
		done.Store(true)
		wg.Wait()
		if err := errors.Join(l.Check(), texts.Check()); err != nil {
			t.Error(err)
		}
	})
}

func TestListFullRegion(t *testing.T) {
	r, err := shm.Anonymous(shm.Size(1<<20), shm.Limit(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	m := managed(t, r)
	numbers := Must(NewSharedList[int64](m))
	l := Must(NewSharedList[string](m))
	base := liveBlocks(t, m) - 2
	long := strings.Repeat("long ", 2000)
	n := 0
	for ; err == nil; n++ {
		err = l.Append(long)
	}
	if n--; !errors.Is(err, shm.ErrNoSpace) || l.Len() != n {
		t.Fatalf("%v after %d of %d elements", err, n, l.Len())
	}
	if err := l.Set(0, long+long); !errors.Is(err, shm.ErrNoSpace) || l.At(0) != long {
		t.Errorf("Set: %v", err)
	}
	intact(t, l, base)
	for range 10 {
		l.Pop()
	}
	n -= 10
	many := slices.Repeat([]string{long}, 11) // ten fit
	if err := l.AppendN(many...); !errors.Is(err, shm.ErrNoSpace) || l.Len() != n {
		t.Errorf("AppendN: %v, %d elements", err, l.Len())
	}
	intact(t, l, base)
	if err := l.AppendN(many[:9]...); err != nil {
		t.Errorf("AppendN of what fits: %v", err)
	}
	if err := numbers.AppendN(make([]int64, 100_000)...); !errors.Is(err, shm.ErrNoSpace) || numbers.Len() != 0 {
		t.Errorf("AppendN of numbers: %v, %d elements", err, numbers.Len())
	}
	intact(t, l, base+liveOf(t, numbers))
	l.Clear()
	if err := numbers.AppendN(make([]int64, 100_000)...); err != nil {
		t.Errorf("after Clear: %v", err)
	}
}

// liveOf returns how many blocks a list has beyond its directory.
func liveOf[T any](t testing.TB, l SharedList[T]) (n uint64) {
	t.Helper()
	d := l.deque()
	for c := range Must(d.capacity()) {
		if Must(d.chunk(c)).Load() != 0 {
			n++
		}
	}
	return n
}

func TestListAllocatesNothing(t *testing.T) {
	m := mappedManager(t)
	l, q := Must(NewSharedList[int64](m)), Must(NewSharedList[quad](m))
	if err := errors.Join(l.AppendN(make([]int64, 1000)...), q.AppendN(make([]quad, 10)...)); err != nil {
		t.Fatal(err)
	}
	texts := Must(NewSharedList[string](m))
	var sum int64
	for name, fn := range map[string]func(){
		"At":              func() { sum += l.At(5) },
		"Get":             func() { v, _ := l.Get(-5); sum += v },
		"Set":             func() { l.Set(5, 6) },
		"Append":          func() { l.Append(6) },
		"At, large":       func() { sum += int64(q.At(5)[0]) },
		"Set, large":      func() { q.Set(5, quad{1, 1, 1, 1}) },
		"Pop and Append":  func() { l.Pop(); l.Append(1) },
		"queue":           func() { l.PopFirst(); l.Append(1) },
		"With":            func() { l.With(func(v ListView[int64]) { v.Append(1) }) },
		"Append a string": func() { texts.Append("a string that has a block of its own") },
		"Len":             func() { sum += int64(l.Len()) },
	} {
		want := 0.0
		if name == "Append a string" && bits.UintSize == 32 {
			want = 1 // the compiler puts the string header on the heap there
		}
		if n := testing.AllocsPerRun(1000, fn); n > want && !raceEnabled {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	perLoop := testing.AllocsPerRun(10, func() {
		for v := range l.Values() {
			sum += v
		}
	})
	if perLoop > 3 && !raceEnabled {
		t.Errorf("a loop over %d elements: %v allocations", l.Len(), perLoop)
	}
}

func TestListOfNoUse(t *testing.T) {
	m := mappedManager(t)
	l, gone := Must(NewSharedList[string](m)), Must(NewSharedList[string](m))
	if err := gone.Append("a string that has a block of its own"); err != nil {
		t.Fatal(err)
	}
	if err := gone.Destroy(); err != nil {
		t.Fatal(err)
	}
	reuse := Must(NewSharedList[string](m)) // takes its memory
	check := func(l SharedList[string], want error) {
		t.Helper()
		for name, fn := range map[string]func() error{
			"Append":  func() error { return l.Append("") },
			"AppendN": func() error { return l.AppendN("") },
			"Extend":  func() error { return l.Extend(slices.Values([]string{""})) },
			"Set":     func() error { return l.Set(0, "") },
			"Check":   func() error { return l.Check() },
			"Destroy": func() error { return l.Destroy() },
		} {
			if err := fn(); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		}
		for name, fn := range map[string]func(){
			"At":     func() { l.At(0) },
			"Get":    func() { l.Get(0) },
			"Len":    func() { l.Len() },
			"Pop":    func() { l.Pop() },
			"Clear":  func() { l.Clear() },
			"Values": func() { _ = slices.Collect(l.Values()) },
			"With":   func() { l.With(func(ListView[string]) {}) },
			"Lock":   func() { l.Lock() },
			"Locked": func() { l.Locked() },
		} {
			if _, err := panics(t, fn); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		}
	}
	check(gone, shm.ErrStale)
	if reuse.Len() != 0 {
		t.Error("a stale handle wrote into another list")
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	check(l, shm.ErrClosed)
}

func TestListOnCallersLock(t *testing.T) {
	onBoth(t, func(t *testing.T, m *Manager) {
		lock := Must(New[shmsync.Mutex](m))
		l, other := Must(NewSharedList[int](m, WithMutex(lock))), Must(NewSharedList[int](m, WithMutex(lock)))
		if l.Mutex() != lock.Ptr() {
			t.Error("Mutex is not the caller's lock")
		}
		lock.Ptr().Lock()
		if l.TryLock() || other.TryLock() {
			t.Error("TryLock took a lock that is held")
		}
		if err := errors.Join(l.Locked().Append(1), other.Locked().Append(2)); err != nil {
			t.Error(err)
		}
		lock.Ptr().Unlock()
		if v, ok := other.Pop(); !ok || v != 2 || l.At(0) != 1 {
			t.Errorf("popped %d %v", v, ok)
		}
	})
}

func TestListByName(t *testing.T) {
	m := mappedManager(t)
	l := Must(NewSharedList[string](m, Name("lines")))
	if err := l.Append("one"); err != nil {
		t.Fatal(err)
	}
	again := Must(NewSharedList[string](m, Name("lines"), OrOpen()))
	if got := again.At(0); got != "one" {
		t.Errorf("found %q", got)
	}
	if _, err := NewSharedList[string](m, Name("lines")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second one: %v", err)
	}
	if _, err := NewSharedList[[]byte](m, Name("lines"), OrOpen()); !errors.Is(err, shm.ErrTypeMismatch) {
		t.Errorf("as bytes: %v", err)
	}
}
