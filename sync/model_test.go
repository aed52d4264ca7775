package sync

import (
	"flag"
	"fmt"
	"strings"
	"testing"
)

// An explicit-state model of the Mutex. It runs every order of the steps of a few goroutines in two or
// three processes, over the very transitions that the lock makes ([taken] and its kin), with kills,
// cancellations, sleeps that time out, and the try that overtakes. The kernel's queue is first in, first
// out with compare-and-sleep in one step; a section of a gate is one step, except the release in it,
// which others see before the promotion that follows; a goroutine between two steps may stand there for
// ever. The tokens of the model's processes are small: the model checks the protocol, not the words'
// width.
//
// What must hold: never two inside; the holder's token in the word; half changed data never entered as
// clean; without kills and timeouts no state in which somebody waits and nothing can happen; and from
// every state everybody who lives can finish.
var largeModels = flag.Bool("models", false, "run the large configurations of the lock's model too")

// rules are the transitions a model runs: those of the lock, or with one of them broken.
type rules struct {
	taken            func(v, t uint64, slept bool) (uint64, bool)
	tried, refused   func(v, t uint64) (uint64, bool)
	inherited        func(v, t uint64) uint64
	awaited          func(v uint64, starving bool) uint64
	queuedUp         func(v uint64, slept bool) uint64
	abandoned        func(v uint64) (uint64, bool)
	released         func(v uint64) (uint64, bool)
	passed           func(v uint64, long bool) bool
	noPromoteOnGive  bool // a leader that gives up leaves the queue without one
	noPromoteOnFree  bool // a release leaves the queue without a leader
	noLocalOnStep    bool // a leader that has the lock does not tell its release of the queue
	earlyDeath       bool // a process is taken for dead while it still runs
	staysLeader      bool // a leader that has the lock goes on as one
	leaveWithoutWake bool // one who gives up after a sleep passes no wake-up on
}

var theRules = rules{
	taken: taken, tried: tried, refused: refused, inherited: inherited, awaited: awaited,
	queuedUp: queuedUp, abandoned: abandoned, released: released, passed: passed,
}

// Where a goroutine of the model is.
const (
	atStart = iota
	atQueue
	atParked
	atLead
	atSleep
	atAsleep
	atGiveUp
	atPassOn
	atPassWake
	atLastLook
	atStepDown
	atAcquired
	atRepair
	atInside
	atUnlock
	atUnlockLocal
	atPromote
	atWake
	atDone
	atDead
)

const (
	hasSlept = 1 << iota
	inDoubt
	isCancelled
	wakesLater
)

const always = 255 // every sleep may time out

const (
	modelProcs = 3
	modelGs    = 4
)

// A modelState is all there is; two equal ones have the same future.
type modelState struct {
	word    uint8 // token of process p is (p+1)<<4
	dirty   bool  // the data is half changed
	leaders uint8 // processes whose gate has a leader
	gate    [modelProcs]uint8
	queue   [modelProcs]uint16 // of the gates: numbers of goroutines plus one, the first lowest
	kernel  uint16             // the futex' queue
	dead    uint8
	kills   uint8
	cancels uint8
	expiry  uint8 // sleeps that may still time out, or always
	g       [modelGs]struct{ at, expect, flags, rounds uint8 }
}

// A config is what a model explores.
type config struct {
	procs                          []int // goroutines of each process
	rounds, kills, cancels, expiry int
	try, refuseRepair              bool
}

func (c config) String() string {
	return fmt.Sprintf("procs=%v/rounds=%d/kills=%d/cancels=%d/timeouts=%d/try=%v/norepair=%v",
		c.procs, c.rounds, c.kills, c.cancels, c.expiry, c.try, c.refuseRepair)
}

// A model explores one config under some rules.
type model struct {
	config
	rules
	proc      []int // of each goroutine
	violation string
	tells     bool
}

func newModel(c config, r rules) *model {
	m := &model{config: c, rules: r}
	for p, n := range c.procs {
		for range n {
			m.proc = append(m.proc, p)
		}
	}
	return m
}

func enqueue(q uint16, g int) uint16 {
	n := 0
	for q>>(4*n) != 0 {
		n++
	}
	return q | uint16(g+1)<<(4*n)
}

func enqueueFront(q uint16, g int) uint16 { return q<<4 | uint16(g+1) }

