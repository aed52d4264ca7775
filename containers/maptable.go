package containers

import (
	"fmt"
	"math/bits"
	"sync/atomic"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// table is a map's memory: a directory, and segments of slots. It knows sizes but no K and no V, so that it can also bring a map of any
// types to its committed state, or free it.
//
// The highest bits of a key's hash choose a word of the directory, which has the offset of a segment; several words in a row may have the same. A segment is
// groups of eight slots, each with a control word of one byte per slot: 0 empty, 1 deleted, 0x80|tag for a slot in use. A key is in its home group, or in one
// of the seven behind it, if none of the groups between has an empty byte. (So no search is longer than a cache line or two, and
// nothing counts deleted slots.) When all of these are full, the segment is replaced by one of twice the size, or, at
// its largest, by two, of which each has the keys with the next bit of the hash 0 or 1.
//
//	words     0 epoch: goes up when segments have been replaced
//	          1 directory: offset of its block, 64-aligned, | log2 of its words; 0: the map is empty, and has no memory
//	          2 shape: words of a key | words of a value << 16 | slotForm of keys << 48 | of values << 52; never changes
//	          3 number of keys
//	          4 pending: the change of one control word that is under way, 0 none; see commit
//	          5 limbo: a directory, as word 1, that is to be freed; 0 none   6 the first of its words that is still of use
//	          7 where PopItem looks first
//
//	directory offset of the segment, 64-aligned, | log2 of its groups | depth << 56, ...
//	          2^(log2 of the directory's words - depth) words in a row have the same segment
//	segment   0 sequence: goes up when a slot in use is not any more   8 reserved   16 control words ...
//	          64-aligned: slots, each a key and a value in whole words; strings and []bytes as in listtext.go
//
// Writers have the map's lock; one for each segment was not needed, since a write holds it for some ten nanoseconds. Readers have none. They look at the
// epoch, at the segment's sequence, then at slots, and what they saw holds if neither has changed afterwards. The epoch is in
// the header, which is never used for anything else: if it has not changed, the segment was not freed, and its sequence
// says what it seems to say. One change is enough, behind the store that hides a slot and ahead of whatever writes it again: a reader that has
// the new number finds the slot hidden. The death of a writer between the two is why repair changes the epoch.
//
// What more than one word, or a block, depends on is one operation of the storage (package txn): there a kill leaves it undone, or recovery finishes it
// before anybody gets the lock. Other changes are rows of stores:
//
//	value of one word replaced | the word                          | before or after
//	key put, or replaced       | slot                              | before: nobody looks there
//	by a slot of its group     | pending                           | before: repair finds as many slots in use as there were
//	                           | control word                      | after: repair finds what pending says to be different
//	                           | sequence, number, pending         | after
//	key deleted                | the same, without the slot
//	long string, or a value    | operation: blocks, control words, sequence, number
//	moved to another group     |
//	segment replaced           | operation: new segments, directory words or directory, epoch; the old ones freed
//	cleared                    | operation: directory to limbo, number, epoch
//	                           | operations: the blocks of some groups freed, or one segment, each; repair goes on
//
// Extendible hashing is Fagin's and others' (1979); control words and tags are those of Swiss tables, as in Go's own map.
type table struct {
	s *space
	o *object
	mapShape
}

// mapShape is word 2.
type mapShape uint64

// Words of a map.
const (
	mapEpoch     = iota
	mapDir       // guarded by the lock
	mapShapeWord // immutable
	mapCount     // guarded by the lock
	mapPending   // guarded by the lock; 0 whenever it is free
	mapLimbo     // guarded by the lock; 0 whenever it is free
	mapLimboNext
	mapHint

	mapKeyWords = 1<<12 - 1 // at most
)

const (
	groupSlots   = 8
	probeGroups  = 8 // that a key may be in
	maxGroupLog2 = 7 // 1024 slots
	segmentBytes = 32 << 10
	segmentHead  = 16
	maxMapDepth  = 40
	maxRepoint   = 64 // words of a directory that are changed in place; if there are more it is written anew

	entryLog2  = 7                  // mask
	entryAt    = (1<<48 - 1) &^ 63  // mask
	entryDepth = 56                 // shift
	ctlLow     = 0x0101010101010101 // the lowest bit of each byte
	ctlHigh    = 0x8080808080808080 // the highest
	ctlDeleted = 1
)

func mapShapeOf(keyForm, valueForm slotForm, keyWords, valueWords uint64) mapShape {
	return mapShape(keyWords | valueWords<<16 | uint64(keyForm)<<48 | uint64(valueForm)<<52)
}

func (s mapShape) keyWords() uint64    { return uint64(s) & 0xffff }
func (s mapShape) valueWords() uint64  { return uint64(s) >> 16 & 0xffffffff }
func (s mapShape) keyForm() slotForm   { return slotForm(s >> 48 & 15) }
func (s mapShape) valueForm() slotForm { return slotForm(s >> 52) }

// slotSize returns the bytes of a slot.
func (s mapShape) slotSize() uint64 { return 8 * (s.keyWords() + s.valueWords()) }

// slotsAt returns where the slots of a segment of 1<<log2 groups begin in it.
func slotsAt(log2 uint) uint64 { return (segmentHead + 8<<log2 + 63) &^ 63 }

// segmentSize returns the bytes of such a segment.
func (s mapShape) segmentSize(log2 uint) uint64 { return slotsAt(log2) + groupSlots*s.slotSize()<<log2 }

// largest returns the log2 of the groups in the largest segments.
func (s mapShape) largest() uint {
	log2 := uint(0)
	for log2 < maxGroupLog2 && s.segmentSize(log2+1) <= segmentBytes {
		log2++
	}
	return log2
}

// tableOf returns the table of a map of any types.
func tableOf(s *space, o *object) (table, error) {
	t := table{s, o, mapShape(o.words[mapShapeWord].Load())}
	if t.keyWords() == 0 || t.keyWords() > mapKeyWords || t.valueWords() == 0 || t.valueWords() > 1<<29 ||
		t.keyForm() > formBytes || t.valueForm() > formBytes ||
		t.keyForm() != formPlain && t.keyWords() != textSlot/8 || t.valueForm() != formPlain && t.valueWords() != textSlot/8 {
		return t, fmt.Errorf("shape %#x: %w", uint64(t.mapShape), shm.ErrCorrupt)
	}
	return t, nil
}

// A segment is one as its directory word, copied, says; all of it is in the region. It is small enough to stay in registers: larger structs are copied
// through memory, and wait there for the stores that have just made them.
type segment struct {
	p     addr
	entry uint64 // the directory's word
	size  uint64 // of a slot
}

// entryOf returns the directory's word for a segment.
func entryOf(off uint64, log2, depth uint) uint64 {
	return off | uint64(log2) | uint64(depth)<<entryDepth
}

// open returns the segment that a word of the directory refers to.
func (t table) open(entry uint64) (g segment, err error) {
	g.entry = entry & (entryAt | entryLog2 | 0xff<<entryDepth)
	g.size = t.slotSize()
	g.p, err = addrAt(t.s.region, g.off(), t.segmentSize(g.log2()))
	return g, err
}

// off is its offset, log2 that of its groups, and depth how many bits of the hash are the same in all its keys.
func (g segment) off() uint64 { return g.entry & entryAt }
func (g segment) log2() uint  { return uint(g.entry & entryLog2) }
func (g segment) depth() uint { return uint(g.entry >> entryDepth) }

// groups returns their number.
func (g segment) groups() uint64 { return 1 << (g.entry & entryLog2) }

// seq is the sequence word.
func (g segment) seq() *atomic.Uint64 { return word(g.p, 0) }

// control is the control word of a group.
func (g segment) control(group uint64) *atomic.Uint64 { return word(g.p, segmentHead/8+int(group)) }

// slot returns the address of slot i.
func (g segment) slot(i uint64) addr { return plus(g.p, slotsAt(g.log2())+i*g.size) }

// home returns the group that a hash begins in.
func (g segment) home(hash uint64) uint64 { return hash >> tagBits & (g.groups() - 1) }

// reach returns how many groups a key may be in.
func (g segment) reach() uint64 { return min(probeGroups, g.groups()) }

// dirWord returns word i of a directory.
func (t table) dirWord(dir, i uint64) (*atomic.Uint64, error) {
	p, err := addrAt(t.s.region, dir&^dirLog2Mask+8*i, 8)
	if err != nil {
		return nil, err
	}
	return word(p, 0), nil
}

// segment returns the segment for a hash. The map has one: its directory, dir, is not 0.
func (t table) segment(dir, hash uint64) (segment, error) {
	return t.segmentAt(dir, hash>>(64-dir&dirLog2Mask))
}

// segmentAt returns the segment that word i of a directory refers to, the one in limbo too.
func (t table) segmentAt(dir, i uint64) (segment, error) {
	w, err := t.dirWord(dir, i)
	if err != nil {
		return segment{}, err
	}
	g, err := t.open(w.Load())
	if err == nil && uint64(g.depth()) > dir&dirLog2Mask {
		err = g.tooDeep(dir)
	}
	return g, err
}

//go:noinline
func (g segment) tooDeep(dir uint64) error {
	return fmt.Errorf("segment of depth %d in a directory of %d: %w", g.depth(), dir&dirLog2Mask, shm.ErrCorrupt)
}

// matches returns a word with the highest bit set in each byte of a control word that is the tag's; it may be set
// in others that are in use.
func matches(ctl, hash uint64) uint64 {
	x := ctl ^ ctlLow*uint64(full(hash))
	return (x - ctlLow) &^ x & ctlHigh & ctl
}

// full returns the control byte of a slot in use.
func full(hash uint64) byte { return 0x80 | byte(hash&(1<<tagBits-1)) }

// hasEmpty reports whether a control word has an empty byte.
func hasEmpty(ctl uint64) bool { return (ctl-ctlLow)&^ctl&ctlHigh != 0 }

// vacant returns the first slot that is empty or deleted, 8 if there is none.
func vacant(ctl uint64) uint64 { return uint64(bits.TrailingZeros64(^ctl&ctlHigh)) >> 3 }

// used returns how many slots are in use.
func used(ctl uint64) uint64 { return uint64(bits.OnesCount64(ctl & ctlHigh)) }

// with returns ctl with byte i set to b.
func with(ctl, i uint64, b byte) uint64 { return ctl&^(0xff<<(8*i)) | uint64(b)<<(8*i) }

// without returns what ctl is when slot i is not in use any more. It may become empty if another one is: then
// no key is further on because this group was full.
func without(ctl, i uint64) uint64 {
	if hasEmpty(ctl) {
		return with(ctl, i, 0)
	}
	return with(ctl, i, ctlDeleted)
}

// A mapPlace is a slot of a segment.
type mapPlace struct{ group, i uint64 }

func (p mapPlace) slot() uint64 { return p.group*groupSlots + p.i }

// find returns the place of a key.
func (t table) find(g segment, k *mapKey) (mapPlace, bool, error) {
	if k.word(t) {
		at, found := g.findWord(k.hash, k.a)
		return at, found, nil
	}
	group := g.home(k.hash)
	for n := g.reach(); n > 0; n-- {
		ctl := g.control(group).Load()
		for m := matches(ctl, k.hash); m != 0; m &= m - 1 {
			i := uint64(bits.TrailingZeros64(m)) >> 3
			same, err := k.is(t, g.slot(group*groupSlots+i))
			if same || err != nil {
				return mapPlace{group, i}, same, err
			}
		}
		if hasEmpty(ctl) {
			break
		}
		group = (group + 1) & (g.groups() - 1)
	}
	return mapPlace{}, false, nil
}

// findWord is find for a key of one word.
func (g segment) findWord(hash, key uint64) (mapPlace, bool) {
	group := g.home(hash)
	for n := g.reach(); n > 0; n-- {
		ctl := g.control(group).Load()
		for m := matches(ctl, hash); m != 0; m &= m - 1 {
			i := uint64(bits.TrailingZeros64(m)) >> 3
			if word(g.slot(group*groupSlots+i), 0).Load() == key {
				return mapPlace{group, i}, true
			}
		}
		if hasEmpty(ctl) {
			break
		}
		group = (group + 1) & (g.groups() - 1)
	}
	return mapPlace{}, false
}

// room returns a place for a key, or false if all groups where it may be are full.
func (g segment) room(hash uint64) (mapPlace, bool) {
	group := g.home(hash)
	for n := g.reach(); n > 0; n-- {
		if i := vacant(g.control(group).Load()); i < groupSlots {
			return mapPlace{group, i}, true
		}
		group = (group + 1) & (g.groups() - 1)
	}
	return mapPlace{}, false
}

// lookup returns the segment and the place of a key under the lock. ok is false if the map has no memory yet.
func (t table) lookup(k *mapKey) (g segment, at mapPlace, found, ok bool, err error) {
	dir := t.o.words[mapDir].Load()
	if dir == 0 {
		return g, at, false, false, nil
	}
	if g, err = t.segment(dir, k.hash); err == nil {
		at, found, err = t.find(g, k)
	}
	return g, at, found, true, err
}

// put makes v the value of k. The lock is held.
func (t table) put(k *mapKey, v mapValue) error {
	for {
		g, at, found, ok, err := t.lookup(k)
		switch {
		case err != nil:
			return err
		case !ok:
			if err := t.begin(); err != nil {
				return err
			}
			continue
		case found && v.whole(t):
			txn.Put(word(g.slot(at.slot()), int(t.keyWords())), wordOf(v.p, v.n))
			return nil
		}
		to := at
		if found {
			to.i = vacant(g.control(at.group).Load())
		}
		if !found || to.i == groupSlots {
			to, ok = g.room(k.hash)
		}
		if ok {
			return t.write(g, to, at, found, k, v)
		}
		if err := t.grow(g, k.hash); err != nil {
			return err
		}
	}
}

// write puts k and v to a place that is vacant, and, if k is at another one, makes that vacant instead.
func (t table) write(g segment, to, at mapPlace, replaces bool, k *mapKey, v mapValue) error {
	var old [2]uint64
	p := g.slot(to.slot())
	ctl := g.control(to.group).Load()
	now := with(ctl, to.i, full(k.hash))
	if replaces {
		old = t.valueText(g.slot(at.slot()))
	}
	if blockOf(old) == 0 && !v.long(t) && (replaces || !k.long(t)) && (!replaces || to.group == at.group) {
		txn.Announce(p, uintptr(g.size))
		if replaces {
			copyBlock(p, g.slot(at.slot()), 8*t.keyWords())
			now = with(now, at.i, byte(without(ctl, at.i)>>(8*at.i)))
		} else {
			k.store(t, p)
		}
		v.store(t, plus(p, 8*t.keyWords()))
		t.commit(g, to.group, now, replaces)
		return nil
	}
	return t.s.change(func(l *txn.Lane) error {
		txn.Announce(p, uintptr(g.size))
		if replaces {
			copyBlock(p, g.slot(at.slot()), 8*t.keyWords())
		} else if err := k.storeIn(t, l, p); err != nil {
			return err
		}
		if err := v.storeIn(t, l, plus(p, 8*t.keyWords())); err != nil {
			return err
		}
		seq := g.seq().Load()
		if !replaces {
			return first(l.Later(g.control(to.group), now), l.Later(&t.o.words[mapCount], t.o.words[mapCount].Load()+1))
		}
		var err error
		if at.group == to.group {
			now = with(now, at.i, byte(without(ctl, at.i)>>(8*at.i)))
			err = l.Later(g.control(to.group), now)
		} else {
			// Between the two the key is there twice, with either value. A reader that has passed by the new
			// place before, and comes to the old one afterwards, sees neither, but that the sequence has changed.
			err = first(l.Later(g.control(to.group), now), l.Later(g.seq(), seq+1),
				l.Later(g.control(at.group), without(g.control(at.group).Load(), at.i)))
		}
		return first(err, l.Later(g.seq(), seq+2), t.freeIn(l, blockOf(old)))
	})
}

// first returns the first error.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (t table) freeIn(l *txn.Lane, off uint64) error {
	if off == 0 {
		return nil
	}
	return t.s.heap.FreeIn(l, shm.Offset(off))
}

