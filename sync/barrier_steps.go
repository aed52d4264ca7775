package sync

// The steps of a Barrier, as functions of what its words are. The barrier makes them; the model in the tests
// makes them in all orders, with kills and waits that end early in between.

// A barrierState is the word that waiters sleep by: which generation waits, and whether it is broken.
//
//	31           3   2      1        0
//	| generation | died | broken | W |
//
// Whoever arrives belongs to the generation of that moment. A pass begins the next one, by one
// compare-and-swap from exactly the word of an unbroken generation; so does a reset, from that of a broken
// one. A generation is broken once, and stays so until a reset.
type barrierState uint32

const (
	barrierWaiters = 1 << 0 // somebody may sleep
	barrierBroken  = 1 << 1 // by a limit, an Abort or an action that failed
	barrierDied    = 1 << 2 // broken, by a death
	barrierNext    = 1 << 3 // one generation

	barrierGenerations = 1 << 29
)

func (v barrierState) generation() uint32 { return uint32(v) / barrierNext }
func (v barrierState) open() bool         { return v&(barrierBroken|barrierDied) == 0 }
func (v barrierState) slept() bool        { return v&barrierWaiters != 0 }

// passed is the step that lets generation g go, if it is there and not broken.
func (v barrierState) passed(g uint32) (next barrierState, ok bool) {
	return v&^barrierWaiters + barrierNext, v.generation() == g && v.open()
}

// broken is the step that breaks a generation, if it is not broken yet.
func (v barrierState) broken(how barrierState) (next barrierState, ok bool) {
	return (v | how) &^ barrierWaiters, v.open()
}

// renewed is the step of a reset, from a broken generation.
func (v barrierState) renewed() (next barrierState, ok bool) {
	return v&^(barrierWaiters|barrierBroken|barrierDied) + barrierNext, !v.open()
}

// err says how the generation of v ended, or nil.
func (v barrierState) err() error {
	switch {
	case v&barrierDied != 0:
		return ErrPartyDied
	case v&barrierBroken != 0:
		return ErrBrokenBarrier
	}
	return nil
}

// A roster says how many arrivals make a pass, and how many parties have been counted as members: one word,
// so that a kill cannot come between the two. What the members' processes hold is the truth.
type roster uint64

func newRoster(parties, members uint32) roster { return roster(parties)<<32 | roster(members) }

func (r roster) parties() uint32 { return uint32(r >> 32) }
func (r roster) members() uint32 { return uint32(r) }

// joined is the step of a new member. Where the dead were dropped, it takes the place of one.
func (r roster) joined(all uint32) roster {
	p := r.parties()
	if r.members() >= p && p < all {
		p++
	}
	return newRoster(p, r.members()+1)
}

// left is the step of a member that leaves. Its place is another's.
func (r roster) left() roster { return newRoster(r.parties(), max(r.members(), 1)-1) }

// counted is the step after a death, when so many members are left, and whether any have died. If the dead
// are dropped, the pass needs that many fewer of the places that were taken; those that nobody has taken yet
// stay.
func (r roster) counted(alive uint32, drop bool) (next roster, died bool) {
	p, m := r.parties(), r.members()
	if died = alive < m; died && drop {
		taken := min(p, m)
		p = p - taken + min(taken, alive)
	}
	return newRoster(p, alive), died
}

// A muster is a number that belongs to one generation; in any other it is 0.
type muster uint64

func newMuster(g, n uint32) muster { return muster(g)<<32 | muster(n) }

func (m muster) in(g uint32) uint32 {
	if uint32(m>>32) != g {
		return 0
	}
	return uint32(m)
}

// complete says whether somebody is to let the generation go in which so many have arrived: nobody does so
// already.
func complete(arrived, parties uint32, claimed bool) bool {
	return arrived > 0 && arrived >= parties && !claimed
}
