package shm

import (
	"flag"
	"fmt"
	"strings"
	"testing"
)

// An explicit-state model of the slots: attaching, dying, recovering and being killed over it, with one
// lock and one datum behind it that is changed in two steps under a log. It runs every order of the
// steps of three processes at two slots, over the very decisions that the region makes ([claimed] and
// its kin). A lock on a byte is the kernel's: it goes with its process, but some time after the kill, and
// one byte after the other.
//
// What must hold: a lock is taken from a token only when its process will never run again, and what it
// left half done is undone; nobody undoes under the hands of a living process; a lock is held only by a
// token that stands in a slot whose byte its process holds; everybody who lives can finish; and from
// every state, if all are killed now, one newcomer brings everything in order.
var largeModels = flag.Bool("models", false, "run the large configurations of the slots' model too")

const (
	modelProcs = 3
	modelSlots = 2
)

// Where a process of the model is.
const (
	mOut = iota
	mClaim
	mByte
	mLook
	mBackGive
	mBack
	mClear
	mPublish
	mLock
	mFind
	mJudge
	mTakeOver
	mInside
	mHalf
	mUnlock
	mRecTake
	mRecRead
	mRecProve
	mRecUndo
	mRecUndone
	mRecDrain
	mRecToken
	mRecFree
	mRecGive
	mDrainToken // positions of the drainer
	mDrainFree
	mDrainGive
	mEnded
)

type modelProc struct {
	at, slot, target uint8 // slot is its own plus one
	seen             uint8 // state word it read, or token it judges
	sweeping         uint8 // next slot to look at while attaching to a full table
	rounds           uint8
	drain, drainSlot uint8 // the goroutine that drains
	back             uint8 // where a recovery returns to
}

type modelState struct {
	state, token, log [modelSlots]uint8
	byteOf            [modelSlots]uint8 // process plus one
	lock              uint8             // token of the holder
	half              uint8             // token of the process that has the datum half changed
	dead              uint8             // processes that have ended
	kills             uint8
	p                 [modelProcs]modelProc
}

type modelRules struct {
	claimed func(state, token uint64, by Token) (uint64, bool)
	dutyIn  func(state uint64) duty
	yields  func(state uint64) bool

	noSecondLook bool // an attacher that has the byte does not look whether it was taken for dead
	publishFirst bool // an attacher publishes its token before it has the byte
	undoneFirst  bool // a recoverer marks the slot undone, and then undoes
	freeFirst    bool // a slot is freed before its token is cleared
	giveFirst    bool // a recoverer gives the byte back after the proof
	noSettling   bool // a waiter takes the lock without asking
	earlyRelease bool // a byte comes free while its process runs
}

var theModelRules = modelRules{claimed: claimed, dutyIn: dutyIn, yields: yields}

type slotModel struct {
	modelRules
	procs, slots, rounds int
	violation            string
}

func modelToken(p int) uint8 { return uint8(p+1) << 4 }

func (m *slotModel) fault(s string) {
	if m.violation == "" {
		m.violation = s
	}
}

func (m *slotModel) steps(s modelState, next func(modelState, string)) {
	for p := range m.procs {
		who := func(n modelState, what string) { next(n, fmt.Sprintf("P%d %s", p, what)) }
		if s.dead&(1<<p) != 0 {
			for i := range m.slots {
				if s.byteOf[i] == uint8(p+1) {
					n := s
					n.byteOf[i] = 0
					who(n, fmt.Sprintf("loses byte %d", i))
				}
			}
			continue
		}
		if s.kills > 0 {
			n := s
			n.kills--
			n.end(p)
			who(n, "is killed")
		}
		if m.earlyRelease {
			for i := range m.slots {
				if s.byteOf[i] == uint8(p+1) && s.kills > 0 {
					n := s
					n.byteOf[i] = 0
					who(n, "is taken for dead while it runs")
				}
			}
		}
		m.step(s, p, who)
		m.drainer(s, p, who)
	}
}

func (s *modelState) end(p int) {
	s.dead |= 1 << p
	s.p[p] = modelProc{at: mEnded}
}

