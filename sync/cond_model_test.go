package sync

import (
	"fmt"
	"math/bits"
	"strings"
	"testing"
)

// An explicit-state model of the Cond. It runs every order of the steps of a few waiters and signallers in two or
// three processes, over the very steps that the Cond makes ([lost] and its kin), with kills between any two, and
// cancellations. The mutex is one word of the model; a section of a gate is one step; the places of a dead process
// are seen until its death is known, which is a step of its own. A sleep ends by itself only if its goroutine would
// find something, and only where there are kills: so a lost wake-up shows as a state in which nothing happens.
//
// What must hold: signals release the first in line, so many as there are signals or waiters; a wait ends with
// woken if, and only if, its place was signalled, or with the mutex inconsistent; nobody who was signalled stays where
// nothing happens; without deaths as many signals are owed as places are marked,
// and none if nobody waits; and nobody waits while a signal that was given to one who came before it, and is dead, or gave up, has
// not been passed on.
type condRules struct {
	signalledAs  func(last bool) uint64
	lost         func(owed, marked uint32) (uint32, bool)
	paid         func(owed uint32, place uint64) uint32
	rung         func(bell uint64) (uint64, bool)
	mayTouch     func(place uint64) bool
	seenAnyway   bool // a death counts as looked after by one who did not
	markFirst    bool // a signal is counted after the place is marked
	swallow      bool // one who gives up does not look whether it was signalled
	keepFailed   bool // one whose wait fails keeps its signal
	noPromote    bool // a leader leaves nobody in its place
	openSection  bool // the sleep is not compared with what the bell read before the look
	plainAll     bool // a broadcast leaves no mark that it is under way
	lastIn       bool // a signal goes to the last in line
	keepOwed     bool // a signal to the last leaves others owed
	deafToDeaths bool // nobody looks when there was a death
}

var theCondRules = condRules{signalledAs: signalledAs, lost: lost, paid: paid, rung: rung, mayTouch: mayTouch}

// Where a goroutine of the model is.
const (
	cStart = iota
	cJoin
	cUnlock
	cParked
	cLook
	cArm
	cSleep
	cAsleep
	cRelock
	cCheck
	cGive
	cAll
	cFree
	cMarkAll
	cRing
	cWake
	cDecide
	cPay
	cVacate
	cLeave
	cSignal
	cDone
	cDead
)

const (
	cCancelled = 1 << iota
	cLeaving
	cFailed
	cToPass // ring, then vacate
)

// condG is a goroutine of the model.
type condG struct {
	at, place, ticket, expect, flags, n, stage, rings uint8
}

const condGs = 5

type condState struct {
	holder        uint8
	dirty, all    bool // all: owed is owedAll
	owed          uint8
	deaths, noted uint8
	dead, known   uint8
	seen          [3]uint8 // deaths, by the crowds
	bell          [3]uint8
	leader        [3]uint8
	next          uint8
	debt          uint8 // signals that somebody has to get
	debtAll       uint8 // ticket below which all have to
	kills         uint8
	cancels       uint8
	killed        bool
	g             [condGs]condG
}

// What a goroutine of the model does, or so many signals.
const (
	cWaits      = 0
	cBroadcasts = -1
	cRecovers   = -2 // locks and unlocks the mutex
)

// condConfig is what a model explores: the process of each goroutine, and what it does.
type condConfig struct {
	procs          []int
	acts           []int
	kills, cancels int
}

func (c condConfig) String() string {
	return fmt.Sprintf("procs=%v/acts=%v/kills=%d/cancels=%d", c.procs, c.acts, c.kills, c.cancels)
}

type condModel struct {
	condConfig
	condRules
	violation string
	tells     bool
}

func (m *condModel) fault(format string, args ...any) {
	if m.violation == "" {
		m.violation = fmt.Sprintf(format, args...)
	}
}

// visible reports whether the places of g's process count.
func (m *condModel) visible(s *condState, g int) bool { return s.known&(1<<m.procs[g]) == 0 }