func dequeue(q uint16, g int) (rest uint16) {
	for n := 0; q != 0; q >>= 4 {
		if int(q&15) != g+1 {
			rest |= (q & 15) << (4 * n)
			n++
		}
	}
	return rest
}

// wakeOne wakes the first sleeper of the kernel's queue.
func (s *modelState) wakeOne() {
	if s.kernel != 0 {
		g := int(s.kernel&15) - 1
		s.kernel >>= 4
		s.awake(g)
	}
}

func (s *modelState) awake(g int) {
	s.g[g].at, s.g[g].expect = atLead, 0
	s.g[g].flags |= hasSlept
}

func (s *modelState) promote(p int) {
	s.leaders &^= 1 << p
	if s.queue[p] != 0 {
		s.leaders |= 1 << p
		s.g[s.queue[p]&15-1].at = atLead
		s.queue[p] >>= 4
	}
}

func (m *model) finish(s *modelState, i int) {
	r := s.g[i].rounds + 1
	s.g[i] = struct{ at, expect, flags, rounds uint8 }{rounds: r}
	if int(r) >= m.rounds {
		s.g[i].at = atDone
	}
}

func (m *model) enterSection(s *modelState, i int) {
	for j := range m.proc {
		if s.g[j].at == atInside {
			m.violation = "two inside"
		}
	}
	if s.word>>4 != uint8(m.proc[i]+1) {
		m.violation = "inside without the token in the word"
	}
	s.g[i].at, s.g[i].flags, s.dirty = atInside, 0, true
}

// steps calls next with every state that one step of somebody leads to.
func (m *model) steps(s modelState, next func(modelState, string)) {
	if s.kills > 0 {
		for p := range m.procs {
			m.kill(s, p, next)
		}
	}
	for i := range m.proc {
		m.step(s, i, func(n modelState, what string) {
			if m.tells {
				what = fmt.Sprintf("g%d of P%d %s: word %#x", i, m.proc[i], what, n.word)
			}
			next(n, what)
		})
	}
}

func (m *model) kill(s modelState, p int, next func(modelState, string)) {
	lives := false
	for i, q := range m.proc {
		if q != p {
			continue
		}
		lives = lives || s.g[i].at != atDone && s.g[i].at != atDead
		s.kernel = dequeue(s.kernel, i)
		s.g[i] = struct{ at, expect, flags, rounds uint8 }{at: atDead}
	}
	if !lives {
		return
	}
	s.kills--
	s.dead |= 1 << p
	s.leaders &^= 1 << p
	s.gate[p], s.queue[p] = 0, 0
	next(s, "a process is killed")
}