func (m *slotModel) step(s modelState, p int, next func(modelState, string)) {
	g, t := s.p[p], modelToken(p)
	to := func(at uint8, what string, more ...func(n *modelState)) {
		n := s
		n.p[p].at = at
		for _, f := range more {
			f(&n)
		}
		next(n, what)
	}
	i := int(g.target)
	switch g.at {
	case mOut:
		full := true
		for i := range m.slots {
			if _, ok := m.claimed(uint64(s.state[i]), uint64(s.token[i]), Token(t)); ok {
				full = false
				to(mClaim, fmt.Sprintf("finds slot %d free", i), func(n *modelState) { n.p[p].target = uint8(i) })
			}
		}
		if full {
			to(mRecTake, "finds no slot free, and looks for the dead", func(n *modelState) {
				n.p[p].target, n.p[p].back = g.sweeping, mOut
				n.p[p].sweeping = (g.sweeping + 1) % uint8(m.slots)
			})
		}
	case mClaim:
		w, ok := m.claimed(uint64(s.state[i]), uint64(s.token[i]), Token(t))
		switch {
		case !ok:
			to(mOut, "finds the slot claimed")
		case m.publishFirst:
			to(mByte, "claims the slot, and publishes its token", func(n *modelState) { n.state[i], n.token[i] = uint8(w), t })
		default:
			to(mByte, "claims the slot", func(n *modelState) { n.state[i] = uint8(w) })
		}
	case mByte:
		switch {
		case s.byteOf[i] != 0:
			to(mBack, "finds the byte taken")
		default:
			to(mLook, "takes the byte", func(n *modelState) { n.byteOf[i] = uint8(p + 1) })
		}
	case mLook:
		if s.state[i] == t|slotAttached || m.noSecondLook {
			to(mClear, "has the slot")
			return
		}
		to(mBackGive, "was taken for dead")
	case mBackGive:
		to(mBack, "gives the byte back", func(n *modelState) { n.byteOf[i] = 0 })
	case mBack:
		to(mOut, "lets go of the slot", func(n *modelState) {
			if n.state[i] == t|slotAttached {
				n.state[i] = slotFree
			}
		})
	case mClear:
		to(mPublish, "clears the slot's page", func(n *modelState) {
			n.log[i] = 0
			n.p[p].slot = uint8(i + 1)
		})
	case mPublish:
		to(mLock, "publishes its token", func(n *modelState) {
			n.token[i] = t
		})
	case mLock:
		switch {
		case g.rounds == uint8(m.rounds):
			n := s
			n.end(p)
			next(n, "ends")
		case s.lock == 0:
			to(mInside, "locks", func(n *modelState) { n.lock = t; m.enter(n, p) })
		case m.noSettling:
			to(mTakeOver, "does not ask", func(n *modelState) { n.p[p].seen = s.lock })
		default:
			to(mFind, "waits", func(n *modelState) { n.p[p].seen = s.lock })
		}
	case mFind:
		for i := range m.slots {
			if s.token[i] == g.seen {
				to(mJudge, fmt.Sprintf("finds the holder in slot %d", i), func(n *modelState) { n.p[p].target = uint8(i) })
				return
			}
		}
		to(mTakeOver, "finds the holder in no slot")
	case mJudge:
		switch {
		case s.token[i] != g.seen || m.yields(uint64(s.state[i])):
			to(mTakeOver, "finds the holder settled")
		default:
			to(mRecTake, "asks whether the holder lives", func(n *modelState) { n.p[p].back = mLock })
		}
	case mTakeOver:
		if s.lock != g.seen {
			to(mLock, "finds another holder")
			return
		}
		if q := int(g.seen>>4) - 1; s.dead&(1<<q) == 0 {
			m.fault("a living process was robbed of its lock")
		}
		to(mInside, "takes the lock over", func(n *modelState) { n.lock = t; m.enter(n, p) })
	case mInside:
		to(mHalf, "logs, and changes half", func(n *modelState) {
			n.log[n.p[p].slot-1], n.half = 1, t
		})
	case mHalf:
		to(mUnlock, "changes the rest, and drops the log", func(n *modelState) {
			n.log[n.p[p].slot-1], n.half = 0, 0
		})
	case mUnlock:
		if s.lock != t {
			m.fault("a holder was robbed of its lock")
		}
		to(mLock, "unlocks", func(n *modelState) {
			n.lock = 0
			n.p[p].rounds++
		})
	default:
		m.recovery(s, p, i, to)
	}
}

