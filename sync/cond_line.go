package sync

import (
	"math/bits"
	"slices"
	"sync/atomic"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/sync/internal/futex"
)

// How the waiters of a Cond stand in line. Each process has a queue of those of its own, in the order of their
// tickets; the first of the whole line is the one with the lowest ticket among the first of all queues. A queue lies
// in the holdings of its process, and vanishes with it as a whole: no word of one process leads to another one's
// holdings, so no death breaks a link. Everything is changed by one who holds the mutex.
//
//	head, the process' holding for the Cond:
//		bell     a random half, times rung, bit 0: the leader of the process may sleep by it
//		first    link to the first that waits; places before it were signalled
//		opening  of the region by its process: what stands here from an earlier one is over
//	place, a holding for each waiter:
//		ticket
//		next     link to the place behind it
//		id       of the Cond
//	link: ticket << 16 | number of the place, 0: none
//
// A signal is one step, the change of the place's word; that the head leads past it is done by whoever goes along
// there next. So the signalled of a queue are always at its beginning. Another process may die, and its slot be
// another's, between two looks: so whatever is not what it must be ends the look, and other processes' holdings are
// changed by compare-and-swap only, from words with a random ticket or half in them, or with the key of this very Cond.
//
// What a kill leaves, in the order of the stores:
//
//   - join: a ticket that nobody has; waiting too high; a place not linked, gone with its process.
//   - signal: owed counted up, no place marked: the same as a place of one who died. A place marked, its sleeper
//     not woken: it looks when its sleep ends, or when the death is known.
//   - broadcast: owed is owedAll first, so whoever finds that finishes it.
//   - quit: owed counted down, the place still marked: it is gone with its process. A place unlinked, waiting too
//     high: a hint.
const (
	headBell    = 0
	headFirst   = 1
	headOpening = 2

	placeTicket = 0
	placeNext   = 1
	placeID     = 2

	linkBits = 16
)

func link(ticket uint64, number uint32) uint64 { return ticket<<linkBits | uint64(number) }

// A line is where the waiters of one Cond stand.
type line struct {
	region *shm.Region
	off    shm.Offset // of the Cond
}

// places returns the object whose holdings the places are; those of off are the heads.
func (l line) places() shm.Offset { return l.off + 8 }

func (l line) as(place uint64) uint64 { return shm.HoldingKey(l.places()) | place }

// stands returns what the word of a place says, 0 if it is no place of this line.
func (l line) stands(h *shm.Holding) uint64 {
	w := h.Word.Load()
	if w&^shm.HoldingMask != shm.HoldingKey(l.places()) {
		return 0
	}
	return w & shm.HoldingMask
}

// A queue is the part of a line that one process has.
type queue struct {
	line
	slot  int
	owner shm.Token
	head  *shm.Holding
}

// and returns some queues and q, each once.
func (q queue) and(of []queue) []queue {
	if slices.ContainsFunc(of, func(o queue) bool { return o.slot == q.slot }) {
		return of
	}
	return append(of, q)
}

// queues calls visit with the queue of each process that has one, until it returns false.
func (c *Cond) queues(l line, visit func(q queue) bool) {
	for i := range c.seen {
		for set := c.seen[i].Load(); set != 0; set &= set - 1 {
			slot := 64*i + bits.TrailingZeros64(set)
			t, opening := l.region.Attached(slot)
			if t == 0 {
				continue
			}
			holder, head := l.region.Share(slot, l.off)
			if holder != t || head == nil || head.Word.Load()&shm.HoldingMask == 0 || uint32(head.Words[headOpening].Load()) != opening {
				continue
			}
			if !visit(queue{l, slot, t, head}) {
				return
			}
		}
	}
}

// first returns the first place of q that waits, its ticket, and whether others wait behind it; nil if none does.
func (q queue) first() (p *shm.Holding, ticket uint64, more bool) {
	at := q.head.Words[headFirst].Load()
	for at != 0 {
		p := q.region.PlaceAt(q.slot, q.owner, uint32(at&(1<<linkBits-1)))
		if p == nil {
			return nil, 0, false
		}
		ticket, next := p.Words[placeTicket].Load(), p.Words[placeNext].Load()
		state := q.stands(p)
		switch {
		case ticket<<linkBits != at&^(1<<linkBits-1), state == 0:
			return nil, 0, false // its process is gone
		case state == condWaiting:
			return p, ticket, next != 0
		case next != 0 && next>>linkBits <= at>>linkBits: // it ends: tickets grow
			return nil, 0, false
		}
		if !q.head.Words[headFirst].CompareAndSwap(at, next) {
			return nil, 0, false
		}
		at = next
	}
	return nil, 0, false
}

// foremost returns the place that has waited longest in the whole line, its queue, and whether it is the last that
// waits; nil if nobody does.
func (c *Cond) foremost(l line) (p *shm.Holding, of queue, last bool) {
	var lowest uint64
	last = true
	c.queues(l, func(q queue) bool {
		f, ticket, more := q.first()
		if f == nil {
			return true
		}
		last = last && p == nil && !more
		if p == nil || ticket < lowest {
			p, lowest, of = f, ticket, q
		}
		return true
	})
	return p, of, last
}