func (m *model) step(s modelState, i int, next func(modelState, string)) {
	g, p := s.g[i], m.proc[i]
	v, t := uint64(s.word), uint64(p+1)<<4
	slept := g.flags&hasSlept != 0
	holder := v &^ flags
	gateFree := s.gate[p] == 0
	isDead := func() bool {
		return holder != 0 && (s.dead&(1<<(holder>>4-1)) != 0 || m.earlyDeath && holder != t)
	}
	to := func(what string, word uint64, at uint8, more ...func(*modelState)) {
		n := s
		n.word, n.g[i].at = uint8(word), at
		for _, f := range more {
			f(&n)
		}
		next(n, what)
	}

	if s.cancels > 0 && g.flags&isCancelled == 0 && g.at >= atQueue && g.at <= atAsleep {
		n := s
		n.cancels--
		n.g[i].flags |= isCancelled
		if g.at == atAsleep {
			n.kernel = dequeue(n.kernel, i)
			n.awake(i)
		}
		next(n, "is cancelled")
	}

	switch g.at {
	case atStart:
		if v == 0 {
			to("locks at once", t, atAcquired)
			return
		}
		to("takes the slow path", v, atQueue)
		if w, ok := m.tried(v, t); m.try && ok {
			to("tries with success", w, atAcquired)
		}
	case atQueue:
		if !gateFree {
			return
		}
		leads := s.leaders&(1<<p) != 0
		if !leads && (holder != t || s.queue[p] == 0) {
			to("leads", v, atLead, func(n *modelState) { n.leaders |= 1 << p })
			return
		}
		w := v
		if !leads {
			w = m.queuedUp(v, false)
		}
		to("parks", w, atParked, func(n *modelState) { n.queue[p] = enqueue(n.queue[p], i) })
	case atParked:
		if g.flags&isCancelled != 0 && gateFree {
			to("leaves the queue", v, atLastLook, func(n *modelState) { n.queue[p] = dequeue(n.queue[p], i) })
		}
	case atLead:
		if holder == 0 {
			if w, ok := m.taken(v, t, slept); ok {
				to("takes the lock", w, atStepDown)
				return
			}
		}
		if holder == t {
			if gateFree {
				to("parks in front", m.queuedUp(v, slept), atParked, func(n *modelState) {
					n.leaders &^= 1 << p
					n.queue[p] = enqueueFront(n.queue[p], i)
				})
			}
			return
		}
		if g.flags&isCancelled != 0 {
			to("gives up", v, atGiveUp)
			return
		}
		if g.flags&inDoubt != 0 && isDead() {
			to("inherits", m.inherited(v, t), atStepDown, func(n *modelState) { n.g[i].flags &^= inDoubt })
			return
		}
		for _, starving := range []bool{false, true} {
			if starving && !slept {
				continue
			}
			w := m.awaited(v, starving)
			to("is about to sleep", w, atSleep, func(n *modelState) {
				n.g[i].flags &^= inDoubt
				n.g[i].expect = uint8(w)
			})
		}
	case atSleep:
		// The kernel compares the half with the flags: another holder's may be the same.
		if e := uint64(g.expect); v&flags == e&flags && (holder == 0) == (e&^flags == 0) {
			to("falls asleep", v, atAsleep, func(n *modelState) {
				n.g[i].expect = 0
				n.kernel = enqueue(n.kernel, i)
			})
			return
		}
		to("finds the word changed", v, atLead, func(n *modelState) { n.g[i].expect = 0 })
	case atAsleep:
		if s.expiry > 0 {
			n := s
			if n.expiry != always {
				n.expiry--
			}
			n.kernel = dequeue(n.kernel, i)
			n.awake(i)
			n.g[i].flags |= inDoubt
			next(n, "has slept its time out")
		}
	case atGiveUp:
		if !gateFree {
			return
		}
		at := uint8(atLastLook)
		if slept && !m.leaveWithoutWake {
			at = atPassOn
		}
		to("promotes", v, at, func(n *modelState) {
			if m.noPromoteOnGive {
				n.leaders &^= 1 << p
				return
			}
			at := n.g[i].at
			n.promote(p)
			n.g[i].at = at
		})
	case atPassOn:
		w, wake := m.abandoned(v)
		at := uint8(atLastLook)
		if wake {
			at = atPassWake
		}
		to("passes its claims on", w, at)
	case atPassWake:
		to("wakes another", v, atLastLook, (*modelState).wakeOne)
	case atLastLook:
		n := s
		m.finish(&n, i)
		next(n, "is refused")
		if w, free := m.refused(v, t); free {
			to("gets it at the last look", w, atAcquired)
		} else if isDead() {
			to("inherits at the last look", m.inherited(v, t), atAcquired)
		}
	case atStepDown:
		if !gateFree {
			return
		}
		w := v
		if s.queue[p] != 0 && !m.noLocalOnStep {
			w |= flagLocal
		}
		to("steps down", w, atAcquired, func(n *modelState) {
			if !m.staysLeader {
				n.leaders &^= 1 << p
			}
		})
	case atAcquired:
		if v&flagInconsistent == 0 {
			if s.dirty {
				m.violation = "half changed data entered as clean"
			}
			n := s
			m.enterSection(&n, i)
			next(n, "enters")
			return
		}
		to("repairs", v, atRepair, func(n *modelState) { n.dirty = false })
		if m.refuseRepair {
			to("does not repair", v, atUnlock)
		}
	case atRepair:
		n := s
		n.word = uint8(v &^ flagInconsistent)
		m.enterSection(&n, i)
		next(n, "enters after the repair")
	case atInside:
		to("leaves", v, atUnlock, func(n *modelState) { n.dirty = false })
	case atUnlock:
		m.unlock(s, i, next)
	case atUnlockLocal:
		m.unlockLocal(s, i, next)
	case atPromote:
		n := s
		if s.leaders&(1<<p) == 0 && !m.noPromoteOnFree {
			n.promote(p)
		}
		n.gate[p] = 0
		if g.flags&wakesLater == 0 {
			m.finish(&n, i)
		} else {
			n.g[i].flags, n.g[i].at = 0, atWake
		}
		next(n, "promotes after the release")
	case atWake:
		n := s
		n.wakeOne()
		m.finish(&n, i)
		next(n, "wakes one")
	}
}