// foremost returns the first in line, or -1, and whether it is the last that waits.
func (m *condModel) foremost(s *condState) (first int, last bool) {
	first = -1
	n := 0
	for g := range m.procs {
		if s.g[g].place == condWaiting && m.visible(s, g) {
			n++
			if first < 0 || (s.g[g].ticket < s.g[first].ticket) != m.lastIn {
				first = g
			}
		}
	}
	return first, n == 1
}

func (m *condModel) marked(s *condState) (n uint32) {
	for g := range m.procs {
		if s.g[g].place == condOwed && m.visible(s, g) {
			n++
		}
	}
	return n
}

// settle is the Cond's.
func (m *condModel) settle(s *condState) {
	if m.keepOwed {
		return
	}
	for g := range m.procs {
		if s.g[g].place == condOwed && m.visible(s, g) {
			s.g[g].place = condFree
		}
	}
	s.owed, s.all = 0, false
	s.debt = 0
}

func (s *condState) owedWord() uint32 {
	if s.all {
		return owedAll
	}
	return uint32(s.owed)
}

// deliver tells the signalled of a process, and reports whether its leader is one of them.
func (m *condModel) deliver(s *condState, p int) (leader bool) {
	for g, q := range m.procs {
		if q != p || s.g[g].place < condOwed {
			continue
		}
		if s.leader[p] == uint8(g+1) {
			leader = true
		} else if s.g[g].at == cParked {
			s.g[g].at = cRelock
			s.g[g].flags |= cLeaving
		}
	}
	return leader
}

func (m *condModel) stepDown(s *condState, i int) {
	p := m.procs[i]
	s.g[i].flags |= cLeaving
	if s.leader[p] != uint8(i+1) {
		return
	}
	s.leader[p] = 0
	if m.noPromote {
		return
	}
	first := -1
	for g, q := range m.procs {
		if q == p && s.g[g].place == condWaiting && s.g[g].flags&cLeaving == 0 && g != i && s.g[g].at != cDead &&
			(first < 0 || s.g[g].ticket < s.g[first].ticket) {
			first = g
		}
	}
	if first >= 0 {
		s.leader[p] = uint8(first + 1)
		if s.g[first].at == cParked {
			s.g[first].at = cLook
		}
	}
}

func (m *condModel) mark(s *condState, g int, last bool) {
	if want, _ := m.lowest(s); want != g {
		m.fault("g%d is signalled before g%d", g, want)
	}
	s.g[g].place = uint8(m.signalledAs(last))
	if last {
		s.debt = 0
	} else {
		s.debt++
	}
}

// lowest is foremost, without injected bugs.
func (m *condModel) lowest(s *condState) (int, bool) {
	r := *m
	r.lastIn = false
	return r.foremost(s)
}

func (m *condModel) steps(s condState, next func(condState, string)) {
	for p := range 3 {
		bit := uint8(1) << p
		if s.kills > 0 && s.dead&bit == 0 {
			n, lives := s, false
			for g, q := range m.procs {
				if q == p {
					lives = lives || s.g[g].at != cDone
					n.g[g].at = cDead
				}
			}
			if lives {
				n.kills--
				n.killed = true
				n.dead |= bit
				next(n, "a process is killed")
			}
		}
		if s.dead&bit != 0 && s.known&bit == 0 {
			n := s
			n.known |= bit
			n.deaths++
			for g, q := range m.procs {
				if q == p {
					if n.g[g].place == condWaiting && n.debt > 0 { // one who has to get it less
						if f, _ := m.lowest(&n); f < 0 {
							n.debt = 0
						}
					}
					n.g[g].place = 0
				}
			}
			n.leader[p], n.bell[p] = 0, 0
			next(n, "a death is known")
		}
	}
	for i := range m.procs {
		if s.g[i].at != cDead && s.g[i].at != cDone {
			m.step(s, i, func(n condState, what string) {
				if m.tells {
					what = fmt.Sprintf("g%d of P%d %s", i, m.procs[i], what)
				}
				next(n, what)
			})
		}
	}
}

