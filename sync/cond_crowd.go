package sync

import (
	"math/rand/v2"
	"runtime"
	"runtime/metrics"
	stdsync "sync"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/sync/internal/futex"
)

// How the goroutines of one process wait for a Cond. They are parked in Go, in the order of their tickets, but for
// one, the leader, which looks at the bell of the process for some microseconds and then sleeps by it. It tells the
// others when they are signalled. It sleeps by the region's count of deaths too, and when that has changed it locks
// the mutex, and gives signals that have gone with the dead to others. Where there are no other processes nobody
// leads: a signal goes from goroutine to goroutine.

// A crowd is who waits for one Cond in this process, or has waited and not returned yet. It exists as long as anybody
// does. Guarded by its gate's mu; the line, by the Cond's mutex.
type crowd struct {
	line          // region nil: outside of regions
	mutex  *Mutex // that they wait with
	head   queue  // of this process; none if there can be no other
	first  *place // of those that wait, as far as is known here; in the order of their tickets
	last   *place
	leader *place
	all    int    // who have not returned
	deaths uint32 // of the region, when somebody last looked after those signalled
}

// A place is a waiting goroutine.
type place struct {
	told       chan message // buffered for both that may come
	next, prev *place
	listed     bool
	leaving    bool // is about to lock the mutex, for good: does not lead
	signalled  bool // out of the list
	doubt      bool // has slept its time out while signals were owed: they may have gone with somebody who closed the region
	share      *shm.Holding
	number     uint32
	id         uint32 // of the Cond
}

var places = stdsync.Pool{New: func() any { return &place{told: make(chan message, 2)} }}

// signalTold is what a parked goroutine is told that is signalled.
const signalTold = lockPassed

// join puts this goroutine at the end of the line. The mutex, which lies at lock, is held.
func (c *Cond) join(g *gate, l line, lock shm.Offset, m *Mutex) (*place, error) {
	g.mu.Lock()
	defer g.mu.Unlock() // also when the memory is gone
	shared := false
	if l.region != nil {
		_, shared = l.region.Slot()
		if l.region.Closed() {
			return nil, closedError(waitForSignal, l.region)
		}
	}
	if shared {
		c.meet(g, l, lock, m)
	}
	k := g.crowd
	switch {
	case k == nil || k.all == 0:
		k = &crowd{line: l, mutex: m}
		if shared {
			if err := k.settleIn(); err != nil {
				return nil, err
			}
		}
		g.crowd = k
	case k.first == nil:
		k.mutex = m
	case k.mutex != m:
		panic(otherMutex())
	}
	p := places.Get().(*place)
	if shared {
		if err := c.queueUp(k, p); err != nil {
			k.depart()
			*p = place{told: p.told}
			places.Put(p)
			return nil, err
		}
		if k.leader == nil {
			k.leader = p
		}
	}
	k.all++
	p.listed = true
	if p.prev = k.last; p.prev != nil {
		p.prev.next = p
	} else {
		k.first = p
	}
	k.last = p
	return p, nil
}

func otherMutex() *MisuseError {
	return &MisuseError{What: "wait for a signal with another lock than those who wait already"}
}

// meet has c know its mutex. It panics if others wait with another one. g.mu is held.
func (c *Cond) meet(g *gate, l line, lock shm.Offset, m *Mutex) {
	distance := uint64(lock - l.off)
	switch deaths := l.region.Deaths().Load(); {
	case c.id.Load() == 0:
		c.next.Store(newTicket())
		c.mutex.Store(distance)
		c.waiting.Store(0)
		c.owed.Store(0)
		c.deaths.Store(deaths)
		crash("about to be known")
		c.id.Store(rand.Uint32() | 1)
	case c.mutex.Load() != distance:
		if p, _, _ := c.foremost(l); p != nil {
			panic(otherMutex())
		}
		c.settle(l)
		c.mutex.Store(distance)
	case c.owed.Load() != 0 && c.deaths.Load() != deaths: // not for us
		g.ring(c.mend(l), m)
	}
}

