package sync

import (
	"context"
	"errors"
	"math/rand/v2"
	"structs"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
)

// A Cond is a condition variable: goroutines of any number of processes wait until another one signals that the
// data a [Mutex] guards has changed. Its zero value is ready; it is 64 bytes and lives in a region, inside any
// struct, with its mutex in the same region, or both outside of regions, where it works among the goroutines of
// its process. It must not be copied.
//
// It is exact: a signal releases the one that has waited longest, of whatever process, and nobody if nobody waits;
// so k signals release k waiters, or all there are. A wait does not end for no reason. Whoever is released comes to
// hold the mutex again only when it is free, so what it waited for may be over by then: look in a loop, or use
// [Cond.WaitFor].
//
// All calls are for those who hold the mutex. The Cond learns which one that is from the first wait; another one may
// be used when nobody waits. A call by a process that does not hold it changes nothing and panics with a
// [*MisuseError]; a signal before the first wait is not checked, nor, outside of regions, one while nobody waits.
//
// When a waiter dies that a signal had released, and that had not come to hold the mutex again, then the signal
// goes to the one that has waited longest of the rest, within 100 ms. A call that a death cuts short has
// released those it was for, or nobody.
//
// After a Broadcast, or a signal to the last waiter, the memory of the Cond may be used for something else at once,
// even before the released have returned: they do not touch it.
//
// Each waiter of a region takes a holding of it, of which a region has some 32,000; see [shm.Region.Hold]. Ten
// thousand goroutines that wait cost one thread. A signal to nobody costs some loads; one to another process a
// system call, unless its sleeper is not asleep yet.
type Cond struct {
	_       structs.HostLayout
	id      atomic.Uint32 // random, from the first wait: tells this Cond from another one in its place; 0 before
	deaths  atomic.Uint32 // of the region, when owed was last compared with the places of the living
	next    atomic.Uint64 // ticket of the next to wait; begins at random, only grows
	mutex   atomic.Uint64 // offset of the mutex minus that of the Cond
	waiting atomic.Uint32 // that wait and are not signalled, or more: the dead are counted too, for a while
	owed    atomic.Uint32 // signals to places marked condOwed, or owedAll; 0 if nobody waits
	seen    [shm.Slots / 64]atomic.Uint64
	// seen has a bit for each slot whose process has ever waited.
}

var _ [64]byte = [unsafe.Sizeof(Cond{})]byte{}

// Wait unlocks m, waits for a signal, and locks m again. It reports whether it was released by a signal; if the
// context ended first it returns false, and nil: m is held. An error means that m is not held: [ErrInconsistent] if
// another process died while it held m, whether or not this one was signalled; [shm.ErrClosed]; or [shm.ErrNoSpace]
// if the region has no room for one more waiter. A signal that came before the end of the context counts, also if
// that has ended when m is locked.
//
// The unlocking and the beginning of the wait are one step for all who hold m. Under a context that has ended
// already Wait does nothing.
func (c *Cond) Wait(ctx context.Context, m *Mutex) (woken bool, err error) {
	return c.wait(limit{what: waitForSignal, ctx: ctx}, m)
}

// WaitTimeout is Wait for a limited time; 0 and less mean to do nothing.
func (c *Cond) WaitTimeout(m *Mutex, d time.Duration) (woken bool, err error) {
	return c.wait(limit{what: waitForSignal, deadline: time.Now().Add(d)}, m)
}

// WaitDeaths is Wait for those whose wait a death may end too. It ends as if the context had, with false and nil and m
// held, also when [shm.Region.Deaths] is not what the caller has seen: for one goroutine, at least, of each process that
// waits, which is to see to the others. What the caller read before it looked at what it waits for is the right thing to
// have seen: no death is missed then.
func (c *Cond) WaitDeaths(ctx context.Context, m *Mutex, seen uint32) (woken bool, err error) {
	return c.wait(limit{what: waitForSignal, ctx: ctx, mortal: true, deaths: seen}, m)
}

// WaitFor waits until predicate, which is called with m held, returns true, and reports whether it did before the
// context ended. If it does at once there is no wait, whatever the context. Errors are those of [Cond.Wait], and
// mean that m is not held.
func (c *Cond) WaitFor(ctx context.Context, m *Mutex, predicate func() bool) (bool, error) {
	for !predicate() {
		woken, err := c.Wait(ctx, m)
		if err != nil {
			return false, err
		}
		if !woken {
			return predicate(), nil
		}
	}
	return true, nil
}

// Signal releases the one that has waited longest, if anybody waits. It panics with an error that is
// [shm.ErrClosed] if the region is closed.
func (c *Cond) Signal() { c.signal(1) }

// SignalN is as many signals as n says.
func (c *Cond) SignalN(n int) {
	if n > 0 {
		c.signal(n)
	}
}

// Broadcast releases all who wait.
func (c *Cond) Broadcast() { c.signal(everybody) }

const (
	waitForSignal = "wait for a signal"
	everybody     = -1
)

// within returns the region that c and its mutex lie in, if any.
func (c *Cond) within(m *Mutex) (r *shm.Region, off, lock shm.Offset, err error) {
	if r, off, err = locate(c, waitForSignal); err != nil {
		return nil, 0, 0, err
	}
	other, lock, err := locate(m, waitForSignal)
	if err != nil {
		return nil, 0, 0, err
	}
	if r != other {
		panic(&MisuseError{What: "wait for a signal with a lock that lies in another region, or one of them in none"})
	}
	return r, off, lock, nil
}

// heldHere panics unless this process holds m.
func (m *Mutex) heldHere(what string) {
	if v := m.word.Load(); v&^flags != token {
		panic(&MisuseError{What: what, Holder: shm.Token(v &^ flags)})
	}
}

func (c *Cond) wait(l limit, m *Mutex) (woken bool, err error) {
	r, off, lock, err := c.within(m)
	if err != nil {
		return false, err
	}
	m.heldHere("wait for a signal without the lock")
	if l.over() != nil || l.died(r) {
		return false, nil
	}
	g := enter(c)
	defer leave(c, g)
	p, err := c.join(g, line{region: r, off: off}, lock, m)
	if err != nil {
		return false, errors.Join(err, m.unlockOpen())
	}
	defer p.free(g)
	crash("joined the line")
	if err := m.unlockOpen(); err != nil {
		return false, err
	}
	crash("unlocked for a wait")
	for {
		if err := p.await(g, &l); err != nil {
			return false, err
		}
		woken, over, err := c.resume(g, p, &l, m)
		if over || err != nil {
			return woken, err
		}
	}
}

// resume locks m again, and looks whether the wait is over. If it is not, m is unlocked. An error means that m is not
// held, and that the wait is over.
func (c *Cond) resume(g *gate, p *place, l *limit, m *Mutex) (woken, over bool, err error) {
	// Not the limit of the wait: with or without a signal m is to be held.
	err = m.LockRepaired(context.Background(), func(d shm.Death) error {
		c.look(g, p, true)
		c.quit(g, p, true)
		return &OwnerDiedError{Death: d}
	})
	if err != nil {
		return false, true, err
	}
	crash("locked after a wait")
	woken = c.look(g, p, false)
	if over = woken || l.over() != nil || l.died(g.crowd.region); over {
		c.quit(g, p, false)
		return woken, true, nil
	}
	return false, false, m.unlockOpen()
}

// newTicket returns where tickets begin: not at the beginning, so that no word of a holding that is another object's
// reads by chance like one that they stand in; see line.
func newTicket() uint64 { return rand.Uint64()>>2 | 1 }
