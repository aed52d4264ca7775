//go:build linux && !futexpoll

package sync

import (
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	stdsync "sync"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/sync/internal/futex"
)

// How many goroutines sleep in the kernel. Each holds a thread, and a process may wait for thousands of
// locks at once. So at most ownThreads of them sleep in threads of their own; the others park in Go, each
// with an entry in the list of a poller, a goroutine that sleeps for all entries of its list together.
//
// What a poller must not do is to swallow a wake-up. The kernel gives a wake-up to one sleeper, and the
// poller may have been that one for any entry that its sleep covered. It is told one entry, and there may
// have been more, if several words were woken at once. So after every sleep, whatever ended it, it does one
// of these with each entry that was covered:
//
//   - The one that it is told of, and those whose word reads something else now, it hands to their
//     goroutines. These look again, as after a sleep of their own, and answer for the wake-up: every
//     Result but Changed may stand for one.
//   - One whose goroutine has gone meanwhile, because its time was over or it was cancelled: if anything
//     was woken, it wakes the next sleeper of the word in the place of this entry. The goroutine may have
//     done so too; a wake-up too many costs one look.
//   - One whose word reads what it read: it stays. If a wake-up was meant for it, the word has changed since
//     and changed back, so it reads what its goroutine would have gone to sleep by at this moment; whoever
//     made it so has taken on to wake for it.
//
// Between two sleeps of the poller nobody sleeps for its entries, and the kernel compares every word again
// before it lets the poller sleep: a change that comes then ends the sleep at once. A new entry is in the
// list before the poller's own word, control, changes; the poller reads control before it copies the list,
// and sleeps by it. So every entry is covered by a sleep that begins after it was added, or was compared.
//
// An entry whose goroutine has gone stays in the list until the next sleep. Most goroutines come back after
// a look at the holder of their lock, with the same word reading the same, and find their entry covered all
// the time: that costs no system call. Only the goroutine that an entry was made for may come back to it.
// Its memory is mapped as long as it lives, and its place in the kernel's queue is that of this memory; at
// the same address there could be another region by now.
//
// If the region is closed meanwhile, its words read as zeros, and the kernel's queue stays that of the file
// until the poller sleeps again, as it is with one who sleeps in a thread of its own: the goroutine finds
// out when its time is over. If the file is cut, the poller does not read the word but sends its goroutine
// to fault. A kill takes the poller with all for whom it sleeps. In race builds a poller orders those for
// whom it sleeps, which may hide a race between goroutines that wait for different locks; it takes more
// than ownThreads waits for that.

// ownThreads is how many goroutines sleep in threads of their own. Measured: such a thread takes 20 KiB, and
// from the wake-up to the goroutine it is 12 µs at the median; by way of a poller with 100 entries 30 to 36 µs.
const ownThreads = 256

// An entry that nobody has come back to is dropped after this time at the latest, and a poller without
// entries ends. Tests change it.
var tidyAfter = time.Second

var ownSleepers atomic.Int32 // goroutines that sleep in threads of their own

// pollers are the pollers of this process. mu guards their lists and all entries.
var pollers struct {
	mu  stdsync.Mutex
	all []*poller
}

type poller struct {
	entries []*entry
	words   int           // of the next sleep: control, those of entries, and each bell once
	covered int           // how many of them, from the first on, the last sleep was for
	asleep  bool          // or about to be: then a change of control has to wake
	control atomic.Uint32 // changes when entries has changed
	set     futex.Set     // of the poller's goroutine
	owners  []*entry      // of the poller's goroutine: whose word the one of this index in set is, nil for control
}

// An entry is one goroutine that waits for a word.
type entry struct {
	w, bell futex.Word
	poller  *poller           // whose list it is in, or nil
	active  bool              // its goroutine waits
	told    chan futex.Result // buffered; sent by whoever clears active in the poller's place
}

// A bed is where one goroutine sleeps. Its zero value is ready. Keeping it over several sleeps in one wait
// makes them cheaper.
type bed struct{ e *entry }

// on sleeps as [futex.Sleep] does, in a thread of its own if there is one to have. The caller keeps the
// memory of the words mapped meanwhile.
func (b *bed) on(w, bell futex.Word, d time.Duration, cancel *futex.Cancel) futex.Result {
	if !takeThread() {
		return b.share(w, bell, d, cancel)
	}
	defer giveThread() // also when the memory is gone
	return futex.Sleep(w, bell, d, cancel)
}

// takeThread takes one of the threads, if there is one to have. It does not order those who call it.
func takeThread() bool {
	raceIgnore()
	defer raceHeed()
	for n := ownSleepers.Load(); n < ownThreads; n = ownSleepers.Load() { // ends: somebody else has taken one
		if ownSleepers.CompareAndSwap(n, n+1) {
			return true
		}
	}
	return false
}

func giveThread() {
	raceIgnore()
	defer raceHeed()
	ownSleepers.Add(-1)
}

// share sleeps without a thread.
func (b *bed) share(w, bell futex.Word, d time.Duration, cancel *futex.Cancel) futex.Result {
	switch {
	case w.Changed():
		return futex.Changed
	case bell.Changed():
		return futex.Rung
	case cancel.Cancelled():
		return futex.Cancelled
	case d <= 0:
		return futex.Expired
	case !futex.CanWaitv():
		return futex.Nap(w, bell, d, cancel)
	}
	end := time.Now().Add(d)
	timer := time.NewTimer(d)
	defer timer.Stop()
	e := b.enlist(w, bell)
	r := futex.Expired
	select {
	case r = <-e.told:
	case <-timer.C:
		r = e.withdraw(futex.Expired)
	case <-cancel.Done():
		r = e.withdraw(futex.Cancelled)
	}
	if r == futex.Refused {
		return futex.Nap(w, bell, time.Until(end), cancel)
	}
	return r
}

