package heap

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// The pages of the heap. All of it needs the page lock.

// growMost is how many pages beyond what is asked for the heap grows by at most; up to there it doubles. What a region reserves
// is really taken.
const growMost = 64 << 20 / pageSize

// refusedMost is how often the system is asked for memory that was given back, before what needs some is passed over: it may refuse
// all of a large heap.
const refusedMost = 32

// word returns 64 bits of the map of free pages, those of pages that there are not as 0.
func (p *Heap) word(w, count uint64) (uint64, error) {
	s, err := p.seg(w * 64)
	if err != nil {
		return 0, err
	}
	v := s.bits[w-s.first/64].Load()
	if (w+1)*64 > count {
		v &= 1<<(count-w*64) - 1
	}
	return v, nil
}

// search returns the first of n free pages in a row, at or behind from, and whether there are. low is the first word that
// has free pages at all.
func (p *Heap) search(n, from, count uint64) (first, low uint64, ok bool, err error) {
	w := min(p.h.pages.low.Load(), (count+63)/64)
	low = w
	full := from <= w*64 // low is not known if the search begins behind it
	w = max(w, from/64)
	var run uint64
	for ; w*64 < count; w++ {
		v, err := p.word(w, count)
		if err != nil {
			return 0, 0, false, err
		}
		if w == from/64 {
			v &^= 1<<(from%64) - 1
		}
		switch v {
		case 0:
			run = 0
			if full {
				low = w + 1
			}
			continue
		case ^uint64(0):
			if run == 0 {
				first = w * 64
			}
			run += 64
		default:
			for b := uint64(0); b < 64; {
				rest := v >> b
				if rest&1 == 0 {
					run = 0
					if rest == 0 {
						break
					}
					b += uint64(bits.TrailingZeros64(rest))
					continue
				}
				k := min(uint64(bits.TrailingZeros64(^rest)), 64-b)
				if run == 0 {
					first = w*64 + b
				}
				run += k
				b += k
				if run >= n {
					break
				}
			}
		}
		full = false
		if run >= n {
			return first, low, true, nil
		}
	}
	return 0, low, false, nil
}

// spare reports whether there are n free pages in a row without growth.
func (p *Heap) spare(n uint64) (bool, error) {
	count, err := p.recount()
	if err != nil {
		return false, err
	}
	_, _, ok, err := p.search(n, 0, count)
	return ok, err
}

// seek finds n free pages in a row that have memory, and lets the heap grow if there are none. dirty says that they may have been
// written before.
func (p *Heap) seek(n uint64) (first, low uint64, dirty bool, err error) {
	h := &p.h.pages
	if n > p.most {
		return 0, 0, false, p.full(n, shm.ErrNoSpace)
	}
	grown, refused, why := false, 0, shm.ErrNoSpace
	for from := uint64(0); ; {
		count, err := p.recount()
		if err != nil {
			return 0, 0, false, err
		}
		first, lowest, ok, err := p.search(n, from, count)
		switch {
		case err != nil:
			return 0, 0, false, err
		case ok:
			if refused >= refusedMost && p.r.Released(shm.Offset(p.offsetOf(first)), n*pageSize) > 0 {
				from = first + 16
				continue
			}
			err := p.reserve(first, n)
			if err == nil {
				if from != 0 {
					lowest = h.low.Load()
				}
				dirty = first < h.virgin.Load() || p.offsetOf(first) < p.h.clean
				return first, lowest, dirty, nil
			}
			if !errors.Is(err, shm.ErrNoSpace) {
				return 0, 0, false, err
			}
			refused++
			from, why = first+16, err // given back, and the file system is full: others may have memory
		case grown:
			return 0, 0, false, p.full(n, why)
		default:
			grown = true
			if err := p.grow(n, count, why); err != nil {
				return 0, 0, false, err
			}
		}
	}
}

// full says what did not fit, and why: the limit, if that is [shm.ErrNoSpace] itself, or the file system.
func (p *Heap) full(pages uint64, why error) error {
	if why != shm.ErrNoSpace {
		return fmt.Errorf("heap: %d bytes do not fit: the region has %d, its limit is %d: %w", pages*pageSize, p.r.Size(), p.r.Limit(), why)
	}
	return fmt.Errorf("heap: %d bytes do not fit: the region has %d, its limit is %d; free something, or make it with a larger limit: %w",
		pages*pageSize, p.r.Size(), p.r.Limit(), why)
}