// Pending is offset/8 of the control word | slots in use before << 44 | the lowest bits of the number of keys before << 48.
const (
	pendingUsed  = 44
	pendingCount = 48
)

// commit stores a control word. hides says that a slot in use is not any more.
func (t table) commit(g segment, group, now uint64, hides bool) {
	w := g.control(group)
	count := t.o.words[mapCount].Load()
	old := w.Load()
	txn.Put(&t.o.words[mapPending], (g.off()+segmentHead+8*group)/8|used(old)<<pendingUsed|count<<pendingCount)
	txn.Put(w, now) // commits
	if hides {
		txn.Put(g.seq(), g.seq().Load()+1)
		g.seq().Load() // what is written to the slot again comes behind, also where stores may overtake each other
	}
	if used(now) != used(old) {
		txn.Put(&t.o.words[mapCount], count+used(now)-used(old))
	}
	txn.Put(&t.o.words[mapPending], 0)
}

// repair brings the map to its committed state.
func (t table) repair() error {
	if pending := t.o.words[mapPending].Load(); pending != 0 {
		p, err := addrAt(t.s.region, pending&(1<<pendingUsed-1)*8, 8)
		if err != nil {
			return err
		}
		count := t.o.words[mapCount].Load()
		// A reader may be looking at a slot that is hidden since, in a segment whose sequence does not say so.
		txn.Put(&t.o.words[mapEpoch], t.o.words[mapEpoch].Load()+1)
		t.o.words[mapEpoch].Load()
		if count&0xffff == pending>>pendingCount {
			txn.Put(&t.o.words[mapCount], count+used(word(p, 0).Load())-pending>>pendingUsed&15)
		}
		txn.Put(&t.o.words[mapPending], 0)
	}
	return t.drain()
}

