package sync

import (
	"fmt"
	"strings"
	"testing"
)

// An explicit-state model of the Barrier. It runs every order of the stores of a few processes, over the very
// steps that the barrier makes ([barrierState.passed] and its kin), with kills, limits and actions. The mutex
// is taken to be what it is: whoever takes it from the dead makes the sums anew. A dead process is found out
// in two steps, as in package shm: its holding is gone, and then the count of deaths has changed. Sleeps end
// by themselves only where somebody may be killed. Where there are resets, who is told that it is broken comes
// again, until nobody will reset it any more.
//
// What must hold: a generation goes only when all living members have arrived, and as many parties as there
// are, but for the dead where they are dropped; it goes or is broken, never both; nobody goes after an action
// that a death cut off; one place 0 for each pass; who has slept through a reset is told how its own generation
// ended; a death that came before a reset breaks nothing after it; without kills no state in which somebody waits and nothing
// can happen; and from every state everybody who lives can finish.

// barrierRules are the steps a model runs: those of the barrier, or with one of them broken.
type barrierRules struct {
	passed     func(v barrierState, g uint32) (barrierState, bool)
	broken     func(v, how barrierState) (barrierState, bool)
	renewed    func(v barrierState) (barrierState, bool)
	counted    func(r roster, alive uint32, drop bool) (roster, bool)
	complete   func(arrived, parties uint32, claimed bool) bool
	noWake     bool // a pass wakes nobody
	noBreak    bool // a count does not break the barrier for the dead
	rosterLast bool // the other way round: a count breaks the barrier when the roster has forgotten the dead
	lateSeen   bool // a count reads how many deaths there were after it has looked at who lives
	sumOfNow   bool // a count takes who had arrived for arrivals of the next generation, if a pass comes between
	keepClaim  bool // a count leaves the claim of the dead
	deaf       bool // who sleeps does not look at the count of deaths
	noW        bool // a sleeper does not say that it sleeps
	noNote     bool // a reset does not note how the generation ended
	lateNote   bool // a reset notes that when the next one has begun
	noBury     bool // a reset does not ask who lives
}

var theBarrierRules = barrierRules{
	passed: barrierState.passed, broken: barrierState.broken, renewed: barrierState.renewed, counted: roster.counted, complete: complete,
}

// Where a party of the model is.
const (
	bStart = iota
	bLock
	bSeen
	bScan
	bCountBreak
	bCountRoster
	bCountMuster
	bCountClaim
	bCountSeen
	bCountWake
	bLocked
	bJoined
	bArrives
	bClaims
	bPlace
	bMuster
	bUnlock
	bAct
	bPass
	bWake
	bSleep
	bMark
	bAsleep
	bGiveUp
	bBury
	bResetBreak
	bNote
	bNoted
	bRoster
	bRenew
	bLateNote
	bDone
	bDead
)

const barrierProcs = 3

type barrierParty struct {
	at     uint8
	rounds uint8
	gen    uint8
	place  uint8
	last   bool  // makes the pass
	has    bool  // has arrived
	wakes  bool  // after the step that it makes
	expect uint8 // the word it sleeps by
	deaths uint8 // and the count of deaths; what a count will say that it has seen
	alive  uint8 // what a count has found
	came   uint8
	then   uint8 // the generation in which it has counted
	orphan bool
	told   bool  // has found it broken
	reset  uint8 // 1: a reset; 2: that has counted
	before uint8 // ghost: who was dead when the reset began
	end    uint8 // what a reset found
}

type barrierModelState struct {
	roster  roster // the widest first: gaps make hashing slow
	muster  muster
	came    [barrierProcs]muster // holdings
	word    uint8
	claim   uint8 // process plus one, 0 none
	acts    bool
	claimed uint8
	mu      uint8 // holder plus one, 0 free
	deaths  uint8
	seen    uint8
	members [barrierProcs]bool // holdings
	gone    [barrierProcs]bool // found dead: the holding is no more
	counted [barrierProcs]bool
	kills   uint8
	limits  uint8
	resets  uint8
	broken  uint8    // generations that resets have ended
	ends    [2]uint8 // their states
	forgot  uint8    // ghost: the dead of before a reset
	ended   [5]uint8 // ghost, of each generation: 1 passed, 2 broken
	zeros   [5]uint8 // ghost
	arrived [5]uint8 // ghost: who has, dead or alive, one bit each
	g       [barrierProcs]barrierParty
}

