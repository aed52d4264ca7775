package sync

// The steps of a stake, the share that one process has in a [Semaphore], as functions of what its value is.
// The semaphore makes them by compare-and-swap from exactly that value; the model in the tests makes them in
// all orders.
//
//	21        12 11         2   1   0
//	| idle      | in use     | C | S |
//
// The permits of a stake, idle or in use, are taken out of the semaphore; what no stake has is free.
//
//	step        who          lock   in use  idle  S
//	used        its process         +n      -n    must be 0
//	unused      its process         -n      +n    must be 0
//	dropped     its process         is 0    =0    must be 0
//	granted     its process  held   +n            may be set
//	returned    its process  held   -n      +n?   set or cleared
//	reclaimed   anybody      held           -k    may be set
//	claimed     its process  held                 set; C set
//	unclaimed   its process                       C cleared
//
// So the sum of what is taken out grows only under the semaphore's lock; without it a process moves permits
// between idle and in use, as long as S lets it. 0 is a stake that its process does not need.
const (
	stakeSlow  = 1 << 0 // S: whoever uses or returns permits does it under the lock
	stakeClaim = 1 << 1 // C: its process waits; S is set too
	stakeUsed  = 1 << 2
	stakeIdle  = 1 << 12
	stakeLimit = 1<<10 - 1 // most permits of a stake
)

func usedOf(v uint64) uint64 { return v / stakeUsed & stakeLimit }
func idleOf(v uint64) uint64 { return v / stakeIdle & stakeLimit }

// used is the step of an Acquire that its own process has idle permits for. It and unused refuse an n of 0, and take
// a whole word, with the key above the value.
func used(v, n uint64) (next uint64, ok bool) {
	return v + n*stakeUsed - n*stakeIdle, v&stakeSlow == 0 && n-1 < idleOf(v)
}

// unused is the step of a Release while nobody waits: the permits stay with the process, for its next Acquire,
// until somebody reclaims them.
func unused(v, n uint64) (next uint64, ok bool) {
	return v - n*stakeUsed + n*stakeIdle, v&stakeSlow == 0 && n-1 < usedOf(v)
}

// dropped is the step of a process that gives up the idle permits of a stake that has nothing in use.
func dropped(v uint64) (next uint64, ok bool) {
	return 0, v&stakeSlow == 0 && usedOf(v) == 0
}

// granted is the step of an Acquire that takes free permits, if the stake has room for them. If somebody
// waits, these must come back under the lock.
func granted(v, n uint64, waits bool) (next uint64, ok bool) {
	next = v + n*stakeUsed
	if waits {
		next |= stakeSlow
	}
	return next, usedOf(v)+idleOf(v)+n <= stakeLimit
}

// returned is the step of a Release under the lock, of n permits in use. They stay with the process if nobody
// waits, and become free otherwise.
func returned(v, n uint64, waits bool) (next uint64) {
	next = v - n*stakeUsed
	if !waits {
		return next&^(stakeSlow|stakeClaim) + n*stakeIdle
	}
	return emptied(next | stakeSlow)
}

// reclaimed is the step that makes up to k idle permits of a stake free. If somebody waits, then those that
// are in use must come back under the lock, where he is seen.
func reclaimed(v, k uint64, waits bool) (next uint64) {
	next = v - min(k, idleOf(v))*stakeIdle
	if waits && usedOf(v) > 0 {
		next |= stakeSlow
	}
	return next
}

// claimed is the step of a process that is about to wait.
func claimed(v uint64) (next uint64) { return v | stakeSlow | stakeClaim }

// unclaimed is the step of one that waits no more. What is in use still comes back under the lock: others may
// wait.
func unclaimed(v uint64) (next uint64) { return emptied(v &^ stakeClaim) }

// emptied gives up a stake that has nothing but S.
func emptied(v uint64) uint64 {
	if v == stakeSlow {
		return 0
	}
	return v
}

// A claim is what a process waits for, in one word of its holding.
//
//	63     33 32      2   1   0
//	| ticket | permits | B | P |
//
// Claims are served by their tickets, which count up and start again: of two that wait, the older one is less
// than half a round behind.
const (
	claimPatient = 1 << 0  // P: has not waited for long yet: whoever runs may take what is free
	claimCalled  = 1 << 1  // B: was told to look; nobody need tell it again
	claimPermits = 1 << 2  // at least 1, so no claim is 0
	claimTicket  = 1 << 33 // in turn
	ticketMask   = 1<<31 - 1
)

func wantedBy(claim uint64) uint64 { return claim / claimPermits & maxPermits }

// claimFor returns the claim of one who waits for n permits.
func claimFor(ticket uint32, n uint64, patient bool) (claim uint64) {
	claim = uint64(ticket&ticketMask)*claimTicket + n*claimPermits
	if patient {
		claim |= claimPatient
	}
	return claim
}

// older reports whether claim a comes before b.
func older(a, b uint64) bool { return (b/claimTicket-a/claimTicket)&ticketMask < 1<<30 && a != b }

// A tally of a semaphore is what its lock's holder finds in all stakes.
type tally struct {
	taken uint64 // permits, in use or idle
	head  uint64 // the oldest claim, 0: nobody waits
}

// add adds a stake to the tally.
func (t *tally) add(v, more, claim uint64) {
	t.taken += usedOf(v) + idleOf(v) + more
	if claim != 0 && (t.head == 0 || older(claim, t.head)) {
		t.head = claim
	}
}

// free returns how many of limit permits nobody has.
func (t tally) free(limit uint64) uint64 { return limit - min(t.taken, limit) }

// mayTake reports whether one with the given claim, or 0, may take n of free permits: he is the oldest of those
// who wait, or that one is patient still.
func (t tally) mayTake(limit, n, claim uint64) bool {
	return t.free(limit) >= n && (t.head == 0 || t.head&^claimCalled == claim&^claimCalled || t.head&claimPatient != 0)
}

// calls reports whether the oldest of those who wait is to be told that there is enough for him.
func (t tally) calls(limit uint64) bool {
	return t.head != 0 && t.head&claimCalled == 0 && t.free(limit) >= wantedBy(t.head)
}
