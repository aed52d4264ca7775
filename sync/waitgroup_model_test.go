package sync

import (
	"fmt"
	"strings"
	"testing"
)

// An explicit-state model of the WaitGroup: processes of one goroutine each run scripts, one store at a time, over the
// group's own arithmetic ([lostOf]), and are killed anywhere. The letters of a script are: A add one, T take
// one, D done, L leave, W wait; G waits until all are added. Nothing ends a sleep but a wake-up and a death.
//
// What must hold: Wait returns when nothing is outstanding, reports a loss only if a process died that answered for
// something, and does not sleep when something is lost; and in the end no more is answered for than is outstanding.
type groupRules struct {
	lost       func(count, added, taken uint32) uint32
	lostFirst  bool // Take is for lost tasks before those that somebody living has added
	addFirst   bool // Add counts before it answers
	keepOthers bool // those that others were done with or have taken stay answered for
	noIntent   bool // nobody finishes a Done of others' tasks
	quietDeath bool
	quietEnd   bool // who comes to nothing wakes nobody
}

var theGroupRules = groupRules{lost: lostOf}

const (
	groupFetch = iota
	groupOp
	groupSecond
	groupThird
	groupAnswer
	groupCount
	groupClear
	groupEnd
	groupUnlock
	groupWakeAll
	groupLead
	groupLook
	groupSleep
	groupAsleep
	groupOver
	groupDead
)

type groupP struct {
	at, pc       uint8
	op           byte
	before       int8
	times, see   uint8
	word, deaths uint8
	lost         bool
	then         uint8 // after what is intended
}

type groupState struct {
	count, rest  int8
	added, taken [3]int8
	word, deaths uint8
	intent       struct {
		valid        bool
		slot         uint8 // 3: nobody's
		added, count int8
	}
	mu             uint8
	adds           uint8
	dead, undone   uint8
	owes           uint8 // processes that have taken a task, and have not begun to be done with it
	kills          uint8
	loses, reports bool // a process died that answered; it was reported
	mustReport     bool // one died that had taken a task, and was not about to be done with it
	p              [3]groupP
}

type groupConfig struct {
	scripts []string
	kills   int
}

type groupModel struct {
	groupConfig
	groupRules
	total uint8 // adds of all scripts
	fault string
	tells bool
}

func (m *groupModel) sum(s *groupState) (added, taken uint32) {
	added = uint32(s.rest)
	for p := range m.scripts {
		added += uint32(s.added[p])
		taken += uint32(s.taken[p])
	}
	return added, taken
}

// adder returns what answers for a task that was added, of others first nobody, by p's order: 3 is nobody, -1 none.
func (m *groupModel) adder(s *groupState, p int, own bool) int {
	switch {
	case own && s.added[p] > 0:
		return p
	case s.rest > 0:
		return 3
	}
	for q := range m.scripts {
		if q != p && s.added[q] > 0 {
			return q
		}
	}
	return -1
}

func (s *groupState) setAdded(q int, n int8) {
	if q == 3 {
		s.rest = n
	} else if s.undone&(1<<q) == 0 {
		s.added[q] = n
	}
}

func (s *groupState) addedBy(q int) int8 {
	if q == 3 {
		return s.rest
	}
	return s.added[q]
}

func (m *groupModel) wakeAll(s *groupState) {
	for p := range m.scripts {
		if s.p[p].at == groupAsleep {
			s.p[p].at = groupLead
		}
	}
}

func (m *groupModel) steps(s groupState, next func(groupState, string)) {
	for p := range m.scripts {
		bit := uint8(1) << p
		if s.kills > 0 && s.p[p].at < groupOver {
			n := s
			n.kills--
			n.dead |= bit
			n.p[p] = groupP{at: groupDead}
			next(n, "a process is killed")
		}
		if s.dead&^s.undone&bit != 0 {
			n := s
			n.undone |= bit
			n.loses = n.loses || s.added[p]+s.taken[p] > 0
			n.mustReport = n.mustReport || s.owes&bit != 0
			n.owes &^= bit
			n.added[p], n.taken[p] = 0, 0
			if n.mu == uint8(p+1) {
				n.mu = 0
			}
			n.deaths++
			if !m.quietDeath {
				m.wakeAll(&n)
			}
			next(n, "the dead process is undone")
		}
		m.step(s, p, func(n groupState, what string) {
			if m.tells {
				what = fmt.Sprintf("P%d %s: count %d rest %d added %v taken %v", p, what, n.count, n.rest, n.added, n.taken)
			}
			next(n, what)
		})
	}
}