func (m *condModel) step(s condState, i int, next func(condState, string)) {
	g, p := s.g[i], m.procs[i]
	n := s
	me := &n.g[i]
	to := func(what string, at uint8) { me.at = at; next(n, what) }
	// lock takes the mutex, also from a dead holder.
	lock := func(at uint8) {
		h := int(s.holder) - 1
		if h >= 0 && s.known&(1<<m.procs[h]) == 0 {
			return
		}
		n.holder = uint8(i + 1)
		n.dirty = s.dirty || h >= 0
		to("locks", at)
	}
	if s.cancels > 0 && m.acts[i] == cWaits && g.flags&cCancelled == 0 && (g.at == cParked || g.at >= cLook && g.at <= cAsleep) {
		c := s
		c.cancels--
		c.g[i].flags |= cCancelled
		if g.at == cParked {
			m.stepDown(&c, i)
			c.g[i].at = cRelock
		} else if g.at == cAsleep {
			c.g[i].at = cLook
		}
		next(c, "is cancelled")
	}
	if s.holder == uint8(i+1) && g.at > cRelock && g.at < cLeave || g.at == cUnlock || g.at == cJoin {
		if s.holder != uint8(i+1) {
			m.fault("in the line without the mutex")
		}
	}
	switch g.at {
	case cStart:
		at := uint8(cJoin)
		if m.acts[i] != cWaits {
			at = cSignal
		}
		lock(at)
	case cJoin:
		n.dirty = false // recovered by whoever has locked it
		if n.owed == 0 && !n.all {
			n.noted = n.deaths
		} else if n.noted != n.deaths { // not for us: others first
			me.expect = n.deaths
			if signals, all := m.lost(n.owedWord(), m.marked(&n)); all {
				to("finishes a broadcast", cAll)
				return
			} else if signals > 0 {
				me.n, me.stage = uint8(signals), 1
				to("passes signals on before it joins", cGive)
				return
			}
			n.noted = n.deaths
			if f, _ := m.foremost(&n); f < 0 {
				m.settle(&n)
			}
		}
		me.place, me.ticket = condWaiting, n.next
		n.next++
		me.at = cUnlock
		if n.leader[p] == 0 {
			n.leader[p] = uint8(i + 1)
			n.seen[p] = n.deaths
		}
		next(n, "joins")
	case cUnlock:
		n.holder = 0
		at := uint8(cParked)
		switch {
		case s.leader[p] == uint8(i+1):
			at = cLook
		case g.place != condWaiting:
			m.fault("signalled under its own lock")
		}
		to("unlocks", at)
	case cLook:
		if s.leader[p] != uint8(i+1) {
			return
		}
		m.deliver(&n, p)
		switch {
		case me.place != condWaiting || me.flags&cCancelled != 0:
			m.stepDown(&n, i)
			to("stops waiting", cRelock)
		case n.seen[p] != n.deaths && !m.deafToDeaths:
			to("finds that somebody died", cRelock)
		default:
			me.expect = n.bell[p]
			to("finds nothing", cArm)
		}
	case cArm:
		if m.openSection {
			me.expect = n.bell[p]
		} else if me.expect != n.bell[p] {
			to("finds the bell rung", cLook)
			return
		}
		n.bell[p] = uint8(abed(uint64(me.expect)))
		me.expect = n.bell[p]
		to("is about to sleep", cSleep)
	case cSleep:
		if me.expect != n.bell[p] || n.seen[p] != n.deaths && !m.deafToDeaths {
			to("does not fall asleep", cLook)
			return
		}
		to("falls asleep", cAsleep)
	case cAsleep:
		finds := me.place != condWaiting || n.seen[p] != n.deaths && !m.deafToDeaths
		for h, q := range m.procs {
			finds = finds || q == p && n.g[h].at == cParked && n.g[h].place != condWaiting
		}
		if finds && s.killed {
			to("has slept its time out", cLook)
		}
	case cRelock:
		lock(cCheck)
	case cCheck:
		me.expect = n.deaths // before the look at who lives
		if n.dirty {
			me.flags |= cFailed
			n.dirty = false
		}
		if m.mayTouch(uint64(me.place)) && n.noted != n.deaths {
			signals, all := m.lost(n.owedWord(), m.marked(&n))
			if all {
				to("finishes a broadcast", cAll)
				return
			}
			me.n, me.stage = uint8(signals), 1
			to("looks after the dead", cGive)
			return
		}
		to("looks", cDecide)
	case cDecide:
		if me.flags&cFailed == 0 && (m.seenAnyway || m.mayTouch(uint64(me.place))) {
			n.seen[p] = me.expect
		}
		m.deliver(&n, p)
		woken := me.place != condWaiting
		over := woken || me.flags&(cCancelled|cFailed) != 0
		if !over {
			n.holder = 0
			if n.leader[p] != uint8(i+1) {
				m.fault("goes on waiting without leading")
			}
			to("goes on waiting", cLook)
			return
		}
		switch {
		case me.place == condWaiting:
			me.place = 0
			if f, _ := m.foremost(&n); f < 0 && !m.keepOwed {
				m.settle(&n)
			}
			to("leaves the line", cVacate)
		case me.place == condFree:
			to("leaves without touching the Cond", cVacate)
		case me.flags&cFailed != 0 && !m.keepFailed:
			me.n, me.stage = 1, 1
			me.flags |= cToPass
			n.debt--
			to("passes its signal on", cGive)
		default:
			to("is woken", cPay)
		}
	case cPay:
		n.owed = uint8(m.paid(uint32(n.owed), uint64(me.place)))
		if me.flags&cFailed == 0 && !(m.swallow && me.flags&cCancelled != 0) { // else somebody has to get the signal
			n.debt -= min(n.debt, 1)
		}
		to("pays", cVacate)
	case cVacate:
		me.place = 0
		to("gives its place back", cLeave)
	case cLeave:
		if !s.killed && uint32(s.owed) != m.marked(&s) {
			m.fault("%d signals are owed, %d places are marked", s.owed, m.marked(&s))
		}
		if f, _ := m.lowest(&s); !s.killed && f < 0 && s.owed != 0 {
			m.fault("%d of the released will touch the Cond, and nobody waits", s.owed)
		}
		m.stepDown(&n, i)
		n.holder = 0
		if me.flags&cFailed != 0 {
			n.dirty = true // as it was, until somebody recovers it
		}
		to("unlocks for good", cDone)
	case cSignal:
		n.dirty = false
		if m.acts[i] == cBroadcasts {
			to("broadcasts", cAll)
			return
		}
		me.n = uint8(max(m.acts[i], 0))
		to("signals", cGive)
	case cGive:
		m.give(n, i, next)
	case cAll:
		if !m.plainAll {
			n.all = true
		}
		n.debtAll = n.next
		to("owes to all", cFree)
	case cFree:
		for h := range m.procs {
			if n.g[h].place == condOwed && m.visible(&n, h) {
				n.g[h].place = condFree
			}
		}
		to("frees those owed", cMarkAll)
	case cMarkAll:
		if f, _ := m.lowest(&n); f >= 0 {
			n.g[f].place = condFree
			me.rings |= 1 << m.procs[f]
			to("signals one of all", cMarkAll)
			return
		}
		n.all, n.owed, n.debt, n.debtAll = false, 0, 0, 0
		if m.acts[i] == cWaits {
			n.noted = me.expect
		}
		to("has signalled all", cRing)
	case cRing:
		if me.rings == 0 {
			switch {
			case m.acts[i] != cWaits:
				to("is through", cLeave)
			case me.flags&cToPass != 0:
				to("has passed it on", cVacate)
			case me.place == 0:
				to("joins later", cJoin)
			default:
				to("has looked after the dead", cDecide)
			}
			return
		}
		q := bits.TrailingZeros8(me.rings)
		if q == p && !m.deliver(&n, p) {
			me.rings &^= 1 << q
			to("tells its own", cRing)
			return
		}
		w, wake := m.rung(uint64(n.bell[q]))
		n.bell[q] = uint8(w)
		if !wake {
			me.rings &^= 1 << q
			to("rings", cRing)
			return
		}
		to("rings", cWake)
	case cWake:
		q := bits.TrailingZeros8(me.rings)
		me.rings &^= 1 << q
		if l := int(n.leader[q]) - 1; l >= 0 && n.g[l].at == cAsleep {
			n.g[l].at = cLook
		}
		to("wakes", cRing)
	}
}