func (m *model) unlock(s modelState, i int, next func(modelState, string)) {
	v, t := uint64(s.word), uint64(m.proc[i]+1)<<4
	n := s
	switch {
	case v&^flags != t:
		m.violation = "robbed of the lock"
	case v == t:
		n.word = 0
		m.finish(&n, i)
		next(n, "unlocks at once")
	case v&flagLocal != 0:
		n.g[i].at = atUnlockLocal
		next(n, "sees that its own process waits")
	default:
		w, wake := m.released(v)
		n.word = uint8(w)
		if wake {
			n.g[i].at = atWake
		} else {
			m.finish(&n, i)
		}
		next(n, "releases")
	}
}

func (m *model) unlockLocal(s modelState, i int, next func(modelState, string)) {
	p := m.proc[i]
	v, t := uint64(s.word), uint64(p+1)<<4
	switch {
	case s.gate[p] != 0:
		return
	case v&^flags != t:
		m.violation = "robbed of the lock"
		return
	}
	for _, long := range []bool{false, true} {
		if s.queue[p] == 0 || !m.passed(v, long) {
			continue
		}
		n := s
		w := int(s.queue[p]&15) - 1
		n.queue[p] >>= 4
		if n.queue[p] == 0 {
			n.word &^= flagLocal
		}
		n.g[w].at, n.g[w].flags = atAcquired, 0
		m.finish(&n, i)
		next(n, "passes the lock to the first of its own")
	}
	if s.queue[p] != 0 && m.passed(v, false) {
		return
	}
	w, wake := m.released(v)
	n := s
	n.word = uint8(w)
	n.gate[p] = uint8(i + 1)
	n.g[i].at = atPromote
	if wake {
		n.g[i].flags |= wakesLater
	}
	next(n, "releases in the gate")
}

// ended reports whether everybody is done or dead.
func (m *model) ended(s *modelState) bool {
	for i := range m.proc {
		if s.g[i].at != atDone && s.g[i].at != atDead {
			return false
		}
	}
	return true
}

// run explores all states. It returns their number, and what is wrong with one of them, or "".
func (m *model) run() (states int, fault string) {
	return world[modelState]{
		first: modelState{kills: uint8(m.kills), cancels: uint8(m.cancels), expiry: uint8(m.expiry)},
		steps: m.steps,
		check: func(s *modelState) (bool, string) {
			ended := m.ended(s)
			if m.violation == "" && ended && (s.kernel != 0 || s.leaders != 0 || s.queue != [modelProcs]uint16{}) {
				return ended, "left behind in the queues"
			}
			return ended, m.violation
		},
		same:  func(a, b *modelState) bool { return a.kills == b.kills && a.cancels == b.cancels },
		tells: &m.tells,
	}.explore()
}

var smallConfigs = []config{
	{procs: []int{2, 2}, rounds: 1},
	{procs: []int{1, 1, 1}, rounds: 2, try: true},
	{procs: []int{2, 1, 1}, rounds: 1, try: true},
	{procs: []int{2, 2}, rounds: 1, cancels: 1, try: true},
	{procs: []int{2, 1, 1}, rounds: 1, cancels: 1},
	{procs: []int{1, 1, 1}, rounds: 1, cancels: 2, try: true},
	{procs: []int{1, 1, 1}, rounds: 1, cancels: 1, expiry: 2, try: true},
	{procs: []int{1, 1, 1}, rounds: 1, kills: 2, expiry: always, refuseRepair: true},
	{procs: []int{2, 1}, rounds: 1, kills: 1, cancels: 1, expiry: always, try: true, refuseRepair: true},
	{procs: []int{2, 2}, rounds: 1, kills: 1, expiry: always},
}

