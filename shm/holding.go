package shm

import (
	"fmt"
	"structs"
	"sync/atomic"
)

// What a process has a share in, and no lock word tells: read locks, permits, places at a barrier. Each
// such share is a [Holding] in the slot of its process. So it dies with the process: nobody has to find
// and subtract it. Who wants to know the whole adds up the slots.
//
// A slot has 32 holdings in its page. A process that needs more takes spare pages of the region, of 63
// each; they belong to a process by its token in the table of owners, and are chained from its slot.
//
//	spare page:  | next | 0 ... | 63 holdings |
//
// Only the process of a slot changes which object a holding belongs to. The steps, and what a kill
// leaves:
//
//   - take a holding: one compare-and-swap of its word, from a word without value. Its words are 0.
//   - take a page: note how far pages were ever used; owner 0 → self; memory; clear; chain. A kill before
//     the chain leaves a page that the token owns and nobody finds, until the slot is cleared up.
//   - clear up after the dead: the pages it owns become free, then its token and slot. A kill in between is
//     finished by the next one, who finds the token still there.
//
// Holdings are looked for at a few places of each page, so finding one costs a few loads; it costs that
// for each page of a process which has many.

// Bits of a holding's word: the object's offset divided by 8 above, a value of its kind below.
const (
	HoldingBits = 23
	HoldingMask = 1<<HoldingBits - 1

	holdingProbes = 8 // places of a page where the holding of an object may stand
)

// A Holding is the share that one process has in one object. Word is [HoldingKey] of the object plus
// a value below 1<<HoldingBits. While the value is 0 the holding is nobody's in particular: its process
// may use it for another object, and the other words are 0. So it is taken and given up by
// compare-and-swap of Word, with the key in it.
type Holding struct {
	_     structs.HostLayout
	Word  atomic.Uint64
	Words [7]atomic.Uint64 // of the object's kind; only this process writes them, unless the kind says otherwise
}

// HoldingKey returns the word of a holding without value of the object at off, which is a multiple of 8.
func HoldingKey(off Offset) uint64 { return uint64(off) >> 3 << HoldingBits }

const (
	spareSize  = 4096
	spareCount = spareSize/8 - 1
)

// spareTable says which process each spare page belongs to. It always has memory.
type spareTable struct {
	_      structs.HostLayout
	owners [spareCount]atomic.Uint64 // token, 0: free
	used   atomic.Uint64             // no page from here on was ever used; only grows
}

type sparePage struct {
	_    structs.HostLayout
	next atomic.Uint64 // number of the next page of this process plus one, 0: the last
	_    [56]byte
	held [spareSize/64 - 1]Holding
}

// Slots is how many processes can have a region open at once.
const Slots = slotCount

// Slot returns the number of this process' slot in r, from 0, and false if it has none: a region on the
// Go heap, one opened read-only, a closed one.
func (r *Region) Slot() (int, bool) {
	m := r.m
	if m.file == nil || m.seat == nil || m.seat.slot < 0 || m.closed.Load() {
		return 0, false
	}
	return m.seat.slot, true
}

// Hold returns the holding of this process for the object at off. It is one that the object had already, or
// an unused one that it is given; it may be used for another object as long as its value is 0. An error is
// [ErrNoSpace] if the region has no room for more holdings, or [ErrClosed]. Any number of goroutines may
// call it at once. Some 10 ns for a process with few holdings.
func (r *Region) Hold(off Offset) (*Holding, error) {
	i, ok := r.Slot()
	if !ok {
		return nil, r.m.fail("hold", ErrClosed)
	}
	m, key := r.m, HoldingKey(off)
	s := m.seat
	for {
		if h := m.held(i, self, key); h != nil {
			return h, nil
		}
		s.holding.Lock()
		h, err := m.hold(i, key)
		s.holding.Unlock()
		if h != nil || err != nil {
			return h, err
		}
	}
}

