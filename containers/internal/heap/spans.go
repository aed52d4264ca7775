package heap

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// Between magazines and spans, and between spans and pages: inner operations, under the lock of a class and then, where pages change
// hands, that of the pages.

// span returns the descriptor of the span of class c that begins at a page, whose number was read from shared memory.
func (p *Heap) span(c int, page uint64) (*descriptor, error) {
	d, err := p.page(page)
	if err != nil {
		return nil, err
	}
	if k := d.kind.Load(); kindOf(k) != pageSpan || classOf(k) != c || d.mask.Load()&^classes[c].full() != 0 {
		return nil, fmt.Errorf("heap: page %d begins no span of %d bytes: %w", page, classes[c].size, shm.ErrCorrupt)
	}
	return d, nil
}

// fill puts blocks of class c into the empty magazine of l, half as many as fit.
func (p *Heap) fill(l *txn.Lane, c int) error {
	k, line, m := &classes[c], &p.h.classes[c], magazineOf(l, c)
	if err := p.Relieve(); err != nil {
		return err
	}
	return p.inner(l, &line.mu, func(held *locks) error {
		n, want := uint64(0), max(1, k.capacity/2)
		list := listed{next: line.head.Load()}
		var blocks [magazineMost]uint64
		for n < want && (n == 0 || l.InnerRoom() >= fillEntries) {
			page, d, err := p.pick(l, c, &list)
			if err == nil && d == nil {
				if n != 0 {
					break // the next fill goes on
				}
				page, d, err = p.share(l, c, &list, held)
			}
			if err != nil {
				return err
			}
			mask := d.mask.Load()
			for off := p.offsetOf(page); mask != 0 && n < want; n++ {
				i := bits.TrailingZeros64(mask)
				mask &= mask - 1
				blocks[n] = off + uint64(i)*k.size
			}
			if mask == 0 {
				if err := p.unlink(l, c, page, d); err != nil {
					return err
				}
			}
			if err := l.Inner(&d.mask, mask); err != nil {
				return err
			}
			if me := filler(l); k.apart && d.filler.Load() != me {
				txn.Put(&d.filler, me) // not undone: see descriptor
			}
		}
		// The first shall be the first to go: who takes one after the other goes up through memory.
		for i, off := range blocks[:n] {
			txn.Put(&m.slots[n-1-uint64(i)], off) // behind the end
		}
		return l.Inner(m.n, n)
	})
}

// fillEntries is more than what taking blocks out of one span logs, and their number.
const fillEntries = 8

// passMost is how many spans of others a fill passes by.
const passMost = 8

// filler is what the descriptor of a span says that l fills from.
func filler(l *txn.Lane) uint64 { return uint64(l.Slot()*txn.MaxLanes+l.Number()) + 1 }

// otherFills reports whether another lane fills from a span, as far as its descriptor tells: one of this process, or of another one that is
// attached.
func (p *Heap) otherFills(l *txn.Lane, d *descriptor) bool {
	by := d.filler.Load()
	if by == 0 || by == filler(l) {
		return false
	}
	slot := (by - 1) / txn.MaxLanes
	if slot >= shm.Slots {
		return false
	}
	if int(slot) == l.Slot() {
		return true
	}
	token, _ := p.r.Attached(int(slot))
	return token != 0
}

// listed is where a fill is in the list of its class.
type listed struct {
	next   uint64 // page of the span to look at next, +1; 0 none
	passed int    // spans of others
	page   uint64 // of those the one with the most free blocks
	best   *descriptor
	free   int
}

// pick returns the next span of class c in the list that nobody else fills from; nil if there is none, or too many of others are in front
// of it. Each span that it returns has a free block, so that no list is endless.
func (p *Heap) pick(l *txn.Lane, c int, list *listed) (page uint64, d *descriptor, err error) {
	for list.next != 0 && list.passed < passMost {
		page = list.next - 1
		if d, err = p.span(c, page); err != nil {
			return 0, nil, err
		}
		free := bits.OnesCount64(d.mask.Load())
		if free == 0 {
			return 0, nil, fmt.Errorf("heap: span at page %d is listed, and has no free block: %w", page, shm.ErrCorrupt)
		}
		list.next = d.link.Load() >> 32
		if !classes[c].apart || !p.otherFills(l, d) {
			return page, d, nil
		}
		list.passed++
		if free > list.free {
			list.page, list.best, list.free = page, d, free
		}
	}
	return 0, nil, nil
}

// share returns a span of class c for who has picked none: a new one as long as few are listed, and there are pages without growth;
// else one that somebody else fills from.
func (p *Heap) share(l *txn.Lane, c int, list *listed, held *locks) (page uint64, d *descriptor, err error) {
	if list.best == nil {
		return p.newSpan(l, c, held)
	}
	if list.passed < passMost {
		if err := held.lockPages(); err != nil {
			return 0, nil, err
		}
		if ok, err := p.spare(classes[c].pages); err != nil {
			return 0, nil, err
		} else if ok {
			page, d, err = p.newSpan(l, c, held)
			if !errors.Is(err, shm.ErrNoSpace) { // the system may refuse memory that was given back: nothing is logged then
				return page, d, err
			}
		}
	}
	return list.page, list.best, nil
}

