package containers

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"

	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

// An orphan is an object without a name whose creator is dead. Who may still know it:
//
//	nobody           | unless something of the following has ever been done, which sets a bit in its header, passedOn, for good
//	an object of the | a Link to it was made. Links lie in values and elements, and an encoded handle may do so too: Sweep looks for
//	region           | either in what all other objects have
//	                 | it is the lock of others (WithMutex): it counts them
//	a process        | a handle on it was encoded, a Link to it made, or it was found by another process: by name, Link or encoded handle. Which
//	                 | processes have one, in the memory of a program that nobody looks into, is not known. So such an object is taken to be
//	                 | in use for as long as any process but the caller of Sweep has the region open
//
// Orphans that only orphans refer to, in a ring too, are garbage as well: what is kept is found from the objects that stay, as a garbage collector
// marks what it finds from its roots.
//
// The bit is one store. A kill before it leaves an object that nobody else knows, for whoever sets the bit does so before he lets the
// reference out of his hands. Sweep itself destroys one object after the other, each in the operation of [base.Destroy]: a kill leaves some of them
// destroyed, and the others for the next Sweep.

// passedOn, in the word of an object that has its creator, says that others may know the object. Tokens leave the bit free.
const passedOn = 1

// passOn notes that others than its creator may know b's object, from now on.
func (b base) passOn() {
	if b.s.readOnly {
		return
	}
	w := &b.obj.creator
	// The object may be destroyed meanwhile. Then its header is free, which 0 says and must go on to say, or has become another's, which this does no harm.
	for c := w.Load(); c != 0 && c&passedOn == 0; c = w.Load() {
		w.CompareAndSwap(c, c|passedOn)
	}
}

// Sweep destroys the objects that nobody can use any more, and returns how many these are: objects without a name, whose creator is dead, and to which
// nothing refers. A process that is killed leaves such objects if it had not given them a name or put a [Link] to them anywhere.
//
// What refers to an object is a Link to it, or an encoded handle, in what any object of the region has, unless that is destroyed by the same Sweep; and an
// object that uses it as its lock. The handles and Links in the memory of other processes are not known: so an object on which a handle was ever encoded,
// or a Link made, or that another process has found, is left alone while any other process has the region open. The caller's own handles on such
// objects do not count, nor do those that it has encoded and keeps outside the region, nor a base64 text of them, nor offsets that the
// program makes of addresses: give what is to outlive its creator a name, or put a Link to it into something that has one. While Sweep runs, the caller's other goroutines must not hold
// the only Link to an orphan, on its way from one object to another. What stands in the memory of a [Ref], a queue or a ring counts also where it is left from before.
//
// It waits for the lock of each object that it looks into or destroys until ctx ends, so the caller must hold none. An error says what could
// not be destroyed, or looked into; then nothing is destroyed to which that may refer. [shmsync.ErrInconsistent] comes from an object with a caller's lock whose owner died. If the process dies inside, some objects are destroyed,
// and the others as they were. O(blocks), and O(bytes) in objects if there are such orphans to which a Link may lead, and this process is the only one.
func (m *Manager) Sweep(ctx context.Context) (destroyed int, err error) {
	s, err := m.space()
	if err != nil {
		return 0, err
	}
	if s.readOnly {
		err = fmt.Errorf("the region is open for reading only: %w", fs.ErrPermission)
	} else {
		destroyed, err = s.sweep(ctx)
	}
	if err != nil {
		err = fmt.Errorf("containers: sweep %v: %w", s, err)
	}
	return destroyed, err
}

// A sweep is what one Sweep knows.
type sweep struct {
	s       *space
	ctx     context.Context
	objects []shm.Offset          // all that there are
	sizes   map[shm.Offset]uint64 // of blocks
	orphans map[shm.Offset]*orphan
	found   []*orphan // by a reference, and not looked into yet
}

type orphan struct {
	base
	creator uint64
	kept    bool
}

func (s *space) sweep(ctx context.Context) (destroyed int, err error) {
	w := &sweep{s: s, ctx: ctx, sizes: map[shm.Offset]uint64{}, orphans: map[shm.Offset]*orphan{}}
	if err := s.heap.Each(func(off shm.Offset, size uint64, object bool) {
		if object {
			w.objects = append(w.objects, off)
		} else {
			w.sizes[off] = size
		}
	}); err != nil {
		return 0, err
	}
	if err := w.findOrphans(); err != nil {
		return 0, err
	}
	err = w.keep()
	for _, locks := range []bool{false, true} { // those that are the locks of others come behind these
		for _, o := range w.orphans {
			if o.kept || (kind(o.obj.kind.Load()) == kindRaw) != locks {
				continue
			}
			done, failed := w.destroy(o)
			if done {
				destroyed++
			}
			err = errors.Join(err, failed)
		}
	}
	return destroyed, err
}

