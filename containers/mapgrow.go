package containers

import (
	"fmt"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// A plan says where the slots of a segment go in a new one: which are to be used there by their keys' hashes, and how its control
// words are then.
type plan struct {
	log2 uint
	ctl  [1 << maxGroupLog2]uint64
	to   [groupSlots << maxGroupLog2]uint16 // of each slot in use, its new number + 1; 0: it goes elsewhere
}

// hashes returns the hashes of the slots of g in use.
func (t table) hashes(g segment, h *[groupSlots << maxGroupLog2]uint64) error {
	for i := range groupSlots * g.groups() {
		if g.control(i/groupSlots).Load()>>(8*(i%groupSlots))&0x80 == 0 {
			continue
		}
		k, err := t.keyIn(g.slot(i))
		if err != nil {
			return err
		}
		h[i] = k.hash
	}
	return nil
}

// fits makes p the plan for 1<<log2 groups with those slots of g whose hashes have value under mask, and reports
// whether there is room.
func (p *plan) fits(g segment, h *[groupSlots << maxGroupLog2]uint64, log2 uint, mask, value uint64) bool {
	p.log2 = log2
	clear(p.ctl[:])
	clear(p.to[:])
	groups := uint64(1) << log2
	for i := range groupSlots * g.groups() {
		if g.control(i/groupSlots).Load()>>(8*(i%groupSlots))&0x80 == 0 || h[i]&mask != value {
			continue
		}
		group, n := h[i]>>tagBits&(groups-1), uint64(0)
		for ; n < min(probeGroups, groups); n++ {
			if free := vacant(p.ctl[group]); free < groupSlots {
				p.ctl[group] = with(p.ctl[group], free, full(h[i]))
				p.to[i] = uint16(group*groupSlots+free) + 1
				break
			}
			group = (group + 1) & (groups - 1)
		}
		if n == min(probeGroups, groups) {
			return false
		}
	}
	return true
}

// stay makes p the plan in which each slot keeps its number, and the others are deleted: that has always room.
func (p *plan) stay(g segment, h *[groupSlots << maxGroupLog2]uint64, mask, value uint64) {
	p.log2 = g.log2()
	clear(p.to[:])
	for i := range groupSlots * g.groups() {
		if i%groupSlots == 0 {
			p.ctl[i/groupSlots] = g.control(i / groupSlots).Load()
		}
		switch {
		case p.ctl[i/groupSlots]>>(8*(i%groupSlots))&0x80 == 0:
		case h[i]&mask != value:
			p.ctl[i/groupSlots] = with(p.ctl[i/groupSlots], i%groupSlots, ctlDeleted)
		default:
			p.to[i] = uint16(i) + 1
		}
	}
}

// build makes the segment that p says, which nobody can see yet, and returns its word for the directory.
func (t table) build(l *txn.Lane, g segment, p *plan, depth uint) (uint64, error) {
	off, err := t.s.heap.AllocIn(l, t.segmentSize(p.log2), 64)
	if err != nil {
		return 0, err
	}
	entry := entryOf(uint64(off), p.log2, depth)
	to, err := t.open(entry)
	if err != nil || uint64(off)&entryAt != uint64(off) {
		return 0, first(err, fmt.Errorf("segment at offset %d: %w", off, shm.ErrCorrupt))
	}
	txn.Announce(to.p, uintptr(t.segmentSize(p.log2)))
	copyBlock(addr(to.control(0)), addr(&p.ctl), 8*to.groups())
	for i := range groupSlots * g.groups() {
		if p.to[i] != 0 {
			copyBlock(to.slot(uint64(p.to[i]-1)), g.slot(i), g.size)
		}
	}
	return entry, nil
}

// begin gives a map without memory its first segment, of one group.
func (t table) begin() error {
	return t.s.change(func(l *txn.Lane) error {
		off, err := t.s.heap.AllocIn(l, t.segmentSize(0), 64)
		if err != nil {
			return err
		}
		dir, err := t.s.heap.AllocIn(l, 64, 64)
		if err != nil {
			return err
		}
		w, err := t.dirWord(uint64(dir), 0)
		if err != nil {
			return err
		}
		txn.Put(w, uint64(off))
		return l.Later(&t.o.words[mapDir], uint64(dir))
	})
}

// grow replaces g, where there is no room for a key with that hash, by a larger segment, or by two.
func (t table) grow(g segment, hash uint64) error {
	if g.log2() > t.largest() || g.depth() > maxMapDepth {
		return fmt.Errorf("segment of 1<<%d groups, depth %d: %w", g.log2(), g.depth(), shm.ErrCorrupt)
	}
	var h [groupSlots << maxGroupLog2]uint64
	if err := t.hashes(g, &h); err != nil {
		return err
	}
	var lo, hi plan
	split := true
	for log2 := g.log2() + 1; log2 <= t.largest() && split; log2++ {
		split = !lo.fits(g, &h, log2, 0, 0)
	}
	if split {
		if g.depth() == maxMapDepth {
			return fmt.Errorf("more than %d keys whose hashes begin alike: %w", groupSlots*g.groups(), shm.ErrNoSpace)
		}
		bit := uint64(1) << (63 - g.depth())
		if !lo.fits(g, &h, g.log2(), bit, 0) {
			lo.stay(g, &h, bit, 0)
		}
		if !hi.fits(g, &h, g.log2(), bit, bit) {
			hi.stay(g, &h, bit, bit)
		}
	}
	return t.s.change(func(l *txn.Lane) error {
		if !split {
			entry, err := t.build(l, g, &lo, g.depth())
			if err != nil {
				return err
			}
			return first(t.repoint(l, g, hash, entry, entry, false), t.freeIn(l, g.off()))
		}
		a, err := t.build(l, g, &lo, g.depth()+1)
		if err != nil {
			return err
		}
		b, err := t.build(l, g, &hi, g.depth()+1)
		if err != nil {
			return err
		}
		return first(t.repoint(l, g, hash, a, b, true), t.freeIn(l, g.off()))
	})
}

// repoint makes the words of the directory that have g, the segment for that hash, have a in the first half of them and b in the second. If g is in one word
// only, and is split, the directory doubles.
func (t table) repoint(l *txn.Lane, g segment, hash, a, b uint64, split bool) error {
	dir := t.o.words[mapDir].Load()
	log2 := uint(dir & dirLog2Mask)
	if g.depth() > log2 || log2 > maxMapDepth {
		return fmt.Errorf("segment of depth %d in a directory of %d: %w", g.depth(), log2, shm.ErrCorrupt)
	}
	epoch := &t.o.words[mapEpoch]
	from := hash >> (64 - g.depth()) << (log2 - g.depth())
	n := uint64(1) << (log2 - g.depth())
	if !(split && n == 1) && n <= maxRepoint {
		for i := range n {
			w, err := t.dirWord(dir, from+i)
			if err != nil {
				return err
			}
			entry := a
			if i >= n/2 {
				entry = b
			}
			if err := l.Later(w, entry); err != nil {
				return err
			}
		}
		return l.Later(epoch, epoch.Load()+1)
	}
	more := uint(0)
	if split && n == 1 {
		more = 1
	}
	off, err := t.s.heap.AllocIn(l, 8<<(log2+more), 64)
	if err != nil {
		return err
	}
	words, err := addrAt(t.s.region, uint64(off), 8<<(log2+more))
	if err != nil {
		return err
	}
	old, err := addrAt(t.s.region, dir&^dirLog2Mask, 8<<log2)
	if err != nil {
		return err
	}
	txn.Announce(words, 8<<(log2+more))
	from, n = from<<more, n<<more
	for i := range uint64(1) << (log2 + more) {
		entry := word(old, int(i>>more)).Load()
		switch {
		case i-from < n/2:
			entry = a
		case i-from < n:
			entry = b
		}
		store(addr(word(words, int(i))), &entry)
	}
	return first(l.Later(&t.o.words[mapDir], uint64(off)|uint64(log2+more)), l.Later(epoch, epoch.Load()+1), t.freeIn(l, dir&^dirLog2Mask))
}
