package txn

import (
	"fmt"
	"testing"
)

// An explicit-state model of one lane and its recovery, over the code's own transitions: a process runs operations on two words that must be
// equal and a reference to a block, is killed between any two stores, and is recovered by others who are killed too, while another one waits for the lock
// to do an operation of its own. It runs every order of their steps.
//
// What must hold: whoever gets the lock finds the words equal, and the reference and the words from before the operation or from after it; no block is
// freed twice, none is lost, and none is free while the reference has it; an operation that is over is never undone; and everybody can finish.

// What can be wrong with the design: each is found by the model.
type bugs struct {
	takeoverBeforeUndone bool // the lock of a dead process is taken before its lanes are undone
	twoRecoverers        bool // who recovers does not exclude others
	slotRecycledEarly    bool // the slot is free, and the next process uses its lanes, before they are undone
	drainUnderLock       bool // the third phase runs where a lock is held that it needs
	freeAtOnce           bool // a block is free before the operation that frees it is committed, and used again
	laterAtOnce          bool // a later word is stored before the commit, and not logged
	storeBeforeNote      bool // a word is stored before its old value counts
	unlockBeforeRedo     bool // the lock is released between the commit and the later words
	cursorAfterLoss      bool // the cursor moves before the block is back
	undoForgetsTaken     bool // a taken block is not given back
}

const (
	nobody = iota
	worker
	waiter
	recovererA
	recovererB
	modelActors
)

// Entries of the one operation there is, in order.
var modelLog = [...]uint64{kindWord, kindTook, kindLater, kindFree, kindWord}

type modelState struct {
	word     uint64   // control word of the lane
	old      [5]uint8 // what the entries say
	a, b     uint8    // values: 0 at first, 1 by the worker, 2 by the waiter
	ref      uint8    // 0: the old block, 1: the new one
	idle     [2]bool  // the blocks
	gone     [2]bool  // idle blocks that somebody else has taken since
	want     uint8    // value after the last operation that happened
	wantRef  uint8
	lock     uint8
	pc       [modelActors]uint8
	dead     [modelActors]bool
	kills    uint8
	slot     uint8 // attached, undoing, undone, draining, free
	byteOf   uint8
	undoStep [modelActors]uint8
}

const (
	mAttached = iota
	mUndoing
	mUndone
	mDraining
	mFree
)

func nextOf(kind uint64, w uint64, from int) int {
	for i := from; i < entriesOf(w); i++ {
		if modelLog[i] == kind {
			return i
		}
	}
	return -1
}

// blockOf returns which block an entry is about.
func blockOf(i int) int {
	if modelLog[i] == kindFree {
		return 0
	}
	return 1
}

type modelRun struct {
	bugs bugs
	fail string
}

func (m *modelRun) bad(format string, args ...any) {
	if m.fail == "" {
		m.fail = fmt.Sprintf(format, args...)
	}
}

// moves returns the states after each step that somebody can make.
func (m *modelRun) moves(s modelState) (all []modelState) {
	add := func(f func(n *modelState)) {
		n := s
		f(&n)
		all = append(all, n)
	}
	if !s.dead[worker] {
		m.work(s, add)
		if s.kills < 2 {
			add(func(n *modelState) {
				n.dead[worker] = true
				n.kills++
				n.byteOf = nobody // the kernel, when it is really gone
			})
		}
	}
	m.wait(s, add)
	for _, r := range []int{recovererA, recovererB} {
		if s.dead[r] {
			continue
		}
		m.recover(s, r, add)
		if s.kills < 2 && s.pc[r] != 0 {
			add(func(n *modelState) {
				n.dead[r] = true
				n.kills++
				if n.byteOf == uint8(r) {
					n.byteOf = nobody
				}
			})
		}
	}
	if m.bugs.freeAtOnce { // somebody takes what is free
		if s.idle[0] && !s.gone[0] {
			add(func(n *modelState) { n.gone[0] = true })
		}
	}
	return all
}

