package sync

import (
	"fmt"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
)

// Waiting returns how many goroutines of all processes wait for c, as it says.
func (c *Cond) Waiting() int { return int(c.waiting.Load()) }

// Owed returns how many signals c says are owed.
func (c *Cond) Owed() int { return int(c.owed.Load()) }

// Here returns how many goroutines of this process stand in line for c, or have not returned yet.
func (c *Cond) Here() (waiting, all int) {
	if !hasGate(keyOf(c)) {
		return 0, 0
	}
	g := enter(c)
	defer leave(c, g)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.crowd == nil {
		return 0, 0
	}
	for p := g.crowd.first; p != nil; p = p.next {
		waiting++
	}
	return waiting, g.crowd.all
}

// Asleep reports whether the leader of this process may sleep.
func (c *Cond) Asleep() bool {
	if !hasGate(keyOf(c)) {
		return false
	}
	g := enter(c)
	defer leave(c, g)
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.crowd != nil && g.crowd.head.head != nil && g.crowd.head.head.Words[headBell].Load()&1 != 0
}

// Check returns what is wrong with c, whose mutex the caller holds, or nil: nobody waits twice, tickets are in order, and
// what is owed is marked as long as nobody has died.
func (c *Cond) Check(r *shm.Region, off shm.Offset) error {
	l := line{r, off}
	waiting := 0
	marked := c.marked(l, func(*shm.Holding) {})
	var err error
	c.queues(l, func(q queue) bool {
		last := uint64(0)
		p, _, _ := q.first()
		for n := 0; p != nil && err == nil; n++ {
			ticket := p.Words[placeTicket].Load()
			if q.stands(p) != condWaiting || ticket <= last || ticket >= c.next.Load() || n > 1<<linkBits {
				err = fmt.Errorf("slot %d: place %d: %d with ticket %d after %d", q.slot, n, q.stands(p), ticket, last)
			}
			waiting++
			last = ticket
			next := p.Words[placeNext].Load()
			if next == 0 {
				break
			}
			p = r.PlaceAt(q.slot, q.owner, uint32(next&(1<<linkBits-1)))
		}
		return err == nil
	})
	switch {
	case err != nil:
		return err
	case waiting > c.Waiting():
		return fmt.Errorf("%d wait, %d are counted", waiting, c.Waiting())
	case int(marked) > c.Owed():
		return fmt.Errorf("%d signals are marked, %d owed", marked, c.Owed())
	case waiting == 0 && c.Owed() != 0:
		return fmt.Errorf("%d signals are owed, and nobody waits", c.Owed())
	}
	return nil
}

func keyOf(c *Cond) unsafe.Pointer { return unsafe.Pointer(c) }
