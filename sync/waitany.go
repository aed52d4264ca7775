package sync

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/sync/internal/futex"
)

// A Waitable is what [WaitAny] waits for.
//
//   - *[Mutex]: to be locked; the caller holds it then
//   - *[Event]: to be set, or to have been set since the call
//   - *[Semaphore]: for one permit; this process has it then
//   - *[CountingSemaphore]: for one permit
type Waitable interface {
	// visit begins a wait of one goroutine.
	visit(l limit) (visit, error)
}

// A visit is the wait of one goroutine for one of several things. It is one more sleeper beside those of the
// gates: it sleeps by the thing's word itself, marks it as those do, and like them answers for a wake-up that it
// may have used up.
type visit interface {
	// try takes what is waited for, if it is to be had. slept says that a sleep has ended since the visit began; last, that
	// the wait is over otherwise. With an error nothing is taken, and the wait is over.
	try(slept, last bool) (got bool, err error)
	// arm has those who change the words to sleep by wake their sleepers, and appends these words. It returns false if
	// something has changed meanwhile, and what is waited for may be to be had.
	arm(slept bool, words []futex.Word) ([]futex.Word, bool)
	// due returns when to look even if nobody wakes us. expired says that a sleep has ended by its time.
	due(expired bool) time.Time
	// leave ends the visit of one who has got something, this or another thing, or nothing.
	leave(slept, got bool)
}

// WaitAny waits until one of several things is to be had, takes it, and returns its number: the first in order, if
// there are several. None of the others is taken, and no goroutine or thread is used for each: the kernel
// wakes the caller for any of them (Linux 5.16; elsewhere, and for more than 126 things, of which a Semaphore
// counts as two, it looks at them from time to time, up to 20 ms late).
//
// An error means that nothing is taken: the context's, whatever was waited for being tried once more first; an error of
// one of the things, with its number, such as [ErrInconsistent] for a Mutex whose holder died, or [fs.ErrInvalid] for a
// Semaphore of no permits; [shm.ErrClosed]. The number is -1 if the error is of no thing in particular. One who waits
// for a Mutex among other things is served like a process of its own that waits for it; for a Semaphore it is served
// in turn, as by Acquire, and holds its place there until it has got something. A process that is killed meanwhile has
// taken one of the things or none: what becomes of it is what the thing says of a death.
func WaitAny(ctx context.Context, things ...Waitable) (int, error) {
	if len(things) == 0 {
		return -1, fmt.Errorf("sync: WaitAny for nothing: %w", fs.ErrInvalid)
	}
	l := limit{what: "wait for any", ctx: ctx}
	w := anyWait{visits: make([]visit, 0, len(things)), words: make([]futex.Word, 0, len(things)), got: -1}
	defer w.leave()
	for i, t := range things {
		v, err := t.visit(l)
		if err != nil {
			return i, err
		}
		w.visits = append(w.visits, v)
	}
	if i, err := w.try(false); i >= 0 || err != nil {
		return i, err
	}
	cancel, stop := w.cancel(&l)
	defer stop()
	for {
		if err := l.over(); err != nil {
			if i, err := w.try(true); i >= 0 || err != nil {
				return i, err
			}
			return -1, err
		}
		if w.arm() {
			w.sleep(cancel)
		}
		if i, err := w.try(false); i >= 0 || err != nil {
			return i, err
		}
	}
}

// anyWait is one call of WaitAny.
type anyWait struct {
	visits  []visit
	words   []futex.Word
	slept   bool
	expired bool // the last sleep ended by its time
	got     int  // the number of the thing that was taken, or -1
}

func (w *anyWait) try(last bool) (int, error) {
	for i, v := range w.visits {
		got, err := v.try(w.slept, last)
		if got {
			w.got = i
		}
		if got || err != nil {
			return i, err
		}
	}
	return -1, nil
}

// arm prepares a sleep by all words, and reports whether it makes sense.
func (w *anyWait) arm() bool {
	w.words = w.words[:0]
	for _, v := range w.visits {
		var ok bool
		if w.words, ok = v.arm(w.slept, w.words); !ok {
			return false
		}
	}
	return true
}

// cancel returns what ends a sleep when the context does, and when a region is closed in which a visit keeps memory
// where it is: Close waits for that. One goroutine watches each such region.
func (w *anyWait) cancel(l *limit) (c *futex.Cancel, stop func()) {
	var closing []<-chan struct{}
	for _, v := range w.visits {
		if v, ok := v.(*semaphoreVisit); ok && v.q.region != nil && !slices.Contains(closing, v.q.region.Done()) {
			closing = append(closing, v.q.region.Done())
		}
	}
	if closing == nil && l.done() == nil {
		return nil, func() {}
	}
	c = new(futex.Cancel)
	stopped := make(chan struct{})
	for _, closed := range closing {
		go func() {
			select {
			case <-closed:
				c.Cancel()
			case <-stopped:
			}
		}()
	}
	ended := func() bool { return true }
	if l.done() != nil {
		ended = context.AfterFunc(l.ctx, c.Cancel)
	}
	return c, func() {
		ended()
		close(stopped)
	}
}

