package sync

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/spin"
	"github.com/shmkit/shmkit/sync/internal/futex"
)

// How a goroutine waits for a Mutex. Of the goroutines of one process that wait for one lock, one, the
// leader, competes for it: it spins, and then sleeps in the kernel while another process holds the
// lock, or parks while its own does. The others are parked in the lock's gate, where the holder, if it
// is one of the process, or a leader that steps down finds them. So ten thousand waiters cost one
// thread. Between goroutines of one process the lock behaves like the standard one: whoever runs may
// take it past those who wait, and one who has waited for a millisecond gets it passed on.
//
// The steps of a leader; each is one atomic step on the word, and "slept" means that it came back from
// a sleep in this call, and so may have consumed the one wake-up of a release:
//
//	free, not reserved            → held by us, P kept, W kept and set if we slept  (acquired)
//	free, reserved, we slept      → held by us, P kept, W set                       (acquired)
//	free, reserved, we did not    → W set; sleep
//	held by our own process       → look again for some microseconds; then, in one section of the
//	                                gate, L set, and parked in front
//	held by others, briefly       → look again for some microseconds
//	held by others                → W set, S too after a millisecond; sleep
//	held by the dead              → held by us, P and W set, S kept                 (acquired)
//
// A release wakes one sleeper and forgets W: between it and the sleeper's next step other releases
// wake nobody, so there is no herd; the sleeper sets W again because it cannot know who else sleeps.
// If that sleeper is killed, the others wake by their deadlines, and so it is with every loss.
const (
	starveAfter = time.Millisecond      // of waiting: from then on no barging past us
	spinFor     = 10 * time.Microsecond // measured at 200 ns sections, 2 processes: none 2.5 M/s, 10 µs 3.8 M/s
	spinPause   = 8                     // between two looks; in one process, 2 to 64 goroutines: 7 to 13 ns a turn, sync.Mutex 9 to 22
)

// How often one looks before one begins to wait, and the pause before each look. A pause is a PAUSE, which
// took 100 ns where this was measured, at 8 processes with 200 ns inside and 200 outside, and with empty
// sections, in million turns a second: no look 1.9 and 66, 4 after 4 pauses each 2.9 and 72, 8 after 3 pauses
// 3.1 and 60, 30 after one 3.2 and 40.
const (
	soonLooks = 4
	soonPause = 4
)

// After the bell of a holder has rung one looks this often, twice as long each time up to firstSleep, and
// for so long: the kernel needs 2 ms to end a small process, and seconds for a large one or one that dumps
// core, which ticks are good enough for.
const (
	hastyNap = 50 * time.Microsecond
	hasteFor = time.Second
)

// How long one sleeps before the holder's life is looked into; variables, so that a test can do without.
var (
	firstSleep = time.Millisecond
	longSleep  = 100 * time.Millisecond // later sleeps grow up to here
)

// A limit says how long to wait. The zero limit is for ever.
type limit struct {
	what     string          // is waited for
	ctx      context.Context // or nil
	deadline time.Time       // or zero
	mortal   bool            // it is over too when the count of the region's deaths is not deaths
	deaths   uint32
}

// died reports whether a death has ended the wait.
func (l *limit) died(r *shm.Region) bool {
	return l.mortal && r != nil && r.Deaths().Load() != l.deaths
}

func (l *limit) done() <-chan struct{} {
	if l.ctx == nil {
		return nil
	}
	return l.ctx.Done()
}

// end returns when a wait without a context ends, if it does.
func (l *limit) end() (time.Time, bool) {
	// Not the deadline of a context: the context says when that has come.
	return l.deadline, l.ctx == nil && !l.deadline.IsZero()
}

// over returns why the wait is over, or nil.
func (l *limit) over() error {
	if l.ctx != nil {
		err, cause := l.ctx.Err(), context.Cause(l.ctx)
		switch {
		case err == nil:
			return nil
		case cause != err:
			return fmt.Errorf("sync: %s: %w: %w", l.what, err, cause)
		}
		return fmt.Errorf("sync: %s: %w", l.what, err)
	}
	if end, ok := l.end(); ok && !time.Now().Before(end) {
		return errTimeout
	}
	return nil
}

