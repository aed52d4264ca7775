package containers

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// Histories of calls that several goroutines of several processes make on one object, some of which are killed, are checked for
// linearizability: there must be one order of all calls, each between its beginning and its end, in which an object that
// is used by one alone gives the same answers. A call that a kill has cut off has happened, or has not, or happens when a survivor finishes it: until then
// readers without the lock see what was before.

const (
	historyProcs = 8 // of one history, at most; each has its own page, also those that replace others
	historyHands = 2
	historyCalls = 120
)

// A journal is what the processes of a history write their calls down in.
type journal struct {
	stamp atomic.Int64 // the order of all that is written down
	begun atomic.Int64 // calls
	stop  atomic.Int64
	pages [historyProcs][historyHands][historyCalls]journaled
}

// A journaled call. ended is stored last, and 0 if a kill came before.
type journaled struct {
	what, a, b   atomic.Int64 // the call and its arguments
	began, ended atomic.Int64
	ok, result   atomic.Int64
}

func openJournal(r *shm.Region) *journal {
	j, err := shm.At[journal](r, r.Data())
	if err != nil {
		panic(err)
	}
	return j
}

// A call, and what came out.
type callOf struct {
	what, a, b int64
	ok, result int64
	cut        bool // off by a kill: what came out is not known
}

// A subject is an object whose histories are looked at, and the same object as it is for one who uses it alone.
type subject interface {
	// call chooses a call.
	call() (what, a, b int64)
	// do makes it on the shared object.
	do(what, a, b int64) (ok bool, result int64)
	// first is what the object is at first, and next what it is after a call, and what the call answers.
	first() string
	next(state string, what, a, b int64) (after string, ok bool, result int64)
}

// A historian is what each process of a history is told.
type historian struct {
	Journal *shm.Region
	Number  int
	Subject int
	Dies    int // in which of its first goroutine's calls, or about then; 0: never
	Wide    Shared[broad]
	List    SharedList[broad]
	Map     SharedMap[int64, broad]
	Queue   SharedQueue[broad]
}

// subjects are made from the handles.
func (h historian) subject() subject {
	switch h.Subject {
	case subjectRegister:
		return register{h.Wide}
	case subjectList:
		return deck{h.List}
	case subjectMap:
		return dictionary{h.Map}
	case subjectQueue:
		return line{h.Queue}
	case subjectTorn:
		return tornRegister{register{h.Wide}}
	case subjectForgetful:
		return forgetfulDeck{deck{h.List}}
	}
	panic("no such subject")
}

const (
	subjectRegister = iota
	subjectList
	subjectMap
	subjectQueue
	subjectTorn
	subjectForgetful
)

var writeHistory = proc.Define("containers: write a history", func(_ context.Context, h historian) error {
	j := openJournal(h.Journal)
	var wg sync.WaitGroup
	for i := range historyHands {
		wg.Go(func() {
			var ready, inside atomic.Bool
			s := h.subject()
			page := &j.pages[h.Number][i]
			for k := 0; k < len(page) && j.stop.Load() == 0; k++ {
				e := &page[k]
				what, a, b := s.call()
				j.begun.Add(1)
				e.a.Store(a)
				e.b.Store(b)
				e.what.Store(what)
				if i == 0 && h.Dies != 0 && k == h.Dies {
					go die(&ready, &inside)
					for !ready.Load() {
						runtime.Gosched()
					}
				}
				e.began.Store(j.stamp.Add(1))
				inside.Store(i == 0)
				ok, result := s.do(what, a, b)
				inside.Store(false)
				e.result.Store(result)
				if ok {
					e.ok.Store(1)
				}
				e.ended.Store(j.stamp.Add(1))
				if rand.IntN(4) == 0 && (h.Dies == 0 || k < h.Dies) {
					time.Sleep(time.Duration(rand.IntN(50)) * time.Microsecond)
				}
			}
		})
	}
	wg.Wait()
	return nil
})

// die kills this process while it is inside a call, or a moment later.
func die(ready, inside *atomic.Bool) {
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		panic(err)
	}
	for ready.Store(true); !inside.Load(); {
	}
	for range rand.IntN(200) {
		inside.Load()
	}
	panic(self.Kill())
}