// takePages takes n pages, as part of the inner operation in l. They are to get descriptors in it.
func (p *Heap) takePages(l *txn.Lane, n uint64) (first uint64, dirty bool, err error) {
	first, low, dirty, err := p.seek(n)
	if err != nil {
		return 0, false, err
	}
	h := &p.h.pages
	if first+n > h.virgin.Load() {
		txn.Put(&h.virgin, first+n) // crash here: clean pages are cleared once more
	}
	if err := p.eachPart(first, n, func(s *segment, i, k uint64) error {
		return l.InnerBits(&s.bits[0], i, k, false)
	}); err != nil {
		return 0, false, err
	}
	if low != h.low.Load() {
		err = l.Inner(&h.low, low)
	}
	return first, dirty, err
}

// givePages gives n pages back, as part of the inner operation in l.
func (p *Heap) givePages(l *txn.Lane, first, n uint64) error {
	if err := p.eachPart(first, n, func(s *segment, i, k uint64) error {
		return l.InnerBits(&s.bits[0], i, k, true)
	}); err != nil {
		return err
	}
	if h := &p.h.pages; first/64 < h.low.Load() {
		return l.Inner(&h.low, first/64)
	}
	return nil
}

// eachPart calls fn with each segment that has some of n pages from first on, the first one's index there and how many.
func (p *Heap) eachPart(first, n uint64, fn func(s *segment, i, n uint64) error) error {
	for n > 0 {
		if !p.known(first + n - 1) {
			return fmt.Errorf("heap: pages %d to %d: %w", first, first+n, shm.ErrCorrupt)
		}
		s, err := p.seg(first)
		if err != nil {
			return err
		}
		k := min(n, s.first+s.n-first)
		if err := fn(s, first-s.first, k); err != nil {
			return err
		}
		first, n = first+k, n-k
	}
	return nil
}

// grow makes more pages, so that there are n free ones in a row at the end. All is written behind the pages that there are, and one
// store publishes it; a kill before that leaves at most a longer file, and the next growth writes it anew. why is what an error says
// if the limit does not allow it.
func (p *Heap) grow(n, count uint64, why error) error {
	h := &p.h.pages
	tail := uint64(0)
	for tail < count {
		v, err := p.word((count-tail-1)/64, count)
		if err != nil {
			return err
		}
		if v>>((count-tail-1)%64)&1 == 0 {
			break
		}
		tail++
	}
	// Segments of the page table lie in front of the pages that need them. Those for all that the region has already come at once, so
	// that none of them divides it; unless it would have to grow for them.
	last := segmentOf(max(count, 1) - 1)
	if count == 0 {
		last = -1
	}
	there := (end(p.r) - p.base) / pageSize
	need, meta, most := p.needed(last, count, n, min(tail, n), there)
	if need > there {
		need, meta, most = p.needed(last, count, n, min(tail, n), 0)
	}
	if need > p.most || need < count {
		return p.full(n, why)
	}
	goal := max(need, min(max(count+min(count, growMost), there), most))
	err := error(nil)
	if goal > there {
		if err = p.extend(goal); errors.Is(err, shm.ErrNoSpace) && goal > need {
			if goal = max(need, min(there, most)); goal > there {
				err = p.extend(goal)
			} else {
				err = nil
			}
		}
	}
	switch {
	case errors.Is(err, shm.ErrNoSpace):
		return p.full(n, err)
	case err != nil:
		return err
	}
	// Until count says otherwise nobody looks at what follows.
	at := count
	fresh := map[int]*segment{}
	for k := last + 1; at < count+meta; k++ {
		_, pages := segmentRange(k, p.most)
		s, err := p.segmentAt(k, p.offsetOf(at))
		if err != nil {
			return err
		}
		txn.Clear(s.memory)
		txn.Put(&h.segments[k], p.offsetOf(at))
		fresh[k] = s
		at += segmentPages(pages)
	}
	seg := func(page uint64) (*segment, error) {
		if s := fresh[segmentOf(page)]; s != nil {
			return s, nil
		}
		return p.seg(page)
	}
	for first := count; first < goal; {
		s, err := seg(first)
		if err != nil {
			return err
		}
		k := min(goal, s.first+s.n) - first
		txn.Clear(s.memory[s.at+(first-s.first)*descriptorSize:][:k*descriptorSize])
		txn.PutBits(&s.bits[0], first-s.first, k, true)
		first += k
	}
	at = count
	for k := last + 1; at < count+meta; k++ {
		_, pages := segmentRange(k, p.most)
		n := segmentPages(pages)
		for i := at; i < at+n; i++ {
			s, err := seg(i)
			if err != nil {
				return err
			}
			txn.PutBits(&s.bits[0], i-s.first, 1, false)
			if i == at {
				txn.Put(&s.pages[i-s.first].kind, kindWord(pageMeta, 0, n))
			}
		}
		at += n
	}
	if count/64 < h.low.Load() {
		txn.Put(&h.low, count/64)
	}
	if count+meta > h.virgin.Load() {
		txn.Put(&h.virgin, count+meta)
	}
	// crash here: the file is longer than the heap
	txn.Put(&h.count, goal) // publishes
	_, err = p.recount()
	return err
}