type barrierConfig struct {
	procs, rounds, kills, limits, resets int
	drop, action, joined                 bool
}

func (c barrierConfig) String() string {
	return fmt.Sprintf("procs=%d/rounds=%d/kills=%d/limits=%d/resets=%d/drop=%v/action=%v/joined=%v", c.procs, c.rounds, c.kills, c.limits, c.resets, c.drop, c.action, c.joined)
}

type barrierModel struct {
	barrierConfig
	barrierRules
	violation string
	tells     bool
}

func (m *barrierModel) start() (s barrierModelState) {
	s.kills, s.limits, s.resets = uint8(m.kills), uint8(m.limits), uint8(m.resets)
	s.roster = newRoster(uint32(m.procs), 0)
	if m.joined {
		s.roster = newRoster(uint32(m.procs), uint32(m.procs))
	}
	for p := range m.procs {
		s.members[p] = m.joined
	}
	for p := m.procs; p < barrierProcs; p++ {
		s.g[p].at = bDone
	}
	return s
}

func (s *barrierModelState) isClaimed(g uint32) bool { return s.claim != 0 && uint32(s.claimed) == g }

func (m *barrierModel) stale(s *barrierModelState, p *barrierParty) bool {
	g := uint32(p.gen)
	return s.deaths != s.seen && !m.deaf || m.complete(s.muster.in(g), s.roster.parties(), s.isClaimed(g))
}

// breakUp is the step that breaks the generation of now, if it is ok to.
func (m *barrierModel) breakUp(s *barrierModelState, how barrierState, g int) (wake bool) {
	v := barrierState(s.word)
	next, ok := m.broken(v, how)
	if !ok || g >= 0 && int(v.generation()) != g {
		return false
	}
	if s.ended[v.generation()] == 1 {
		m.violation = "a generation that was passed is broken"
	}
	s.ended[v.generation()] = 2
	s.word = uint8(next)
	return v.slept()
}

// passed is whether generation g, which is over, was passed, as the words say.
func (s *barrierModelState) passed(g uint8) bool {
	if v := barrierState(s.word); v.generation() == uint32(g) {
		return false
	}
	for _, e := range s.ends[:s.broken] {
		if barrierState(e).generation() == uint32(g) {
			return false
		}
	}
	return true
}

// dead are those who have been killed, one bit each.
func (s *barrierModelState) dead() (bits uint8) {
	for i := range s.g {
		if s.g[i].at == bDead {
			bits |= 1 << i
		}
	}
	return bits
}

// isOver reports whether it is broken for good.
func (s *barrierModelState) isOver() bool {
	for i := range s.g {
		if s.g[i].reset > 0 {
			return false
		}
	}
	return s.resets == 0 && !barrierState(s.word).open()
}

func (s *barrierModelState) wakeAll() {
	for i := range s.g {
		if s.g[i].at == bAsleep {
			s.g[i].at = bSleep
		}
	}
}

func (m *barrierModel) steps(s barrierModelState, next func(barrierModelState, string)) {
	for p := range m.procs {
		q := &s.g[p]
		// Who has not become a member yet is missed by nobody, and waited for.
		if s.kills > 0 && q.at < bDone && q.at != bStart && (m.joined || s.members[p] && q.at > bJoined) {
			n := s
			n.kills--
			n.g[p] = barrierParty{at: bDead}
			next(n, "a process is killed")
		}
		if q.at == bDead && !s.gone[p] {
			n := s
			n.gone[p], n.members[p], n.came[p] = true, false, 0
			next(n, "a process is found dead")
		}
		if q.at == bDead && s.gone[p] && !s.counted[p] {
			n := s
			n.counted[p] = true
			n.deaths++
			n.wakeAll()
			next(n, "a process is counted dead")
		}
		if q.at < bDone {
			m.step(s, p, func(n barrierModelState, what string) {
				if m.tells {
					what = fmt.Sprintf("P%d %s", p, what)
				}
				next(n, what)
			})
		}
	}
}