// work is the operation: one store at a time.
func (m *modelRun) work(s modelState, add func(func(*modelState))) {
	note := func(n *modelState, i int, old uint8) { n.old[i], n.word = old, noted(n.word) }
	step := func(f func(n *modelState)) {
		add(func(n *modelState) { n.pc[worker]++; f(n) })
	}
	swap := m.bugs.storeBeforeNote
	switch s.pc[worker] {
	case 0:
		if s.lock == nobody {
			step(func(n *modelState) { n.lock = worker })
		}
	case 1:
		step(func(n *modelState) {
			if swap {
				n.old[0] = n.a
				n.a = 1
			} else {
				note(n, 0, n.a)
			}
		})
	case 2:
		step(func(n *modelState) {
			if swap {
				n.word = noted(n.word)
			} else {
				n.a = 1
			}
		})
	case 3:
		step(func(n *modelState) { note(n, 1, 0) })
	case 4:
		step(func(n *modelState) { n.idle[1] = false })
	case 5:
		step(func(n *modelState) {
			note(n, 2, 1)
			if m.bugs.laterAtOnce {
				n.ref = 1
			}
		})
	case 6:
		step(func(n *modelState) {
			note(n, 3, 0)
			if m.bugs.freeAtOnce {
				n.idle[0] = true
			}
		})
	case 7:
		step(func(n *modelState) { note(n, 4, n.b) })
	case 8:
		step(func(n *modelState) { n.b = 1 })
	case 9:
		step(func(n *modelState) {
			n.word = committed(n.word, true, nextOf(kindFree, n.word, 0))
			n.want, n.wantRef = 1, 1
			if m.bugs.unlockBeforeRedo {
				n.lock = nobody
			}
		})
	case 10:
		step(func(n *modelState) { n.ref = 1 })
	case 11:
		step(func(n *modelState) { n.word = redone(n.word, nextOf(kindFree, n.word, 0)) })
	case 12:
		step(func(n *modelState) {
			if n.lock == worker {
				n.lock = nobody
			}
		})
	case 13:
		step(func(n *modelState) {
			if m.bugs.cursorAfterLoss {
				n.word = given(n.word, -1)
			} else {
				m.giveBlock(n, 0)
			}
		})
	case 14:
		step(func(n *modelState) {
			if m.bugs.cursorAfterLoss {
				m.giveBlock(n, 0)
			} else {
				n.word = given(n.word, -1)
			}
		})
	}
}

func (m *modelRun) giveBlock(n *modelState, i int) {
	if n.idle[i] && !m.bugs.freeAtOnce {
		m.bad("block %d is freed twice", i)
	}
	if int(n.ref) == i {
		m.bad("block %d is freed, and referred to", i)
	}
	n.idle[i] = true
}

// wait is a process that takes the lock, from the dead too, and does an operation of its own.
func (m *modelRun) wait(s modelState, add func(func(*modelState))) {
	step := func(f func(n *modelState)) {
		add(func(n *modelState) { n.pc[waiter]++; f(n) })
	}
	switch s.pc[waiter] {
	case 0:
		yields := s.slot >= mUndone || m.bugs.takeoverBeforeUndone
		if s.lock == nobody || s.lock == worker && s.dead[worker] && yields {
			step(func(n *modelState) { n.lock = waiter })
		}
	case 1:
		step(func(n *modelState) {
			switch {
			case n.a != n.b:
				m.bad("the lock is taken, and the words are %d and %d", n.a, n.b)
			case n.a != n.want || n.ref != n.wantRef:
				m.bad("the lock is taken, and words and reference are %d and %d, the last operation left %d and %d", n.a, n.ref, n.want, n.wantRef)
			case n.idle[n.ref] || n.gone[n.ref]:
				m.bad("the lock is taken, and the block referred to is free")
			}
			n.a = 2
		})
	case 2:
		step(func(n *modelState) { n.b, n.want = 2, 2 })
	case 3:
		if m.bugs.drainUnderLock && s.slot == mDraining { // it drains, which needs the lock, before it lets go of it
			return
		}
		step(func(n *modelState) { n.lock = nobody })
	}
}

// recover is one who clears up after the worker: shm's side of it in few steps, ours store by store.
func (m *modelRun) recover(s modelState, r int, add func(func(*modelState))) {
	to := func(pc uint8, f func(n *modelState)) {
		add(func(n *modelState) { n.pc[r] = pc; f(n) })
	}
	none := func(*modelState) {}
	switch s.pc[r] {
	case 0:
		if s.dead[worker] && s.slot != mFree && (s.byteOf == nobody || m.bugs.twoRecoverers) {
			to(1, func(n *modelState) { n.byteOf = uint8(r) })
		}
	case 1:
		switch s.slot {
		case mAttached, mUndoing:
			to(2, func(n *modelState) {
				n.slot, n.undoStep[r] = mUndoing, 0
				if m.bugs.slotRecycledEarly {
					n.slot = mUndone
				}
			})
		case mUndone, mDraining:
			to(4, func(n *modelState) { n.slot = mDraining })
		default:
			to(0, func(n *modelState) { n.byteOf = nobody })
		}
	case 2:
		m.undo(s, r, to)
	case 3:
		to(4, func(n *modelState) { n.slot = mUndone })
	case 4:
		if s.slot != mDraining {
			to(4, func(n *modelState) { n.slot = mDraining })
			return
		}
		if s.lock == waiter || m.bugs.drainUnderLock { // it needs the lock; or leaves the rest to the waiter
			return
		}
		kind, gives := givesBack(s.word)
		if !gives {
			to(5, none)
			return
		}
		// By an operation in the recoverer's own lane, which moves the cursor and frees the block by one store.
		to(4, func(n *modelState) {
			i := cursorOf(n.word)
			m.giveBlock(n, blockOf(i))
			n.word = given(n.word, nextOf(kind, n.word, i+1))
		})
	case 5:
		to(6, func(n *modelState) { n.slot = mFree })
	case 6:
		to(7, func(n *modelState) {
			if n.byteOf == uint8(r) {
				n.byteOf = nobody
			}
		})
	}
}

