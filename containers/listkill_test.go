package containers

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm/proc"
)

var listMeddle = flag.Duration("list-meddle", 0, "how long processes meddle with a list; 0: some rounds")

var listKills = flag.Int("list-kills", 0, "processes that are killed while they change lists; 0: some")

// An editing is lists that a process changes over and over, step by step as Done counts: any other process knows what step n does.
type editing struct {
	M     *Manager
	Plain SharedList[int64]
	Wide  SharedList[quad]
	Texts SharedList[string]
	Done  AtomicInt
	Stop  AtomicInt
	Seed  uint64
}

func newEditing(m *Manager) editing {
	return editing{m, Must(NewSharedList[int64](m)), Must(NewSharedList[quad](m)), Must(NewSharedList[string](m)), Must(NewAtomicInt(m, 0)), Must(NewAtomicInt(m, 0)), rand.Uint64()}
}

// editStep does step n on l, and on model if that is not nil.
func editStep[T any](m *Manager, l SharedList[T], model *[]T, seed, n uint64, value func(n uint64) T, compare func(a, b T) int) error {
	r := rand.New(rand.NewPCG(seed, n))
	v, i, many := value(n), r.IntN(400)-200, slices.Repeat([]T{value(n)}, 1+r.IntN(30))
	op := r.IntN(24)
	if model != nil {
		s := *model
		at := clampInsert(i, len(s))
		switch {
		case op < 8:
			s = slices.Insert(s, at, v)
		case op < 10:
			s = slices.Insert(s, at, many...)
		case op < 17:
			if at < len(s) {
				s = slices.Delete(s, at, at+1)
			}
		case op < 19:
			slices.Reverse(s)
		case op == 19:
			slices.SortStableFunc(s, compare)
		case op == 20:
			s = s[:min(len(s), 300)]
		case len(s) > 3:
			s[2] = v
			s = append(s[1:], v)
		}
		*model = s
		return nil
	}
	switch {
	case op < 8:
		return l.Insert(i, v)
	case op < 10:
		return l.Insert(i, many...)
	case op < 17:
		if at := clampInsert(i, l.Len()); at < l.Len() {
			l.PopAt(at)
		}
		return nil
	case op < 19:
		return l.Reverse()
	case op == 19:
		return l.SortFunc(compare)
	case op == 20:
		l.Truncate(300)
		return nil
	}
	return m.Update(context.Background(), func(tx *Tx) error {
		if w := l.In(tx); w.Len() > 3 {
			w.Set(2, v)
			w.PopFirst()
			w.Append(v)
		}
		return nil
	})
}

func quadOf(n uint64) quad { return quad{n, n, n, n} }

// step does step n, on the lists or on the models.
func (e editing) step(n uint64, plain *[]int64, wide *[]quad, texts *[]string) error {
	switch n % 3 {
	case 0:
		return editStep(e.M, e.Plain, plain, e.Seed, n, func(n uint64) int64 { return int64(n) }, func(a, b int64) int { return cmp.Compare(a%50, b%50) })
	case 1:
		return editStep(e.M, e.Wide, wide, e.Seed, n, quadOf, compareQuads)
	}
	return editStep(e.M, e.Texts, texts, e.Seed, n, textOf, cmp.Compare[string])
}

var editsForEver = proc.Define("edits lists for ever", func(_ context.Context, e editing) error {
	for n := uint64(e.Done.Load()) + 1; e.Stop.Load() == 0; n++ {
		if err := e.step(n, nil, nil, nil); err != nil {
			return err
		}
		e.Done.Store(int64(n))
	}
	return nil
})

// Processes that change lists in all ways are killed: the lists are what all steps up to the last one known make of slices, or one step more, and no memory is lost.
func TestListEditsOutliveKills(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector does not look into mapped memory, and makes processes start slowly")
	}
	m := newManager(t)
	e := newEditing(m)
	t.Logf("seed %d", e.Seed)
	kills := *listKills
	if kills == 0 {
		kills = 10
	}
	var plain []int64
	var wide []quad
	var texts []string
	done, ahead := uint64(0), 0
	for k := range kills {
		killed(t, editsForEver, e, "it has worked", func() bool { return uint64(e.Done.Load()) > done+uint64(30+k%7*20) })
		same := func() bool { // as others see it who wait for nobody
			return slices.Equal(e.Plain.Slice(0, math.MaxInt), plain) && slices.Equal(e.Wide.Slice(0, math.MaxInt), wide) && slices.Equal(e.Texts.Slice(0, math.MaxInt), texts)
		}
		takeOver := func() { // the change may be one that becomes visible by recovery
			for _, l := range []interface {
				Lock()
				Unlock()
			}{e.Plain, e.Wide, e.Texts} {
				l.Lock()
				l.Unlock()
			}
		}
		for to := uint64(e.Done.Load()); done < to; done++ {
			e.step(done+1, &plain, &wide, &texts)
		}
		before := same()
		takeOver()
		if !same() {
			done++
			ahead++
			e.step(done, &plain, &wide, &texts)
			if !same() {
				t.Fatalf("killed in step %d: the lists are neither as before nor as after it", done)
			}
		} else if !before {
			t.Fatalf("killed in step %d: the lists looked otherwise before anybody took their locks", done+1)
		}
		e.Done.Store(int64(done))
		if err := errors.Join(e.Plain.Check(), e.Wide.Check(), e.Texts.Check()); err != nil {
			t.Fatalf("killed after step %d: %v", done, err)
		}
	}
	t.Logf("%d steps, %d of %d kills after the commit; %d, %d and %d elements", done, ahead, kills, len(plain), len(wide), len(texts))
}