func (m *barrierModel) finish(s *barrierModelState, p int, passed bool) {
	q := &s.g[p]
	if passed {
		if s.ended[q.gen] != 1 {
			m.violation = "somebody goes who was not let go"
		}
		if q.place == 0 {
			if s.zeros[q.gen]++; s.zeros[q.gen] > 1 {
				m.violation = "two have place 0"
			}
		}
	} else if s.ended[q.gen] == 1 && q.has {
		m.violation = "one whose generation was passed is told that it is broken"
	}
	r := q.rounds + 1
	if !passed && m.resets > 0 {
		r--
	}
	*q = barrierParty{rounds: r}
	if int(r) >= m.rounds || !passed && m.resets == 0 {
		q.at = bDone
	}
}

func (m *barrierModel) step(s barrierModelState, p int, next func(barrierModelState, string)) {
	q := s.g[p]
	v := barrierState(s.word)
	to := func(what string, at uint8, change ...func(*barrierModelState)) {
		n := s
		n.g[p].at = at
		for _, c := range change {
			c(&n)
		}
		next(n, what)
	}
	switch q.at {
	case bStart:
		if m.resets > 0 && s.isOver() {
			to("goes home", bDone)
			return
		}
		to("comes", bLock, func(n *barrierModelState) { n.g[p].gen = uint8(v.generation()) })
		if s.resets > 0 {
			to("comes to reset it", bLock, func(n *barrierModelState) {
				n.resets--
				n.g[p].reset, n.g[p].before = 1, s.dead()
			})
		}
	case bLock:
		dirty := s.mu != 0 && s.g[s.mu-1].at == bDead && s.gone[s.mu-1]
		if s.mu != 0 && !dirty {
			return
		}
		at := uint8(bLocked)
		if dirty || s.seen != s.deaths {
			at = bSeen
		}
		to("takes the mutex", at, func(n *barrierModelState) { n.mu = uint8(p + 1) })
	case bSeen:
		to("reads the count of deaths", bScan, func(n *barrierModelState) { n.g[p].deaths = s.deaths })
	case bScan:
		to("counts who lives", bCountBreak, func(n *barrierModelState) {
			c := &n.g[p]
			c.alive, c.came, c.then = 0, 0, uint8(v.generation())
			claimant := false
			for i := range m.procs {
				if s.members[i] {
					c.alive++
					c.came += uint8(s.came[i].in(v.generation()))
					claimant = claimant || s.claim == uint8(i+1)
				}
			}
			c.orphan = s.isClaimed(v.generation()) && !claimant
		})
	case bCountBreak, bCountRoster:
		roster, died := m.counted(s.roster, uint32(q.alive), m.drop)
		if (q.at == bCountBreak) != m.rosterLast {
			to("breaks it for the dead", q.at+1, func(n *barrierModelState) {
				wake := false
				switch {
				case m.noBreak:
				case died && !m.drop:
					if v.open() && s.dead()&^s.forgot == 0 {
						m.violation = "broken for the dead of before the reset"
					}
					wake = m.breakUp(n, barrierDied, -1)
				case q.orphan && s.acts:
					wake = m.breakUp(n, barrierDied, int(q.then))
				}
				if wake {
					n.wakeAll()
				}
			})
		} else {
			to("stores the roster", q.at+1, func(n *barrierModelState) { n.roster = roster })
		}
	case bCountMuster:
		to("stores the sum", bCountClaim, func(n *barrierModelState) {
			n.muster = newMuster(uint32(q.then), uint32(q.came))
			if m.sumOfNow {
				n.muster = newMuster(v.generation(), uint32(q.came))
			}
		})
	case bCountClaim:
		to("drops the claim", bCountSeen, func(n *barrierModelState) {
			if q.orphan && !m.keepClaim {
				n.claim = 0
			}
		})
	case bCountSeen:
		to("has counted", bCountWake, func(n *barrierModelState) {
			n.seen = q.deaths
			if m.lateSeen {
				n.seen = s.deaths
			}
		})
	case bCountWake:
		at := uint8(bLocked)
		if q.reset == 2 {
			at = bNote
		}
		to("wakes who may make the pass", at, func(n *barrierModelState) {
			if m.complete(uint32(q.came), s.roster.parties(), s.isClaimed(uint32(q.then))) {
				n.wakeAll()
			}
		})
	case bLocked:
		g := v.generation()
		switch {
		case q.reset > 0:
			to("asks who lives", bBury)
		case q.has: // looks again
			if g == uint32(q.gen) && v.open() && m.complete(s.muster.in(g), s.roster.parties(), s.isClaimed(g)) {
				to("is to make the pass", bClaims)
				return
			}
			to("has nothing to do", bUnlock)
		case !v.open():
			to("finds it broken", bUnlock, func(n *barrierModelState) { n.g[p].gen, n.g[p].told = uint8(g), true })
		case s.isClaimed(g):
			to("finds another pass under way", bUnlock, func(n *barrierModelState) { n.g[p].gen = uint8(g) })
		case s.members[p]:
			to("is a member", bArrives, func(n *barrierModelState) { n.g[p].gen = uint8(g) })
		default:
			to("becomes a member", bJoined, func(n *barrierModelState) { n.g[p].gen, n.members[p] = uint8(g), true })
		}
	case bJoined:
		to("is counted as a member", bArrives, func(n *barrierModelState) { n.roster = s.roster.joined(uint32(m.procs)) })
	case bArrives:
		at := uint8(bPlace)
		if m.complete(s.muster.in(uint32(q.gen))+1, s.roster.parties(), false) {
			at = bClaims
		}
		to("arrives", at, func(n *barrierModelState) {
			n.came[p] = newMuster(uint32(q.gen), 1)
			n.arrived[q.gen] |= 1 << p
		})
	case bClaims:
		at := uint8(bMuster)
		if q.has {
			at = bUnlock
		}
		to("claims the pass", at, func(n *barrierModelState) {
			n.claim, n.claimed, n.acts = uint8(p+1), q.gen, m.action
			n.g[p].last, n.g[p].place = true, 0
		})
	case bPlace:
		to("has a place", bMuster, func(n *barrierModelState) { n.g[p].place = uint8(s.muster.in(uint32(q.gen))) + 1 })
	case bMuster:
		to("is counted", bUnlock, func(n *barrierModelState) {
			n.muster = newMuster(uint32(q.gen), s.muster.in(uint32(q.gen))+1)
			n.g[p].has = true
		})
	case bUnlock:
		at := uint8(bSleep)
		switch {
		case q.reset > 0:
			to("has reset it", bStart, func(n *barrierModelState) {
				n.mu = 0
				n.g[p] = barrierParty{at: bStart, rounds: q.rounds}
			})
			return
		case q.told:
			n := s
			n.mu = 0
			m.finish(&n, p, false)
			next(n, "goes away, told that it is broken")
			return
		case q.last && m.action:
			at = bAct
		case q.last:
			at = bPass
		}
		to("releases the mutex", at, func(n *barrierModelState) { n.mu = 0 })
	case bAct:
		to("has acted", bPass)
	case bPass:
		w, ok := m.passed(v, uint32(q.gen))
		if !ok {
			n := s
			m.finish(&n, p, s.passed(q.gen))
			next(n, "finds it over")
			return
		}
		m.checkPass(&s, p)
		to("lets them go", bWake, func(n *barrierModelState) {
			n.word, n.g[p].wakes = uint8(w), v.slept()
			if n.ended[q.gen] == 2 {
				m.violation = "a generation that was broken is passed"
			}
			n.ended[q.gen] = 1
		})
	case bWake:
		n := s
		if q.wakes && !m.noWake {
			n.wakeAll()
		}
		m.finish(&n, p, true)
		next(n, "wakes them")
	case bSleep:
		switch {
		case v.generation() != uint32(q.gen) && q.has:
			n := s
			m.finish(&n, p, s.passed(q.gen))
			next(n, "finds it over, and goes")
		case !v.open():
			n := s
			m.finish(&n, p, false)
			next(n, "is told that it is broken")
		case v.generation() != uint32(q.gen), m.stale(&s, &q):
			to("has to look", bLock)
		default:
			switch {
			case s.limits > 0 && q.has:
				to("gives up", bGiveUp, func(n *barrierModelState) { n.limits-- })
			case m.resets > 0 && s.dead() != 0 && q.has: // nobody takes the place of the dead
				to("gives up for the dead", bGiveUp)
			}
			w := v | barrierWaiters
			if m.noW {
				w = v
			}
			to("says that it sleeps", bMark, func(n *barrierModelState) {
				n.word, n.g[p].expect, n.g[p].deaths = uint8(w), uint8(w), s.deaths
			})
		}
	case bMark:
		if s.word != q.expect || s.deaths != q.deaths && !m.deaf {
			to("does not sleep", bSleep)
		} else {
			to("sleeps", bAsleep)
		}
	case bAsleep:
		if m.kills > 0 && !m.deaf {
			to("has slept its time out", bSleep)
		}
	case bGiveUp:
		to("breaks it", bSleep, func(n *barrierModelState) {
			if m.breakUp(n, barrierBroken, int(q.gen)) {
				n.wakeAll()
			}
		})
	case bBury: // others find the dead, in steps of their own
		for i := range m.procs {
			if s.members[i] && s.g[i].at == bDead && !m.noBury {
				return
			}
		}
		to("knows who lives", bResetBreak)
	case bResetBreak:
		to("breaks it for the reset", bSeen, func(n *barrierModelState) {
			n.g[p].reset = 2
			if g := v.generation(); v.open() && s.muster.in(g) > 0 && m.breakUp(n, barrierBroken, int(g)) {
				n.wakeAll()
			}
		})
	case bNote:
		if v.open() {
			to("gives it all its parties", bUnlock, func(n *barrierModelState) {
				n.roster = newRoster(uint32(m.procs), s.roster.members())
				n.forgot |= q.before
			})
			return
		}
		to("notes how it ended", bNoted, func(n *barrierModelState) {
			n.g[p].end = uint8(v &^ barrierWaiters)
			if m.noNote || m.lateNote || s.broken > 0 && s.ends[s.broken-1] == n.g[p].end {
				n.g[p].at = bRoster
				return
			}
			n.ends[s.broken] = n.g[p].end
		})
	case bNoted:
		to("counts the note", bRoster, func(n *barrierModelState) { n.broken++ })
	case bRoster:
		to("renews the roster", bRenew, func(n *barrierModelState) { n.roster = newRoster(uint32(m.procs), s.roster.members()) })
	case bRenew:
		at := uint8(bUnlock)
		if m.lateNote {
			at = bLateNote
		}
		to("renews it", at, func(n *barrierModelState) {
			w, _ := m.renewed(v)
			n.word = uint8(w)
			n.forgot |= q.before
			if v.slept() {
				n.wakeAll()
			}
		})
	case bLateNote:
		to("notes how it ended", bUnlock, func(n *barrierModelState) {
			n.ends[s.broken], n.broken = q.end, s.broken+1
		})
	}
}