// historyOf has processes use one object, some of which kill themselves, and returns the history.
func historyOf(t *testing.T, h historian, procs, kills int) []porcupine.Operation {
	t.Helper()
	r, err := shm.Anonymous(shm.Size(4<<20), shm.Limit(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h.Journal = r
	j := openJournal(r)
	ctx := deadline(t)
	var ps []*proc.Process
	gone := map[int]int64{}
	begin := func() {
		h.Number, h.Dies = len(ps), 0
		if len(ps) < kills {
			h.Dies = 1 + rand.IntN(30)
		}
		p, err := writeHistory.Start(ctx, h, proc.Daemon())
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	for range procs {
		begin()
	}
	for seen := 0; seen < len(ps); time.Sleep(20 * time.Microsecond) {
		seen = 0
		for i, p := range ps {
			switch {
			case gone[i] != 0:
				seen++
			case !p.Alive():
				seen++
				if code, _ := p.ExitCode(); code != 0 && gone[i] == 0 {
					gone[i] = j.stamp.Add(1)
					begin()
				}
			}
		}
		if j.begun.Load() >= 300 && len(ps) >= kills {
			break
		}
	}
	j.stop.Store(1)
	for i, p := range ps {
		switch err := p.Wait(); {
		case gone[i] != 0:
		case err != nil && i < kills: // it was to die, and did after we had looked
			wantKilled(t, err)
			gone[i] = j.stamp.Add(1)
		case err != nil:
			t.Fatal(err)
		}
	}
	var all []porcupine.Operation
	for p := range j.pages {
		for i := range j.pages[p] {
			for k := range j.pages[p][i] {
				e := &j.pages[p][i][k]
				if e.began.Load() == 0 {
					break
				}
				c := callOf{e.what.Load(), e.a.Load(), e.b.Load(), e.ok.Load(), e.result.Load(), e.ended.Load() == 0}
				end := e.ended.Load()
				if c.cut {
					if gone[p] == 0 {
						t.Fatalf("a call of process %d has no end, and nobody killed it", p)
					}
					end = math.MaxInt64
				}
				all = append(all, porcupine.Operation{ClientId: p*historyHands + i, Input: c, Call: e.began.Load(), Return: end})
			}
		}
	}
	return all
}

// modelOf returns a subject used by one alone.
func modelOf(s subject) porcupine.Model {
	return (&porcupine.NondeterministicModel{
		Init: func() []any { return []any{s.first()} },
		Step: func(state, input, _ any) (all []any) {
			c := input.(callOf)
			after, ok, result := s.next(state.(string), c.what, c.a, c.b)
			switch {
			case c.cut:
				return []any{state, after}
			case ok == (c.ok != 0) && result == c.result:
				return []any{after}
			}
			return nil
		},
	}).ToModel()
}

func checkHistory(t *testing.T, s subject, history []porcupine.Operation) bool {
	t.Helper()
	switch porcupine.CheckOperationsTimeout(modelOf(s), history, time.Minute) {
	case porcupine.Ok:
		return true
	case porcupine.Unknown:
		t.Fatalf("a history of %d calls was not decided in a minute", len(history))
	}
	return false
}

// elementsOf returns what a state of a model holds, and stateOf makes one.
func elementsOf(state string) []int64 {
	all := make([]int64, len(state)/8)
	for i := range all {
		all[i] = int64(binary.BigEndian.Uint64([]byte(state[8*i:])))
	}
	return all
}

func stateOf(all []int64) string {
	var b []byte
	for _, n := range all {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return string(b)
}

// A broad value takes long enough to copy that a kill falls into it. All of its elements follow from the first.
type broad [256]int64

func broadOf(n int64) (v broad) {
	for i := range v {
		v[i] = n ^ int64(i)
	}
	return v
}

// number returns what v says; false if it is torn.
func (v *broad) number() (int64, bool) { return v[0], *v == broadOf(v[0]) }

// A register is read, set, added to and, in one call, compared and set.
type register struct{ h Shared[broad] }

const (
	registerLoad = iota
	registerStore
	registerAdd
	registerSwap
)

func (register) call() (what, a, b int64) {
	return rand.Int64N(4), rand.Int64N(5), rand.Int64N(5)
}

func (r register) do(what, a, b int64) (ok bool, result int64) {
	switch what {
	case registerLoad:
		v := r.h.Load()
		result, ok = v.number()
		return ok, result
	case registerStore:
		r.h.Store(broadOf(a))
	case registerAdd:
		r.h.With(func(v *broad) {
			result = v[0] + a
			*v = broadOf(result)
		})
	case registerSwap:
		err := r.h.Update(context.Background(), func(v *broad) error {
			if v[0] != a {
				return fmt.Errorf("%d, not %d", v[0], a)
			}
			*v = broadOf(b)
			return nil
		})
		return err == nil, 0
	}
	return true, result
}

func (register) first() string { return stateOf([]int64{0}) }

func (register) next(state string, what, a, b int64) (after string, ok bool, result int64) {
	v := elementsOf(state)[0]
	switch what {
	case registerLoad:
		return state, true, v
	case registerStore:
		return stateOf([]int64{a}), true, 0
	case registerAdd:
		return stateOf([]int64{v + a}), true, v + a
	}
	if v != a {
		return state, false, 0
	}
	return stateOf([]int64{b}), true, 0
}

// A deck is a list that is used at both ends and in the middle.
type deck struct{ l SharedList[broad] }

const (
	deckAppend = iota
	deckPop
	deckPopFirst
	deckGet
	deckLen
	deckExtend
	deckClear
)

func (deck) call() (what, a, b int64) {
	what = rand.Int64N(deckClear)
	if rand.IntN(30) == 0 {
		what = deckClear
	}
	return what, rand.Int64N(6), rand.Int64N(1000)
}

func (d deck) do(what, a, b int64) (ok bool, result int64) {
	var v broad
	switch what {
	case deckAppend:
		ok = d.l.Append(broadOf(b)) == nil
	case deckExtend:
		ok = d.l.AppendN(broadOf(b), broadOf(b+1)) == nil
	case deckPop:
		v, ok = d.l.Pop()
	case deckPopFirst:
		v, ok = d.l.PopFirst()
	case deckGet:
		v, ok = d.l.Get(int(a) - 3)
	case deckLen:
		ok, result = true, int64(d.l.Len())
	case deckClear:
		d.l.Clear()
		ok = true
	}
	if ok && (what == deckPop || what == deckPopFirst || what == deckGet) {
		if result, ok = v.number(); !ok {
			result = -1 // torn: no model says so
		}
	}
	return ok, result
}

func (deck) first() string { return "" }

func (deck) next(state string, what, a, b int64) (after string, ok bool, result int64) {
	all := elementsOf(state)
	n := len(all)
	switch what {
	case deckAppend:
		return stateOf(append(all, b)), true, 0
	case deckExtend:
		return stateOf(append(all, b, b+1)), true, 0
	case deckLen:
		return state, true, int64(n)
	case deckClear:
		return "", true, 0
	case deckGet:
		i := int(a) - 3
		if i < 0 {
			i += n
		}
		if i < 0 || i >= n {
			return state, false, 0
		}
		return state, true, all[i]
	}
	if n == 0 {
		return state, false, 0
	}
	if what == deckPop {
		return stateOf(all[:n-1]), true, all[n-1]
	}
	return stateOf(all[1:]), true, all[0]
}

// A dictionary is a map with few keys; in the model, 0 stands for no value.
type dictionary struct{ m SharedMap[int64, broad] }

const (
	dictionaryGet = iota
	dictionaryPut
	dictionaryDelete
	dictionaryGetOrPut
	dictionaryKeys = 3
)

func (dictionary) call() (what, a, b int64) {
	return rand.Int64N(4), rand.Int64N(dictionaryKeys), 1 + rand.Int64N(1000)
}

func (d dictionary) do(what, a, b int64) (ok bool, result int64) {
	var v broad
	switch what {
	case dictionaryGet:
		v, ok = d.m.Get(a)
	case dictionaryPut:
		return d.m.Put(a, broadOf(b)) == nil, 0
	case dictionaryDelete:
		return d.m.Delete(a), 0
	case dictionaryGetOrPut:
		var err error
		if v, ok, err = d.m.GetOrPut(a, broadOf(b)); err != nil {
			return false, -1
		}
	}
	if ok || what == dictionaryGetOrPut {
		whole := false
		if result, whole = v.number(); !whole {
			result = -1 // torn: no model says so
		}
	}
	return ok, result
}

func (dictionary) first() string { return stateOf(make([]int64, dictionaryKeys)) }

func (dictionary) next(state string, what, a, b int64) (after string, ok bool, result int64) {
	all := elementsOf(state)
	was := all[a]
	switch what {
	case dictionaryGet:
		return state, was != 0, was
	case dictionaryDelete:
		all[a] = 0
		return stateOf(all), was != 0, 0
	case dictionaryGetOrPut:
		if was != 0 {
			return state, true, was
		}
		all[a] = b
		return stateOf(all), false, b
	}
	all[a] = b
	return stateOf(all), true, 0
}

// A line is a queue that nobody waits for.
type line struct{ q SharedQueue[broad] }

const (
	lineGet = iota
	linePut
	lineLen
	lineCapacity = 3
)

func (line) call() (what, a, b int64) { return rand.Int64N(3), 0, rand.Int64N(1000) }

func (l line) do(what, _, b int64) (ok bool, result int64) {
	switch what {
	case lineGet:
		v, ok, err := l.q.TryGet()
		if err != nil {
			return false, -1
		}
		if ok {
			if result, ok = v.number(); !ok {
				result = -1
			}
		}
		return ok, result
	case linePut:
		ok, err := l.q.TryPut(broadOf(b))
		return ok && err == nil, 0
	}
	return true, int64(l.q.Len())
}

func (line) first() string { return "" }

func (line) next(state string, what, _, b int64) (after string, ok bool, result int64) {
	all := elementsOf(state)
	switch {
	case what == lineLen:
		return state, true, int64(len(all))
	case what == linePut && len(all) == lineCapacity, what == lineGet && len(all) == 0:
		return state, false, 0
	case what == linePut:
		return stateOf(append(all, b)), true, 0
	}
	return stateOf(all[1:]), true, all[0]
}

// A torn register is written in two steps, and a forgetful deck drops what it is given now and then: the check must find them.
type tornRegister struct{ register }

func (r tornRegister) do(what, a, b int64) (ok bool, result int64) {
	if what == registerAdd { // not under one lock
		v := r.h.Load()
		n := v[0]
		time.Sleep(20 * time.Microsecond)
		r.h.Store(broadOf(n + a))
		return true, n + a
	}
	return r.register.do(what, a, b)
}

type forgetfulDeck struct{ deck }

func (d forgetfulDeck) do(what, a, b int64) (ok bool, result int64) {
	if what == deckAppend && rand.IntN(8) == 0 {
		return true, 0
	}
	return d.deck.do(what, a, b)
}

// newHistorian makes objects for one history.
func newHistorian(t *testing.T, subject int) historian {
	m := newManager(t)
	return historian{
		Subject: subject,
		Wide:    Must(NewShared(m, broadOf(0))),
		List:    Must(NewSharedList[broad](m)),
		Map:     Must(NewSharedMap[int64, broad](m)),
		Queue:   Must(NewSharedQueue[broad](m, lineCapacity)),
	}
}

func TestHistoriesOfProcessesThatAreKilledAreLinearizable(t *testing.T) {
	rounds := 12
	if testing.Short() || raceEnabled { // there the end of a process takes long
		rounds = 2
	}
	for what, name := range map[int]string{subjectRegister: "register", subjectList: "list", subjectMap: "map", subjectQueue: "queue"} {
		t.Run(name, func(t *testing.T) {
			calls, cut, seen := 0, 0, map[int64]int{}
			for i := 0; i < rounds || rounds > 2 && cut == 0 && i < 20*rounds; i++ {
				h := newHistorian(t, what)
				history := historyOf(t, h, 2+i%2, 4)
				if !checkHistory(t, h.subject(), history) {
					slices.SortFunc(history, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
					for _, o := range history {
						t.Logf("%d to %d: %d: %+v", o.Call, o.Return, o.ClientId, o.Input)
					}
					t.Fatalf("history %d is not linearizable", i)
				}
				for _, o := range history {
					c := o.Input.(callOf)
					calls++
					seen[c.what]++
					if c.cut {
						cut++
					}
				}
			}
			t.Logf("%d calls in all, %d cut off, by kind %v", calls, cut, seen)
			if calls < 50*rounds {
				t.Errorf("%d calls in %d histories are too few to say anything", calls, rounds)
			}
			if rounds > 2 && cut == 0 {
				t.Error("no kill has cut off a call")
			}
		})
	}
}

// The check is worth something if it refuses what broken objects do.
func TestHistoriesOfBrokenContainersAreNotLinearizable(t *testing.T) {
	for what, name := range map[int]string{subjectTorn: "adds in two steps", subjectForgetful: "drops what it is given"} {
		t.Run(name, func(t *testing.T) {
			for range 50 {
				h := newHistorian(t, what)
				if !checkHistory(t, h.subject(), historyOf(t, h, 2, 1)) {
					return
				}
			}
			t.Error("50 histories, and nothing was found")
		})
	}
}