// newSpan makes a span of class c, all of whose blocks are free, and lists it.
func (p *Heap) newSpan(l *txn.Lane, c int, held *locks) (page uint64, d *descriptor, err error) {
	k := &classes[c]
	if err := held.lockPages(); err != nil {
		return 0, nil, err
	}
	page, dirty, err := p.takePages(l, k.pages)
	if err != nil {
		return 0, nil, err
	}
	if d, err = p.page(page); err != nil {
		return 0, nil, err
	}
	if c == objectClass && dirty {
		b, err := p.r.Bytes(shm.Offset(p.offsetOf(page)), k.pages*pageSize)
		if err != nil {
			return 0, nil, err
		}
		txn.Clear(b)
	}
	// States mean nothing before the descriptors do.
	block, done, step := uint64(0), uint64(0), k.size/granule // in granules from the page on: the next block, and where the part begins
	err = p.eachPart(page, k.pages, func(s *segment, i, n uint64) error {
		states := s.states[i*(pageSize/granule):][:n*(pageSize/granule)]
		txn.Clear(states)
		for ; block < min(done+uint64(len(states)), k.blocks*step); block += step {
			txn.PutByte(&states[block-done], byte(c+1))
		}
		done += uint64(len(states))
		return nil
	})
	for i := uint64(1); i < k.pages && err == nil; i++ {
		var body *descriptor
		if body, err = p.page(page + i); err == nil {
			err = l.Inner(&body.kind, kindWord(pageBody, c, i))
		}
	}
	if err == nil {
		err = l.Inner(&d.kind, kindWord(pageSpan, c, 0))
	}
	if err == nil {
		err = l.Inner(&d.mask, k.full())
	}
	if err == nil {
		err = p.link(l, c, page, d)
	}
	return page, d, err
}

// link puts a span at the head of its class' list.
func (p *Heap) link(l *txn.Lane, c int, page uint64, d *descriptor) error {
	head := &p.h.classes[c].head
	next := head.Load()
	if next != 0 {
		n, err := p.span(c, next-1)
		if err != nil {
			return err
		}
		if err := l.Inner(&n.link, n.link.Load()&^(1<<32-1)|(page+1)); err != nil {
			return err
		}
	}
	if err := l.Inner(&d.link, next<<32); err != nil {
		return err
	}
	return l.Inner(head, page+1)
}

// unlink takes a span off its class' list.
func (p *Heap) unlink(l *txn.Lane, c int, page uint64, d *descriptor) error {
	link := d.link.Load()
	next, before := link>>32, link&(1<<32-1)
	if next != 0 {
		n, err := p.span(c, next-1)
		if err != nil {
			return err
		}
		if err := l.Inner(&n.link, n.link.Load()&^(1<<32-1)|before); err != nil {
			return err
		}
	}
	if before != 0 {
		b, err := p.span(c, before-1)
		if err != nil {
			return err
		}
		return l.Inner(&b.link, b.link.Load()&(1<<32-1)|next<<32)
	}
	if p.h.classes[c].head.Load() != page+1 {
		return fmt.Errorf("heap: span at page %d is not where the list of its class begins: %w", page, shm.ErrCorrupt)
	}
	return l.Inner(&p.h.classes[c].head, next)
}

// spanEntries is more than what giving blocks back to one span logs.
const spanEntries = 32

// drain puts blocks of class c back into their spans until the magazine of has no more than keep, by operations in l: those that lie
// together in the magazine and are of one span, as they are when they came out of it together, by one change of its mask. A span whose
// blocks are all free goes back to the pages; those of objects stay.
func (p *Heap) drain(l, of *txn.Lane, c int, keep uint64) error {
	k, line, m := &classes[c], &p.h.classes[c], magazineOf(of, c)
	if n, err := m.count(); n <= keep || err != nil {
		return err
	}
	return p.inner(l, &line.mu, func(held *locks) error {
		n, err := m.count()
		for n > keep && err == nil {
			var first uint64
			var d *descriptor
			var blocks uint64 // of the span at first
			left := n
			for ; left > keep; left-- {
				off := m.slots[left-1].Load()
				at, ok := p.find(off)
				if !ok || txn.GetByte(at.state) != byte(c+1) || classOf(at.kind) != c {
					return p.notIdle(off, c)
				}
				if d == nil {
					first = at.first
					if d, err = p.span(c, first); err != nil {
						return err
					}
					blocks = d.mask.Load()
				}
				if at.first != first {
					break
				}
				i := (off - p.offsetOf(first)) / k.size
				bit := uint64(1) << (i % 64)
				if blocks&bit != 0 || i >= k.blocks || off != p.offsetOf(first)+i*k.size {
					return fmt.Errorf("heap: offset %d is in a magazine, and free in its span: %w", off, shm.ErrCorrupt)
				}
				blocks |= bit
			}
			if err := p.giveSpan(l, c, first, d, blocks, held); err != nil {
				return err
			}
			if err := l.Inner(m.n, left); err != nil {
				return err
			}
			n = left
			if l.InnerRoom() < spanEntries {
				l.CommitInner()
			}
		}
		return err
	})
}

// giveSpan makes mask the free blocks of a span, which are more than before.
func (p *Heap) giveSpan(l *txn.Lane, c int, page uint64, d *descriptor, mask uint64, held *locks) error {
	old := d.mask.Load()
	if mask == classes[c].full() && c != objectClass {
		if old != 0 {
			if err := p.unlink(l, c, page, d); err != nil {
				return err
			}
		}
		return p.endSpan(l, c, page, held)
	}
	if old == 0 {
		if err := p.link(l, c, page, d); err != nil {
			return err
		}
	}
	return l.Inner(&d.mask, mask)
}

// endSpan gives the pages of a span back that is on no list.
func (p *Heap) endSpan(l *txn.Lane, c int, page uint64, held *locks) error {
	if err := held.lockPages(); err != nil {
		return err
	}
	for i := range classes[c].pages {
		d, err := p.page(page + i)
		if err != nil {
			return err
		}
		if err := l.Inner(&d.kind, 0); err != nil {
			return err
		}
	}
	return p.givePages(l, page, classes[c].pages)
}