// checkPass checks the step by which p lets its generation go.
func (m *barrierModel) checkPass(s *barrierModelState, p int) {
	g := s.g[p].gen
	need, come := m.procs, 0
	for i := range m.procs {
		if s.g[i].at == bDead && m.drop {
			need--
		}
		if s.arrived[g]>>i&1 != 0 && (s.g[i].at != bDead || !m.drop) {
			come++
		}
		if s.g[i].at != bDead && s.members[i] && s.came[i].in(uint32(g)) == 0 {
			m.violation = "passed without a member that lives"
		}
	}
	if come < need {
		m.violation = fmt.Sprintf("passed with %d of %d", come, need)
	}
	if s.isClaimed(uint32(g)) && s.acts && s.claim != uint8(p+1) {
		m.violation = "passed by another while an action ran"
	}
}

func (m *barrierModel) ended(s *barrierModelState) bool {
	for p := range m.procs {
		if s.g[p].at < bDone {
			return false
		}
	}
	return true
}

// run explores all states, and returns how many there are and what is wrong.
func (m *barrierModel) run() (int, string) {
	return world[barrierModelState]{
		first: m.start(),
		steps: m.steps,
		check: func(s *barrierModelState) (bool, string) { return m.ended(s), m.violation },
		tells: &m.tells,
	}.explore()
}

