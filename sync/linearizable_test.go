package sync_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// Histories of calls of several processes, some of which are killed, are checked for linearizability: there
// must be one order of all calls, each between its beginning and its end, that a lock allows which makes one
// call at a time. A call that holds the lock between two steps, such as Recover, is two of them. What a
// process was about to do when it was killed it has done, or half done, or not done, and all of that before
// the kernel said that it was gone.

const (
	chronicleProcs = 8 // of one history, at most; each has its own page, also those that replace others
	chronicleHands = 2
	chronicleCalls = 100
)

// A chronicle is what the processes of a history share.
type chronicle struct {
	mu    shmsync.Mutex
	_     [56]byte
	stamp atomic.Int64 // the order of all that is written down
	begun atomic.Int64 // calls
	stop  atomic.Int64
	_     [40]byte
	calls [chronicleProcs][chronicleHands][chronicleCalls]chronicled
}

// A chronicled call. Its stamps are 0 for what has not been reached; ended is stored last.
type chronicled struct {
	call, outcome atomic.Int64
	began         atomic.Int64
	repair        atomic.Int64 // the beginning of Recover's function, and its end
	repaired      atomic.Int64
	ended         atomic.Int64
	_             [16]byte
}

const (
	callLock = iota + 1
	callLockContext
	callTryLock
	callLockTimeout
	callUnlock
	callRecover
	callRecoverInVain // the repair fails
)

const (
	outcomeHeld = iota + 1
	outcomeRefused
	outcomeInconsistent
	outcomeReleased
	outcomeRecovered
	outcomeNotRecovered
	outcomeHealthy
	outcomeOther
)

func openChronicle(r *shm.Region) *chronicle {
	c, err := shm.At[chronicle](r, r.Data())
	if err != nil {
		panic(err)
	}
	return c
}

func (c *chronicle) now() int64 { return c.stamp.Add(1) }

// A chronicler is a goroutine that writes its calls down.
type chronicler struct {
	*chronicle
	page *[chronicleCalls]chronicled
	used int
	lock chronicledLock
}

// chronicledLock is a Mutex, or one that is broken.
type chronicledLock interface {
	Lock()
	LockContext(context.Context) error
	TryLock() bool
	LockTimeout(time.Duration) bool
	Unlock()
	Recover(context.Context, func(shm.Death) error) error
}

var errInVain = errors.New("repaired in vain")

// record makes a call and writes it down.
func (h *chronicler) record(call int64) (outcome int64) {
	e := &h.page[h.used]
	h.used++
	h.begun.Add(1)
	e.call.Store(call)
	e.began.Store(h.now())
	outcome = h.make(call, e)
	e.outcome.Store(outcome)
	e.ended.Store(h.now())
	return outcome
}

func (h *chronicler) make(call int64, e *chronicled) (outcome int64) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case *shmsync.OwnerDiedError:
			outcome = outcomeInconsistent
		default:
			panic(r)
		}
	}()
	ok := true
	var err error
	switch call {
	case callLock:
		h.lock.Lock()
	case callLockContext:
		err = h.lock.LockContext(context.Background())
	case callTryLock:
		ok = h.lock.TryLock()
	case callLockTimeout:
		ok = h.lock.LockTimeout(time.Duration(rand.IntN(300)-50) * time.Microsecond)
	case callUnlock:
		h.lock.Unlock()
		return outcomeReleased
	case callRecover, callRecoverInVain:
		err = h.lock.Recover(context.Background(), func(shm.Death) error {
			e.repair.Store(h.now())
			dawdle()
			e.repaired.Store(h.now())
			if call == callRecoverInVain {
				return errInVain
			}
			return nil
		})
		switch {
		case err == nil:
			return outcomeRecovered
		case errors.Is(err, errInVain):
			return outcomeNotRecovered
		case errors.Is(err, shmsync.ErrNotInconsistent):
			return outcomeHealthy
		}
	}
	switch {
	case errors.Is(err, shmsync.ErrInconsistent):
		return outcomeInconsistent
	case err != nil:
		return outcomeOther
	case !ok:
		return outcomeRefused
	}
	return outcomeHeld
}