// undo is Lane.undo, one store at a time.
func (m *modelRun) undo(s modelState, r int, to func(uint8, func(*modelState))) {
	n := entriesOf(s.word)
	k := s.undoStep[r]
	switch phaseOf(s.word) {
	case phaseActive:
		if n > 0 && modelLog[n-1] == kindTook && s.idle[1] { // the taking was cut off
			to(2, func(x *modelState) { x.word = unnoted(x.word) })
			return
		}
		// The words from the last to the first: entry 4 is b, entry 0 is a.
		var words []int
		for i := n - 1; i >= 0; i-- {
			if modelLog[i] == kindWord {
				words = append(words, i)
			}
		}
		if int(k) < len(words) {
			i := words[k]
			to(2, func(x *modelState) {
				x.undoStep[r]++
				if i == 0 {
					x.a = x.old[0]
				} else {
					x.b = x.old[4]
				}
			})
			return
		}
		to(3, func(x *modelState) {
			took := nextOf(kindTook, x.word, 0)
			if m.bugs.undoForgetsTaken {
				took = -1
			}
			x.word = undone(x.word, took)
		})
	case phaseRedoing:
		if k == 0 {
			to(2, func(x *modelState) { x.undoStep[r]++; x.ref = x.old[2] })
			return
		}
		to(3, func(x *modelState) { x.word = redone(x.word, nextOf(kindFree, x.word, 0)) })
	case phaseFreeing, phaseReturning:
		i := cursorOf(s.word)
		if s.idle[blockOf(i)] { // half back
			kind, _ := givesBack(s.word)
			to(3, func(x *modelState) { x.word = given(x.word, nextOf(kind, x.word, i+1)) })
			return
		}
		to(3, func(*modelState) {})
	default:
		to(3, func(*modelState) {})
	}
}

// end looks at a state in which nobody can make a step.
func (m *modelRun) end(s modelState) {
	alive := !s.dead[recovererA] || !s.dead[recovererB]
	switch {
	case s.dead[worker] && s.slot != mFree && alive:
		m.bad("the dead process is not cleared up after, and nobody can go on")
	case s.pc[waiter] < 4 && (alive || !s.dead[worker]):
		m.bad("the lock is stuck")
	}
	if s.pc[waiter] < 4 || s.dead[worker] && s.slot != mFree {
		return
	}
	switch {
	case s.a != s.b || s.a != s.want || s.ref != s.wantRef:
		m.bad("in the end words and reference are %d, %d and %d, the last operation left %d and %d", s.a, s.b, s.ref, s.want, s.wantRef)
	case s.idle[s.ref]:
		m.bad("in the end the block referred to is free")
	case !s.idle[1-s.ref]:
		m.bad("in the end block %d is lost", 1-s.ref)
	}
}

func (m *modelRun) explore() (states int) {
	start := modelState{byteOf: worker, idle: [2]bool{false, true}}
	seen := map[modelState]bool{start: true}
	queue := []modelState{start}
	for len(queue) > 0 && m.fail == "" {
		s := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		next := m.moves(s)
		busy := false
		for _, n := range next {
			busy = busy || n.kills == s.kills
			if !seen[n] {
				seen[n] = true
				queue = append(queue, n)
			}
		}
		if !busy {
			m.end(s)
		}
	}
	return len(seen)
}

func TestModelOfLaneAndRecovery(t *testing.T) {
	m := modelRun{}
	states := m.explore()
	if m.fail != "" {
		t.Fatal(m.fail)
	}
	if states < 10_000 {
		t.Errorf("only %d states", states)
	}
	t.Logf("%d states", states)
}

func TestModelFindsWhatIsWrong(t *testing.T) {
	for name, b := range map[string]bugs{
		"lock taken over before the lanes are undone": {takeoverBeforeUndone: true},
		"two recoverers at once":                      {twoRecoverers: true},
		"slot recycled before its lanes are undone":   {slotRecycledEarly: true},
		"drained under a held lock":                   {drainUnderLock: true},
		"freed block used again in its operation":     {freeAtOnce: true},
		"later word stored before the commit":         {laterAtOnce: true},
		"word stored before its old value counts":     {storeBeforeNote: true},
		"unlocked before the later words":             {unlockBeforeRedo: true},
		"cursor moved before the block is back":       {cursorAfterLoss: true},
		"taken block forgotten":                       {undoForgetsTaken: true},
	} {
		m := modelRun{bugs: b}
		m.explore()
		if m.fail == "" {
			t.Errorf("%s: the model finds nothing wrong", name)
		} else {
			t.Logf("%s: %s", name, m.fail)
		}
	}
}
