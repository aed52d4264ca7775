package heap

import (
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
		for n < want {
			var d *descriptor
			page := line.head.Load()
			var err error
			switch {
			case page != 0:
				page--
				d, err = p.span(c, page)
			case n == 0:
				page, d, err = p.newSpan(l, c, held)
			}
			if err != nil {
				return err
			}
			if d == nil || n != 0 && l.InnerRoom() < fillEntries {
				break
			}
			mask := d.mask.Load()
			for off := p.offsetOf(page); mask != 0 && n < want; n++ {
				i := bits.TrailingZeros64(mask)
				mask &= mask - 1
				txn.Put(&m.slots[n], off+uint64(i)*k.size) // behind the end
			}
			if mask == 0 {
				if err := p.unlink(l, c, page, d); err != nil {
					return err
				}
			}
			if err := l.Inner(&d.mask, mask); err != nil {
				return err
			}
		}
		return l.Inner(m.n, n)
	})
}

// fillEntries is more than what taking blocks out of one span logs, and their number.
const fillEntries = 8

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
	err = p.eachPart(page, k.pages, func(s *segment, i, n uint64) error {
		txn.Clear(s.states[i*(pageSize/granule):][:n*(pageSize/granule)])
		return nil
	})
	for i := uint64(0); i < k.blocks && err == nil; i++ {
		g := page*(pageSize/granule) + i*k.size/granule
		var s *segment
		if s, err = p.seg(g / (pageSize / granule)); err == nil {
			txn.PutByte(&s.states[g-s.first*(pageSize/granule)], byte(c+1))
		}
	}
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