// remove makes a place vacant and frees what its slot refers to.
func (t table) remove(g segment, at mapPlace) error {
	p := g.slot(at.slot())
	key, value := blockOf(t.keyText(p)), blockOf(t.valueText(p))
	now := without(g.control(at.group).Load(), at.i)
	if key|value == 0 {
		t.commit(g, at.group, now, true)
		return nil
	}
	return t.s.change(func(l *txn.Lane) error {
		return first(l.Later(g.control(at.group), now), l.Later(g.seq(), g.seq().Load()+1),
			l.Later(&t.o.words[mapCount], t.o.words[mapCount].Load()-1), t.freeIn(l, key), t.freeIn(l, value))
	})
}

// clear takes all keys out.
func (t table) clear() error {
	dir := t.o.words[mapDir].Load()
	if dir == 0 {
		return nil
	}
	err := t.s.change(func(l *txn.Lane) error {
		return first(l.Set(&t.o.words[mapLimbo], dir), l.Set(&t.o.words[mapLimboNext], 0),
			l.Later(&t.o.words[mapDir], 0), l.Later(&t.o.words[mapCount], 0), l.Later(&t.o.words[mapEpoch], t.o.words[mapEpoch].Load()+1))
	})
	if err != nil {
		return err
	}
	return t.drain()
}