// shuffle moves elements about; there are always all of them, but for one that is on its way.
func shuffle(l SharedList[quad], texts SharedList[string], r *rand.Rand) error {
	var errs []error
	for range 20 {
		if q, ok := l.PopAt(r.IntN(300)); ok {
			errs = append(errs, l.Insert(r.IntN(300), q))
		}
		if s, ok := texts.PopAt(r.IntN(60)); ok {
			errs = append(errs, texts.Insert(r.IntN(60), s))
		}
	}
	return errors.Join(append(errs, l.Reverse(), texts.Reverse(), l.SortFunc(compareQuads), Sort[string](texts))...)
}

var shuffles = proc.Define("shuffles lists", func(_ context.Context, e editing) error {
	r := rand.New(rand.NewPCG(e.Seed, 0))
	for e.Stop.Load() == 0 {
		if err := shuffle(e.Wide, e.Texts, r); err != nil {
			return err
		}
	}
	return nil
})

// lookAround sees at each moment all elements but one for each of the writers, none twice, and none torn.
func lookAround(t *testing.T, l SharedList[quad], texts SharedList[string], writers int) {
	all := l.Slice(0, math.MaxInt)
	seen := map[uint64]bool{}
	for _, q := range all {
		if q.torn() || q[0] >= 300 || seen[q[0]] {
			t.Fatalf("%v is torn, or there twice", q)
		}
		seen[q[0]] = true
	}
	if len(all) < 300-writers {
		t.Fatalf("%d elements", len(all))
	}
	strings := texts.Slice(0, math.MaxInt)
	slices.Sort(strings)
	if n := len(slices.Compact(strings)); n != len(strings) || n < 60-writers {
		t.Fatalf("%d strings, %d different ones", len(strings), n)
	}
	for i := range 8 {
		if q, ok := l.Get(i*37 - 140); !ok || q.torn() {
			t.Fatalf("torn %v", q)
		}
	}
	for q := range l.Values() {
		if q.torn() {
			t.Fatalf("torn %v", q)
		}
	}
	for s := range texts.Values() {
		if len(s) < 20 || s != textOf(uint64(len(s)-20)) {
			t.Fatalf("torn %q", s)
		}
	}
}