// needed returns how many pages there must be for n free ones in a row behind count, of which tail are there already, and for meta
// pages before them of those segments of the table behind the last that they and the first cover pages need. covered is where those
// segments end.
func (p *Heap) needed(last int, count, n, tail, cover uint64) (need, meta, covered uint64) {
	for need = count + n - tail; ; need = count + meta + n {
		more, k := uint64(0), last
		for ; k+1 < segmentCount; k++ {
			first, pages := segmentRange(k+1, p.most)
			if pages == 0 || first >= max(need, cover) {
				break
			}
			more += segmentPages(pages)
		}
		if more == meta {
			first, pages := segmentRange(max(k, 0), p.most)
			return need, meta, first + pages
		}
		meta = more
	}
}

// boot makes n pages the memory of a lane, or the control lines of a slot, and stores their offset in the word that speaks of
// them. There may be no lane yet to log it in, so the page lock has a word for it, and who takes the lock over finishes.
func (p *Heap) bootPages(n uint64, slot, lane int) (err error) {
	if !p.r.Pin() {
		return fmt.Errorf("heap: %w", shm.ErrClosed)
	}
	defer p.r.Unpin()
	if err := p.lock(&p.h.pages.mu); err != nil {
		return err
	}
	h := &p.h.pages
	defer func() {
		if h.boot.Load() != 0 {
			err = errors.Join(err, p.repairBoot())
		}
		p.h.pages.mu.Unlock()
	}()
	target, err := p.laneWord(slot, lane)
	if err != nil || target.Load() != 0 {
		return err
	}
	first, _, _, err := p.seek(n)
	if err != nil {
		return err
	}
	d, err := p.page(first)
	if err != nil {
		return err
	}
	b, err := p.r.Bytes(shm.Offset(p.offsetOf(first)), n*pageSize)
	if err != nil {
		return err
	}
	if first+n > h.virgin.Load() {
		txn.Put(&h.virgin, first+n)
	}
	txn.Put(&h.boot, n<<40|first+1)
	// crash here, and from here on: repairBoot
	if err := p.eachPart(first, n, func(s *segment, i, k uint64) error {
		txn.PutBits(&s.bits[0], i, k, false)
		return nil
	}); err != nil {
		return err
	}
	txn.Put(&d.kind, kindWord(pageLane, 0, n|uint64(slot)<<16|uint64(lane)<<32))
	txn.Clear(b)
	txn.Put(target, p.offsetOf(first)) // publishes
	txn.Put(&h.boot, 0)
	return nil
}

// repairBoot finishes what one who died with the page lock had begun: lane memory that is published stays, other is free again.
func (p *Heap) repairBoot() error {
	h := &p.h.pages
	boot := h.boot.Load()
	if boot == 0 {
		return nil
	}
	first, n := boot&(1<<40-1)-1, boot>>40
	d, err := p.page(first)
	if err != nil {
		return err
	}
	kind := d.kind.Load()
	if kindOf(kind) == pageLane {
		w, err := p.laneWord(laneOf(kind))
		if err != nil {
			return err
		}
		if w.Load() == p.offsetOf(first) {
			txn.Put(&h.boot, 0)
			return nil
		}
		txn.Put(&d.kind, 0)
	}
	if err := p.eachPart(first, n, func(s *segment, i, k uint64) error {
		txn.PutBits(&s.bits[0], i, k, true)
		return nil
	}); err != nil {
		return err
	}
	if first/64 < h.low.Load() {
		txn.Put(&h.low, first/64)
	}
	txn.Put(&h.boot, 0)
	return nil
}