// dawdle takes a random while, mostly short.
func dawdle() {
	switch n := rand.IntN(40); {
	case n == 0:
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
	case n < 8:
		time.Sleep(10 * time.Microsecond)
	default:
		for end := time.Now().Add(time.Duration(n) * 100); time.Now().Before(end); {
		}
	}
}

// write makes calls until there is no room for more, or it is told to stop.
func (h *chronicler) write() {
	for h.stop.Load() == 0 && h.used+2 <= len(h.page) {
		switch h.record(callLock + rand.Int64N(4)) {
		case outcomeHeld:
			dawdle()
			h.record(callUnlock)
		case outcomeInconsistent:
			call := int64(callRecover)
			if rand.IntN(4) == 0 {
				call = callRecoverInVain
			}
			h.record(call)
		}
		dawdle()
	}
}

// What a chronicled lock is.
const (
	soundLock = iota
	leakyLock
	forgetfulLock
)

// A leaky lock lets in whom it should refuse.
type leaky struct {
	*shmsync.Mutex
	leaked bool
}

func (l *leaky) TryLock() bool {
	l.leaked = !l.Mutex.TryLock()
	return true
}

func (l *leaky) Unlock() {
	if !l.leaked {
		l.Mutex.Unlock()
	}
	l.leaked = false
}

// A forgetful lock tells nobody that its holder has died.
type forgetful struct{ *shmsync.Mutex }

func (f *forgetful) Lock() { f.LockContext(context.Background()) }

func (f *forgetful) LockContext(ctx context.Context) error {
	return f.LockRepaired(ctx, func(shm.Death) error { return nil })
}

var writeChronicle = proc.Define("write a chronicle", func(_ context.Context, o order) error {
	c := openChronicle(o.Region)
	var wg stdsync.WaitGroup
	for i := range chronicleHands {
		locks := [...]chronicledLock{&c.mu, &leaky{Mutex: &c.mu}, &forgetful{&c.mu}}
		h := &chronicler{chronicle: c, page: &c.calls[o.Number][i], lock: locks[o.Rounds]}
		wg.Go(h.write)
	}
	wg.Wait()
	return nil
})

// A lockState is the lock that makes one call at a time: who holds it, 0 for nobody, and whether it is
// inconsistent.
type lockState struct {
	holder int // process times chronicleHands, and the goroutine, plus one
	dirty  bool
}

// A lockStep is one step of a call.
type lockStep struct {
	what   int
	by     int    // as a holder
	killed uint64 // the processes that were killed, or about to be, before the step ended
	sure   bool   // else it may have been cut off before
}

const (
	stepAcquire = iota // a lock that is free and consistent
	stepInherit        // one that is free and inconsistent, or held by the dead
	stepEither
	stepRefused        // by try: it is held or inconsistent
	stepTimedOut       // it is held
	stepRelease        // a consistent one, which stays so
	stepReleaseDirty   // an inconsistent one, which stays so
	stepReleaseMended  // an inconsistent one, which is consistent then
	stepReleaseAnyhow  // of the last two, one
	stepReleaseUnasked // of the first two, one
)

// next returns what the state may be after a step that was not cut off.
func (s lockState) next(t lockStep) (all []lockState) {
	free := s.holder == 0
	mine := s.holder == t.by
	orphaned := !free && t.killed&(1<<((s.holder-1)/chronicleHands)) != 0
	add := func(ok bool, n lockState) {
		if ok {
			all = append(all, n)
		}
	}
	switch t.what {
	case stepAcquire:
		add(free && !s.dirty, lockState{t.by, false})
	case stepInherit:
		add(free && s.dirty || orphaned, lockState{t.by, true})
	case stepEither:
		add(free && !s.dirty, lockState{t.by, false})
		add(free && s.dirty || orphaned, lockState{t.by, true})
	case stepRefused:
		add(!free || s.dirty, s)
	case stepTimedOut:
		add(!free, s)
	case stepRelease:
		add(mine && !s.dirty, lockState{})
	case stepReleaseDirty:
		add(mine && s.dirty, lockState{0, true})
	case stepReleaseMended:
		add(mine && s.dirty, lockState{})
	case stepReleaseAnyhow:
		add(mine && s.dirty, lockState{})
		add(mine && s.dirty, lockState{0, true})
	case stepReleaseUnasked:
		add(mine, lockState{0, s.dirty})
	}
	return all
}