// settleIn takes the holding by which this process has a queue.
func (k *crowd) settleIn() error {
	slot, _ := k.region.Slot()
	key := shm.HoldingKey(k.off)
	for {
		head, err := k.region.Hold(k.off)
		if err != nil {
			return err
		}
		if w := head.Word.Load(); w != key {
			if w != key|1 {
				continue
			}
			// From an earlier opening of the region: those waits ended with its close.
			head.Words[headFirst].Store(0)
			k.region.Places(slot, shm.Self(), k.places(), vacate)
		} else if !head.Word.CompareAndSwap(key, key|1) {
			continue
		}
		t, opening := k.region.Attached(slot)
		k.head = queue{k.line, slot, t, head}
		head.Words[headBell].Store(uint64(rand.Uint32()) << 32)
		head.Words[headFirst].Store(0)
		head.Words[headOpening].Store(uint64(opening)) // from here on it counts
		crash("settled in")
		k.deaths = k.region.Deaths().Load()
		return nil
	}
}

// depart gives that holding back when nobody uses it any more.
func (k *crowd) depart() {
	if k.all > 0 || k.head.head == nil || k.region.Closed() {
		return
	}
	vacate(k.head.head)
	k.head.head = nil
}

// vacate gives a holding back.
func vacate(h *shm.Holding) {
	for i := range h.Words {
		h.Words[i].Store(0)
	}
	h.Word.Store(h.Word.Load() &^ shm.HoldingMask)
}

// queueUp takes a place at the end of the queue.
func (c *Cond) queueUp(k *crowd, p *place) (err error) {
	if p.share, p.number, err = k.region.Place(k.places(), condWaiting); err != nil {
		return err
	}
	ticket := c.next.Load()
	p.id = c.id.Load()
	p.share.Words[placeTicket].Store(ticket)
	p.share.Words[placeID].Store(uint64(p.id))
	crash("took a place")
	c.next.Store(ticket + 1)
	crash("took a ticket")
	if set, bit := &c.seen[k.head.slot/64], uint64(1)<<(k.head.slot%64); set.Load()&bit == 0 {
		set.Or(bit)
	}
	c.waiting.Add(1)
	crash("counted in")
	k.head.first() // lets the head lead past those who are signalled
	k.deliver()
	if k.last == nil {
		k.head.head.Words[headFirst].Store(link(ticket, p.number))
	} else {
		k.last.share.Words[placeNext].Store(link(ticket, p.number))
	}
	return nil
}

// deliver tells those of this process who are signalled, and reports whether the leader is one of them.
func (k *crowd) deliver() (leader bool) {
	for p := k.first; p != nil; p = k.first {
		if state := k.stands(p.share); state != condOwed && state != condFree {
			return leader // the others stand behind it
		}
		if k.region.Closed() { // what we read may be the zeros of now
			return leader
		}
		leader = leader || p == k.leader
		k.release(p)
	}
	return leader
}

// release takes p out of the list, and tells it that it is signalled.
func (k *crowd) release(p *place) {
	k.unlist(p)
	p.signalled = true
	if p != k.leader { // that looks for itself
		p.told <- signalTold
	}
}

func (k *crowd) unlist(p *place) {
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		k.first = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	} else {
		k.last = p.prev
	}
	p.next, p.prev, p.listed = nil, nil, false
}

// stepDown lets another one lead, if p does. It does not wait any more.
func (k *crowd) stepDown(p *place) {
	p.leaving = true
	if k.leader != p {
		return
	}
	k.leader = nil
	for q := k.first; q != nil; q = q.next {
		if !q.leaving {
			k.leader = q
			q.told <- leadNow
			return
		}
	}
}

// await waits until p is signalled, or its limit is over, or there are deaths to look into. What it is, shows when
// the mutex is locked. An error says that the region is closed.
func (p *place) await(g *gate, l *limit) (err error) {
	k := g.crowd
	g.mu.Lock()
	lead := k.leader == p
	g.mu.Unlock()
	stay := false
	defer func() {
		if !stay {
			g.mu.Lock()
			defer g.mu.Unlock()
			k.stepDown(p)
		}
	}()
	if !lead {
		if lead, err = p.park(k, l); !lead {
			return err
		}
	}
	stay, err = p.lead(g, l)
	return err
}