// findOrphans finds the objects without a name whose creator is dead, and undone.
func (w *sweep) findOrphans() error {
	dead := map[shm.Token]bool{}
	for _, off := range w.objects {
		o, err := shm.At[object](w.s.region, off)
		if err != nil {
			return err
		}
		gen, creator := o.gen.Load(), o.creator.Load()
		t := shm.Token(creator &^ passedOn)
		if gen&1 == 0 || t == 0 || o.words[nameWord].Load() != 0 {
			continue
		}
		if _, known := dead[t]; !known {
			_, dead[t] = w.s.region.Settled(t)
		}
		if !dead[t] {
			continue
		}
		b, err := w.s.baseOf(o, gen, shm.Offset(o.lock.Load()))
		if err != nil {
			return err
		}
		w.orphans[off] = &orphan{base: b, creator: creator}
	}
	return nil
}

// keep marks the orphans that somebody may know. If that cannot be found out, these are all that were ever passed on.
func (w *sweep) keep() error {
	alone, err := w.alone()
	passed := false
	for _, o := range w.orphans {
		if o.creator&passedOn != 0 {
			passed = true
			o.kept = err != nil || !alone
		}
	}
	if err != nil || !alone || !passed {
		return err
	}
	err = w.mark()
	if err != nil {
		for _, o := range w.orphans {
			o.kept = o.kept || o.creator&passedOn != 0
		}
	}
	return err
}

// alone reports whether no other process has the region open.
func (w *sweep) alone() (bool, error) {
	all, err := w.s.region.Attachments()
	if err != nil {
		return false, err
	}
	for _, a := range all {
		if a.Token != shm.Self() && a.Life != shm.Dead && !a.Closed {
			return false, nil
		}
	}
	return true, nil
}

// mark marks all orphans to which objects that stay refer.
func (w *sweep) mark() error {
	for _, off := range w.objects {
		if w.orphans[off] != nil {
			continue
		}
		o, err := shm.At[object](w.s.region, off)
		if err != nil {
			return err
		}
		if err := w.lookInto(off, o, o.gen.Load()); err != nil {
			return err
		}
	}
	for len(w.found) > 0 {
		o := w.found[len(w.found)-1]
		w.found = w.found[:len(w.found)-1]
		if err := w.lookInto(w.s.offsetOf(o.obj), o.obj, o.gen); err != nil {
			return err
		}
	}
	return nil
}

// lookInto looks for references in what an object has.
func (w *sweep) lookInto(off shm.Offset, o *object, gen uint64) error {
	k := kind(o.kind.Load())
	if gen&1 == 0 || k == kindNumber || k == kindAtomic {
		return nil // no room for one
	}
	b, err := w.s.baseOf(o, gen, shm.Offset(o.lock.Load()))
	if err != nil {
		return err
	}
	if k != kindRaw { // its lock is the user's
		switch err := b.lock(w.ctx, "Sweep"); {
		case errors.Is(err, shm.ErrStale):
			return nil
		case err != nil:
			return err
		}
		defer b.release()
	}
	switch k {
	case kindValue:
		return eachOfValue(w.s, o, w.look)
	case kindList:
		return eachOfList(w.s, o, w.look)
	case kindMap:
		return eachOfMap(w.s, o, w.look)
	case kindArray: // not the snapshot, nor the scratch
		return w.lookAtBlock(o.words[arrayData].Load())
	}
	return k.blocks(w.s, o, func(_ string, off uint64) error { return w.lookAtBlock(off) })
}

// lookAtBlock looks for references in a block, if there is one.
func (w *sweep) lookAtBlock(off uint64) error {
	n := w.sizes[shm.Offset(off)]
	if n == 0 { // made since
		return nil
	}
	p, err := addrAt(w.s.region, off, n)
	if err == nil {
		w.look(p, n)
	}
	return err
}

// look marks the orphans to which something in the n bytes at p refers: their offset with their generation behind it, on any boundary, as they
// stand in a Link and in an encoded handle.
func (w *sweep) look(p addr, n uint64) {
	const piece, overlap = 4096, 16
	var b [piece + overlap]byte
	for at := uint64(0); at < n; at += piece {
		part := b[:min(n-at, piece+overlap)]
		loadWords(part, plus(p, at))
		for i := 0; i+16 <= len(part); i++ {
			w.refer(binary.NativeEndian.Uint64(part[i:]), part[i+8:], binary.NativeEndian.Uint64)
			if bigEndian() {
				w.refer(binary.LittleEndian.Uint64(part[i:]), part[i+8:], binary.LittleEndian.Uint64)
			}
		}
	}
}

