package sync

// The steps of a Mutex's word, as functions of what the word is. The lock makes them by
// compare-and-swap from exactly that word; the model in the tests makes them in all orders, with
// kills, cancellation and sleeps that end early in between. v is the word before, t the token of the
// process that makes the step.

// taken is the step of a leader that finds the lock free, if it may take it. One who has slept may
// hold the wake-up of a release, and cannot know who else sleeps: it sets W, so that its own release
// wakes the next. One who has not slept leaves a reserved lock to those who have.
func taken(v, t uint64, slept bool) (next uint64, ok bool) {
	next = t | v&flagInconsistent | v&flagWaiters
	if slept {
		next |= flagWaiters
	}
	return next, v&^flags == 0 && (slept || v&flagStarving == 0)
}

// tried is the step of TryLock: it takes any free and clean lock. The reservation goes, so those it was
// kept for are marked as waiting, and ask again.
func tried(v, t uint64) (next uint64, ok bool) {
	next = t
	if v != 0 {
		next |= flagWaiters
	}
	return next, v&^flags == 0 && v&flagInconsistent == 0
}

// refused is the step of one who is about to be refused, and finds the lock free after all: also a
// reserved one, since those it is kept for may be dead.
func refused(v, t uint64) (next uint64, ok bool) {
	return t | v&flagInconsistent | flagWaiters, v&^flags == 0
}

// inherited is the step of one who takes the lock from a dead holder.
func inherited(v, t uint64) (next uint64) {
	return t | flagInconsistent | flagWaiters | v&flagStarving
}

// awaited is the step before a sleep. S means nothing in a free word but that it is reserved, so only
// a held one gets it.
func awaited(v uint64, starving bool) (next uint64) {
	next = v | flagWaiters
	if starving && v&^flags != 0 {
		next |= flagStarving
	}
	return next
}

// queuedUp is the step of one who parks behind a holder of its own process. A leader that has slept parks
// in front, and with W: the lock may be passed on to it, and the wake-up that it may hold was meant for
// whoever sleeps.
func queuedUp(v uint64, slept bool) (next uint64) {
	next = v | flagLocal
	if slept {
		next |= flagWaiters
	}
	return next
}

// abandoned is the step of a leader that has slept and gives up, and whether a sleeper is woken then.
// The release of a held lock will wake one; the claim to be starving goes with its maker. A reservation
// is dissolved, and the wake-up that the leader may hold is passed on.
func abandoned(v uint64) (next uint64, wake bool) {
	if v&^flags != 0 {
		return v&^flagStarving | flagWaiters, false
	}
	if v&flagStarving != 0 {
		return v & flagInconsistent, true
	}
	return v, true
}

// released is the step of the holder that lets go, and whether a sleeper is woken then. W is forgotten:
// until the woken one sets it again, other releases wake nobody. S becomes the reservation.
func released(v uint64) (next uint64, wake bool) {
	return v & (flagInconsistent | flagStarving), v&(flagWaiters|flagStarving) != 0
}

// passed says whether a release of a held lock, while goroutines of its own process wait in the gate,
// passes the lock to the first of them, who has waited long or not. Otherwise it lets go, and the
// first competes with whoever comes: a goroutine that runs takes the lock much sooner than one that
// has to be started, so that is what a lock that changes hands often lives on. But letting go while
// others sleep costs a wake-up each time, so then the lock stays in the process, until somebody
// elsewhere starves.
func passed(v uint64, long bool) bool {
	return v&flagStarving == 0 && (long || v&flagWaiters != 0)
}