// drain frees the directory in limbo, and all that it refers to.
func (t table) drain() error {
	limbo := t.o.words[mapLimbo].Load()
	if limbo == 0 {
		return nil
	}
	next := &t.o.words[mapLimboNext]
	for i := next.Load(); i < 1<<(limbo&dirLog2Mask); i = next.Load() {
		g, err := t.segmentAt(limbo, i)
		for all := false; !all && err == nil; {
			err = t.s.change(func(l *txn.Lane) (err error) {
				all, err = t.dropTexts(l, g)
				return err
			})
		}
		if err == nil {
			err = t.s.change(func(l *txn.Lane) error {
				return first(l.Set(next, i+1<<(limbo&dirLog2Mask-uint64(g.depth()))), t.freeIn(l, g.off()))
			})
		}
		if err != nil {
			return err
		}
	}
	return t.s.change(func(l *txn.Lane) error {
		return first(l.Set(&t.o.words[mapLimbo], 0), l.Set(next, 0), t.freeIn(l, limbo&^dirLog2Mask))
	})
}

// repairMap brings a map to its committed state, whatever its types.
func repairMap(s *space, o *object) error {
	if o.words[mapPending].Load() == 0 && o.words[mapLimbo].Load() == 0 {
		return nil
	}
	t, err := tableOf(s, o)
	if err != nil {
		return err
	}
	return t.repair()
}