var largeConfigs = []config{
	{procs: []int{2, 2}, rounds: 2},
	{procs: []int{2, 1, 1}, rounds: 2},
	{procs: []int{2, 2}, rounds: 2, cancels: 1, try: true},
	{procs: []int{2, 1, 1}, rounds: 1, cancels: 2, try: true},
	{procs: []int{1, 1, 1}, rounds: 2, cancels: 2},
	{procs: []int{1, 1, 1}, rounds: 2, cancels: 1, expiry: 2, try: true},
	{procs: []int{2, 1, 1}, rounds: 1, cancels: 1, expiry: 2, try: true},
	{procs: []int{1, 1, 1}, rounds: 1, kills: 2, cancels: 1, expiry: always, try: true, refuseRepair: true},
	{procs: []int{2, 2}, rounds: 1, kills: 2, cancels: 1, expiry: always, try: true, refuseRepair: true},
	{procs: []int{2, 1, 1}, rounds: 1, kills: 2, cancels: 1, expiry: always, try: true, refuseRepair: true},
	{procs: []int{3, 1}, rounds: 1, kills: 1, cancels: 1, expiry: always, try: true},
}

func TestModelOfTheMutexHoldsInEveryOrderOfSteps(t *testing.T) {
	t.Parallel()
	configs := smallConfigs
	if *largeModels {
		configs = append(configs, largeConfigs...)
	}
	for _, c := range configs {
		t.Run(c.String(), func(t *testing.T) {
			states, fault := newModel(c, theRules).run()
			if fault != "" {
				t.Errorf("%d states: %s", states, fault)
			}
			t.Logf("%d states", states)
		})
	}
}

// A model that finds nothing may look at nothing: each of these bugs it must find.
func TestModelOfTheMutexFindsInjectedBugs(t *testing.T) {
	t.Parallel()
	for name, inject := range map[string]func(*rules){
		"a woken waiter takes the lock without W": func(r *rules) {
			r.taken = func(v, t uint64, slept bool) (uint64, bool) {
				next, ok := taken(v, t, slept)
				return next &^ flagWaiters, ok
			}
		},
		"a newcomer takes the lock from those it is kept for, and forgets them": func(r *rules) {
			r.taken = func(v, t uint64, slept bool) (uint64, bool) { return t, v&^flags == 0 }
		},
		"a woken waiter parks behind its own process without W": func(r *rules) {
			r.queuedUp = func(v uint64, _ bool) uint64 { return v | flagLocal }
		},
		"one parks without telling the holder": func(r *rules) {
			r.queuedUp = func(v uint64, slept bool) uint64 { return queuedUp(v, slept) &^ flagLocal }
		},
		"a cancelled waiter does not pass its wake-up on":      func(r *rules) { r.leaveWithoutWake = true },
		"a cancelled leader leaves its queue without a leader": func(r *rules) { r.noPromoteOnGive = true },
		"a release leaves the queue without a leader":          func(r *rules) { r.noPromoteOnFree = true },
		"a leader does not tell its release of the queue":      func(r *rules) { r.noLocalOnStep = true },
		"a leader that has the lock stays one":                 func(r *rules) { r.staysLeader = true },
		"a process is taken for dead while it runs":            func(r *rules) { r.earlyDeath = true },
		"an inherited lock is not inconsistent": func(r *rules) {
			r.inherited = func(v, t uint64) uint64 { return inherited(v, t) &^ flagInconsistent }
		},
		"a release forgets that the data is inconsistent": func(r *rules) {
			r.released = func(v uint64) (uint64, bool) {
				next, wake := released(v)
				return next &^ flagInconsistent, wake
			}
		},
		"a release wakes nobody": func(r *rules) {
			r.released = func(v uint64) (uint64, bool) {
				next, _ := released(v)
				return next, false
			}
		},
		"a cancelled waiter dissolves no reservation": func(r *rules) {
			r.abandoned = func(v uint64) (uint64, bool) {
				if v&^flags == 0 {
					return v, true
				}
				return abandoned(v)
			}
		},
		"a cancelled waiter leaves its claim to be starving": func(r *rules) {
			r.abandoned = func(v uint64) (uint64, bool) {
				if v&^flags != 0 {
					return v | flagWaiters, false
				}
				return abandoned(v)
			}
		},
		"a sleeper does not say that it sleeps": func(r *rules) {
			r.awaited = func(v uint64, _ bool) uint64 { return v }
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := theRules
			inject(&r)
			for _, c := range append(append([]config(nil), smallConfigs...), config{procs: []int{2, 1, 1}, rounds: 2}) {
				if states, fault := newModel(c, r).run(); fault != "" {
					what, _, _ := strings.Cut(fault, "\n")
					t.Logf("%v: %s after %d states", c, what, states)
					return
				}
			}
			t.Error("not found")
		})
	}
}