// park waits to be told to lead, or that p is signalled, or until the limit is over.
func (p *place) park(k *crowd, l *limit) (lead bool, err error) {
	var expired <-chan time.Time
	if end, ok := l.end(); ok {
		t := time.NewTimer(time.Until(end))
		defer t.Stop()
		expired = t.C
	}
	var closed <-chan struct{}
	if k.region != nil {
		closed = k.region.Done()
	}
	select {
	case told := <-p.told:
		return told == leadNow, nil
	case <-l.done():
	case <-expired:
	case <-closed:
		return false, closedError(l.what, k.region)
	}
	return false, nil
}

// lead waits by the bell. It reports whether p is to go on leading after a look at what deaths have left.
func (p *place) lead(g *gate, l *limit) (goOn bool, err error) {
	k := g.crowd
	cancel, stop := l.cancel()
	defer stop()
	var b bed
	bell := &k.head.head.Words[headBell]
	look := func() (over bool, deaths uint32) {
		g.mu.Lock()
		defer g.mu.Unlock()
		k.deliver()
		return p.signalled, k.deaths
	}
	c := k.cond()
	for owing, yielded, short := false, false, true; ; {
		deaths := k.region.Deaths().Load() // before the look
		v := bell.Load()
		over, known := look()
		switch {
		case over:
			return false, nil
		case k.region.Closed():
			return false, closedError(l.what, k.region)
		case l.over() != nil:
			return false, nil
		case deaths != known, l.died(k.region): // the crowd may know of a death that this one was to hear of
			return true, nil
		case !yielded && othersRunnable():
			// The signaller may stand in the queue of this very processor; and a sleep would keep waiting who does.
			// Looking at the bell for some microseconds was tried instead: two processes on one processor lose what
			// it takes.
			yielded = true
			runtime.Gosched()
			continue
		}
		if v&1 == 0 && !bell.CompareAndSwap(v, abed(v)) {
			continue
		}
		crash("about to sleep in line")
		d, bells := longSleep, futex.Word{Addr: plain(k.region.Deaths()), Val: deaths}
		if short { // most waits are: sleeping by one word costs half as much
			d, bells = firstSleep, futex.Word{}
		}
		if end, ok := l.end(); ok {
			d = min(d, max(time.Until(end), time.Microsecond))
		}
		r := b.on(futex.Word{Addr: lower(bell), Val: uint32(abed(v))}, bells, d, cancel)
		crash("slept in line")
		if short || r != futex.Expired {
			short = short && r != futex.Expired
			continue
		}
		k.region.Scan()
		if c == nil || c.owed.Load() == 0 { // only read: it may be another one's memory by now
			owing = false
			continue
		}
		if owing {
			p.doubt = true
			return true, nil
		}
		owing = true
	}
}

// othersRunnable reports whether goroutines of this process wait for a processor. To yield without need starts a thread that
// finds nothing to do: measured, a round trip between two processes took 40 µs, and so takes 17.
func othersRunnable() bool {
	s := runnables.Get().(*[1]metrics.Sample)
	defer runnables.Put(s)
	s[0].Name = "/sched/goroutines/runnable:goroutines"
	metrics.Read(s[:]) // 0.4 µs
	return s[0].Value.Kind() != metrics.KindUint64 || s[0].Value.Uint64() > 0
}

var runnables = stdsync.Pool{New: func() any { return new([1]metrics.Sample) }}

// cond returns the Cond that they wait for, as far as its memory is there.
func (k *crowd) cond() *Cond {
	c, _ := shm.At[Cond](k.region, k.off)
	return c
}

