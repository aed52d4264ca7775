package shm

import (
	"fmt"
	"os"
	stdsync "sync"
	"time"
)

// A Life says whether a process lives, as far as the kernel tells.
type Life int8

const (
	Unknown Life = iota // the kernel did not answer, or the slot is changing hands
	Alive               // it holds its byte lock; a stopped or frozen process does
	Dead                // the kernel has released its byte lock: none of its threads will ever run again
)

// String returns the word.
func (l Life) String() string {
	switch l {
	case Alive:
		return "alive"
	case Dead:
		return "dead"
	}
	return "unknown"
}

// An Attachment says what a region knows of one process that has it open, or had when it died and
// nobody has cleared up after it. It is for people and tools: reading it changes nothing, and it may be
// out of date as soon as it is read. What processes write about themselves is believed.
type Attachment struct {
	Slot     int
	Token    Token     // what its locks carry; 0 while it attaches
	PID      int       // as the process sees itself; another pid namespace may see another
	Attached time.Time // zero if unknown
	Closed   bool      // it has closed the region, and lives on
	Life     Life
	Evidence string // what Life rests on
	Waiting  []Wait // for locks, for more than a moment; some of them if there are many
	Total    Tally  // of all its waits in this region
	Tallies  []Tally
}

// A Wait is one that goes on.
type Wait struct {
	Lock  Offset
	Since time.Time
}

// A Tally says how a process has waited for a lock, in calls that did not get it at once.
type Tally struct {
	Lock      Offset
	Waits     uint64
	Waited    time.Duration // all waits together
	Longest   time.Duration
	Takeovers uint64    // from dead holders
	Took      time.Time // when it last got the lock after a wait; zero if never
}

// Attachments returns the processes of r, in the order of their slots. It takes no lock; one system call
// for each process asks the kernel for its life.
func (r *Region) Attachments() (all []Attachment, err error) {
	m := r.m
	if m.closed.Load() {
		return nil, m.fail("list processes", ErrClosed)
	}
	err = m.guard(func() error {
		for i := range m.slots {
			if a, ok := m.attachment(i); ok {
				all = append(all, a)
			}
		}
		return nil
	})
	if err != nil {
		return nil, m.fail("list processes", err)
	}
	return all, nil
}

// Holder returns the attachment of the process whose token is t, and whether there is one.
func (r *Region) Holder(t Token) (a Attachment, ok bool) {
	m := r.m
	if t == 0 || m.closed.Load() {
		return a, false
	}
	err := m.guard(func() error {
		for i := range m.slots {
			if m.slots[i].token.Load() == uint64(t) {
				a, ok = m.attachment(i)
				ok = ok && a.Token == t
				return nil
			}
		}
		return nil
	})
	return a, ok && err == nil
}

// attachment copies what slot i says. Words that are torn or written over make a wrong word for
// people, nothing else.
func (m *mapping) attachment(i int) (a Attachment, ok bool) {
	s := &m.slots[i]
	state, by := slotState(s.state.Load())
	if state == slotFree {
		return a, false
	}
	a = Attachment{Slot: i, Token: Token(s.token.Load()), PID: int(s.pid.Load()), Closed: s.flags.Load()&slotClosed != 0}
	if a.Token == 0 {
		a.PID, a.Closed = 0, false // of the slot's last process
	} else {
		a.Attached = instant(s.attached.Load())
		m.readHoldings(&a)
	}
	a.Life, a.Evidence = m.life(i, a.Token, state, by)
	return a, true
}

func instant(unixNano int64) time.Time {
	if unixNano <= 0 {
		return time.Time{}
	}
	return time.Unix(0, unixNano)
}

func (m *mapping) readHoldings(a *Attachment) {
	h := &m.holdings[a.Slot]
	for k := range h.waiting {
		w := &h.waiting[k]
		lock, since := w.lock.Load(), w.since.Load()
		if !a.Closed && lock != 0 && since != 0 && w.lock.Load() == lock {
			a.Waiting = append(a.Waiting, Wait{Offset(lock), instant(int64(since))})
		}
	}
	a.Total = h.total.read()
	a.Total.Lock = 0
	for k := range h.tallies {
		t := h.tallies[k].read()
		if t.Lock != 0 && t.Waits != 0 && Offset(h.tallies[k].lock.Load()) == t.Lock {
			a.Tallies = append(a.Tallies, t)
		}
	}
}

func (t *tally) read() Tally {
	return Tally{
		Lock:      Offset(t.lock.Load()),
		Waits:     t.waits.Load(),
		Waited:    time.Duration(t.waited.Load()),
		Longest:   time.Duration(t.longest.Load()),
		Takeovers: t.takeovers.Load(),
		Took:      instant(t.took.Load()),
	}
}

