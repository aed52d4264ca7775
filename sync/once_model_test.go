package sync

import (
	"fmt"
	"strings"
	"testing"
)

// An explicit-state model of the Once: every order of its stores, with functions that fail and kills. The mutex
// is taken to be what its own model shows: one holder, and who takes it from the dead goes on.
//
// What must hold: never two that live in their functions; none begins when it is done; done when somebody
// has come to the end of a function that did not fail, and only then; nobody goes before; done for ever; and
// everybody who lives can finish.
type onceRules struct {
	runs        func(done uint32) bool // by what done reads with the mutex held
	early       bool                   // done is stored before the function runs
	late        bool                   // done is stored after the mutex was released
	failureDone bool                   // a function that fails is done
	unlocked    bool                   // the function runs without the mutex
}

var theOnceRules = onceRules{runs: runsNow}

const (
	oStart = iota
	oLock
	oLook
	oBegin
	oRun
	oRan
	oUnlock
	oStore
	oDone
	oDead
)

const onceProcs = 3

type onceState struct {
	mu    uint8 // holder plus one
	done  bool
	ran   bool // ghost: some function came to its end without failing
	kills uint8
	fails uint8
	g     [onceProcs]struct {
		at       uint8
		ok, runs bool
	}
}

type onceModel struct {
	onceRules
	violation string
}

func (m *onceModel) steps(s onceState, next func(onceState, string)) {
	for p := range s.g {
		q := s.g[p]
		to := func(what string, at uint8, change ...func(*onceState)) {
			n := s
			n.g[p].at = at
			for _, c := range change {
				c(&n)
			}
			if s.done && !n.done {
				m.violation = "done, and then not"
			}
			if n.done && !n.ran {
				m.violation = "done by nobody"
			}
			next(n, fmt.Sprintf("P%d %s", p, what))
		}
		if s.kills > 0 && q.at != oStart && q.at < oDone {
			to("is killed", oDead, func(n *onceState) { n.kills-- })
		}
		switch q.at {
		case oStart:
			if s.done {
				to("finds it done", oDone)
			} else {
				to("finds it not done", oLock)
			}
		case oLock:
			if s.mu == 0 || s.g[s.mu-1].at == oDead {
				to("takes the mutex", oLook, func(n *onceState) { n.mu = uint8(p + 1) })
			}
		case oLook:
			done := uint32(0)
			if s.done {
				done = onceDone
			}
			if m.runs(done) {
				to("is to run", oBegin, func(n *onceState) {
					if m.early {
						n.done = true
					}
					if m.unlocked {
						n.mu = 0
					}
				})
			} else {
				to("finds it done now", oUnlock, func(n *onceState) { n.g[p].ok = true })
			}
		case oBegin:
			if s.done && !m.early {
				m.violation = "begun when it is done"
			}
			for i := range s.g {
				if s.g[i].at == oRun {
					m.violation = "two at once"
				}
			}
			to("runs", oRun)
		case oRun:
			to("comes to the end", oRan, func(n *onceState) { n.g[p].ok, n.g[p].runs, n.ran = true, true, true })
			if s.fails > 0 {
				to("fails", oRan, func(n *onceState) { n.g[p].ok = false; n.fails-- })
			}
		case oRan:
			if m.late {
				to("has run", oUnlock)
				return
			}
			to("stores done", oUnlock, func(n *onceState) { n.done = n.done || q.ok || m.failureDone })
		case oUnlock:
			at := uint8(oDone)
			if m.late && q.runs {
				at = oStore
			}
			to("releases the mutex", at, func(n *onceState) {
				if n.mu == uint8(p+1) {
					n.mu = 0
				}
			})
		case oStore:
			to("stores done", oDone, func(n *onceState) { n.done = true })
		}
		if q.at == oDone && q.ok && !s.ran {
			m.violation = "somebody goes before it is done"
		}
	}
}

func (m *onceModel) run(kills, fails uint8) (int, string) {
	ended := func(s *onceState) bool {
		for _, q := range s.g {
			if q.at < oDone {
				return false
			}
		}
		return true
	}
	return world[onceState]{
		first: onceState{kills: kills, fails: fails},
		steps: m.steps,
		check: func(s *onceState) (bool, string) { return ended(s), m.violation },
		tells: new(bool),
	}.explore()
}

func TestModelOfOnceHoldsInEveryOrderOfSteps(t *testing.T) {
	t.Parallel()
	for kills := range uint8(3) {
		for fails := range uint8(3) {
			states, fault := (&onceModel{onceRules: theOnceRules}).run(kills, fails)
			if fault != "" {
				t.Errorf("%d kills, %d failures, %d states: %s", kills, fails, states, fault)
			}
			t.Logf("%d kills, %d failures: %d states", kills, fails, states)
		}
	}
}

// A model that finds nothing may look at nothing: each of these bugs it must find.
func TestModelOfOnceFindsInjectedBugs(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]onceRules{
		"it runs without a look under the mutex":   {runs: func(uint32) bool { return true }},
		"it is done before it is run":              {runs: runsNow, early: true},
		"it is done after the mutex was released":  {runs: runsNow, late: true},
		"it is done when it has failed":            {runs: runsNow, failureDone: true},
		"it runs without the mutex":                {runs: runsNow, unlocked: true},
		"nobody runs it, and all take it for done": {runs: func(uint32) bool { return false }},
	} {
		t.Run(name, func(t *testing.T) {
			states, fault := (&onceModel{onceRules: r}).run(1, 1)
			if fault == "" {
				t.Fatal("not found")
			}
			what, _, _ := strings.Cut(fault, "\n")
			t.Logf("%s after %d states", what, states)
		})
	}
}