var barrierConfigs = []barrierConfig{
	{procs: 2, rounds: 2},
	{procs: 2, rounds: 2, limits: 1, action: true},
	{procs: 2, rounds: 2, kills: 1, joined: true},
	{procs: 2, rounds: 2, kills: 1, limits: 1, drop: true, joined: true},
	{procs: 2, rounds: 2, kills: 1, action: true},
	{procs: 2, rounds: 2, limits: 1, resets: 1},
	{procs: 2, rounds: 1, limits: 1, resets: 2, action: true},
	{procs: 2, rounds: 1, kills: 1, resets: 1, joined: true},
	{procs: 2, rounds: 1, kills: 1, resets: 1, joined: true, drop: true, action: true},
	{procs: 3, rounds: 2, action: true},
	{procs: 3, rounds: 1, limits: 2},
	{procs: 3, rounds: 1, kills: 2, joined: true},
	{procs: 3, rounds: 1, kills: 2, joined: true, drop: true},
	{procs: 3, rounds: 1, kills: 1, drop: true, action: true, joined: true},
}

var largeBarrierConfigs = []barrierConfig{
	{procs: 3, rounds: 2, kills: 1, joined: true},
	{procs: 3, rounds: 2, kills: 1, joined: true, drop: true},
	{procs: 3, rounds: 1, kills: 2, limits: 1, joined: true, drop: true, action: true},
	{procs: 3, rounds: 2, kills: 1, drop: true},
	{procs: 3, rounds: 1, limits: 1, resets: 1},
	{procs: 3, rounds: 1, kills: 1, resets: 1, joined: true},
	{procs: 2, rounds: 2, kills: 1, limits: 1, resets: 2, joined: true},
}