// look sees to signals that have gone with the dead, and reports whether p is signalled. The mutex is held; it may be
// inconsistent, and then those who wait behind are to hear of that too.
func (c *Cond) look(g *gate, p *place, inconsistent bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := g.crowd
	if p.share == nil {
		return p.signalled
	}
	deaths := k.region.Deaths().Load()
	if mayTouch(k.stands(p.share)) && c.id.Load() == p.id {
		if c.deaths.Load() != deaths || p.doubt {
			g.ring(c.mend(k.line), k.mutex)
		}
		if !inconsistent {
			k.deaths = deaths
		}
	}
	p.doubt = false
	k.deliver()
	return p.signalled
}

// quit takes p out of the line. The mutex is held. If the wait has failed, its signal is passed on.
func (c *Cond) quit(g *gate, p *place, failed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := g.crowd
	if p.share == nil {
		if p.listed {
			k.unlist(p)
		}
		return
	}
	k.head.first()
	k.deliver()
	state := k.stands(p.share)
	if state == condWaiting {
		next := p.share.Words[placeNext].Load()
		if p.prev != nil {
			p.prev.share.Words[placeNext].Store(next)
		} else {
			k.head.head.Words[headFirst].Store(next)
		}
		crash("left the line")
		k.unlist(p)
	}
	switch {
	case !mayTouch(state), c.id.Load() != p.id:
		// c may be gone.
	case state == condWaiting:
		fewer(&c.waiting)
		if c.owed.Load() != 0 {
			if first, _, _ := c.foremost(k.line); first == nil {
				c.settle(k.line)
				crash("settled at the end")
			}
		}
	case failed:
		if q, ok := c.give(k.line, true); ok {
			crash("passed its signal on")
			g.ring([]queue{q}, k.mutex)
		}
	default:
		c.owed.Store(paid(c.owed.Load(), state))
		crash("paid")
	}
	vacate(p.share)
	p.share = nil
	crash("gave its place back")
}

// free ends the stay of p in the crowd.
func (p *place) free(g *gate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	k := g.crowd
	if p.listed { // the region is closed, or its memory gone
		k.unlist(p)
	}
	k.stepDown(p)
	k.all--
	k.depart()
	if k.all == 0 {
		g.crowd = nil
	}
	for range len(p.told) {
		<-p.told
	}
	*p = place{told: p.told}
	places.Put(p)
}

// ring wakes those of some queues who are to look. g.mu is held: its own process' waiters are told at once, without the
// kernel, unless it is the leader.
func (g *gate) ring(of []queue, m *Mutex) {
	for _, q := range of {
		if k := g.crowd; k == nil || k.head.head == nil || q.head != k.head.head || k.deliver() {
			q.ring(m)
		}
	}
}

// signal releases n of those that wait, or everybody.
func (c *Cond) signal(n int) {
	r, off, err := locate(c, "signal")
	if err != nil {
		panic(err)
	}
	shared := false
	if r != nil {
		_, shared = r.Slot()
	}
	if !shared {
		c.signalHere(n)
		return
	}
	if c.id.Load() == 0 { // nobody has ever waited
		return
	}
	m, err := shm.At[Mutex](r, off+shm.Offset(c.mutex.Load()))
	if err != nil {
		panic(err)
	}
	m.heldHere("signal without the lock")
	if c.waiting.Load() == 0 {
		return
	}
	g := enter(c)
	defer leave(c, g)
	g.mu.Lock()
	defer g.mu.Unlock()
	l := line{r, off}
	if n == everybody {
		g.ring(c.giveAll(l), m)
		return
	}
	var some [4]queue
	of := some[:0]
	for ; n > 0; n-- {
		q, ok := c.give(l, false)
		if !ok {
			break
		}
		of = q.and(of)
	}
	g.ring(of, m)
}

// signalHere is signal where there are no other processes.
func (c *Cond) signalHere(n int) {
	g := known(c)
	if g == nil {
		return
	}
	defer leave(c, g)
	g.mu.Lock()
	defer g.mu.Unlock()
	k := g.crowd
	if k == nil || k.first == nil {
		return
	}
	k.mutex.heldHere("signal without the lock")
	for ; n != 0 && k.first != nil; n-- {
		k.release(k.first)
	}
}