var lockModel = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{lockState{}} },
	Step: func(state, input, _ any) (all []any) {
		t := input.(lockStep)
		for _, s := range state.(lockState).next(t) {
			all = append(all, s)
		}
		if !t.sure {
			all = append(all, state)
		}
		return all
	},
}).ToModel()

// An obituary says when a process was killed, and when it was gone.
type obituary struct{ killed, gone int64 }

// steps returns the steps of a call by somebody of process p, given who was killed.
func (e *chronicled) steps(p, by int, dead map[int]obituary) (all []porcupine.Operation, err error) {
	began, repair, repaired, ended := e.began.Load(), e.repair.Load(), e.repaired.Load(), e.ended.Load()
	end := ended
	if ended == 0 {
		if dead[p].killed == 0 {
			return nil, fmt.Errorf("a call of process %d has no end, and nobody killed it", p)
		}
		end = dead[p].gone
	}
	add := func(what int, from, to int64, sure bool) {
		t := lockStep{what: what, by: by, sure: sure}
		for q, d := range dead {
			if q != p && d.killed < to {
				t.killed |= 1 << q
			}
		}
		all = append(all, porcupine.Operation{ClientId: by, Input: t, Call: from, Return: to})
	}
	call, outcome := e.call.Load(), e.outcome.Load()
	switch recovering := call == callRecover || call == callRecoverInVain; {
	case began == 0: // killed before
	case ended == 0 && call == callUnlock:
		add(stepRelease, began, end, false)
	case ended == 0 && !recovering:
		add(stepEither, began, end, false)
		add(stepReleaseDirty, began, end, false)
	case ended == 0 && repair == 0:
		add(stepEither, began, end, false)
		add(stepReleaseUnasked, began, end, false)
	case ended == 0:
		add(stepInherit, began, repair, true)
		if repaired != 0 {
			add(stepReleaseAnyhow, repaired, end, false)
		}
	case outcome == outcomeHeld:
		add(stepAcquire, began, end, true)
	case outcome == outcomeInconsistent:
		add(stepInherit, began, end, true)
		add(stepReleaseDirty, began, end, true)
	case outcome == outcomeRefused && call == callTryLock:
		add(stepRefused, began, end, true)
	case outcome == outcomeRefused && call == callLockTimeout:
		add(stepTimedOut, began, end, true)
	case outcome == outcomeReleased:
		add(stepRelease, began, end, true)
	case outcome == outcomeHealthy:
		add(stepAcquire, began, end, true)
		add(stepRelease, began, end, true)
	case outcome == outcomeRecovered && repaired != 0:
		add(stepInherit, began, repair, true)
		add(stepReleaseMended, repaired, end, true)
	case outcome == outcomeNotRecovered && repaired != 0:
		add(stepInherit, began, repair, true)
		add(stepReleaseDirty, repaired, end, true)
	default:
		return nil, fmt.Errorf("call %d of process %d came out as %d, repair from %d to %d", call, p, outcome, repair, repaired)
	}
	return all, nil
}

// history returns the steps of all calls.
func (c *chronicle) history(dead map[int]obituary) (all []porcupine.Operation, err error) {
	for p := range c.calls {
		for i := range c.calls[p] {
			for k := range c.calls[p][i] {
				e := &c.calls[p][i][k]
				if e.call.Load() == 0 {
					break
				}
				steps, wrong := e.steps(p, p*chronicleHands+i+1, dead)
				all, err = append(all, steps...), errors.Join(err, wrong)
			}
		}
	}
	return all, err
}