// enter checks what must hold where p has the lock.
func (m *slotModel) enter(s *modelState, p int) {
	t := modelToken(p)
	if s.half != 0 {
		m.fault("half changed data was entered")
	}
	for q := range m.procs {
		if at := s.p[q].at; q != p && at >= mInside && at <= mUnlock {
			m.fault("two inside")
		}
	}
	i := s.p[p].slot - 1
	if s.token[i] != t || s.byteOf[i] != uint8(p+1) {
		m.fault("a lock is held by a token without a slot and its byte")
	}
}

// recovery is a step of p that looks after slot i, and returns to where it came from.
func (m *slotModel) recovery(s modelState, p, i int, to func(uint8, string, ...func(*modelState))) {
	g, t := s.p[p], modelToken(p)
	// settled is where it goes on if locks of the slot's process may be taken.
	settled, unsettled := g.back, g.back
	if g.back == mLock {
		settled = mTakeOver
	}
	switch g.at {
	case mRecTake:
		switch {
		case g.slot == uint8(i+1):
			to(unsettled, "finds itself")
		case g.drain != 0 && g.drainSlot == uint8(i):
			to(settled, "is draining the slot already")
		case s.byteOf[i] == 0:
			to(mRecRead, "takes the byte of the other", func(n *modelState) { n.byteOf[i] = uint8(p + 1) })
		case s.byteOf[i] == uint8(p+1):
			return // its drainer gives it
		case s.state[i] == slotFree || m.yields(uint64(s.state[i])):
			to(settled, "finds it recovered by another")
		default:
			to(unsettled, "finds it alive, or being recovered")
		}
	case mRecRead:
		switch m.dutyIn(uint64(s.state[i])) {
		case leaveIt:
			to(mRecGive, "finds nobody there", func(n *modelState) { n.p[p].back = settled })
		case undoIt:
			to(mRecProve, "finds it dead", func(n *modelState) { n.p[p].seen = s.state[i] })
		case finishIt:
			to(mRecDrain, "finds it undone")
		}
	case mRecProve:
		if s.state[i] != g.seen {
			back := unsettled
			if s.state[i] == slotFree {
				back = settled
			}
			to(mRecGive, "finds an attacher that let go", func(n *modelState) { n.p[p].back = back })
			return
		}
		if q := int(s.token[i]>>4) - 1; q >= 0 && s.dead&(1<<q) == 0 {
			m.fault("a living process was taken for dead")
		}
		for q := range m.procs {
			if at := s.p[q].at; q != p && at >= mRecUndo && at <= mRecDrain && s.p[q].target == g.target {
				m.fault("two undo one slot")
			}
		}
		at := uint8(mRecUndo)
		if m.undoneFirst {
			at = mRecUndone
		}
		if m.giveFirst {
			to(at, "proves the death", func(n *modelState) { n.state[i], n.byteOf[i] = t|slotUndoing, 0 })
			return
		}
		to(at, "proves the death", func(n *modelState) { n.state[i] = t | slotUndoing })
	case mRecUndo:
		at := uint8(mRecUndone)
		if m.undoneFirst {
			at = mRecDrain
		}
		to(at, "undoes", func(n *modelState) {
			if n.log[i] == 0 {
				return
			}
			for q := range m.procs {
				if at := s.p[q].at; at >= mInside && at <= mUnlock {
					m.fault("undone under the hands of another")
				}
			}
			n.log[i] = 0
			if n.half == n.token[i] {
				n.half = 0
			}
		})
	case mRecUndone:
		at := uint8(mRecDrain)
		if m.undoneFirst {
			at = mRecUndo
		}
		to(at, "marks it undone", func(n *modelState) { n.state[i] = t | slotUndone })
	case mRecDrain:
		if g.slot == 0 { // it attaches: it has no slot to drain from
			to(mRecToken, "does not drain", func(n *modelState) { n.state[i] = t | slotDraining })
			return
		}
		if g.drain != 0 {
			return // in the region one goroutine drains each slot; here one at a time
		}
		to(settled, "starts to drain", func(n *modelState) {
			n.state[i] = t | slotDraining
			n.p[p].drain, n.p[p].drainSlot = mDrainToken, uint8(i)
			if m.freeFirst {
				n.p[p].drain = mDrainFree
			}
		})
	case mRecToken:
		to(mRecFree, "clears the token", func(n *modelState) { n.token[i] = 0 })
	case mRecFree:
		to(mRecGive, "frees the slot", func(n *modelState) { n.state[i] = slotFree })
	case mRecGive:
		to(g.back, "gives the byte back", func(n *modelState) {
			if n.byteOf[i] == uint8(p+1) {
				n.byteOf[i] = 0
			}
		})
	}
}

