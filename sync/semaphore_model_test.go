package sync

import (
	"fmt"
	"strings"
	"testing"
)

// An explicit-state model of the Semaphore: every order of the steps of a few goroutines in two or three processes,
// over the very steps that the semaphore makes ([used] and its kin, [tally]), with kills, cancellations, and the loss
// of what is idle. A section of mu is one step for each store in it; adding up is one step, since under mu no
// sum grows. Nothing ends a sleep but a call and a death: no wait may need its tick. A killed process keeps what it
// has, mu too, until it is undone, which counts a death.
//
// What must hold: never more permits out than there are; nobody passes one who has waited long; and from every state
// everybody who lives can finish, without a kill also in every order; and then all permits are there.

// semRules are the steps a model runs: those of the semaphore, or with one of them broken.
type semRules struct {
	used, unused       func(v, n uint64) (uint64, bool)
	granted            func(v, n uint64, waits bool) (uint64, bool)
	returned           func(v, n uint64, waits bool) uint64
	reclaimed          func(v, k uint64, waits bool) uint64
	claimed, unclaimed func(v uint64) uint64
	mayTake            func(t tally, limit, n, claim uint64) bool
	calls              func(t tally, limit uint64) bool
	add                func(t *tally, v, more, claim uint64)
	quietDeath         bool // a death wakes nobody
	leaveSilently      bool // one who withdraws calls nobody
	sleepBlindly       bool // one falls asleep whatever its word says
	callOnce           bool // a look does not make the claim callable again
	takeSilently       bool // one who has waited and is served calls nobody
}

var theSemRules = semRules{
	used: used, unused: unused, granted: granted, returned: returned, reclaimed: reclaimed, claimed: claimed, unclaimed: unclaimed,
	mayTake: tally.mayTake, calls: tally.calls, add: (*tally).add,
}

const (
	semStart = iota
	semLock  // mu is wanted, for take
	semServe
	semReclaim
	semDecide
	semUnclaim
	semUnclaimValue
	semCall
	semRing
	semUnlock
	semWake
	semTurn
	semStand
	semStandValue
	semStandClaim
	semStandReclaim
	semStandUnlock
	semLead
	semSleep
	semAsleep
	semWithdraw
	semInside
	semRelease
	semReturn
	semDone
	semDead
)

// What one does after semUnlock and semWake.
const (
	thenInside = iota
	thenFinish
	thenTurn
	thenSleepOrLeave
)

const (
	semProcs = 3
	semGs    = 4
)

type semG struct { // without gaps, which make hashing slow
	at, then   uint8
	i, k       uint8 // of a reclaim
	calls, see uint8 // read before the look: of the call word, of deaths
	wake       uint8 // process to be woken, plus one
	cancelled  bool
	claim      uint64
	rounds     uint64
}

type semState struct {
	claim   [semProcs]uint64
	g       [semGs]semG
	val     [semProcs]uint32
	call    [semProcs]uint8
	mu      uint8 // goroutine plus one
	turn    [semProcs]uint8
	tickets uint8
	dead    uint8
	undone  uint8
	deaths  uint8
	kills   uint8
	cancels uint32
	drops   uint32
}

type semConfig struct {
	procs         []int // goroutines of each process
	need          []int // permits of each goroutine
	limit, rounds int
	kills         int
	cancels       int
	drops         int
}

func (c semConfig) String() string {
	return fmt.Sprintf("procs=%v/need=%v/limit=%d/rounds=%d/kills=%d/cancels=%d/drops=%d", c.procs, c.need, c.limit, c.rounds, c.kills, c.cancels, c.drops)
}

type semModel struct {
	semConfig
	semRules
	proc  []int
	fault string
	tells bool
}

func newSemModel(c semConfig, r semRules) *semModel {
	m := &semModel{semConfig: c, semRules: r}
	for p, n := range c.procs {
		for range n {
			m.proc = append(m.proc, p)
		}
	}
	return m
}

func (m *semModel) tally(s *semState) (all tally) {
	for p := range m.procs {
		if s.undone&(1<<p) == 0 && s.val[p] != 0 {
			m.add(&all, uint64(s.val[p]), 0, s.claim[p])
		}
	}
	return all
}

func (m *semModel) wake(s *semState, p int) {
	for i := range m.proc {
		if m.proc[i] == p && s.g[i].at == semAsleep {
			s.g[i].at = semLead
		}
	}
}

