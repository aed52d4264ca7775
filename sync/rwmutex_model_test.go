package sync

import (
	"fmt"
	"strings"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

// An explicit-state model of the RWMutex: every order of the steps of a few readers and writers in two or
// three processes, over the very transitions that the lock makes, with kills, cancellations and sleeps that
// time out. The word that writers exclude each other with is that of a Mutex, which has a model of its own:
// here it is taken when it is free or its holder dead, by anyone who waits. It may read as something else than
// 0 while it is free, as when it is kept for a sleeper: so a reader may always go the slow way.
//
// What must hold: no writer inside with anybody else; data that a writer left half changed never entered;
// nobody asked to repair what is whole; without kills and timeouts no state in which somebody waits and
// nothing can happen; and from every state everybody who lives can finish.

// rwRules are the transitions a model runs: those of the lock, or with one of them broken.
type rwRules struct {
	entered, registered func(v, base uint64) (uint64, bool)
	left                func(v, base uint64) (uint64, bool, bool)
	drained             func(v, base uint64) bool
	draining            func(v uint64) uint64
	written             func(t, word uint64) uint64
	whole               func(writer uint64) bool
	noLook              bool // a reader that has counted itself does not look at the word
	noKnown             bool // a reader counts itself where writers do not look
	undoSilently        bool // a reader that goes again wakes nobody
	standLate           bool // a reader lets go of the word before it is counted
	earlyName           bool // a writer says that it is inside before the readers are gone
	noName              bool // a writer does not say that it is inside
	lateClear           bool // a writer lets go of the word before it says that it is not inside any more
	keepWord            bool // a writer that gives up keeps the word
	earlyDeath          bool // a reader is taken for dead while it lives
	neverDead           bool // a dead reader is waited for like a living one
}

var theRWRules = rwRules{
	entered: entered, registered: registered, left: left, drained: drained, draining: draining,
	written: written, whole: whole,
}

// Where a goroutine of the model is.
const (
	rwStart = iota
	rwCounted
	rwUndo
	rwUndoWake
	rwTake
	rwHave
	rwMend
	rwMended
	rwKnown
	rwStand
	rwRelease
	rwReading
	rwLeaveWake
	rwDrain
	rwSleep
	rwAsleep
	rwNamed
	rwWriting
	rwUnlock
	rwClear
	rwGiveUp
	rwRefused
	rwDone
	rwDead
)

const (
	rwProcs = 3
	rwGs    = 4
)

// An rwState is all there is; two equal ones have the same future.
type rwState struct {
	holder  uint8 // of the word: process plus one
	p       bool  // P in the word
	writer  uint8 // token of process p is (p+1)<<4
	changed bool  // the data is half changed
	known   uint8 // processes whose counts writers look at
	count   [rwProcs]uint8
	drain   uint8 // processes whose count has D
	dead    uint8
	undone  uint8 // whose slot answers that nobody is there
	kills   uint8
	cancels uint8
	expiry  uint8 // sleeps that may still time out, or always
	g       [rwGs]struct{ at, slot, expect, flags, rounds uint8 }
}

// An rwConfig is what a model explores.
type rwConfig struct {
	procs                          []string // of each process: r for a reader, w for a writer, p for one that poisons
	rounds, kills, cancels, expiry int
	refuseRepair                   bool
}

func (c rwConfig) String() string {
	return fmt.Sprintf("procs=%s/rounds=%d/kills=%d/cancels=%d/timeouts=%d/norepair=%v",
		strings.Join(c.procs, ","), c.rounds, c.kills, c.cancels, c.expiry, c.refuseRepair)
}

type rwModel struct {
	rwConfig
	rwRules
	proc      []int
	kind      []byte
	violation string
	tells     bool
}

func newRWModel(c rwConfig, r rwRules) *rwModel {
	m := &rwModel{rwConfig: c, rwRules: r}
	for p, kinds := range c.procs {
		for _, k := range []byte(kinds) {
			m.proc, m.kind = append(m.proc, p), append(m.kind, k)
		}
	}
	return m
}

func rwBase(p int) uint64 { return uint64(p+1) << shm.HoldingBits }

// read returns the word of a process' count.
func (s *rwState) read(p int) uint64 {
	v := rwBase(p) | uint64(s.count[p])
	if s.drain&(1<<p) != 0 {
		v |= drainBit
	}
	return v
}

// write stores the word of a process' count.
func (s *rwState) write(p int, v uint64) {
	if v&^shm.HoldingMask != rwBase(p) {
		panic("a step has changed whose count it is")
	}
	s.count[p] = uint8(v & maxReaders)
	s.drain &^= 1 << p
	if v&drainBit != 0 {
		s.drain |= 1 << p
	}
}

func (m *rwModel) finish(s *rwState, i int) {
	r := s.g[i].rounds + 1
	s.g[i] = struct{ at, slot, expect, flags, rounds uint8 }{rounds: r}
	if int(r) >= m.rounds {
		s.g[i].at = rwDone
	}
}

// inside looks at who is inside beside i, who comes in.
func (m *rwModel) inside(s *rwState, i int) {
	for j := range m.proc {
		switch at := s.g[j].at; {
		case j == i:
		case at == rwWriting || at == rwUnlock && m.kind[j] != 'r':
			m.violation = "inside beside a writer"
		case (at == rwReading || at == rwRelease && !m.standLate && m.kind[j] == 'r') && m.kind[i] != 'r':
			m.violation = "a writer inside beside a reader"
		}
	}
	if s.changed {
		m.violation = "half changed data entered as if it were whole"
	}
}

// steps calls next with every state that one step of somebody leads to.
func (m *rwModel) steps(s rwState, next func(rwState, string)) {
	if s.kills > 0 {
		for p := range m.procs {
			m.kill(s, p, next)
		}
	}
	for i := range m.proc {
		m.step(s, i, func(n rwState, what string) {
			if m.tells {
				what = fmt.Sprintf("g%d%c of P%d %s: word %d/%v, writer %#x, counts %v, D %b", i, m.kind[i], m.proc[i], what, n.holder, n.p, n.writer, n.count, n.drain)
			}
			next(n, what)
		})
	}
}

func (m *rwModel) kill(s rwState, p int, next func(rwState, string)) {
	lives := false
	for i, q := range m.proc {
		if q == p {
			lives = lives || s.g[i].at != rwDone && s.g[i].at != rwDead
			s.g[i] = struct{ at, slot, expect, flags, rounds uint8 }{at: rwDead}
		}
	}
	if !lives {
		return
	}
	s.kills--
	s.dead |= 1 << p
	next(s, "a process is killed")
}

// leave takes a reader off the count of p, and says where it goes from there.
func (m *rwModel) leave(s *rwState, i, p int, woken uint8) bool {
	v, wake, ok := m.left(s.read(p), rwBase(p))
	if !ok {
		m.violation = "a reader was not counted"
		return false
	}
	s.write(p, v)
	if wake {
		s.g[i].at = woken
	}
	return wake
}

// wake wakes the writers that sleep by the count of p.
func (m *rwModel) wake(s *rwState, p int) {
	for j := range m.proc {
		if s.g[j].at == rwAsleep && int(s.g[j].slot) == p {
			s.g[j].at, s.g[j].expect = rwDrain, 0
		}
	}
}

func (m *rwModel) step(s rwState, i int, next func(rwState, string)) {
	g, p := s.g[i], m.proc[i]
	me := uint8(p + 1)
	to := func(what string, at uint8, more ...func(*rwState)) {
		n := s
		n.g[i].at = at
		for _, f := range more {
			f(&n)
		}
		next(n, what)
	}
	end := func(what string, more ...func(*rwState)) {
		n := s
		for _, f := range more {
			f(&n)
		}
		m.finish(&n, i)
		next(n, what)
	}
	reader := m.kind[i] == 'r'
	cancelled := g.flags&isCancelled != 0
	free := func(n *rwState) { n.holder = 0 }
	known := s.known&(1<<p) != 0

	if s.cancels > 0 && !cancelled && (g.at == rwTake || g.at == rwDrain || g.at == rwAsleep) {
		n := s
		n.cancels--
		n.g[i].flags |= isCancelled
		if g.at == rwAsleep {
			n.g[i].at, n.g[i].expect = rwDrain, 0
		}
		next(n, "is cancelled")
	}

	switch g.at {
	case rwStart:
		to("takes the slow way", rwTake)
		if !reader || !known && !m.noKnown {
			return
		}
		if v, ok := m.entered(s.read(p), rwBase(p)); ok {
			to("counts itself", rwCounted, func(n *rwState) { n.write(p, v) })
		}
	case rwCounted:
		if m.noLook || s.holder == 0 && !s.p {
			m.inside(&s, i)
			to("is in", rwReading)
			return
		}
		to("finds the word taken", rwUndo)
	case rwUndo:
		n := s
		n.g[i].at = rwTake
		if m.leave(&n, i, p, rwUndoWake) && m.undoSilently {
			n.g[i].at = rwTake
		}
		next(n, "goes again")
	case rwUndoWake:
		to("wakes the writer", rwTake, func(n *rwState) { m.wake(n, p) })
	case rwTake:
		switch {
		case s.holder == 0:
			to("takes the word", rwHave, func(n *rwState) { n.holder = me })
		case s.dead&(1<<(s.holder-1)) != 0:
			to("takes the word from the dead", rwHave, func(n *rwState) {
				n.undone |= 1 << (s.holder - 1)
				n.holder, n.p = me, true
			})
		case cancelled:
			end("is refused")
		}
	case rwHave:
		goOn := uint8(rwDrain)
		if reader {
			goOn = rwKnown
		}
		if m.earlyName && !reader {
			to("says that it is inside", goOn, func(n *rwState) { n.writer = me << 4; n.p = false })
			return
		}
		switch {
		case !s.p:
			to("finds the lock consistent", goOn)
		case m.whole(uint64(s.writer)):
			to("finds that nobody was writing", goOn, func(n *rwState) { n.p = false })
		default:
			if !s.changed {
				m.violation = "whole data said to be half changed"
			}
			for j := range m.proc {
				if at := s.g[j].at; at == rwReading || at == rwWriting {
					m.violation = "repaired beside somebody inside"
				}
			}
			to("begins to repair", rwMend)
			if m.refuseRepair {
				to("does not repair", rwRefused)
			}
		}
	case rwRefused:
		end("lets go of an inconsistent lock", free)
	case rwMend:
		to("has repaired, and says so", rwMended, func(n *rwState) { n.writer, n.changed = 0, false })
	case rwMended:
		at := uint8(rwDrain)
		if reader {
			at = rwKnown
		}
		to("says that the lock is consistent", at, func(n *rwState) { n.p = false })
	case rwKnown:
		at := uint8(rwStand)
		if m.standLate {
			at = rwRelease
		}
		to("lets writers know", at, func(n *rwState) { n.known |= 1 << p })
	case rwStand:
		v, ok := m.registered(s.read(p), rwBase(p))
		if !ok {
			m.violation = "a reader with the word could not be counted"
			return
		}
		at := uint8(rwRelease)
		if m.standLate {
			at = rwReading
		}
		m.inside(&s, i)
		to("is counted", at, func(n *rwState) { n.write(p, v) })
	case rwRelease:
		at := uint8(rwReading)
		if m.standLate {
			at = rwStand
		}
		to("lets go of the word", at, free)
	case rwReading:
		n := s
		if m.leave(&n, i, p, rwLeaveWake) {
			next(n, "leaves, the last one")
			return
		}
		m.finish(&n, i)
		next(n, "leaves")
	case rwLeaveWake:
		end("wakes the writer", func(n *rwState) { m.wake(n, p) })

	case rwDrain:
		q := int(g.slot)
		if q == len(m.procs) {
			if m.noName {
				m.inside(&s, i)
				to("is in", rwWriting, func(n *rwState) { n.changed = true })
				return
			}
			m.inside(&s, i)
			to("is in, and says so", rwWriting, func(n *rwState) { n.writer, n.changed = me<<4, true })
			return
		}
		v := s.read(q)
		if s.known&(1<<q) == 0 || s.undone&(1<<q) != 0 || m.drained(v, rwBase(q)) {
			to("finds no reader in one", rwDrain, func(n *rwState) { n.g[i].slot++; n.g[i].flags &^= inDoubt })
			return
		}
		if (g.flags&inDoubt != 0 || cancelled) && (s.dead&(1<<q) != 0 && !m.neverDead || m.earlyDeath && q != p) {
			to("finds one dead", rwDrain, func(n *rwState) { n.undone |= 1 << q })
			return
		}
		if cancelled {
			to("gives up", rwGiveUp, func(n *rwState) { n.write(q, undrained(v, rwBase(q))) })
			return
		}
		w := m.draining(v)
		to("is about to sleep", rwSleep, func(n *rwState) {
			n.write(q, w)
			n.g[i].expect = n.count[q]<<1 | n.drain>>q&1
			n.g[i].flags &^= inDoubt
		})
	case rwSleep:
		q := int(g.slot)
		if s.count[q]<<1|s.drain>>q&1 == g.expect {
			to("falls asleep", rwAsleep)
			return
		}
		to("finds the count changed", rwDrain, func(n *rwState) { n.g[i].expect = 0 })
	case rwAsleep:
		if s.expiry > 0 {
			to("has slept its time out", rwDrain, func(n *rwState) {
				if n.expiry != always {
					n.expiry--
				}
				n.g[i].expect = 0
				n.g[i].flags |= inDoubt
			})
		}
	case rwGiveUp:
		if m.keepWord {
			end("goes with the word")
			return
		}
		end("lets go of the word", free)
	case rwWriting:
		if m.kind[i] == 'p' {
			to("says that the data is half changed", rwUnlock, func(n *rwState) { n.p = true })
			return
		}
		to("has written", rwUnlock)
	case rwUnlock:
		if m.lateClear {
			to("lets go of the word", rwClear, free, func(n *rwState) { n.changed = n.p })
			return
		}
		to("says that it is not inside any more", rwClear, func(n *rwState) {
			word := uint64(me) << 4
			if s.p {
				word |= flagInconsistent
			}
			n.writer = uint8(m.written(uint64(me)<<4, word))
			n.changed = s.p
		})
	case rwClear:
		if m.lateClear {
			end("says that it is not inside any more", func(n *rwState) { n.writer = 0 })
			return
		}
		end("lets go of the word", free)
	}
}

func (m *rwModel) ended(s *rwState) bool {
	for i := range m.proc {
		if s.g[i].at != rwDone && s.g[i].at != rwDead {
			return false
		}
	}
	return true
}

// leftBehind says what is wrong with a lock that all who live have done with.
func (m *rwModel) leftBehind(s *rwState) string {
	for p := range m.procs {
		switch {
		case s.dead&(1<<p) != 0:
		case s.count[p] != 0:
			return "a reader is counted that is not there"
		case s.drain&(1<<p) != 0:
			return "D without readers"
		case s.holder == uint8(p+1):
			return "the word held by nobody"
		}
	}
	if s.dead == 0 && s.changed != !whole(uint64(s.writer)) {
		return "the lock does not say what became of the data"
	}
	return ""
}

// run explores all states. It returns their number, and what is wrong with one of them, or "".
func (m *rwModel) run() (states int, fault string) {
	return world[rwState]{
		first: rwState{kills: uint8(m.kills), cancels: uint8(m.cancels), expiry: uint8(m.expiry)},
		steps: m.steps,
		check: func(s *rwState) (ended bool, fault string) {
			if ended, fault = m.ended(s), m.violation; ended && fault == "" {
				fault = m.leftBehind(s)
			}
			return ended, fault
		},
		same:  func(a, b *rwState) bool { return a.kills == b.kills && a.cancels == b.cancels },
		tells: &m.tells,
	}.explore()
}

var smallRWConfigs = []rwConfig{
	{procs: []string{"rr", "w"}, rounds: 2},
	{procs: []string{"rw", "rw"}, rounds: 1},
	{procs: []string{"r", "r", "w"}, rounds: 2},
	{procs: []string{"r", "w", "w"}, rounds: 2},
	{procs: []string{"rr", "w"}, rounds: 2, cancels: 2},
	{procs: []string{"r", "w", "w"}, rounds: 1, cancels: 2, expiry: 2},
	{procs: []string{"r", "p", "w"}, rounds: 1, cancels: 1, refuseRepair: true},
	{procs: []string{"rr", "w"}, rounds: 2, kills: 1, expiry: always},
	{procs: []string{"r", "w", "w"}, rounds: 1, kills: 2, cancels: 1, expiry: always, refuseRepair: true},
	{procs: []string{"rw", "rw"}, rounds: 1, kills: 1, expiry: always, refuseRepair: true},
	{procs: []string{"r", "r", "w"}, rounds: 1, kills: 2, cancels: 1, expiry: always},
}

var largeRWConfigs = []rwConfig{
	{procs: []string{"rr", "rw"}, rounds: 2},
	{procs: []string{"rw", "rw"}, rounds: 2, cancels: 1},
	{procs: []string{"rr", "w", "w"}, rounds: 1, cancels: 2, expiry: 2},
	{procs: []string{"rr", "ww"}, rounds: 1, kills: 2, cancels: 2, expiry: always, refuseRepair: true},
	{procs: []string{"rw", "r", "w"}, rounds: 1, kills: 2, cancels: 1, expiry: always, refuseRepair: true},
	{procs: []string{"rr", "p", "w"}, rounds: 1, kills: 2, cancels: 1, expiry: always, refuseRepair: true},
	{procs: []string{"r", "w", "w"}, rounds: 2, kills: 2, cancels: 1, expiry: always, refuseRepair: true},
	{procs: []string{"r", "r", "w"}, rounds: 2, kills: 2, cancels: 2, expiry: always},
}

func TestModelOfTheRWMutexHoldsInEveryOrderOfSteps(t *testing.T) {
	t.Parallel()
	configs := smallRWConfigs
	if *largeModels {
		configs = append(configs, largeRWConfigs...)
	}
	for _, c := range configs {
		t.Run(c.String(), func(t *testing.T) {
			states, fault := newRWModel(c, theRWRules).run()
			if fault != "" {
				t.Errorf("%d states: %s", states, fault)
			}
			t.Logf("%d states", states)
		})
	}
}

// A model that finds nothing may look at nothing: each of these bugs it must find.
func TestModelOfTheRWMutexFindsInjectedBugs(t *testing.T) {
	t.Parallel()
	for name, inject := range map[string]func(*rwRules){
		"a reader does not look after it has counted itself":           func(r *rwRules) { r.noLook = true },
		"a reader counts itself where writers do not look":             func(r *rwRules) { r.noKnown = true },
		"a reader that goes again wakes nobody":                        func(r *rwRules) { r.undoSilently = true },
		"a reader lets go of the word before it is counted":            func(r *rwRules) { r.standLate = true },
		"a writer says that it is inside before the readers are gone":  func(r *rwRules) { r.earlyName = true },
		"a writer does not say that it is inside":                      func(r *rwRules) { r.noName = true },
		"a writer lets go before it says that it is not inside":        func(r *rwRules) { r.lateClear = true },
		"a writer that gives up keeps the word":                        func(r *rwRules) { r.keepWord = true },
		"a reader is taken for dead while it lives":                    func(r *rwRules) { r.earlyDeath = true },
		"a dead reader is waited for like a living one":                func(r *rwRules) { r.neverDead = true },
		"whoever has the word of a dead holder asks for no repair":     func(r *rwRules) { r.whole = func(uint64) bool { return true } },
		"whoever has the word of a dead holder always asks for repair": func(r *rwRules) { r.whole = func(uint64) bool { return false } },
		"a writer does not say that it sleeps":                         func(r *rwRules) { r.draining = func(v uint64) uint64 { return v } },
		"a count is taken for empty as soon as D is set": func(r *rwRules) {
			r.drained = func(v, base uint64) bool { return drained(v, base) || v&drainBit != 0 }
		},
		"the last reader wakes nobody": func(r *rwRules) {
			r.left = func(v, base uint64) (uint64, bool, bool) {
				next, _, ok := left(v, base)
				return next, false, ok
			}
		},
		"the last reader leaves D": func(r *rwRules) {
			r.left = func(v, base uint64) (uint64, bool, bool) {
				_, wake, ok := left(v, base)
				return v - 1, wake, ok
			}
		},
		"a poisoned lock forgets it when it is unlocked": func(r *rwRules) {
			r.written = func(t, _ uint64) uint64 { return 0 }
		},
		"a writer stays in its word": func(r *rwRules) {
			r.written = func(t, _ uint64) uint64 { return t }
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := theRWRules
			inject(&r)
			for _, c := range smallRWConfigs {
				if states, fault := newRWModel(c, r).run(); fault != "" {
					what, _, _ := strings.Cut(fault, "\n")
					t.Logf("%v: %s after %d states", c, what, states)
					return
				}
			}
			t.Error("not found")
		})
	}
}
