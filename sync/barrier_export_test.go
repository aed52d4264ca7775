package sync

import "unsafe"

// Sleeps reports whether somebody may sleep at b.
func (b *Barrier) Sleeps() bool { return b.now().slept() }

// HasWaiter reports whether a goroutine of this process waits at b.
func (b *Barrier) HasWaiter() bool { return hasGate(unsafe.Pointer(&b.state)) }

// Members returns how many parties are members of b, as far as that is counted.
func (b *Barrier) Members() int { return int(roster(b.roster.Load()).members()) }

// Generation returns which generation waits at b.
func (b *Barrier) Generation() uint32 { return b.now().generation() }

// LetGoWithoutWake is the end of a pass that is cut off before the wake-up.
func (b *Barrier) LetGoWithoutWake() {
	v := b.now()
	next, _ := v.passed(v.generation())
	b.state.Store(uint32(next))
}

// HasWaiter reports whether a goroutine of this process waits for o.
func (o *Once) HasWaiter() bool { return hasGate(o.mu.Pointer()) }

// HasWaiter reports whether a goroutine of this process waits for m.
func (m *RecursiveMutex) HasWaiter() bool { return m.mu.HasWaiter() }

// End says whether generation g is over, and how it ended.
func (b *Barrier) End(g uint32) (over bool, err error) { return b.end(g % barrierGenerations) }