func (m *semModel) finish(s *semState, i int) {
	p := m.proc[i]
	if s.turn[p] == uint8(i+1) {
		s.turn[p] = 0
	}
	r := s.g[i].rounds + 1
	s.g[i] = semG{rounds: r, cancelled: s.g[i].cancelled}
	if int(r) >= m.rounds {
		s.g[i].at = semDone
	}
}

func (m *semModel) steps(s semState, next func(semState, string)) {
	for p := range m.procs {
		bit := uint8(1) << p
		lives := false
		for i, q := range m.proc {
			lives = lives || q == p && s.g[i].at != semDone && s.g[i].at != semDead
		}
		if s.kills > 0 && s.dead&bit == 0 && lives {
			n := s
			n.kills--
			n.dead |= bit
			n.turn[p] = 0
			for i, q := range m.proc {
				if q == p {
					n.g[i] = semG{at: semDead, rounds: n.g[i].rounds}
				}
			}
			next(n, "a process is killed")
		}
		if s.dead&bit != 0 && s.undone&bit == 0 {
			n := s
			n.undone |= bit
			n.val[p], n.claim[p], n.call[p] = 0, 0, 0
			n.deaths++
			if n.mu != 0 && m.proc[n.mu-1] == p {
				n.mu = 0
			}
			if !m.quietDeath {
				for q := range m.procs {
					m.wake(&n, q)
				}
			}
			next(n, "the dead process is undone")
		}
		if v, ok := dropped(uint64(s.val[p])); ok && s.val[p] != 0 && s.drops > 0 && s.dead&bit == 0 {
			n := s
			n.drops--
			n.val[p] = uint32(v)
			next(n, "a process drops what it has idle")
		}
	}
	for i := range m.proc {
		m.step(s, i, func(n semState, what string) {
			if m.tells {
				what = fmt.Sprintf("g%d of P%d %s: values %x claims %x mu %d", i, m.proc[i], what, n.val, n.claim, n.mu)
			}
			next(n, what)
		})
	}
}

// grant checks what a grant must keep to.
func (m *semModel) grantTo(s *semState, i int) {
	out := m.need[i]
	for j := range m.proc {
		if s.g[j].at == semInside || s.g[j].at == semRelease || s.g[j].at == semReturn || s.g[j].then == thenInside && s.g[j].at >= semUnclaim && s.g[j].at <= semWake {
			out += m.need[j]
		}
	}
	for p := range m.procs { // the dead have what their stakes say
		if s.dead&(1<<p) != 0 && s.undone&(1<<p) == 0 {
			out += int(usedOf(uint64(s.val[p])))
		}
	}
	if out > m.limit {
		m.fault = "more permits out than there are"
	}
	for p, c := range s.claim {
		if c != 0 && s.undone&(1<<p) == 0 && c&claimPatient == 0 && c&^claimCalled != s.g[i].claim&^claimCalled && (s.g[i].claim == 0 || older(c, s.g[i].claim)) {
			m.fault = "one who has waited long is passed"
		}
	}
}