// drainer is a step of the goroutine of p that frees a slot.
func (m *slotModel) drainer(s modelState, p int, next func(modelState, string)) {
	g := s.p[p]
	i := int(g.drainSlot)
	n := s
	switch g.drain {
	case mDrainToken:
		n.token[i] = 0
		n.p[p].drain = mDrainFree
		if m.freeFirst {
			n.p[p].drain = mDrainGive
		}
		next(n, "clears the token after draining")
	case mDrainFree:
		n.state[i] = slotFree
		n.p[p].drain = mDrainGive
		if m.freeFirst {
			n.p[p].drain = mDrainToken
		}
		next(n, "frees the slot after draining")
	case mDrainGive:
		if n.byteOf[i] == uint8(p+1) {
			n.byteOf[i] = 0
		}
		n.p[p].drain, n.p[p].drainSlot = 0, 0
		next(n, "gives the byte back after draining")
	}
}

// tidy kills everybody, and lets one newcomer look after every slot. It returns what is left then.
func (m *slotModel) tidy(s modelState) string {
	s.byteOf = [modelSlots]uint8{}
	for i := range m.slots {
		switch m.dutyIn(uint64(s.state[i])) {
		case undoIt:
			if s.log[i] != 0 && s.half == s.token[i] {
				s.half = 0
			}
			s.log[i], s.token[i], s.state[i] = 0, 0, slotFree
		case finishIt:
			s.token[i], s.state[i] = 0, slotFree
		}
		if s.state[i] != slotFree || s.token[i] != 0 {
			return fmt.Sprintf("slot %d is not freed: state %#x, token %#x", i, s.state[i], s.token[i])
		}
	}
	if s.half != 0 {
		return "data stays half changed"
	}
	return ""
}

func (m *slotModel) run(kills int) (states int, fault string) {
	first := modelState{kills: uint8(kills)}
	number := map[modelState]int32{first: 0}
	all, from := []modelState{first}, []int32{-1}
	into := [][]int32{nil}
	var ends []int32
	for k := 0; k < len(all); k++ {
		s := all[k]
		if left := m.tidy(s); left != "" {
			return len(all), "after a kill of all: " + left + m.trace(all, from, k)
		}
		live := false
		for p := range m.procs {
			live = live || s.p[p].at != mEnded
		}
		if !live {
			ends = append(ends, int32(k))
		}
		m.steps(s, func(n modelState, _ string) {
			id, known := number[n]
			if !known {
				id = int32(len(all))
				number[n] = id
				all, from, into = append(all, n), append(from, int32(k)), append(into, nil)
			}
			into[id] = append(into[id], int32(k))
		})
		if m.violation != "" {
			return len(all), m.violation + m.trace(all, from, k)
		}
	}
	good := make([]bool, len(all))
	for _, k := range ends {
		good[k] = true
	}
	for len(ends) > 0 {
		k := ends[len(ends)-1]
		ends = ends[:len(ends)-1]
		for _, j := range into[k] {
			if !good[j] {
				good[j] = true
				ends = append(ends, j)
			}
		}
	}
	for k, ok := range good {
		if !ok {
			return len(all), "cannot finish" + m.trace(all, from, k)
		}
	}
	return len(all), ""
}