// life says whether the process of slot i lives. It only asks: the proof that recovery needs is to take
// the byte.
func (m *mapping) life(i int, t Token, state uint64, by Token) (Life, string) {
	switch {
	case t == self:
		return Alive, "it is this process"
	case m.file == nil:
		return Unknown, "a region on the Go heap has no other processes"
	case state == slotUndone || state == slotDraining:
		return Dead, fmt.Sprintf("process %v has proven it and clears up after it", by)
	}
	held, err := byteHeld(m.file, slotByte(i), 1)
	s := &m.slots[i]
	now, _ := slotState(s.state.Load())
	switch {
	case err != nil:
		return Unknown, fmt.Sprintf("the lock on byte %#x of the file cannot be asked for: %v", uint64(slotByte(i)), err)
	case now != state || Token(s.token.Load()) != t:
		return Unknown, "its slot changed hands in this moment"
	case held && state == slotUndoing:
		return Dead, fmt.Sprintf("process %v has proven it and undoes what it left half done", by)
	case held:
		return Alive, fmt.Sprintf("it holds the lock on byte %#x of the file", uint64(slotByte(i)))
	case t == 0:
		return Unknown, "it attaches, or died while it did"
	}
	return Dead, fmt.Sprintf("the kernel has released its lock on byte %#x of the file", uint64(slotByte(i)))
}

// Lone returns what there is to say of this process outside of regions.
func Lone() Attachment {
	return Attachment{Slot: -1, Token: self, PID: os.Getpid(), Life: Alive, Evidence: "it is this process"}
}

// What this process writes of itself.

// tallying guards the choice of tallies in this process' holdings.
var tallying stdsync.Mutex

// here returns the holdings of this process, or nil in a region without or that is closed.
func (r *Region) here() *holdings {
	m := r.m
	if m.seat == nil || m.seat.slot < 0 || m.closed.Load() {
		return nil
	}
	return &m.holdings[m.seat.slot]
}

// Waiting lets others see that this process has been waiting since then for the lock at off, until
// [Region.WaitOver] is called with what it returns. There is room for four at a time; more are not seen.
func (r *Region) Waiting(off Offset, since time.Time) (entry int) {
	h := r.here()
	if h == nil {
		return -1
	}
	for k := range h.waiting {
		w := &h.waiting[k]
		if w.lock.Load() == 0 && w.lock.CompareAndSwap(0, uint64(off)) {
			w.since.Store(uint64(since.UnixNano())) // crash here: a wait since 0 is not shown
			return k
		}
	}
	return -1
}

// WaitOver takes back what [Region.Waiting] has shown.
func (r *Region) WaitOver(entry int) {
	if h := r.here(); h != nil && entry >= 0 {
		h.waiting[entry].since.Store(0)
		h.waiting[entry].lock.Store(0)
	}
}

// Waited counts a wait of this process for the lock at off that is over after d: with the lock or
// without it, by a takeover or not. The 30 locks waited for most often are counted apart, after
// Metwally, Agrawal and El Abbadi's "Space-Saving", but that a newcomer starts from zero. Some 30 ns.
func (r *Region) Waited(off Offset, d time.Duration, took, takeover bool) {
	h := r.here()
	if h == nil {
		return
	}
	t := h.tallyOf(off)
	for _, t := range [...]*tally{&h.total, t} {
		if t == nil {
			continue
		}
		t.waits.Add(1)
		t.waited.Add(uint64(max(d, 0)))
		for l := t.longest.Load(); uint64(max(d, 0)) > l && !t.longest.CompareAndSwap(l, uint64(d)); l = t.longest.Load() {
		}
		if took {
			t.took.Store(time.Now().UnixNano())
		}
		if takeover {
			t.takeovers.Add(1)
		}
	}
}

// tallyProbes is how many tallies a lock may have: few, so that finding it costs little.
const tallyProbes = 4

// tallyOf returns the tally of the lock at off. It takes that of the lock least waited for among the
// few where it may stand, if it has none.
func (h *holdings) tallyOf(off Offset) *tally {
	first := int(uint64(off) >> 3 * 0x9e3779b97f4a7c15 >> 33 % uint64(len(h.tallies)))
	var least *tally
	for k := range tallyProbes {
		t := &h.tallies[(first+k)%len(h.tallies)]
		if t.lock.Load() == uint64(off) {
			return t
		}
		if least == nil || t.waits.Load() < least.waits.Load() {
			least = t
		}
	}
	tallying.Lock()
	defer tallying.Unlock()
	if least.lock.Load() == uint64(off) {
		return least
	}
	least.lock.Store(0) // crash here, or between: a tally of nothing
	least.waits.Store(0)
	least.waited.Store(0)
	least.longest.Store(0)
	least.takeovers.Store(0)
	least.took.Store(0)
	least.lock.Store(uint64(off))
	return least
}