// An attempt is one call that waits for a lock.
type attempt struct {
	m      *Mutex
	limit  limit
	region *shm.Region // nil outside any region
	offset shm.Offset
	start  time.Time
	gate   *gate
	leads  bool // the gate
	pinned bool // the region, from the step that takes the lock until we know whether that was in time
	bed    bed
	slept  bool          // came back from a sleep: entitled to a reservation, and may hold the wake
	idle   bool          // has just slept its time out
	nap    time.Duration // between two looks at the holder's life
	look   time.Time     // the next one; it does not move when a signal or a wake-up ends a sleep
	looked bool          // at least once: this is no short wait
	rung   uint64        // the holder whose bell we heard
	haste  time.Time     // until then we look often
	death  shm.Death     // of the holder that the lock was taken over from
	shown  int           // the entry that lets others see this wait, plus one
}

// show lets others see that this process waits, once it is more than a moment.
func (a *attempt) show() {
	if a.shown == 0 && a.region != nil {
		a.shown = a.region.Waiting(a.offset, a.start) + 1
	}
}

// hide takes back what show has shown.
func (a *attempt) hide() {
	if a.shown > 0 {
		a.region.WaitOver(a.shown - 1)
		a.shown = 0
	}
}

// take waits for the lock. It returns with the lock held, dirty if it is inconsistent, or with an error.
func (a *attempt) take() (dirty bool, err error) {
	defer a.unpin()
	dirty, err = a.run()
	if err == nil && a.region != nil && a.region.Closed() {
		a.m.release() // where others see it; or nothing, if it was the zero word that Close has put there
		err = closedError(a.limit.what, a.region)
	}
	return dirty, err
}

// run is take before it is known whether that was in time.
func (a *attempt) run() (dirty bool, err error) {
	a.gate = enter(a.m)
	defer leave(a.m, a.gate)
	defer a.hide()
	defer a.abdicate()
	lead, held, err := a.queue()
	if err == nil && lead {
		held, err = a.lead()
	}
	if err != nil && !held {
		held, err = a.lastLook(err)
	}
	return a.m.word.Load()&flagInconsistent != 0 && held, err
}

// abdicate lets the next in the gate lead in the place of one whom a fault has stopped: the memory is gone.
func (a *attempt) abdicate() {
	if a.leads {
		a.gate.mu.Lock()
		defer a.gate.mu.Unlock()
		a.gate.promote()
	}
}

// queue becomes the leader, or parks until it is told to lead or has the lock passed to it.
func (a *attempt) queue() (lead, held bool, err error) {
	w := a.join()
	if w == nil {
		return true, false, nil
	}
	return a.park(w)
}

// join makes this goroutine the leader, or puts it into the queue.
func (a *attempt) join() *waiter {
	g, m := a.gate, a.m
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.leader {
		v := m.word.Load()
		if v&^flags != token || g.head == nil {
			g.leader, a.leads = true, true
			return nil
		}
		if m.word.CompareAndSwap(v, queuedUp(v, false)) {
			break // the holder, one of us, will find the queue
		}
	}
	return g.push(a.region, a.start, false)
}

// park waits to be told to lead, or for the lock.
func (a *attempt) park(w *waiter) (lead, held bool, err error) {
	told, err := a.gate.park(w, &a.limit, a.region)
	a.leads, a.pinned = told == leadNow, told == lockPassed
	return a.leads, told == lockPassed, err
}