func (m *groupModel) step(s groupState, p int, next func(groupState, string)) {
	g := s.p[p]
	to := func(what string, at uint8, more ...func(*groupState)) {
		n := s
		n.p[p].at = at
		for _, f := range more {
			f(&n)
		}
		next(n, what)
	}
	begin := func(n *groupState, then uint8) {
		n.mu, n.p[p].before, n.p[p].at = uint8(p+1), s.count, then
		if n.intent.valid && !m.noIntent {
			n.p[p].at, n.p[p].then = groupAnswer, then
		}
	}
	switch g.at {
	case groupFetch:
		if int(g.pc) == len(m.scripts[p]) {
			to("is done", groupOver)
			return
		}
		op := m.scripts[p][g.pc]
		n := s
		n.p[p].op, n.p[p].pc = op, g.pc+1
		switch op {
		case 'G':
			if s.adds == m.total {
				next(n, "sees that all are added")
			} else if s.dead != 0 { // they may never be
				to("gives up", groupOver)
			}
		case 'W':
			n.p[p].at, n.p[p].times = groupLead, s.word
			next(n, "waits")
		default:
			if s.mu == 0 {
				begin(&n, groupOp)
				next(n, "locks for "+string(op))
			}
		}
	case groupAnswer:
		to("others answer for less", groupCount, func(n *groupState) { n.setAdded(int(s.intent.slot), s.intent.added) })
	case groupCount:
		to("is done with others'", groupClear, func(n *groupState) { n.count = s.intent.count })
	case groupClear:
		to("did what was intended", g.then, func(n *groupState) {
			n.intent.valid, n.intent.slot, n.intent.added, n.intent.count = false, 0, 0, 0
			n.p[p].then = 0
		})
	case groupOp:
		switch g.op {
		case 'A':
			if m.addFirst {
				to("counts", groupSecond, func(n *groupState) { n.count++ })
				return
			}
			to("answers", groupSecond, func(n *groupState) { n.added[p]++ })
		case 'D':
			q := m.adder(&s, p, false)
			switch {
			case s.count == 0:
				m.fault = "done with nothing outstanding"
			case s.added[p]+s.taken[p] > 0:
				to("is done with its own", groupSecond, func(n *groupState) { n.count--; n.owes &^= 1 << p })
			case q < 0 || m.keepOthers:
				to("is done with what others have taken", groupEnd, func(n *groupState) { n.count-- })
			default:
				to("intends", groupAnswer, func(n *groupState) {
					n.p[p].then = groupEnd
					n.intent.valid, n.intent.slot, n.intent.added, n.intent.count = true, uint8(q), s.addedBy(q)-1, s.count-1
				})
			}
		case 'T':
			added, taken := m.sum(&s)
			if int8(taken) >= s.count {
				m.fault = "nothing to take"
				return
			}
			to("takes", groupSecond, func(n *groupState) {
				n.taken[p]++
				n.p[p].then = 1
				if m.lostFirst && m.lost(uint32(s.count), added, taken) > 0 {
					n.p[p].then = 0
				}
			})
		case 'L':
			to("leaves to nobody", groupSecond, func(n *groupState) { n.rest += n.added[p] + n.taken[p] })
		}
	case groupSecond:
		switch g.op {
		case 'A':
			to("has added", groupEnd, func(n *groupState) {
				if m.addFirst {
					n.added[p]++
				} else {
					n.count++
				}
				n.adds++
			})
		case 'D':
			to("answers for less", groupEnd, func(n *groupState) {
				if n.taken[p] > 0 {
					n.taken[p]--
				} else {
					n.added[p]--
				}
			})
		case 'T':
			q := m.adder(&s, p, true)
			if g.then == 0 || q < 0 || m.keepOthers {
				to("takes over from the dead", groupEnd, func(n *groupState) { n.p[p].then = 0 })
				return
			}
			to("takes over", groupEnd, func(n *groupState) {
				n.p[p].then = 0
				n.setAdded(q, s.addedBy(q)-1)
				n.owes |= 1 << p
			})
		case 'L':
			to("answers for none it took", groupThird, func(n *groupState) { n.taken[p] = 0 })
		}
	case groupThird:
		to("answers for none", groupEnd, func(n *groupState) { n.added[p] = 0 })
	case groupEnd:
		if s.count == 0 && g.before != 0 {
			to("tells that it came to nothing", groupUnlock, func(n *groupState) { n.word++; n.p[p].see = 1 })
			return
		}
		to("ends", groupUnlock, func(n *groupState) { n.p[p].see = 0 })
	case groupUnlock:
		to("unlocks", groupWakeAll, func(n *groupState) { n.mu = 0 })
	case groupWakeAll:
		at := uint8(groupFetch)
		if g.op == 'W' {
			at = groupSleep
			if g.lost {
				at = groupOver
			}
		}
		to("goes on", at, func(n *groupState) {
			if g.see == 1 && !m.quietEnd {
				m.wakeAll(n)
			}
			n.p[p].see, n.p[p].before = 0, 0
			if g.op == 'W' && g.lost {
				n.reports = true
				if !s.loses {
					m.fault = "a loss is reported that is none"
				}
			}
		})
	case groupLead:
		if s.word != g.times || s.count == 0 {
			to("need not wait", groupFetch, func(n *groupState) { n.p[p].times, n.p[p].word, n.p[p].deaths = 0, 0, 0 })
			return
		}
		if s.mu == 0 {
			to("locks to look", groupLook, func(n *groupState) {
				begin(n, groupLook)
				n.p[p].word, n.p[p].deaths = s.word, s.deaths
			})
		}
	case groupLook:
		added, taken := m.sum(&s)
		to("looks", groupEnd, func(n *groupState) { n.p[p].lost = m.lost(uint32(s.count), added, taken) > 0 })
	case groupSleep:
		if s.word != g.word || s.deaths != g.deaths {
			to("finds its words changed", groupLead)
			return
		}
		to("falls asleep", groupAsleep)
	}
}