func (w *anyWait) sleep(cancel *futex.Cancel) {
	end := time.Now().Add(longSleep)
	for _, v := range w.visits {
		if at := v.due(w.expired); at.Before(end) {
			end = at
		}
	}
	d := max(time.Until(end), time.Microsecond)
	var r futex.Result
	if takeThread() {
		r = w.sleepHere(d, cancel)
	} else {
		r = futex.NapAny(w.words, d, cancel)
	}
	w.slept = w.slept || r != futex.Changed
	w.expired = r == futex.Expired
}

func (w *anyWait) sleepHere(d time.Duration, cancel *futex.Cancel) futex.Result {
	defer giveThread() // also when the memory is gone
	return futex.SleepAny(w.words, d, cancel)
}

func (w *anyWait) leave() {
	for i, v := range w.visits {
		defer v.leave(w.slept, w.got == i) // each, also if the memory of one is gone
	}
}

func (m *Mutex) visit(l limit) (visit, error) {
	a := &attempt{m: m, limit: l, start: time.Now()}
	var err error
	if a.region, a.offset, err = locate(m, l.what); err != nil {
		return nil, err
	}
	a.gate = enter(m)
	a.rest(firstSleep)
	return (*mutexVisit)(a), nil
}

// A mutexVisit makes the steps of a leader, without being one: it never parks in the gate.
type mutexVisit attempt

func (v *mutexVisit) try(slept, last bool) (bool, error) {
	a := (*attempt)(v)
	defer a.unpin()
	a.slept = slept
	for {
		if a.region != nil && a.region.Closed() {
			return false, closedError(a.limit.what, a.region)
		}
		word := a.m.word.Load()
		next, free := taken(word, token, slept)
		if last {
			next, free = refused(word, token)
		}
		switch {
		case free && a.swap(word, next):
			crash("taken by a visit")
			return v.entered()
		case free:
			continue
		case (last || a.time(word&^flags)) && a.takeOver(word):
			crash("inherited by a visit")
			return v.entered()
		}
		return false, nil
	}
}

// entered is called with the lock held.
func (v *mutexVisit) entered() (bool, error) {
	a := (*attempt)(v)
	if a.region != nil && a.region.Closed() {
		a.m.release() // where others see it
		return false, closedError(a.limit.what, a.region)
	}
	v.callLocals()
	if a.region != nil {
		a.region.Waited(a.offset, time.Since(a.start), true, a.death.Token != 0)
	}
	err := a.finish(a.m.word.Load()&flagInconsistent != 0, nil)
	return err == nil, err
}

// callLocals has the release find those who are parked in the gate behind the leader, if that is due.
func (v *mutexVisit) callLocals() {
	g := v.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.head != nil {
		v.m.word.Or(flagLocal)
	}
}

func (v *mutexVisit) arm(slept bool, words []futex.Word) ([]futex.Word, bool) {
	word := v.m.word.Load()
	if _, free := taken(word, token, slept); free {
		return words, false
	}
	next := awaited(word, slept && time.Since(v.start) >= starveAfter)
	if next != word && !v.m.word.CompareAndSwap(word, next) {
		return words, false
	}
	crash("awaited by a visit")
	return append(words, futex.Word{Addr: v.m.half(), Val: uint32(next)}), true
}

func (v *mutexVisit) due(expired bool) time.Time {
	a := (*attempt)(v)
	if expired {
		a.scan()
		a.show()
	}
	return a.look
}

func (v *mutexVisit) leave(slept, got bool) {
	a := (*attempt)(v)
	defer leave(a.m, a.gate)
	a.hide()
	if !got && slept && (a.region == nil || !a.region.Closed()) {
		a.passOn()
	}
}

func (e *Event) visit(l limit) (visit, error) {
	r, _, err := locate(&e.word, l.what)
	if err != nil {
		return nil, err
	}
	return &eventVisit{e, r, l.what, changed(e.word.Load() / eventOnce)}, nil
}

type eventVisit struct {
	e      *Event
	region *shm.Region // or nil
	what   string
	over   func(v uint32) (bool, error)
}

func (v *eventVisit) try(_, _ bool) (bool, error) {
	over, _ := v.over(v.e.word.Load())
	if v.region != nil && v.region.Closed() { // after the word was read: it may have been the zeros of now
		return false, closedError(v.what, v.region)
	}
	if over && raceEnabled {
		raceAcquire(&v.e.word)
	}
	return over, nil
}

func (v *eventVisit) arm(_ bool, words []futex.Word) ([]futex.Word, bool) {
	word := v.e.word.Load()
	if over, _ := v.over(word); over || word&eventWaiters == 0 && !v.e.word.CompareAndSwap(word, word|eventWaiters) {
		return words, false
	}
	return append(words, futex.Word{Addr: plain(&v.e.word), Val: word | eventWaiters}), true
}

func (v *eventVisit) due(bool) time.Time { return time.Now().Add(longSleep) }

func (v *eventVisit) leave(_, _ bool) {} // a set wakes everybody: there is nothing to pass on