// dropMap frees what a map has: see kind.drop. First all of it goes to limbo; from there as drain does it, many segments at a time.
func dropMap(l *txn.Lane, s *space, o *object, _ *uint64) (all bool, err error) {
	t, err := tableOf(s, o)
	if err != nil {
		return false, err
	}
	dir, limbo := o.words[mapDir].Load(), o.words[mapLimbo].Load()
	if limbo == 0 {
		if dir == 0 {
			return true, nil
		}
		return false, first(l.Later(&o.words[mapLimbo], dir), l.Later(&o.words[mapLimboNext], 0), l.Later(&o.words[mapDir], 0), l.Later(&o.words[mapCount], 0))
	}
	next := &o.words[mapLimboNext]
	i := next.Load()
	for i < 1<<(limbo&dirLog2Mask) {
		g, err := t.segmentAt(limbo, i)
		if err != nil {
			return false, err
		}
		free, err := t.dropTexts(l, g)
		if err != nil {
			return false, err
		}
		if !free || l.Left() < 2+dropSpare {
			return false, l.Later(next, i)
		}
		if err := t.freeIn(l, g.off()); err != nil {
			return false, err
		}
		i += 1 << (limbo&dirLog2Mask - uint64(g.depth()))
	}
	return dir == 0, first(l.Later(next, 0), l.Later(&o.words[mapLimbo], 0), t.freeIn(l, limbo&^dirLog2Mask))
}