func TestReadersSeeEachElementOnceWhileOthersMove(t *testing.T) {
	fill := func(t *testing.T, e editing) {
		for i := range uint64(300) {
			if err := e.Wide.Append(quadOf(i)); err != nil {
				t.Fatal(err)
			}
		}
		for i := range uint64(60) {
			if err := e.Texts.Append(textOf(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	rounds := 300
	if raceEnabled {
		rounds = 30
	}
	t.Run("writer=process", func(t *testing.T) {
		if raceEnabled {
			t.Skip("the race detector does not look into mapped memory")
		}
		e := newEditing(newManager(t))
		fill(t, e)
		p, err := shuffles.Start(deadline(t), e)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Kill()
		was := e.Wide.obj.words[listSeq].Load()
		until(t, "it writes", func() bool { return e.Wide.obj.words[listSeq].Load() > was+1000 })
		for range rounds {
			lookAround(t, e.Wide, e.Texts, 1)
		}
		e.Stop.Store(1)
		if err := errors.Join(p.Wait(), e.Wide.Check(), e.Texts.Check()); err != nil {
			t.Error(err)
		}
	})
	t.Run("writers=goroutines", func(t *testing.T) {
		e := newEditing(newHeapManager(t))
		fill(t, e)
		var stop atomic.Bool
		var wg sync.WaitGroup
		for w := range uint64(2) {
			wg.Go(func() {
				for r := rand.New(rand.NewPCG(e.Seed, w)); !stop.Load(); {
					if err := shuffle(e.Wide, e.Texts, r); err != nil {
						t.Error(err)
					}
				}
			})
		}
		defer wg.Wait()
		defer stop.Store(true)
		for range rounds {
			lookAround(t, e.Wide, e.Texts, 2)
		}
	})
}

// A reader finds each element, before anybody repairs, of a list whose writer stands still in the middle of moving them.
func TestReadersWaitForNobodyInTheMiddleOfAMove(t *testing.T) {
	m := newHeapManager(t)
	l := Must(NewSharedList[int64](m))
	if err := l.AppendN(make([]int64, 3000)...); err != nil {
		t.Fatal(err)
	}
	for i := range 3000 {
		if err := l.Set(i, int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	seq := &l.obj.words[listSeq]
	steps, last := 0, seq.Load()
	txn.OnStore = func(unsafe.Pointer, uintptr) {
		if s := seq.Load(); s != last && s&listMode == listSettling {
			if last = s; steps == 2 {
				panic(errCut)
			}
			steps++
		}
	}
	if text, _ := panics(t, func() { l.PopAt(1600) }); text != errCut.Error() {
		t.Fatalf("panic %q", text)
	}
	txn.OnStore = nil
	want := slices.Delete(slices.Collect(func(yield func(int64) bool) {
		for i := range int64(3000) {
			if !yield(i) {
				return
			}
		}
	}), 1600, 1601)
	if got := l.Slice(0, 9999); !slices.Equal(got, want) || l.TryLock() {
		t.Errorf("%d elements, or the lock is free", len(got))
	}
	if l.At(1599) != 1599 || l.At(1600) != 1601 || l.At(-1) != 2999 || l.Len() != 2999 {
		t.Error("an element is another one")
	}
	if err := l.settle(); err != nil {
		t.Fatal(err)
	}
	l.Unlock()
}

var usesList = proc.Define("uses a list as Python's test does", func(_ context.Context, l SharedList[int64]) error {
	if Count[int64](l, 0) != 2 || Index[int64](l, 7) != 2 {
		return errors.New("it finds other elements")
	}
	if err := errors.Join(Sort[int64](l), l.Reverse()); err != nil {
		return err
	}
	if got := slices.Collect(l.Values()); !slices.Equal(got, []int64{7, 5, 0, 0}) {
		return errors.New("it is in another order")
	}
	for range l.Len() {
		l.Pop()
	}
	return nil
})

func TestChildCountsSortsReversesAndEmptiesAList(t *testing.T) {
	l := Must(NewSharedList[int64](newManager(t)))
	if err := errors.Join(l.AppendN(0, 5, 7, 0), usesList.Run(deadline(t), l)); err != nil {
		t.Fatal(err)
	}
	if l.Len() != 0 {
		t.Errorf("%v is left", l.Slice(0, 9))
	}
}

// meddles inserts, removes, clears and goes over a list that others change too.
var meddles = proc.Define("meddles with a list", func(_ context.Context, e editing) error {
	r := rand.New(rand.NewPCG(e.Seed, 1))
	for e.Stop.Load() == 0 {
		n := r.Uint64N(100)
		if err := e.Texts.Insert(r.IntN(20)-10, textOf(n)); err != nil {
			return err
		}
		switch r.IntN(40) {
		case 0:
			e.Texts.Clear()
		case 1:
			if err := Sort[string](e.Texts); err != nil {
				return err
			}
		default:
			Remove[string](e.Texts, textOf(r.Uint64N(100)))
			e.Texts.PopAt(r.IntN(10))
		}
		for s := range e.Texts.Values() {
			if len(s) < 20 || s != textOf(uint64(len(s)-20)) {
				return errors.New("it reads what nobody has put in: " + s)
			}
		}
		e.Done.Add(1)
	}
	return nil
})

func TestProcessesMeddleWithAList(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector does not look into mapped memory, and makes processes start slowly")
	}
	e := newEditing(newManager(t))
	var all []*proc.Process
	for range 4 {
		e.Seed++
		p, err := meddles.Start(deadline(t), e)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	rounds := int64(4000)
	if testing.Short() {
		rounds = 1000
	}
	start := time.Now()
	for end := start.Add(*listMeddle + 40*time.Second); (e.Done.Load() < rounds || time.Since(start) < *listMeddle) && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if e.Done.Load() < rounds {
		t.Error("they have stuck")
	}
	e.Stop.Store(1)
	for _, p := range all {
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
		p.Close()
	}
	if err := e.Texts.Check(); err != nil {
		t.Error(err)
	}
}