// give is one step of the signals that g gives. Its stage is 0, or 1 if the signal is counted, or 2 if the place is
// marked and the signal is to be counted.
func (m *condModel) give(n condState, i int, next func(condState, string)) {
	me := &n.g[i]
	passing := m.acts[i] == cWaits
	f, last := m.foremost(&n)
	switch {
	case me.stage == 2:
		n.owed++
		me.n--
		me.stage = 0
		next(n, "counts a signal")
	case me.n == 0 || f < 0:
		if f < 0 {
			m.settle(&n)
		}
		me.n, me.stage = 0, 0
		if passing && me.flags&cToPass == 0 {
			n.noted = me.expect
		}
		me.at = cRing
		next(n, "has given its signals")
	case last && (n.owed != 0 || n.all) && !m.keepOwed:
		m.settle(&n)
		next(n, "settles")
	case !last && me.stage == 0 && !m.markFirst:
		n.owed++
		me.stage = 1
		next(n, "owes")
	default:
		if passing { // the debt is there
			n.debt -= min(n.debt, 1)
		}
		m.mark(&n, f, last)
		me.rings |= 1 << m.procs[f]
		switch {
		case m.markFirst && !last && !passing:
			me.stage = 2
		default:
			me.n--
			me.stage = 0
			if passing {
				me.stage = 1
			}
		}
		next(n, "signals the first")
	}
}