func (m *semModel) step(s semState, i int, next func(semState, string)) {
	g, p, need := s.g[i], m.proc[i], uint64(m.need[i])
	v := uint64(s.val[p])
	to := func(what string, at uint8, more ...func(*semState)) {
		n := s
		n.g[i].at = at
		for _, f := range more {
			f(&n)
		}
		next(n, what)
	}
	set := func(v uint64) func(*semState) { return func(n *semState) { n.val[p] = uint32(v) } }
	lock := func(what string, at uint8) {
		if s.mu == 0 {
			to(what, at, func(n *semState) { n.mu = uint8(i + 1) })
		}
	}
	if s.cancels > 0 && !g.cancelled && (g.at >= semTurn && g.at <= semAsleep) {
		n := s
		n.cancels--
		n.g[i].cancelled = true
		if g.at == semAsleep {
			n.g[i].at = semLead
		}
		next(n, "is cancelled")
	}
	switch g.at {
	case semStart:
		if w, ok := m.used(v, need); ok {
			to("uses what is idle", semInside, set(w), func(n *semState) { n.g[i].at = semStart; m.grantTo(n, i); n.g[i].at = semInside })
			return
		}
		to("goes the slow way", semLock)
	case semLock:
		lock("locks", semServe)
	case semServe:
		serve := func(n semState, what string) {
			all := m.tally(&n)
			if free := all.free(uint64(m.limit)); free < need && (g.claim != 0 || m.mayTake(all, uint64(m.limit), 0, 0)) {
				n.g[i].at, n.g[i].i, n.g[i].k = semReclaim, 0, uint8(need-free)
			} else {
				n.g[i].at = semDecide
			}
			next(n, what)
		}
		if g.claim == 0 {
			serve(s, "adds up")
			return
		}
		for _, patient := range []bool{true, false} {
			if patient && g.claim&claimPatient == 0 {
				continue
			}
			n := s
			if !patient {
				n.g[i].claim &^= claimPatient
			}
			renewed := n.g[i].claim
			if m.callOnce {
				renewed |= n.claim[p] & claimCalled
			}
			n.claim[p] = renewed
			serve(n, "renews its claim, and adds up")
		}
	case semReclaim, semStandReclaim:
		if int(g.i) == len(m.procs) {
			to("has reclaimed", map[bool]uint8{true: semDecide, false: semStandUnlock}[g.at == semReclaim])
			return
		}
		n := s
		w := uint64(s.val[g.i])
		waits := g.at == semStandReclaim || m.tally(&s).head != 0
		if s.undone&(1<<g.i) == 0 {
			r := m.reclaimed(w, uint64(g.k), waits)
			n.g[i].k -= uint8(idleOf(w) - idleOf(r))
			n.val[g.i] = uint32(r)
		}
		n.g[i].i++
		next(n, "reclaims from one")
	case semDecide:
		all := m.tally(&s)
		if !m.mayTake(all, uint64(m.limit), need, g.claim) {
			then := uint8(thenTurn)
			if g.claim != 0 {
				then = thenSleepOrLeave
			}
			to("may not", semUnlock, func(n *semState) { n.g[i].then, n.g[i].i, n.g[i].k = then, 0, 0 })
			return
		}
		w, ok := m.granted(v, need, all.head != 0)
		if !ok {
			m.fault = "no room in the stake"
			return
		}
		at := uint8(semUnlock)
		if g.claim != 0 {
			at = semUnclaim
		}
		to("is granted", at, set(w), func(n *semState) {
			n.g[i].at = semDecide
			m.grantTo(n, i)
			n.g[i].at, n.g[i].then, n.g[i].i, n.g[i].k = at, thenInside, 0, 0
		})
	case semUnclaim:
		to("takes its claim back", semUnclaimValue, func(n *semState) { n.claim[p], n.call[p], n.g[i].claim = 0, 0, 0 })
	case semUnclaimValue:
		at := uint8(semCall)
		if g.then == thenInside && m.takeSilently || g.then == thenFinish && m.leaveSilently {
			at = semUnlock
		}
		to("gives its place up", at, set(m.unclaimed(v)))
	case semCall:
		all := m.tally(&s)
		if !m.calls(all, uint64(m.limit)) {
			to("calls nobody", semUnlock)
			return
		}
		for q := range m.procs {
			if s.claim[q] == all.head && s.undone&(1<<q) == 0 {
				to("is about to call the head", semRing, func(n *semState) {
					n.claim[q] |= claimCalled
					n.g[i].wake = uint8(q + 1)
				})
				return
			}
		}
		m.fault = "the head is nobody's"
	case semRing:
		to("calls", semUnlock, func(n *semState) { n.call[g.wake-1]++ })
	case semUnlock:
		at := uint8(semWake)
		to("unlocks", at, func(n *semState) { n.mu = 0 })
	case semWake:
		n := s
		if g.wake != 0 {
			m.wake(&n, int(g.wake-1))
			n.g[i].wake = 0
		}
		switch g.then {
		case thenInside:
			if n.turn[p] == uint8(i+1) {
				n.turn[p] = 0
			}
			n.g[i].at = semInside
		case thenFinish:
			m.finish(&n, i)
		case thenTurn:
			n.g[i].at = semTurn
		case thenSleepOrLeave:
			n.g[i].at = semSleep
			if g.cancelled {
				n.g[i].at = semWithdraw
			}
		}
		n.g[i].then = 0
		next(n, "goes on")
	case semTurn:
		if g.cancelled {
			n := s
			m.finish(&n, i)
			next(n, "is refused")
		} else if s.turn[p] == 0 {
			to("has its turn", semStand, func(n *semState) { n.turn[p] = uint8(i + 1) })
		}
	case semStand:
		lock("locks to claim", semStandValue)
	case semStandValue:
		to("takes a place", semStandClaim, set(m.claimed(v)))
	case semStandClaim:
		to("claims", semStandReclaim, func(n *semState) {
			c := claimFor(uint32(s.tickets), need, true)
			n.claim[p], n.g[i].claim = c, c
			n.tickets++
			n.g[i].i, n.g[i].k = 0, 200
		})
	case semStandUnlock:
		to("unlocks", semLead, func(n *semState) { n.mu, n.g[i].i, n.g[i].k = 0, 0, 0 })
	case semLead:
		to("is about to look", semLock, func(n *semState) { n.g[i].calls, n.g[i].see = s.call[p], s.deaths })
	case semSleep:
		if !m.sleepBlindly && (s.call[p] != g.calls || s.deaths != g.see) {
			to("finds its word changed", semLead)
			return
		}
		to("falls asleep", semAsleep)
	case semWithdraw:
		if s.mu == 0 {
			to("locks to withdraw", semUnclaim, func(n *semState) { n.mu, n.g[i].then = uint8(i+1), thenFinish })
		}
	case semInside:
		if w, ok := m.unused(v, need); ok {
			n := s
			n.val[p] = uint32(w)
			m.finish(&n, i)
			next(n, "lets go, and keeps it idle")
			return
		}
		to("goes the slow way back", semRelease)
	case semRelease:
		lock("locks to return", semReturn)
	case semReturn:
		if usedOf(v) < need {
			m.fault = "robbed of its permits"
			return
		}
		to("returns", semCall, set(m.returned(v, need, m.tally(&s).head != 0)), func(n *semState) { n.g[i].then = thenFinish })
	}
}