// compile has processes use one lock, kills some of them, and returns the history.
func compile(t *testing.T, kind, seats, kills int) []porcupine.Operation {
	t.Helper()
	r, err := shm.Anonymous(shm.Size(1<<20), shm.Limit(2<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := openChronicle(r)
	dead := map[int]obituary{}
	var ps []*proc.Process
	fill := func() { ps = append(ps, start(t, writeChronicle, r, len(ps), kind)) }
	for range seats {
		fill()
	}
	ended := func() bool {
		for p, o := range ps {
			if dead[p].gone == 0 && o.Alive() {
				return false
			}
		}
		return true
	}
	for range kills {
		enough := c.begun.Load() + 40 + rand.Int64N(20)
		until(t, "more calls", func() bool { return c.begun.Load() >= enough || ended() })
		p := rand.IntN(len(ps))
		if dead[p].gone == 0 && ps[p].Alive() {
			killed := c.now()
			ps[p].Kill()
			<-ps[p].Done()
			if code, _ := ps[p].ExitCode(); code == 0 { // it was faster
				continue
			}
			dead[p] = obituary{killed, c.now()}
			fill()
		}
	}
	until(t, "the last calls", func() bool { return c.begun.Load() >= 300 || ended() })
	c.stop.Store(1)
	for p, o := range ps {
		if dead[p].gone == 0 {
			wait(t, o)
		}
	}
	all, err := c.history(dead)
	if err != nil {
		t.Error(err)
	}
	return all
}

// linearizable checks a history.
func linearizable(t *testing.T, history []porcupine.Operation) bool {
	t.Helper()
	switch porcupine.CheckOperationsTimeout(lockModel, history, time.Minute) {
	case porcupine.Ok:
		return true
	case porcupine.Unknown:
		t.Fatalf("a history of %d steps was not decided in a minute", len(history))
	}
	return false
}

func TestMutexHistoriesOfProcessesThatAreKilledAreLinearizable(t *testing.T) {
	rounds := 30
	if testing.Short() || shmsync.RaceEnabled { // there the end of a process takes a second
		rounds = 4
	}
	count := map[int]int{}
	unsure := 0
	for i := range rounds {
		history := compile(t, soundLock, 2+i%2, 4)
		if t.Failed() {
			return
		}
		for _, o := range history {
			count[o.Input.(lockStep).what]++
			if !o.Input.(lockStep).sure {
				unsure++
			}
		}
		if !linearizable(t, history) {
			for _, o := range history {
				t.Logf("%d to %d: %+v", o.Call, o.Return, o.Input)
			}
			t.Fatalf("history %d is not linearizable", i)
		}
	}
	t.Logf("%d histories; steps by kind: %v, cut off: %d", rounds, count, unsure)
	for _, what := range []int{stepAcquire, stepRefused, stepTimedOut, stepRelease} {
		if count[what] == 0 {
			t.Errorf("no step of kind %d was seen", what)
		}
	}
}

// The check is worth something if it refuses what a broken lock does.
func TestHistoriesOfBrokenLocksAreNotLinearizable(t *testing.T) {
	for kind, name := range map[int]string{leakyLock: "lets two in", forgetfulLock: "does not tell of the dead"} {
		t.Run(name, func(t *testing.T) {
			for range 50 {
				if history := compile(t, kind, 2, 4); !linearizable(t, history) {
					return
				}
			}
			t.Error("50 histories, and nothing was found")
		})
	}
}

func TestLinearizabilityOfALockIsTold(t *testing.T) {
	const p0, q0, q1 = 1, 1 + chronicleHands, 2 + chronicleHands // goroutines of two processes
	step := func(what, by int, from, to int64) porcupine.Operation {
		return porcupine.Operation{ClientId: by, Input: lockStep{what: what, by: by, sure: true}, Call: from, Return: to}
	}
	with := func(o porcupine.Operation, killed uint64, sure bool) porcupine.Operation {
		t := o.Input.(lockStep)
		t.killed, t.sure = killed, sure
		o.Input = t
		return o
	}
	for _, c := range []struct {
		what    string
		ok      bool
		history []porcupine.Operation
	}{
		{"one after the other", true, []porcupine.Operation{
			step(stepAcquire, p0, 1, 2), step(stepRelease, p0, 3, 4), step(stepAcquire, q0, 5, 6)}},
		{"two at a time", false, []porcupine.Operation{
			step(stepAcquire, p0, 1, 2), step(stepAcquire, q0, 3, 4), step(stepRelease, p0, 5, 6), step(stepRelease, q0, 7, 8)}},
		{"two of one process", false, []porcupine.Operation{
			step(stepAcquire, q0, 1, 2), step(stepAcquire, q1, 3, 4), step(stepRelease, q0, 5, 6), step(stepRelease, q1, 7, 8)}},
		{"granted while the release goes on", true, []porcupine.Operation{
			step(stepAcquire, p0, 1, 2), step(stepRelease, p0, 3, 6), step(stepAcquire, q0, 4, 5)}},
		{"refused, but free", false, []porcupine.Operation{
			step(stepAcquire, p0, 1, 2), step(stepRelease, p0, 3, 4), step(stepRefused, q0, 5, 6)}},
		{"refused while the release goes on", true, []porcupine.Operation{
			step(stepAcquire, p0, 1, 2), step(stepRelease, p0, 3, 6), step(stepRefused, q0, 4, 5)}},
		{"timed out at an inconsistent lock", false, []porcupine.Operation{
			step(stepAcquire, p0, 1, 2), with(step(stepInherit, q0, 3, 4), 1, true), step(stepReleaseDirty, q0, 5, 6), step(stepTimedOut, q1, 7, 8)}},
		{"told of a death", true, []porcupine.Operation{
			step(stepAcquire, p0, 1, 2), with(step(stepInherit, q0, 3, 4), 1, true), step(stepReleaseDirty, q0, 3, 4),
			step(stepInherit, q1, 5, 6), step(stepReleaseMended, q1, 7, 8), step(stepAcquire, q0, 9, 10)}},
		{"told of a death that was none", false, []porcupine.Operation{
			step(stepAcquire, p0, 1, 2), step(stepInherit, q0, 3, 4)}},
		{"not told of a death", false, []porcupine.Operation{
			step(stepAcquire, p0, 1, 2), with(step(stepAcquire, q0, 3, 4), 1, true)}},
		{"told once only", false, []porcupine.Operation{
			step(stepAcquire, p0, 1, 2), with(step(stepInherit, q0, 3, 4), 1, true), step(stepReleaseDirty, q0, 5, 6), step(stepAcquire, q1, 7, 8)}},
		{"killed in a call that took the lock", true, []porcupine.Operation{
			with(step(stepEither, p0, 1, 9), 0, false), step(stepRefused, q0, 2, 3), with(step(stepInherit, q0, 10, 11), 1, true)}},
		{"killed in a call that did nothing", true, []porcupine.Operation{
			with(step(stepEither, p0, 1, 9), 0, false), step(stepAcquire, q0, 2, 3), step(stepRelease, q0, 10, 11)}},
		{"killed, and locks afterwards", false, []porcupine.Operation{
			with(step(stepEither, p0, 1, 9), 0, false), step(stepAcquire, q0, 2, 3), step(stepRelease, q0, 10, 11), step(stepRefused, q0, 12, 13)}},
		{"killed in a release that did its work, or not", true, []porcupine.Operation{
			step(stepAcquire, p0, 1, 2), with(step(stepRelease, p0, 3, 9), 0, false), step(stepRefused, q0, 4, 5), with(step(stepAcquire, q0, 10, 11), 1, true)}},
	} {
		if got := linearizable(t, c.history); got != c.ok {
			t.Errorf("%s: linearizable %v, want %v", c.what, got, c.ok)
		}
	}
	if _, err := new(chronicled).steps(0, 1, nil); err == nil {
		t.Error("a call without an end was taken for one")
	}
	if end := int64(math.MaxInt64); !linearizable(t, []porcupine.Operation{step(stepAcquire, p0, 1, end)}) {
		t.Error("a call that goes on")
	}
}