func (m *slotModel) trace(all []modelState, from []int32, k int) string {
	var steps []string
	for ; from[k] >= 0; k = int(from[k]) {
		found := false
		m.steps(all[from[k]], func(n modelState, what string) {
			if n == all[k] && !found {
				found = true
				steps = append(steps, what)
			}
		})
	}
	var b strings.Builder
	for i := len(steps) - 1; i >= 0; i-- {
		b.WriteString("\n\t" + steps[i])
	}
	return b.String()
}

// A slotConfig is what a model of slots explores.
type slotConfig struct{ procs, slots, rounds, kills int }

func (c slotConfig) String() string {
	return fmt.Sprintf("procs=%d/slots=%d/rounds=%d/kills=%d", c.procs, c.slots, c.rounds, c.kills)
}

func (c slotConfig) run(r modelRules) (states int, fault string) {
	m := &slotModel{modelRules: r, procs: c.procs, slots: c.slots, rounds: c.rounds}
	return m.run(c.kills)
}

var (
	smallSlotConfigs = []slotConfig{{2, 1, 1, 0}, {2, 2, 1, 0}, {2, 1, 2, 2}, {2, 2, 2, 2}, {3, 1, 1, 1}, {3, 1, 1, 3}}
	largeSlotConfigs = []slotConfig{{3, 2, 1, 0}, {3, 2, 1, 1}, {3, 2, 1, 2}}
)

func TestModelOfTheSlotsHoldsInEveryOrderOfSteps(t *testing.T) {
	configs := smallSlotConfigs
	if *largeModels {
		configs = append(configs, largeSlotConfigs...)
	}
	for _, c := range configs {
		t.Run(c.String(), func(t *testing.T) {
			states, fault := c.run(theModelRules)
			if fault != "" {
				t.Errorf("%d states: %s", states, fault)
			}
			t.Logf("%d states", states)
		})
	}
}

// A model that finds nothing may look at nothing: each of these bugs it must find.
func TestModelOfTheSlotsFindsInjectedBugs(t *testing.T) {
	for name, inject := range map[string]func(*modelRules){
		"an attacher does not look whether it was taken for dead": func(r *modelRules) { r.noSecondLook = true },
		"an attacher publishes its token before it has the byte":  func(r *modelRules) { r.publishFirst = true },
		"a slot is marked undone before it is":                    func(r *modelRules) { r.undoneFirst = true },
		"a slot is freed before its token is cleared":             func(r *modelRules) { r.freeFirst = true },
		"a recoverer gives the byte back once it has the proof":   func(r *modelRules) { r.giveFirst = true },
		"a waiter takes the lock without asking":                  func(r *modelRules) { r.noSettling = true },
		"a byte comes free while its process runs":                func(r *modelRules) { r.earlyRelease = true },
		"locks may be taken while what they guard is being put back": func(r *modelRules) {
			r.yields = func(state uint64) bool { return state&tokenFlags == slotUndoing || yields(state) }
		},
		"a slot whose recoverer died is left alone": func(r *modelRules) {
			r.dutyIn = func(state uint64) duty {
				if state&tokenFlags == slotUndoing {
					return leaveIt
				}
				return dutyIn(state)
			}
		},
		"a slot whose drainer died is left alone": func(r *modelRules) {
			r.dutyIn = func(state uint64) duty {
				if state&tokenFlags == slotDraining {
					return leaveIt
				}
				return dutyIn(state)
			}
		},
		"a dead slot is finished without undoing": func(r *modelRules) {
			r.dutyIn = func(state uint64) duty {
				if dutyIn(state) == undoIt {
					return finishIt
				}
				return dutyIn(state)
			}
		},
		"an attacher claims a slot that is not cleared up": func(r *modelRules) {
			r.claimed = func(state, token uint64, by Token) (uint64, bool) {
				next, _ := claimed(state, token, by)
				return next, state&tokenFlags != slotAttached
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := theModelRules
			inject(&r)
			for _, c := range append(smallSlotConfigs[:len(smallSlotConfigs):len(smallSlotConfigs)], slotConfig{3, 2, 1, 1}) {
				if states, fault := c.run(r); fault != "" {
					what, _, _ := strings.Cut(fault, "\n")
					t.Logf("%v: %s after %d states", c, what, states)
					return
				}
			}
			t.Error("not found")
		})
	}
}
