package bench

import (
	"sync"
	"sync/atomic"
	"time"
)

// Locks with a known answer.
const (
	Sleepy = "sleepy" // each time it is taken it is held for a millisecond of sleep
	Unfair = "unfair" // the first one has it all the time, the others once each
	Turns  = "turns"  // it goes round
)

func init() {
	otherLock = func(kind string, t *track, taker, takers int) sync.Locker {
		switch kind {
		case Sleepy, Unfair, Turns:
			return &knownLock{kind: kind, stop: &t.stop, word: &t.word, turn: &t.turn, taker: uint32(taker), takers: uint32(takers)}
		}
		return nil
	}
}

// A knownLock is one of those, in the hands of one taker.
type knownLock struct {
	kind          string
	stop          *atomic.Bool
	word, turn    *atomic.Uint32
	taker, takers uint32
	had           bool
}

func (l *knownLock) Lock() {
	for !l.mayTake() || !l.word.CompareAndSwap(0, 1) {
		if l.taker > 0 || l.kind != Unfair {
			time.Sleep(20 * time.Microsecond)
		}
	}
	if l.kind == Sleepy {
		time.Sleep(time.Millisecond)
	}
}

// mayTake says whether it is this one's turn; at the end, when others may have gone, it is everybody's.
func (l *knownLock) mayTake() bool {
	switch {
	case l.stop.Load():
		return true
	case l.kind == Unfair:
		return l.taker == 0 || !l.had
	case l.kind == Turns:
		return l.turn.Load() == l.taker
	}
	return true
}

func (l *knownLock) Unlock() {
	l.had = true
	l.turn.Store((l.taker + 1) % l.takers)
	l.word.Store(0)
}