// rest says what is wrong with a state in which nothing happens.
func (m *condModel) rest(s *condState) string {
	waits := -1
	for g := range m.procs {
		switch c := s.g[g]; {
		case c.at == cDone || c.at == cDead:
		case c.place == condWaiting && (c.at == cAsleep || c.at == cParked):
			if waits < 0 || c.ticket < s.g[waits].ticket {
				waits = g
			}
		default:
			return fmt.Sprintf("g%d is stuck", g)
		}
	}
	switch {
	case waits >= 0 && s.debt > 0:
		return fmt.Sprintf("g%d waits, and a signal was lost", waits)
	case waits >= 0 && s.g[waits].ticket < s.debtAll:
		return fmt.Sprintf("g%d waits, and a broadcast was cut short", waits)
	}
	return ""
}

// run explores all states, and returns their number, and what is wrong.
func (m *condModel) run() (states int, fault string) {
	return world[condState]{
		first: condState{kills: uint8(m.kills), cancels: uint8(m.cancels), next: 1},
		steps: m.steps,
		check: func(*condState) (bool, string) { return false, m.violation },
		same:  func(a, b *condState) bool { return a.kills == b.kills && a.cancels == b.cancels },
		rest:  m.rest,
		tells: &m.tells,
	}.explore()
}

var condConfigs = []condConfig{
	{procs: []int{0, 1, 2}, acts: []int{0, 0, 1}},
	{procs: []int{0, 0, 1}, acts: []int{0, 0, 2}, cancels: 1},
	{procs: []int{0, 0, 1}, acts: []int{0, 0, -1}, cancels: 1},
	{procs: []int{0, 1, 1, 0}, acts: []int{0, 0, 1, 1}, cancels: 1},
	{procs: []int{0, 1, 2}, acts: []int{0, 0, 1}, kills: 2, cancels: 1},
	{procs: []int{0, 1, 2}, acts: []int{0, 0, -1}, kills: 2},
	{procs: []int{0, 0, 1, 2}, acts: []int{0, 0, 0, 1}, kills: 1},
	{procs: []int{0, 1, 1, 2}, acts: []int{0, 0, 0, 2}, kills: 1},
	{procs: []int{0, 1, 1, 2}, acts: []int{0, 0, 0, -1}, kills: 1},
	{procs: []int{0, 1, 2, 1}, acts: []int{0, 0, 1, cRecovers}, kills: 2},
	{procs: []int{0, 1, 2, 1}, acts: []int{0, 0, -1, cRecovers}, kills: 1},
}

