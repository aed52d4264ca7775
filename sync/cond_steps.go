package sync

// The steps of a Cond, as functions of what its words are. All but the sleeper's are made by one who holds the
// mutex. The model in the tests makes them in all orders, with kills in between.

// What the word of a waiter's place says.
const (
	condWaiting = 1
	condOwed    = 2 // signalled while others wait: counted in the Cond, and passed on if the waiter dies
	condFree    = 3 // signalled as the last of all: the Cond is not touched any more
)

// owedAll in the place of a count says that a Broadcast is under way: whoever finds it finishes it.
const owedAll = 1<<32 - 1

// signalledAs returns what a waiter's place becomes by a signal, given whether it is the last that waits.
func signalledAs(last bool) (place uint64) {
	if last {
		return condFree
	}
	return condOwed
}

// lost returns how many signals have gone with the dead, given how many are owed and how many places of the
// living are marked so. One that is owed and marked nowhere had been given to one who died, or its signaller
// died before it marked a place; so the signal is given by whoever finds that.
func lost(owed, marked uint32) (signals uint32, all bool) {
	if owed == owedAll {
		return 0, true
	}
	return owed - min(owed, marked), false
}

// paid returns what is owed when the waiter with such a place goes on.
func paid(owed uint32, place uint64) uint32 {
	if place != condOwed || owed == 0 || owed == owedAll {
		return owed
	}
	return owed - 1
}

// rung is the step of a bell, by which one goroutine of a process sleeps, and whether that is woken. The upper half
// stays. Bit 0 is cleared: there is one sleeper, and it looks at the places before it sets the bit again.
func rung(bell uint64) (next uint64, wake bool) {
	return bell&^(1<<32-1) | uint64(uint32(bell)&^1+2), bell&1 != 0
}

// abed is the step of a bell before its sleeper sleeps.
func abed(bell uint64) (next uint64) { return bell | 1 }

// mayTouch reports whether one with such a place may look at the Cond, and change it. Of those signalled too, as long as
// others wait: such a one may be the leader of its process, which alone has noticed a death.
func mayTouch(place uint64) bool { return place == condWaiting || place == condOwed }