// check looks at a state, and reports whether everybody is done or dead in it.
func (m *semModel) check(s *semState) (ended bool, fault string) {
	var sum uint64
	for p := range m.procs {
		sum += usedOf(uint64(s.val[p])) + idleOf(uint64(s.val[p]))
	}
	if sum > uint64(m.limit) {
		return false, "more is taken out than there is"
	}
	quiet := s.dead == s.undone
	for i := range m.proc {
		at := s.g[i].at
		quiet = quiet && (at == semInside || at == semTurn || at == semAsleep || at == semDone || at == semDead)
	}
	if quiet && s.kills == 0 && m.tally(s).calls(uint64(m.limit)) {
		return false, "one sleeps beside what it waits for"
	}
	for i := range m.proc {
		if s.g[i].at != semDone && s.g[i].at != semDead {
			return false, ""
		}
	}
	if s.dead != s.undone {
		return false, ""
	}
	for p := range m.procs {
		if v := uint64(s.val[p]); usedOf(v) != 0 || v == stakeSlow || v&stakeClaim != 0 || s.claim[p] != 0 || s.turn[p] != 0 || s.mu != 0 {
			return true, "left behind"
		}
	}
	return true, ""
}

func (m *semModel) run() (int, string) {
	first := semState{kills: uint8(m.kills), cancels: uint32(m.cancels), drops: uint32(m.drops)}
	return world[semState]{
		first: first,
		steps: m.steps,
		check: func(s *semState) (bool, string) {
			if m.fault != "" {
				return false, m.fault
			}
			return m.check(s)
		},
		same:  func(a, b *semState) bool { return a.kills == b.kills && a.cancels == b.cancels && a.drops == b.drops },
		tells: &m.tells,
	}.explore()
}

var semConfigs = []semConfig{
	{procs: []int{1, 1}, need: []int{1, 1}, limit: 1, rounds: 2},
	{procs: []int{1, 1, 1}, need: []int{1, 1, 1}, limit: 1, rounds: 1, cancels: 1},
	{procs: []int{1, 1}, need: []int{2, 1}, limit: 2, rounds: 2, drops: 1},
	{procs: []int{2, 1}, need: []int{1, 1, 2}, limit: 2, rounds: 1, cancels: 1},
	{procs: []int{1, 1, 1}, need: []int{2, 1, 1}, limit: 2, rounds: 1},
	{procs: []int{1, 1}, need: []int{1, 1}, limit: 1, rounds: 2, kills: 1},
	{procs: []int{1, 1, 1}, need: []int{1, 2, 1}, limit: 2, rounds: 1, kills: 1},
	{procs: []int{2, 1}, need: []int{1, 1, 2}, limit: 2, rounds: 1, kills: 1},
}

