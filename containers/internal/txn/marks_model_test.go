package txn

import (
	"fmt"
	"testing"
)

// An explicit-state model of a caller's lock that goroutines of one process take: one for two words that must be equal and that nothing logs,
// another one for a transaction, all of which is undone if it is killed. The process is killed between any two steps; then its lanes are
// undone, and a survivor takes the lock over by its word. It runs every order of their steps.
//
// What must hold: whoever finds the lock clean finds the words equal; and everybody can finish.

// marks are ways for a lane to note which locks its operation holds, for whoever recovers it, who gives them back clean. The design has none.
type marks struct {
	noted       bool // after the lock is taken, and cleared before it is released
	asIntent    bool // before the lock is taken
	clearedLate bool // after it is released
}

const (
	marksNobody = iota
	marksProcess
	marksSurvivor
)

type marksState struct {
	lock   uint8 // a process
	torn   bool  // whoever has the lock, or takes it, is told of a death
	u, v   uint8 // equal while nobody has the lock
	note   bool  // in the transaction's lane
	plain  uint8 // steps of the goroutine that changes the words
	tx     uint8 // of the one in a transaction
	dead   bool
	undone bool // the lanes; from here on the lock may be taken over
	other  uint8
	told   bool // the survivor has been told
}

func (m marks) moves(s marksState, bad func(string, ...any)) (all []marksState) {
	add := func(f func(n *marksState)) {
		n := s
		f(&n)
		all = append(all, n)
	}
	if !s.dead {
		add(func(n *marksState) { n.dead = true })
		plain := func(f func(n *marksState)) { add(func(n *marksState) { n.plain++; f(n) }) }
		switch s.plain {
		case 0:
			if s.lock == marksNobody && !s.torn {
				plain(func(n *marksState) { n.lock = marksProcess })
			}
		case 1:
			plain(func(n *marksState) { n.u++ })
		case 2:
			plain(func(n *marksState) { n.v++ })
		case 3:
			plain(func(n *marksState) { n.lock = marksNobody })
		}
		tx := func(f func(n *marksState)) { add(func(n *marksState) { n.tx++; f(n) }) }
		switch s.tx {
		case 0: // it wants the lock
			tx(func(n *marksState) { n.note = m.asIntent })
		case 1:
			if s.lock == marksNobody && !s.torn {
				tx(func(n *marksState) { n.lock = marksProcess })
			}
		case 2:
			tx(func(n *marksState) { n.note = m.noted || m.asIntent })
		case 3: // its words are logged, and of no account here
			tx(func(n *marksState) { n.note = n.note && m.clearedLate })
		case 4:
			tx(func(n *marksState) { n.lock = marksNobody })
		case 5:
			tx(func(n *marksState) { n.note = false })
		}
	}
	if s.dead && !s.undone {
		if s.note && s.lock == marksProcess {
			add(func(n *marksState) { n.lock, n.note = marksNobody, false })
		} else {
			add(func(n *marksState) { n.undone = true })
		}
	}
	other := func(f func(n *marksState)) { add(func(n *marksState) { n.other++; f(n) }) }
	switch s.other {
	case 0:
		switch {
		case s.lock == marksNobody:
			other(func(n *marksState) { n.lock = marksSurvivor })
		case s.lock == marksProcess && s.dead && s.undone:
			other(func(n *marksState) { n.lock, n.torn, n.told = marksSurvivor, true, true })
		}
	case 1:
		other(func(n *marksState) {
			switch {
			case !n.torn && n.u != n.v:
				bad("the lock is clean, and the words are %d and %d", n.u, n.v)
			case n.torn:
				n.v, n.torn = n.u, false // the caller's recovery
			}
		})
	case 2:
		other(func(n *marksState) { n.lock = marksNobody })
	}
	return all
}

// explore returns what is wrong, and whether the survivor was told of a death in some run.
func (m marks) explore() (states int, told bool, fail string) {
	bad := func(format string, args ...any) {
		if fail == "" {
			fail = fmt.Sprintf(format, args...)
		}
	}
	start := marksState{}
	seen := map[marksState]bool{start: true}
	queue := []marksState{start}
	for len(queue) > 0 && fail == "" {
		s := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		next := m.moves(s, bad)
		told = told || s.told
		if len(next) == 0 && s.other < 3 {
			bad("the lock is stuck")
		}
		for _, n := range next {
			if !seen[n] {
				seen[n] = true
				queue = append(queue, n)
			}
		}
	}
	return len(seen), told, fail
}

func TestModelOfMarks(t *testing.T) {
	for name, m := range map[string]marks{"none": {}, "noted while the lock is held": {noted: true}} {
		states, told, fail := m.explore()
		if fail != "" || !told || states < 100 {
			t.Errorf("%s: %s; a death was told of: %v; %d states", name, fail, told, states)
		}
		t.Logf("%s: %d states", name, states)
	}
	for name, m := range map[string]marks{
		"intent before lock":          {asIntent: true},
		"mark cleared after the lock": {noted: true, clearedLate: true},
	} {
		if _, _, fail := m.explore(); fail == "" {
			t.Errorf("%s: the model finds nothing wrong", name)
		} else {
			t.Logf("%s: %s", name, fail)
		}
	}
}