// lead competes with other processes until it has the lock, parks again, or gives up.
func (a *attempt) lead() (held bool, err error) {
	m := a.m
	var cancel *futex.Cancel
	if a.limit.done() != nil {
		cancel = new(futex.Cancel)
		stop := context.AfterFunc(a.limit.ctx, cancel.Cancel)
		defer stop()
	}
	spun := false
	a.rest(firstSleep)
	for {
		if a.region != nil && a.region.Closed() { // before anything else: the range reads as zeros now
			return false, a.giveUp(closedError(a.limit.what, a.region))
		}
		v := m.word.Load()
		switch holder := v &^ flags; {
		case holder == 0:
			if next, ok := taken(v, token, a.slept); ok {
				if a.swap(v, next) {
					crash("taken")
					a.stepDown()
					return true, nil
				}
				continue
			}
		case holder == token:
			if !spun && runtime.GOMAXPROCS(0) > 1 {
				spun = true
				// Whoever is to release the lock may stand in the queue of this very processor: without this,
				// 11 µs from one goroutine to another, with it 0.9.
				runtime.Gosched()
				m.spin(v, ^uint64(flags))
				continue
			}
			w := a.parkInFront(v)
			if w == nil {
				continue
			}
			lead, held, err := a.park(w)
			if !lead {
				return held, err
			}
			spun = false
			a.rest(firstSleep)
			continue
		case !spun && v&(flagWaiters|flagStarving) == 0 && multiprocessor:
			spun = true
			m.spin(v, ^uint64(0))
			continue
		}
		if err := a.limit.over(); err != nil {
			return false, a.giveUp(err)
		}
		if a.time(v &^ flags) {
			if a.takeOver(v) {
				crash("inherited")
				a.stepDown()
				return true, nil
			}
			a.scan()
			a.show()
		}
		next := awaited(v, a.slept && time.Since(a.start) >= starveAfter)
		if next != v && !m.word.CompareAndSwap(v, next) {
			continue
		}
		crash("awaited")
		a.sleep(next, cancel)
		crash("slept")
		spun = false // without: 3.5 M/s at 200 ns sections, with: 4.7
	}
}

var multiprocessor = runtime.NumCPU() > 1

// soon is lockSoon for a call that ends with an error if the region is closed meanwhile; it reports false then.
func (a *attempt) soon() bool {
	if !multiprocessor || !pin(a.region) {
		return false
	}
	a.pinned = true
	defer a.unpin()
	if !a.m.lockSoon() {
		return false
	}
	if a.region != nil && a.region.Closed() {
		a.m.release() // as in take
		return false
	}
	return true
}

// lockSoon tries the lock a few times more, for a microsecond or two, before anything is set up for a wait,
// which would take longer than a short section: it is the first compare-and-swap of Lock made later, and
// leaves nothing behind. It does not overtake anybody who sleeps, and gives up at once where looking does not
// help: behind its own process, which may need this thread to go on.
func (m *Mutex) lockSoon() bool {
	v := m.word.Load()
	for range soonLooks {
		if v&flags != 0 || v == token {
			return false
		}
		spin.Pause(soonPause)
		if v = m.word.Load(); v == 0 && m.word.CompareAndSwap(0, token) {
			return true
		}
	}
	return false
}

// spin looks at the word for a while, as long as the bits in mask are those of v. It only reads, and seldom:
// every look takes the cache line from a holder that locks and unlocks in a loop. (Measured at 8 processes
// with empty sections: looking 4 times as often 64 M/s, so 86.)
func (m *Mutex) spin(v, mask uint64) {
	for end := time.Now().Add(spinFor); ; {
		spin.Pause(spinPause)
		if (m.word.Load()^v)&mask != 0 || time.Now().After(end) {
			return
		}
	}
}

// rest puts the next look at the holder's life off.
func (a *attempt) rest(nap time.Duration) { a.nap, a.look = nap, time.Now().Add(nap) }

// time reports whether it is time to look at the holder's life, and puts the next look off.
func (a *attempt) time(holder uint64) bool {
	now := time.Now()
	switch {
	case now.Before(a.look):
		return false
	case holder == a.rung && now.Before(a.haste):
		a.rest(min(2*a.nap, firstSleep))
	default:
		a.rest(min(2*a.nap, longSleep))
	}
	a.looked = true
	return true
}

// hear is for one who hears the bell of the holder: it may be dying. It proves nothing, and there may be no
// more to it, so the haste has an end.
func (a *attempt) hear(holder uint64) {
	a.rung, a.haste = holder, time.Now().Add(hasteFor)
	a.rest(hastyNap)
}