var largeSemConfigs = []semConfig{
	{procs: []int{1, 1, 1}, need: []int{1, 1, 1}, limit: 1, rounds: 2},
	{procs: []int{1, 1, 1}, need: []int{2, 1, 1}, limit: 2, rounds: 2, kills: 1},
	{procs: []int{1, 1, 1}, need: []int{1, 2, 1}, limit: 2, rounds: 1, kills: 2, cancels: 1, drops: 1},
	{procs: []int{2, 1}, need: []int{1, 1, 2}, limit: 2, rounds: 2, kills: 1, cancels: 1},
	{procs: []int{2, 2}, need: []int{1, 1, 1, 2}, limit: 2, rounds: 1, cancels: 1},
	{procs: []int{2, 1, 1}, need: []int{1, 1, 2, 3}, limit: 3, rounds: 1, kills: 1},
}

func TestModelOfTheSemaphoreHoldsInEveryOrderOfSteps(t *testing.T) {
	t.Parallel()
	configs := semConfigs
	if *largeModels {
		configs = append(configs, largeSemConfigs...)
	}
	for _, c := range configs {
		t.Run(c.String(), func(t *testing.T) {
			states, fault := newSemModel(c, theSemRules).run()
			if fault != "" {
				t.Errorf("%d states: %s", states, fault)
			}
			t.Logf("%d states", states)
		})
	}
}

func TestModelOfTheSemaphoreFindsInjectedBugs(t *testing.T) {
	t.Parallel()
	for name, inject := range map[string]func(*semRules){
		"what is idle counts as free": func(r *semRules) {
			r.add = func(t *tally, v, more, claim uint64) { t.add(v-idleOf(v)*stakeIdle, more, claim) }
		},
		"a process keeps idle what others wait for": func(r *semRules) {
			r.unused = func(v, n uint64) (uint64, bool) {
				next, _ := unused(v, n)
				return next, usedOf(v) >= n
			}
		},
		"one who is to wait does not mark what is in use": func(r *semRules) {
			r.reclaimed = func(v, k uint64, _ bool) uint64 { return reclaimed(v, k, false) }
		},
		"one who overtakes a patient one does not mark what he takes": func(r *semRules) {
			r.granted = func(v, n uint64, _ bool) (uint64, bool) { return granted(v, n, false) }
		},
		"what is returned stays idle though somebody waits": func(r *semRules) {
			r.returned = func(v, n uint64, _ bool) uint64 { return returned(v, n, false) }
		},
		"whoever runs takes what a long wait is for": func(r *semRules) {
			r.mayTake = func(t tally, limit, n, _ uint64) bool { return t.free(limit) >= n }
		},
		"a place is given up with a claim in it": func(r *semRules) {
			r.returned = func(v, n uint64, waits bool) uint64 { return returned(v, n, waits) &^ stakeClaim }
			r.unclaimed = func(v uint64) uint64 { return v }
		},
		"an empty place is kept":                        func(r *semRules) { r.unclaimed = func(v uint64) uint64 { return v &^ stakeClaim } },
		"nobody is called":                              func(r *semRules) { r.calls = func(tally, uint64) bool { return false } },
		"a death wakes nobody":                          func(r *semRules) { r.quietDeath = true },
		"one who withdraws calls nobody":                func(r *semRules) { r.leaveSilently = true },
		"one who is served calls nobody":                func(r *semRules) { r.takeSilently = true },
		"one falls asleep though it was called":         func(r *semRules) { r.sleepBlindly = true },
		"one that was called in vain is called no more": func(r *semRules) { r.callOnce = true },
	} {
		t.Run(name, func(t *testing.T) {
			r := theSemRules
			inject(&r)
			for _, c := range semConfigs {
				if states, fault := newSemModel(c, r).run(); fault != "" {
					what, _, _ := strings.Cut(fault, "\n")
					t.Logf("%v: %s after %d states", c, what, states)
					return
				}
			}
			t.Error("not found")
		})
	}
}