// dropTexts frees the blocks that the slots of a segment in limbo refer to, as far as the log has room, and reports whether these are all.
func (t table) dropTexts(l *txn.Lane, g segment) (all bool, err error) {
	if t.keyForm() == formPlain && t.valueForm() == formPlain {
		return true, nil
	}
	for group := range g.groups() {
		w := g.control(group)
		ctl := w.Load()
		if used(ctl) == 0 {
			continue
		}
		if l.Left() < 2*groupSlots+2+dropSpare {
			return false, nil
		}
		for m := ctl & ctlHigh; m != 0; m &= m - 1 {
			p := g.slot(group*groupSlots + uint64(bits.TrailingZeros64(m))>>3)
			if err := first(t.freeIn(l, blockOf(t.keyText(p))), t.freeIn(l, blockOf(t.valueText(p)))); err != nil {
				return false, err
			}
		}
		if err := l.Later(w, 0); err != nil {
			return false, err
		}
	}
	return true, nil
}

// blocksOfMap finds what dropMap frees, of a map in any state that a kill leaves.
func blocksOfMap(s *space, o *object, found func(what string, off uint64) error) error {
	t, err := tableOf(s, o)
	if err != nil {
		return err
	}
	for _, d := range []struct{ dir, from uint64 }{{o.words[mapDir].Load(), 0}, {o.words[mapLimbo].Load(), o.words[mapLimboNext].Load()}} {
		if d.dir == 0 {
			continue
		}
		if err := found("directory", d.dir&^dirLog2Mask); err != nil {
			return err
		}
		for i := d.from; i < 1<<(d.dir&dirLog2Mask); {
			g, err := t.segmentAt(d.dir, i)
			if err == nil {
				err = found("segment", g.off())
			}
			if err == nil {
				err = t.blocksOfSegment(g, found)
			}
			if err != nil {
				return err
			}
			i += 1 << (d.dir&dirLog2Mask - uint64(g.depth()))
		}
	}
	return nil
}

func (t table) blocksOfSegment(g segment, found func(what string, off uint64) error) error {
	if t.keyForm() == formPlain && t.valueForm() == formPlain {
		return nil
	}
	for i := range groupSlots * g.groups() {
		if g.control(i/groupSlots).Load()>>(8*(i%groupSlots))&0x80 == 0 {
			continue
		}
		for what, w := range map[string][2]uint64{"key": t.keyText(g.slot(i)), "text": t.valueText(g.slot(i))} {
			if off := blockOf(w); off != 0 {
				if err := found(what, off); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