// bell returns the word by which one hears of the holder's death, after the first look: hardly a wait
// takes that long. Who has it looks seldom: the bell tells sooner. A holder has none where the system has
// none, and in its first moments: of processes killed half a millisecond after they had attached, one in 200.
func (a *attempt) bell(holder uint64) (bell futex.Word) {
	if !a.looked || a.region == nil || holder == 0 || holder == a.rung {
		return bell
	}
	word, val, rung := a.region.Bell(shm.Token(holder))
	if rung {
		a.hear(holder)
	}
	if word != nil {
		bell = futex.Word{Addr: plain(word), Val: val}
		if seldom := min(10*firstSleep, longSleep); a.nap < seldom {
			a.rest(seldom)
		}
	}
	return bell
}

// scan looks after all processes of the region: others may wait for what has no holder.
func (a *attempt) scan() {
	if a.region != nil {
		a.region.Scan()
	}
}

// sleep sleeps while the word is v.
func (a *attempt) sleep(v uint64, cancel *futex.Cancel) {
	bell := a.bell(v &^ flags)
	wake := a.look
	if end, ok := a.limit.end(); ok && end.Before(wake) {
		wake = end
	}
	d := max(time.Until(wake), time.Microsecond)
	// What is runnable here would wait until the scheduler takes this thread's P away. Going to the end
	// of the queue lets it run first: measured, 8 µs of delay for another goroutine instead of 100 to
	// 220. Not after a sleep that has just ended by its time, with nothing done since: yielding then
	// costs a millisecond of processor time, ten times the rest of the turn.
	if futex.Kernel && !a.idle {
		runtime.Gosched()
	}
	result := a.bed.on(futex.Word{Addr: a.m.half(), Val: uint32(v)}, bell, d, cancel)
	if result == futex.Rung {
		a.hear(v &^ flags)
	}
	a.slept = a.slept || result != futex.Changed
	a.idle = result == futex.Expired
}

// half is the half of the word that has the flags: what the kernel compares. Another holder may have
// the same half; the flags say then that a sleeper is awaited, and its release wakes.
func (m *Mutex) half() *uint32 {
	halves := (*[2]uint32)(unsafe.Pointer(&m.word))
	return &halves[lowHalf]
}

// plain is the word as package futex takes it.
func plain(word *atomic.Uint32) *uint32 { return (*uint32)(unsafe.Pointer(word)) }

var lowHalf = func() int {
	one := uint64(1)
	if *(*uint32)(unsafe.Pointer(&one)) == 1 {
		return 0
	}
	return 1
}()

// swap is the compare-and-swap that takes the lock. The memory stays until unpin: if the region is closed
// meanwhile, a lock that nobody gets has to be released where others see it.
func (a *attempt) swap(v, next uint64) bool {
	if !pin(a.region) {
		return false
	}
	a.pinned = true
	if !a.m.word.CompareAndSwap(v, next) {
		a.unpin()
		return false
	}
	return true
}

func (a *attempt) unpin() {
	if a.pinned {
		unpin(a.region)
	}
	a.pinned = false
}

// pin keeps the memory of r, if any, where it is, or reports false: it is closed. It does not order those who
// call it.
func pin(r *shm.Region) bool {
	raceIgnore()
	defer raceHeed()
	return r == nil || r.Pin()
}

// unpin takes back what a pin that was true has done.
func unpin(r *shm.Region) {
	if r != nil {
		raceIgnore()
		r.Unpin()
		raceHeed()
	}
}

// takeOver takes the lock from a dead holder.
func (a *attempt) takeOver(v uint64) bool {
	holder := shm.Token(v &^ flags)
	if holder == 0 || uint64(holder) == token || a.region == nil {
		return false
	}
	pid, settled := a.region.Settled(holder)
	if !settled || !a.swap(v, inherited(v, token)) {
		return false
	}
	a.death.Token, a.death.PID = holder, pid
	return true
}

// stepDown ends the leadership of the one who holds the lock now.
func (a *attempt) stepDown() {
	g := a.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.head != nil {
		a.m.word.Or(flagLocal) // ours: only flags can change beside us
		crash("stepped down")
	}
	g.leader, a.leads = false, false
}