// hold gives the object of that key a holding of slot i, which is ours. It returns nil if others were
// faster. seat.holding is held.
func (m *mapping) hold(i int, key uint64) (*Holding, error) {
	if h := m.held(i, self, key); h != nil {
		return h, nil
	}
	for _, reuse := range []bool{false, true} { // holdings that other objects may use again are taken last
		var free *Holding
		m.eachPage(i, self, func(page []Holding) bool {
			free = unused(page, key, reuse)
			return free == nil
		})
		if free == nil {
			continue
		}
		if w := free.Word.Load(); w&HoldingMask != 0 || !free.Word.CompareAndSwap(w, key) {
			return nil, nil
		}
		return free, nil
	}
	page, err := m.takeSpare(i)
	if err != nil {
		return nil, err
	}
	h := &page.held[holdingPlace(key, len(page.held), 0)]
	h.Word.Store(key)
	// Publishes: until now nobody else has seen the page.
	page.next.Store(m.slots[i].overflow.Load())
	m.slots[i].overflow.Store(uint64(m.spareNumber(page)) + 1)
	return h, nil
}

// holdingPlace returns the k'th place where a holding may stand, of n.
func holdingPlace(key uint64, n, k int) int {
	return (int(key>>HoldingBits*0x9e3779b97f4a7c15>>33%uint64(n)) + k) % n
}

// unused returns a holding of a page that the object of that key may take, or nil.
func unused(page []Holding, key uint64, reuse bool) *Holding {
	for k := range min(holdingProbes, len(page)) {
		h := &page[holdingPlace(key, len(page), k)]
		if w := h.Word.Load(); w == 0 || reuse && w&HoldingMask == 0 {
			return h
		}
	}
	return nil
}

// Share returns the holding that the process of slot i has for the object at off, or nil if it has none,
// and the token of that process; 0 if there is none, or it is dead and what it left half done is undone. A
// process that takes a share meanwhile may be missed, unless it has set the value of its holding before
// this call. The holding is another object's as soon as its word has another key.
func (r *Region) Share(i int, off Offset) (Token, *Holding) {
	m := r.m
	s := &m.slots[i]
	t := Token(s.token.Load())
	if t == 0 || yields(s.state.Load()) {
		return 0, nil
	}
	return t, m.held(i, t, HoldingKey(off))
}

// held returns the holding with that key in slot i, which is the process t's, or nil.
func (m *mapping) held(i int, t Token, key uint64) (found *Holding) {
	m.eachPage(i, t, func(page []Holding) bool {
		for k := range min(holdingProbes, len(page)) {
			h := &page[holdingPlace(key, len(page), k)]
			if h.Word.Load()&^HoldingMask == key {
				found = h
				return false
			}
		}
		return true
	})
	return found
}

// eachPage calls look with the holdings of slot i, page by page, until it returns false. What is chained is
// believed as far as the process t owns it.
func (m *mapping) eachPage(i int, t Token, look func([]Holding) bool) {
	if !look(m.holdings[i].held[:]) {
		return
	}
	next := m.slots[i].overflow.Load()
	for n := 0; next != 0 && next <= spareCount && n < spareCount; n++ { // n: whatever the chain says, it ends
		if m.spares.owners[next-1].Load() != uint64(t) {
			return
		}
		page := m.spare(int(next - 1))
		if !look(page.held[:]) {
			return
		}
		next = page.next.Load()
	}
}

// takeSpare takes a spare page, cleared and not chained yet. seat.holding is held.
func (m *mapping) takeSpare(i int) (*sparePage, error) {
	for n := range m.spares.owners {
		owner := &m.spares.owners[n]
		if owner.Load() != 0 || !owner.CompareAndSwap(0, uint64(self)) {
			continue
		}
		for used := m.spares.used.Load(); used <= uint64(n); used = m.spares.used.Load() { // ends: it only grows
			m.spares.used.CompareAndSwap(used, uint64(n)+1) // before there is memory: see fillAround
		}
		if err := reserve(m.file, spareStart+uint64(n)*spareSize, spareSize); err != nil {
			owner.Store(0)
			return nil, m.fail("hold", noSpace("holdings of a process", spareSize, err))
		}
		page := m.spare(n)
		*page = sparePage{}
		return page, nil
	}
	return nil, m.fail("hold", fmt.Errorf("all %d pages for holdings of processes are taken; give some of what you hold back: %w", spareCount, ErrNoSpace))
}

// dropSpares gives back the spare pages of the dead process t.
func (m *mapping) dropSpares(t uint64) {
	if t == 0 {
		return
	}
	for n := range min(m.spares.used.Load(), spareCount) {
		m.spares.owners[n].CompareAndSwap(t, 0)
	}
}