func TestModelOfTheBarrierHoldsInEveryOrderOfSteps(t *testing.T) {
	t.Parallel()
	configs := barrierConfigs
	if *largeModels {
		configs = append(configs, largeBarrierConfigs...)
	}
	for _, c := range configs {
		t.Run(c.String(), func(t *testing.T) {
			m := &barrierModel{barrierConfig: c, barrierRules: theBarrierRules}
			states, fault := m.run()
			if fault != "" {
				t.Errorf("%d states: %s", states, fault)
			}
			t.Logf("%d states", states)
		})
	}
}

// A model that finds nothing may look at nothing: each of these bugs it must find.
func TestModelOfTheBarrierFindsInjectedBugs(t *testing.T) {
	t.Parallel()
	for name, inject := range map[string]func(*barrierRules){
		"a pass wakes nobody":                                   func(r *barrierRules) { r.noWake = true },
		"a sleeper does not say that it sleeps":                 func(r *barrierRules) { r.noW = true },
		"a death breaks nothing":                                func(r *barrierRules) { r.noBreak = true },
		"the roster forgets the dead before it is broken":       func(r *barrierRules) { r.rosterLast = true },
		"the count of deaths is read after the look around":     func(r *barrierRules) { r.lateSeen = true },
		"the sum of one generation is that of the next":         func(r *barrierRules) { r.sumOfNow = true },
		"the claim of the dead stays":                           func(r *barrierRules) { r.keepClaim = true },
		"who sleeps does not hear of deaths, nor looks for it":  func(r *barrierRules) { r.deaf = true },
		"a reset does not note how it ended":                    func(r *barrierRules) { r.noNote = true },
		"a reset notes how it ended when the next one is there": func(r *barrierRules) { r.lateNote = true },
		"a reset does not ask who lives":                        func(r *barrierRules) { r.noBury = true },
		"a reset begins no generation": func(r *barrierRules) {
			r.renewed = func(v barrierState) (barrierState, bool) {
				return v &^ (barrierWaiters | barrierBroken | barrierDied), !v.open()
			}
		},
		"a pass does not look whether it is broken": func(r *barrierRules) {
			r.passed = func(v barrierState, g uint32) (barrierState, bool) {
				return v&^(barrierWaiters|barrierBroken|barrierDied) + barrierNext, v.generation() == g
			}
		},
		"one is missing": func(r *barrierRules) {
			r.complete = func(arrived, parties uint32, claimed bool) bool { return complete(arrived+1, parties, claimed) }
		},
		"two make the pass": func(r *barrierRules) {
			r.complete = func(arrived, parties uint32, _ bool) bool { return complete(arrived, parties, false) }
		},
		"the dead are not dropped": func(r *barrierRules) {
			r.counted = func(r roster, alive uint32, _ bool) (roster, bool) {
				return newRoster(r.parties(), alive), alive < r.members()
			}
		},
		"who breaks it wakes nobody": func(r *barrierRules) {
			r.broken = func(v, how barrierState) (barrierState, bool) {
				next, ok := v.broken(how)
				return next, ok && !v.slept()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := theBarrierRules
			inject(&r)
			for _, c := range append(barrierConfigs[:len(barrierConfigs):len(barrierConfigs)], largeBarrierConfigs[1]) {
				m := &barrierModel{barrierConfig: c, barrierRules: r}
				if states, fault := m.run(); fault != "" {
					what, _, _ := strings.Cut(fault, "\n")
					t.Logf("%v: %s after %d states", c, what, states)
					return
				}
			}
			t.Error("not found")
		})
	}
}