// give signals the one that has waited longest, and returns its queue; false if nobody waits. Of a signal that is
// passed on, owed says already that it is.
func (c *Cond) give(l line, passedOn bool) (queue, bool) {
	for {
		p, q, last := c.foremost(l)
		switch {
		case p == nil:
			c.settle(l)
			c.waiting.Store(0)
			return q, false
		case last:
			c.settle(l)
			crash("settled")
		case !passedOn:
			c.owed.Add(1)
			passedOn = true
			crash("owed")
		}
		if p.Word.CompareAndSwap(l.as(condWaiting), l.as(signalledAs(last))) {
			crash("signalled")
			fewer(&c.waiting)
			return q, true
		}
		if last { // its process is gone, and nobody is left
			passedOn = false
		}
	}
}

// fewer counts down to 0.
func fewer(n *atomic.Uint32) {
	if v := n.Load(); v > 0 {
		n.Store(v - 1)
	}
}

// settle makes those that were signalled, and have not returned, independent of the Cond: nobody is left to whom
// their signals could be passed on.
func (c *Cond) settle(l line) {
	if c.owed.Load() == 0 {
		return
	}
	c.marked(l, func(p *shm.Holding) { p.Word.CompareAndSwap(l.as(condOwed), l.as(condFree)) })
	c.owed.Store(0)
}

// marked calls visit with each place that is owed a signal, and returns how many there are.
func (c *Cond) marked(l line, visit func(p *shm.Holding)) (n uint32) {
	id := uint64(c.id.Load())
	c.queues(l, func(q queue) bool {
		l.region.Places(q.slot, q.owner, l.places(), func(p *shm.Holding) {
			if l.stands(p) == condOwed && p.Words[placeID].Load() == id {
				n++
				visit(p)
			}
		})
		return true
	})
	return n
}

// giveAll signals everybody, and returns whose queues they stood in.
func (c *Cond) giveAll(l line) (of []queue) {
	before := c.owed.Swap(owedAll)
	crash("owed to all")
	if before != 0 {
		c.marked(l, func(p *shm.Holding) { p.Word.CompareAndSwap(l.as(condOwed), l.as(condFree)) })
		crash("freed those owed")
	}
	c.queues(l, func(q queue) bool {
		any := false
		for p, _, _ := q.first(); p != nil; p, _, _ = q.first() { // ends: nobody joins meanwhile
			if !p.Word.CompareAndSwap(l.as(condWaiting), l.as(condFree)) {
				break // its process is gone
			}
			any = true
			crash("signalled one of all")
		}
		if any {
			of = append(of, q)
		}
		return true
	})
	c.waiting.Store(0)
	crash("signalled all")
	c.owed.Store(0)
	return of
}

// mend gives the signals that have gone with the dead to others, and returns whose queues those stand in.
func (c *Cond) mend(l line) (of []queue) {
	deaths := l.region.Deaths().Load() // before the look at who lives
	owed := c.owed.Load()
	if owed != 0 {
		signals, all := lost(owed, c.marked(l, func(*shm.Holding) {}))
		if all {
			of = c.giveAll(l)
		}
		for ; signals > 0; signals-- {
			q, ok := c.give(l, true)
			if !ok {
				break
			}
			of = q.and(of)
			crash("passed a signal on")
		}
		if p, _, _ := c.foremost(l); p == nil {
			c.settle(l)
		}
	}
	c.deaths.Store(deaths)
	return of
}

// ring has the sleeper of a queue's process woken, if it sleeps, when m is unlocked.
func (q queue) ring(m *Mutex) {
	bell := &q.head.Words[headBell]
	for {
		v := bell.Load()
		next, wake := rung(v)
		if q.head.Word.Load() != shm.HoldingKey(q.off)|1 { // its process is gone
			return
		}
		if bell.CompareAndSwap(v, next) {
			crash("rung")
			if wake {
				m.wakeLater(lower(bell))
			}
			return
		}
	}
}

// wakeLater wakes those who sleep by a word when m, which this process holds, is unlocked. Woken at once they would run
// in the place of the holder, perhaps, and have to wait for it. (A round trip between two processes: 50 µs, so 14.) L
// has the release look for them. If this process dies before, they go on when their sleep ends.
func (m *Mutex) wakeLater(word *uint32) {
	if !futex.Kernel {
		return
	}
	g := enter(m)
	kept := false
	defer func() {
		if !kept {
			leave(m, g)
		}
	}()
	g.mu.Lock()
	defer g.mu.Unlock()
	for v := m.word.Load(); v&flagLocal == 0 || v&^flags != token; v = m.word.Load() {
		if v&^flags != token { // another goroutine has unlocked it, by mistake
			futex.Wake(word, 1<<31-1)
			return
		}
		m.word.CompareAndSwap(v, queuedUp(v, false))
	}
	crash("told the release")
	kept = len(g.wakes) == 0 // the gate, until then
	g.wakes = append(g.wakes, word)
}

// takeWakes returns whom the release that is made wakes. g.mu is held.
func (g *gate) takeWakes() []*uint32 {
	wakes := g.wakes
	g.wakes = nil
	return wakes
}

// wakeThose wakes whom takeWakes has returned. m is not touched.
func (m *Mutex) wakeThose(g *gate, wakes []*uint32) {
	if len(wakes) == 0 {
		return
	}
	crash("about to wake the signalled")
	for _, w := range wakes {
		futex.Wake(w, 1<<31-1) // one sleeps; more to wake costs nothing
	}
	leave(m, g)
}