var largeCondConfigs = []condConfig{
	{procs: []int{0, 1, 1, 2}, acts: []int{0, 0, 0, 1}, kills: 2, cancels: 1},
	{procs: []int{0, 0, 1, 1, 2}, acts: []int{0, 0, 0, 0, 2}, kills: 1},
	{procs: []int{0, 1, 2, 2}, acts: []int{0, 0, 1, -1}, kills: 2},
}

func TestCondModel(t *testing.T) {
	t.Parallel()
	configs := condConfigs
	if raceEnabled { // there is nothing to race with
		configs = configs[:4]
	}
	if *largeModels {
		configs = append(configs, largeCondConfigs...)
	}
	for _, c := range configs {
		t.Run(c.String(), func(t *testing.T) {
			m := &condModel{condConfig: c, condRules: theCondRules}
			states, fault := m.run()
			if fault != "" {
				t.Fatal(fault)
			}
			t.Logf("%d states", states)
		})
	}
}

// Each of these breaks one step of the Cond; the model finds it.
func TestCondModelFindsInjectedBugs(t *testing.T) {
	t.Parallel()
	type bug struct {
		config int // where it shows
		inject func(r *condRules)
	}
	bugs := map[string]bug{
		"the bell is cleared and not counted up": {0, func(r *condRules) {
			r.rung = func(b uint64) (uint64, bool) { return b &^ 1, b&1 != 0 }
		}},
		"the sleeper is not woken": {0, func(r *condRules) {
			r.rung = func(b uint64) (uint64, bool) { n, _ := rung(b); return n, false }
		}},
		"one who gives up swallows its signal": {3, func(r *condRules) { r.swallow = true }},
		"a signal of the dead is not passed on": {4, func(r *condRules) {
			r.lost = func(owed, _ uint32) (uint32, bool) { return 0, owed == owedAll }
		}},
		"a broadcast cut short is not finished": {5, func(r *condRules) {
			r.lost = func(owed, marked uint32) (uint32, bool) { n, _ := lost(owed, marked); return n, false }
		}},
		"a broadcast leaves no mark":                    {5, func(r *condRules) { r.plainAll = true }},
		"a signal is counted after its place is marked": {9, func(r *condRules) { r.markFirst = true }},
		"one whose wait fails keeps its signal":         {6, func(r *condRules) { r.keepFailed = true }},
		"a leader leaves nobody in its place":           {1, func(r *condRules) { r.noPromote = true }},
		"the sleep is not compared":                     {0, func(r *condRules) { r.openSection = true }},
		"a signal goes to the last in line":             {0, func(r *condRules) { r.lastIn = true }},
		"nobody looks after the dead":                   {4, func(r *condRules) { r.deafToDeaths = true }},
		"only one who is not signalled looks after the dead": {7, func(r *condRules) {
			r.mayTouch = func(place uint64) bool { return place == condWaiting }
			r.seenAnyway = true
		}},
		"one who is woken does not pay": {0, func(r *condRules) {
			r.paid = func(owed uint32, _ uint64) uint32 { return owed }
		}},
		"a signal to the last leaves others owed": {1, func(r *condRules) { r.keepOwed = true }},
	}
	for name, bug := range bugs {
		t.Run(name, func(t *testing.T) {
			m := &condModel{condConfig: condConfigs[bug.config], condRules: theCondRules}
			bug.inject(&m.condRules)
			_, fault := m.run()
			if fault == "" {
				t.Fatal("not found")
			}
			what, _, _ := strings.Cut(fault, "\n")
			t.Logf("%v: %s", m.condConfig, what)
		})
	}
}