// bigEndian reports whether encoded handles have their bytes in another order than Links.
func bigEndian() bool { return binary.NativeEndian.Uint16([]byte{0, 1}) == 1 }

// refer marks the orphan at off, if there is one, and its generation is what follows.
func (w *sweep) refer(off uint64, gen []byte, load func([]byte) uint64) {
	if off%objectSize != 0 || off == 0 {
		return
	}
	if o := w.orphans[shm.Offset(off)]; o != nil && !o.kept && o.gen == load(gen) {
		o.kept = true
		w.found = append(w.found, o)
	}
}

// destroy destroys an orphan, unless somebody was faster, or has found it after all.
func (w *sweep) destroy(o *orphan) (done bool, err error) {
	err = o.lock(w.ctx, "Sweep")
	if errors.Is(err, shmsync.ErrInconsistent) && o.foreign() {
		if lock := w.orphans[shm.Offset(o.obj.lock.Load())-muOffset]; lock != nil && !lock.kept {
			err = o.mu.LockRepaired(w.ctx, func(shm.Death) error { return o.settle() }) // nobody will ever recover it
		}
	}
	switch {
	case errors.Is(err, shm.ErrStale):
		return false, nil
	case err != nil:
		return false, err
	}
	defer o.release() // the lock outlives the object
	if err := w.s.lockRoot(); err != nil {
		return false, err
	}
	defer w.s.root.mu.Unlock()
	if o.obj.gen.Load() != o.gen || o.obj.creator.Load() != o.creator || o.obj.words[nameWord].Load() != 0 ||
		kind(o.obj.kind.Load()) == kindRaw && o.obj.words[rawUsers].Load() != 0 {
		return false, nil
	}
	if err := w.s.destroyLocked(o.obj, o.gen); err != nil {
		return false, o.fail("Sweep", err)
	}
	return true, nil
}

// eachOfValue calls look with the value that is current. The lock is held.
func eachOfValue(s *space, o *object, look func(p addr, n uint64)) error {
	seq, stride := o.words[0].Load(), o.words[2].Load()
	p, err := addrAt(s.region, o.words[1].Load(), 2*stride)
	if err == nil && stride > s.region.Limit() {
		err = shm.ErrCorrupt
	}
	if err == nil {
		look(plus(p, seq&1*stride), stride)
	}
	return err
}

// eachOfList calls look with each element of a list. The lock is held.
func eachOfList(s *space, o *object, look func(p addr, n uint64)) error {
	d, err := dequeOf(s, o)
	if err != nil {
		return err
	}
	first, last, err := d.ends()
	if err == nil {
		err = d.holds(last - first)
	}
	if err != nil {
		return err
	}
	for v := first; v < last; v++ {
		p, err := d.slot(v)
		if err != nil {
			return err
		}
		if d.form() == formPlain {
			look(p, d.stride())
		} else if err := lookAtText(s, loadText(p), look); err != nil {
			return err
		}
	}
	return nil
}

// lookAtText calls look with the bytes of a string that are not in its slot, which is too short for a reference.
func lookAtText(s *space, slot [2]uint64, look func(p addr, n uint64)) error {
	off, n := blockOf(slot), slot[1]&textLength
	if off == 0 {
		return nil
	}
	p, err := addrAt(s.region, off, blockSize(n))
	if err == nil {
		look(p, n)
	}
	return err
}

// eachOfMap calls look with each key and value of a map. The lock is held.
func eachOfMap(s *space, o *object, look func(p addr, n uint64)) error {
	t, err := tableOf(s, o)
	if err != nil {
		return err
	}
	dir := o.words[mapDir].Load()
	if dir == 0 {
		return nil
	}
	for hash, more := uint64(0), true; more; {
		g, err := t.segment(dir, hash)
		if err != nil {
			return err
		}
		for group := range g.groups() {
			for ctl := g.control(group).Load() & ctlHigh; ctl != 0; ctl &= ctl - 1 {
				p := g.slot(group*groupSlots + uint64(bits.TrailingZeros64(ctl))>>3)
				if t.keyForm() == formPlain || t.valueForm() == formPlain {
					look(p, t.slotSize())
				}
				if err := first(lookAtText(s, t.keyText(p), look), lookAtText(s, t.valueText(p), look)); err != nil {
					return err
				}
			}
		}
		_, hash = g.bounds(hash)
		more = hash != 0
	}
	return nil
}
