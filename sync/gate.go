package sync

import (
	stdsync "sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
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
	wakes  []*uint32 // whom the next release wakes: see wakeLater
	crowd  *crowd    // of a Cond: who waits for it
	users  int       // guarded by the shard's mu
}

// A waiter is a parked goroutine.
type waiter struct {
	told       chan message // buffered: whoever tells does not wait
	next, prev *waiter
	since      time.Time   // it has been waiting
	region     *shm.Region // or nil
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
func (w *waiter) free() {
	w.region = nil
	waiters.Put(w)
}

// locate returns the region that a lock lies in, and where; no region if it lies outside of any. An error
// is [shm.ErrClosed]: the lock's region is closed, and it was to be used for what.
func locate[T any](m *T, what string) (r *shm.Region, off shm.Offset, err error) {
	r, off, ok := shm.Locate(unsafe.Pointer(m))
	if !ok {
		if name, closed := shm.ClosedAt(unsafe.Pointer(m)); closed {
			return nil, 0, closedIn(what, name)
		}
	}
	return r, off, nil
}

// gates are the gates of this process, by address of the lock. The keys are pointers, not numbers, so
// that a lock is never on a stack, which moves when it grows.
var gates [64]struct {
	mu stdsync.Mutex
	by map[unsafe.Pointer]*gate
	_  [48]byte
}

func shard(m unsafe.Pointer) int {
	return int(uint64(uintptr(m)>>3) * 0x9e3779b97f4a7c15 >> 58)
}

// enter returns the gate of m, and keeps it until leave.
func enter[T any](m *T) *gate {
	key := unsafe.Pointer(m)
	s := &gates[shard(key)]
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.by[key]
	if g == nil {
		if s.by == nil {
			s.by = make(map[unsafe.Pointer]*gate)
		}
		g = new(gate)
		s.by[key] = g
	}
	g.users++
	return g
}

// known is enter if somebody waits at m, and returns nil otherwise.
func known[T any](m *T) *gate {
	key := unsafe.Pointer(m)
	s := &gates[shard(key)]
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.by[key]
	if g != nil {
		g.users++
	}
	return g
}

func leave[T any](m *T, g *gate) {
	key := unsafe.Pointer(m)
	s := &gates[shard(key)]
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.users--; g.users == 0 {
		delete(s.by, key)
	}
}

// push queues a new waiter. g.mu is held.
func (g *gate) push(r *shm.Region, since time.Time, front bool) *waiter {
	w := waiters.Get().(*waiter)
	w.region, w.since, w.queued = r, since, true
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

// park waits until w, which is in the queue, is told something, or its wait is over; then w is not in
// the queue any more.
func (g *gate) park(w *waiter, l *limit, r *shm.Region) (told message, err error) {
	var expired <-chan time.Time
	if l.ctx == nil {
		if end, ok := l.end(); ok {
			t := time.NewTimer(time.Until(end))
			defer t.Stop()
			expired = t.C
		}
	}
	var closed <-chan struct{}
	if r != nil {
		closed = r.Done()
	}
	select {
	case told = <-w.told:
	default:
		select {
		case told = <-w.told:
		case <-l.done():
		case <-expired:
		case <-closed:
		}
	}
	if told == nothing {
		if g.remove(w) {
			if err = l.over(); err == nil {
				err = closedError(l.what, r)
			}
			return nothing, err
		}
		told = <-w.told // it came first
	}
	w.free()
	return told, nil
}

// lower is the lower half of a word, as package futex takes it.
func lower(word *atomic.Uint64) *uint32 {
	halves := (*[2]uint32)(unsafe.Pointer(word))
	return &halves[lowHalf]
}