// parkInFront ends the leadership because the lock, whose word is v, is held by our own process: its
// holder finds us first. It returns nil if the word has changed.
func (a *attempt) parkInFront(v uint64) *waiter {
	g := a.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if !a.m.word.CompareAndSwap(v, queuedUp(v, a.slept)) {
		return nil
	}
	crash("parked in front")
	g.leader, a.leads = false, false
	return g.push(a.region, a.start, true)
}

// giveUp ends the leadership of one who does not get the lock. A wake-up that it may have consumed is
// passed on, and a place kept for it is given back.
func (a *attempt) giveUp(err error) error {
	g := a.gate
	g.mu.Lock()
	g.promote()
	a.leads = false
	g.mu.Unlock()
	if a.slept {
		a.passOn()
	}
	return err
}

// passOn is for one who has slept and does not want the lock any more.
func (a *attempt) passOn() {
	m := a.m
	for {
		v := m.word.Load()
		next, wake := abandoned(v)
		if next != v && !m.word.CompareAndSwap(v, next) {
			continue
		}
		crash("abandoned")
		if wake {
			futex.Wake(m.half(), 1)
			crash("passed the wake-up on")
		}
		return
	}
}

// lastLook is for one who is about to be refused: a lock that has become free is taken all the same,
// and a dead holder is found out now.
func (a *attempt) lastLook(why error) (held bool, err error) {
	if a.region != nil && a.region.Closed() {
		return false, why
	}
	for {
		v := a.m.word.Load()
		next, free := refused(v, token)
		switch {
		case !free:
			if a.takeOver(v) {
				return true, nil
			}
			return false, why
		case a.swap(v, next):
			crash("taken at the last look")
			return true, nil
		case a.region != nil && a.region.Closed():
			return false, why
		}
	}
}

// unlockSlow stays out of Unlock. It passes the lock to a goroutine of this process, unless somebody
// elsewhere starves, or releases it and wakes one sleeper.
//
//go:noinline
func (m *Mutex) unlockSlow() {
	if err := m.release(); err != nil {
		panic(err)
	}
}

// release is unlockSlow for those who want the error.
func (m *Mutex) release() error {
	for {
		v := m.word.Load()
		if v&^flags != token {
			return m.misuse(v)
		}
		if v&flagLocal == 0 {
			next, wake := released(v)
			if !m.word.CompareAndSwap(v, next) {
				continue
			}
			crash("released")
			if wake {
				futex.Wake(m.half(), 1) // asks the kernel only: m itself is not touched any more
				crash("woke one")
			}
			return nil
		}
		if m.unlockLocal() {
			return nil
		}
	}
}

// misuse is the error of a caller that does not hold the lock whose word is v.
func (m *Mutex) misuse(v uint64) error {
	// Also of a region that is open still, but in which this process has lost the proof of its life.
	if name, closed := shm.ClosedAt(unsafe.Pointer(m)); closed {
		return closedIn("unlock", name)
	}
	return &MisuseError{Holder: shm.Token(v &^ flags)}
}

// unlockLocal is unlockSlow when goroutines of this process wait. It reports whether it is done.
func (m *Mutex) unlockLocal() bool {
	g := enter(m)
	defer leave(m, g)
	g.mu.Lock()
	v := m.word.Load()
	if v&^flags != token { // another goroutine unlocked it first: somebody's mistake
		g.mu.Unlock()
		return false
	}
	if g.head != nil && passed(v, time.Since(g.head.since) >= starveAfter) && pin(g.head.region) {
		w := g.pop()
		if g.head == nil {
			m.word.And(^uint64(flagLocal))
		}
		crash("about to pass")
		wakes := g.takeWakes()
		g.mu.Unlock()
		w.told <- lockPassed // the word keeps our token
		m.wakeThose(g, wakes)
		return true
	}
	next, wake := released(v)
	if !m.word.CompareAndSwap(v, next) {
		g.mu.Unlock()
		return false
	}
	crash("released in the gate")
	if !g.leader {
		g.promote() // or nobody of ours would compete
	}
	wakes := g.takeWakes()
	g.mu.Unlock()
	if wake {
		crash("promoted")
		futex.Wake(m.half(), 1)
	}
	m.wakeThose(g, wakes)
	return true
}