func (m *groupModel) check(s *groupState) (ended bool, fault string) {
	if m.fault != "" {
		return false, m.fault
	}
	if s.dead != s.undone {
		return false, ""
	}
	waits := false
	for p := range m.scripts {
		switch s.p[p].at {
		case groupOver, groupDead:
		case groupAsleep:
			waits = true
		default:
			return false, ""
		}
	}
	added, taken := m.sum(s)
	switch {
	case waits && (s.count == 0 || lostOf(uint32(s.count), added, taken) > 0):
		return false, "" // it must be woken
	case waits && m.kills == 0:
		return false, ""
	case waits && added+taken > uint32(s.count):
		return false, "answered for twice: the next death would not be noticed"
	case waits && s.mustReport:
		return false, "a loss is not noticed"
	}
	return true, ""
}

func (m *groupModel) run() (int, string) {
	for _, s := range m.scripts {
		m.total += uint8(strings.Count(s, "A"))
	}
	return world[groupState]{
		first: groupState{kills: uint8(m.kills)},
		steps: m.steps,
		check: m.check,
		same:  func(a, b *groupState) bool { return a.kills == b.kills },
		tells: &m.tells,
	}.explore()
}

var groupConfigs = []groupConfig{
	{scripts: []string{"AAW", "GTD", "GD"}},
	{scripts: []string{"AAL", "GTDW", "GD"}},
	{scripts: []string{"ATD", "AW", "GD"}},
	{scripts: []string{"AAW", "GTD", "GTD"}, kills: 1},
	{scripts: []string{"AAW", "GTD", "GD"}, kills: 2},
	{scripts: []string{"AAL", "GTDW", "GTD"}, kills: 1},
	{scripts: []string{"AW", "AD", "ATD"}, kills: 2},
}

func TestModelOfTheWaitGroupHoldsInEveryOrderOfSteps(t *testing.T) {
	t.Parallel()
	for _, c := range groupConfigs {
		states, fault := (&groupModel{groupConfig: c, groupRules: theGroupRules}).run()
		if fault != "" {
			t.Errorf("%+v: %d states: %s", c, states, fault)
		}
		t.Logf("%+v: %d states", c, states)
	}
}

func TestModelOfTheWaitGroupFindsInjectedBugs(t *testing.T) {
	t.Parallel()
	for name, inject := range map[string]func(*groupRules){
		"tasks count before anybody answers":                           func(r *groupRules) { r.addFirst = true },
		"what is done or taken is answered for still":                  func(r *groupRules) { r.keepOthers = true },
		"nobody finishes what the dead intended":                       func(r *groupRules) { r.noIntent = true },
		"lost tasks are taken before others, and the loss is not told": func(r *groupRules) { r.lostFirst = true },
		"a death wakes nobody":                                         func(r *groupRules) { r.quietDeath = true },
		"the last one who is done wakes nobody":                        func(r *groupRules) { r.quietEnd = true },
		"what those took that live counts as lost too":                 func(r *groupRules) { r.lost = func(count, added, _ uint32) uint32 { return lostOf(count, added, 0) } },
		"nothing is ever lost":                                         func(r *groupRules) { r.lost = func(_, _, _ uint32) uint32 { return 0 } },
	} {
		t.Run(name, func(t *testing.T) {
			r := theGroupRules
			inject(&r)
			for _, c := range groupConfigs {
				if states, fault := (&groupModel{groupConfig: c, groupRules: r}).run(); fault != "" {
					what, _, _ := strings.Cut(fault, "\n")
					t.Logf("%+v: %s after %d states", c, what, states)
					return
				}
			}
			t.Error("not found")
		})
	}
}
