package sync

import (
	stdsync "sync"
	"time"
	"unsafe"
)

// A gate is where goroutines of this process wait for one lock. It exists while somebody waits or
// looks. Invariant, between sections of mu: if the queue is not empty, there is a leader, or the lock
// is held by this process with L set, or it is being released and the releaser, in its section,
// promotes the first.
type gate struct {
	mu     stdsync.Mutex
	leader bool // some goroutine competes with other processes
	head   *waiter
	tail   *waiter
	users  int // guarded by the shard's mu
}

// A waiter is a parked goroutine.
type waiter struct {
	told       chan message // buffered: whoever tells does not wait
	next, prev *waiter
	since      time.Time // it has been waiting
	queued     bool
}

// A message says what a parked goroutine is to do.
type message int

const (
	nothing    message = iota
	leadNow            // compete with other processes
	lockPassed         // the lock is yours
)

var waiters = stdsync.Pool{New: func() any { return &waiter{told: make(chan message, 1)} }}

// free gives back a waiter that has been told and that no queue has.
func (w *waiter) free() { waiters.Put(w) }

// gates are the gates of this process, by address of the lock. The keys are pointers, not numbers, so
// that a Mutex is never on a stack, which moves when it grows.
var gates [64]struct {
	mu stdsync.Mutex
	by map[*Mutex]*gate
	_  [48]byte
}

func shard(m *Mutex) int {
	return int(uint64(uintptr(unsafe.Pointer(m))>>3) * 0x9e3779b97f4a7c15 >> 58)
}

// enter returns the gate of m, and keeps it until leave.
func enter(m *Mutex) *gate {
	s := &gates[shard(m)]
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.by[m]
	if g == nil {
		if s.by == nil {
			s.by = make(map[*Mutex]*gate)
		}
		g = new(gate)
		s.by[m] = g
	}
	g.users++
	return g
}

func leave(m *Mutex, g *gate) {
	s := &gates[shard(m)]
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.users--; g.users == 0 {
		delete(s.by, m)
	}
}

// push queues a new waiter. g.mu is held.
func (g *gate) push(since time.Time, front bool) *waiter {
	w := waiters.Get().(*waiter)
	w.since, w.queued = since, true
	switch {
	case g.head == nil:
		g.head, g.tail = w, w
	case front:
		w.next, g.head.prev = g.head, w
		g.head = w
	default:
		w.prev, g.tail.next = g.tail, w
		g.tail = w
	}
	return w
}

// pop takes the first waiter out of the queue. g.mu is held.
func (g *gate) pop() *waiter {
	w := g.head
	g.unlink(w)
	return w
}

func (g *gate) unlink(w *waiter) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		g.head = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		g.tail = w.prev
	}
	w.next, w.prev, w.queued = nil, nil, false
}

// remove takes w out of the queue, unless it has been told something first.
func (g *gate) remove(w *waiter) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !w.queued {
		return false
	}
	g.unlink(w)
	w.free()
	return true
}

// promote makes the first waiter the leader, or leaves the gate without one if nobody waits. g.mu is
// held.
func (g *gate) promote() {
	g.leader = g.head != nil
	if g.leader {
		g.pop().told <- leadNow
	}
}