// enlist returns an active entry for the words in the list of some poller.
func (b *bed) enlist(w, bell futex.Word) *entry {
	pollers.mu.Lock()
	defer pollers.mu.Unlock()
	e := b.e
	if e != nil && e.poller != nil && e.w == w && e.bell == bell {
		e.active = true
		return e
	}
	e = &entry{w: w, bell: bell, active: true, told: make(chan futex.Result, 1)}
	b.e = e
	for _, p := range pollers.all {
		if p.takes(e) {
			p.append(e)
			return e
		}
	}
	p := &poller{words: 1}
	p.append(e)
	pollers.all = append(pollers.all, p)
	go p.run()
	return e
}

// takes reports whether the kernel will let p sleep for e too. pollers.mu is held.
func (p *poller) takes(e *entry) bool {
	free := futex.SetSize - p.words
	return free >= 2 || free == 1 && (e.bell.Addr == nil || p.listed(e.bell, len(p.entries)))
}

// listed reports whether one of the first n entries has this bell.
func (p *poller) listed(bell futex.Word, n int) bool {
	return slices.ContainsFunc(p.entries[:n], func(o *entry) bool { return o.bell == bell })
}

// append adds e to the list. pollers.mu is held.
func (p *poller) append(e *entry) {
	p.words++
	if e.bell.Addr != nil && !p.listed(e.bell, len(p.entries)) {
		p.words++
	}
	e.poller = p
	p.entries = append(p.entries, e)
	p.control.Add(1)
	if p.asleep {
		p.asleep = false // one wake is enough
		futex.WakePrivate(plain(&p.control))
	}
}

// withdraw ends a wait for a reason of its own, unless the poller was faster.
func (e *entry) withdraw(why futex.Result) futex.Result {
	pollers.mu.Lock()
	defer pollers.mu.Unlock()
	if !e.active {
		return <-e.told // there already
	}
	e.active = false // the poller answers for the wake-up, if there is one; so does the caller
	return why
}

// tell ends a wait. pollers.mu is held.
func (e *entry) tell(r futex.Result) {
	e.active = false
	e.told <- r
}

func (p *poller) run() {
	debug.SetPanicOnFault(true) // of this goroutine: see differs
	for p.gather() {
		told, wakes := p.settle(p.set.Wait(tidyAfter))
		for _, w := range wakes {
			futex.Wake(w.addr, w.n)
		}
		if told { // they go first; the sleep would keep them from this P until the scheduler notices
			runtime.Gosched()
		}
	}
}

// gather prepares a sleep for all entries whose goroutines wait, and drops the others. It reports false if
// there is none, and then nobody else knows of p any more.
func (p *poller) gather() bool {
	pollers.mu.Lock()
	defer pollers.mu.Unlock()
	p.entries = slices.DeleteFunc(p.entries, func(e *entry) bool {
		if !e.active {
			e.poller = nil
		}
		return !e.active
	})
	if len(p.entries) == 0 {
		pollers.all = slices.DeleteFunc(pollers.all, func(o *poller) bool { return o == p })
		return false
	}
	p.set.Clear()
	p.owners = p.owners[:0]
	add := func(w futex.Word, owner *entry) {
		p.set.Add(w, owner == nil)
		p.owners = append(p.owners, owner)
	}
	add(futex.Word{Addr: plain(&p.control), Val: p.control.Load()}, nil)
	for i, e := range p.entries {
		add(e.w, e)
		if e.bell.Addr != nil && !p.listed(e.bell, i) {
			add(e.bell, e)
		}
	}
	p.words, p.covered, p.asleep = len(p.owners), len(p.entries), true
	return true
}

// A wakeup is one that the poller owes.
type wakeup struct {
	addr *uint32
	n    int
}

// settle goes through the entries after a sleep that ended as index and r say. It returns whether it has
// told anybody, and what is to be woken.
func (p *poller) settle(index int, r futex.Result) (told bool, wakes []wakeup) {
	pollers.mu.Lock()
	defer pollers.mu.Unlock()
	p.asleep = false
	var woken *entry
	if r == futex.Woken {
		woken = p.owners[index]
	}
	for _, e := range p.entries[:p.covered] {
		switch {
		case !e.active: // its memory may be gone
			if r == futex.Woken {
				wakes = append(wakes, wakeup{e.w.Addr, 1})
				if e.bell.Addr != nil {
					wakes = append(wakes, wakeup{e.bell.Addr, 1})
				}
			}
			continue
		case differs(e.bell): // the kernel has woken one, and that was us, perhaps
			if w := (wakeup{e.bell.Addr, math.MaxInt32}); !slices.Contains(wakes, w) {
				wakes = append(wakes, w)
			}
			e.tell(futex.Rung)
		case e == woken, differs(e.w):
			e.tell(futex.Woken)
		default:
			continue
		}
		told = true
	}
	if r == futex.Refused && !told { // else it may work without those
		for _, e := range p.entries {
			if e.active {
				e.tell(futex.Refused)
				told = true
			}
		}
	}
	return told, wakes
}

// differs reports whether a word reads something else, or cannot be read.
func differs(w futex.Word) (yes bool) {
	defer func() {
		if recover() != nil {
			yes = true
		}
	}()
	return w.Changed()
}
