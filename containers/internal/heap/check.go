package heap

import (
	"errors"
	"fmt"
	"math/bits"
	"runtime"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// Usage says what a heap holds, in bytes and blocks, each block with the size of its class or its pages.
type Usage struct {
	Size, Limit          uint64 // of the region's data area
	Used                 uint64 // by pages that are not free: Live + Cached + Free + Tables, objects, and what the cut of spans leaves over
	Live, LiveBlocks     uint64 // handed out, without objects
	Cached, CachedBlocks uint64 // in magazines, of this process and of others
	Free, FreeBlocks     uint64 // in spans
	FreePages            uint64 // bytes of free pages
	Largest              uint64 // run of free pages, in bytes: a block of so many fits without growth
	Released             uint64 // of FreePages: given back to the system
	Tables               uint64 // page table and lanes
	Objects              uint64 // object headers in use
	FreeObjects          uint64
	Owed, OwedBlocks     uint64 // blocks and objects that operations under way, or cut off, are still to free
	Classes              [classCount]ClassUsage
	Slots                map[int]uint64 // bytes in the magazines of each process that has some, by slot
	Exact                bool           // nothing changed during the walk
}

// ClassUsage is Usage for the blocks of one size.
type ClassUsage struct {
	Size                      uint64
	Spans, Live, Cached, Free uint64 // numbers
}

// Usage walks the heap. It holds all locks of the heap meanwhile; what is in magazines changes nevertheless where others are in operations.
func (p *Heap) Usage() (Usage, error) {
	u, _, err := p.walk(nil, nil)
	return u, err
}

// Check walks the heap and returns an error that names the first broken invariant and is [shm.ErrCorrupt]. It holds all locks of the
// heap meanwhile. Others may be in operations; if some go on all the time, which block is in which magazine remains unchecked.
func (p *Heap) Check() error {
	_, _, err := p.walk(nil, nil)
	return err
}

// Audit is Check that also compares the blocks that are live, objects included, with those that can be reached. For these it calls reach
// with all objects that are live; reach changes nothing, and is called again if something has changed meanwhile. exact reports whether a
// look was had while no operation was under way: else nothing was compared.
func (p *Heap) Audit(reach func(objects []shm.Offset) (map[shm.Offset]string, error)) (exact bool, err error) {
	u, _, err := p.walk(nil, reach)
	return u.Exact, err
}

// Each calls fn with the offset and the size of each live block, objects included, but those that operations are still to free. It is for
// comparing them with those that can be reached.
func (p *Heap) Each(fn func(off shm.Offset, size uint64, object bool)) error {
	_, _, err := p.walk(fn, nil)
	return err
}

type reachFunc = func(objects []shm.Offset) (map[shm.Offset]string, error)

func (p *Heap) walk(fn func(shm.Offset, uint64, bool), reach reachFunc) (u Usage, tries int, err error) {
	if err := p.lockAll(); err != nil {
		return u, 0, err
	}
	defer p.unlockAll()
	for tries = 1; ; tries++ {
		w := walker{p: p}
		before := w.words()
		err = w.all()
		lost := error(nil)
		if err == nil && reach != nil && before.quiet {
			lost = w.compare(reach)
		}
		if after := w.words(); before.quiet && before.sum == after.sum {
			if err == nil {
				err = w.exact()
			}
			if err == nil {
				err = lost
			}
			w.u.Exact = true
		} else if tries < 20 {
			runtime.Gosched()
			continue
		}
		if err == nil && fn != nil {
			for _, b := range w.live {
				if !w.owed[b.off] {
					fn(shm.Offset(b.off), b.size, b.object)
				}
			}
		}
		return w.u, tries, err
	}
}

// compare says which block is live and cannot be reached, or the other way round.
func (w *walker) compare(reach reachFunc) error {
	var objects []shm.Offset
	for _, b := range w.live {
		if b.object && !w.owed[b.off] {
			objects = append(objects, shm.Offset(b.off))
		}
	}
	reached, err := reach(objects)
	if err != nil {
		return err
	}
	for _, b := range w.live {
		switch _, ok := reached[shm.Offset(b.off)]; {
		case ok:
			delete(reached, shm.Offset(b.off))
		case w.owed[b.off]:
		case b.object:
			return bad("object at offset %d is in use, and destroyed: it is lost", b.off)
		default:
			return bad("block at offset %d, of %d bytes, is in use, and nothing refers to it: it is lost", b.off, b.size)
		}
	}
	for off, what := range reached {
		return bad("%s: the block at offset %d is free", what, off)
	}
	return nil
}

func (p *Heap) lockAll() error {
	for c := range p.h.classes {
		if err := p.lock(&p.h.classes[c].mu); err != nil {
			for c--; c >= 0; c-- {
				p.h.classes[c].mu.Unlock()
			}
			return err
		}
	}
	if err := p.lock(&p.h.pages.mu); err != nil {
		for c := range p.h.classes {
			p.h.classes[c].mu.Unlock()
		}
		return err
	}
	return nil
}

func (p *Heap) unlockAll() {
	p.h.pages.mu.Unlock()
	for c := range p.h.classes {
		p.h.classes[c].mu.Unlock()
	}
}

type foundBlock struct {
	off, size uint64
	class     int
	object    bool
}

// A walker is one walk through a heap whose locks are held.
type walker struct {
	p        *Heap
	u        Usage
	live     []foundBlock
	cached   map[uint64]int  // blocks that are idle and in no mask, and their classes
	kept     map[uint64]bool // blocks in magazines
	owed     map[uint64]bool
	disowned []uint64                    // objects in use whose creator is 0
	moving   []uint64                    // of owed: perhaps half way into a magazine
	listed   [classCount]map[uint64]bool // spans with free blocks
}

func bad(format string, args ...any) error {
	return fmt.Errorf("heap: "+format+": %w", append(args, shm.ErrCorrupt)...)
}

// words sums up the control words of all lanes; quiet says that none is in the middle of something that changes a magazine.
func (w *walker) words() (v struct {
	sum   uint64
	quiet bool
}) {
	v.quiet = true
	for slot := range shm.Slots {
		txn.Look(w.p.r, slot, w.p, func(l *txn.Lane) error {
			word, inner := l.Words()
			v.sum = (v.sum ^ word) * 0x9e3779b97f4a7c15
			v.quiet = v.quiet && inner == 0 && !l.Changing()
			return nil
		})
	}
	return v
}

func (w *walker) all() error {
	p, h := w.p, &w.p.h.pages
	w.u = Usage{Size: p.r.Size(), Limit: p.r.Limit(), Slots: map[int]uint64{}}
	w.cached, w.kept, w.owed = map[uint64]int{}, map[uint64]bool{}, map[uint64]bool{}
	for c := range classes {
		w.listed[c] = map[uint64]bool{}
		w.u.Classes[c].Size = classes[c].size
	}
	if h.boot.Load() != 0 {
		return bad("pages are becoming a lane's, and nobody makes them")
	}
	count, err := p.recount()
	switch {
	case err != nil:
		return err
	case h.count.Load() != count:
		return bad("%d pages, this process has seen %d", h.count.Load(), count)
	case h.virgin.Load() > p.most: // above count after a growth that was cut off
		return bad("pages up to %d were in use, there is room for %d", h.virgin.Load(), p.most)
	}
	if count > 0 {
		w.u.Released = p.r.Released(shm.Offset(p.base), count*pageSize)
	}
	run := uint64(0)
	for page := uint64(0); page < count; {
		v, err := p.word(page/64, count)
		if err != nil {
			return err
		}
		d, err := p.page(page)
		if err != nil {
			return err
		}
		kind := d.kind.Load()
		if v>>(page%64)&1 == 1 {
			switch {
			case kind != 0:
				return bad("page %d is free and of kind %#x", page, kind)
			case page/64 < h.low.Load():
				return bad("page %d is free, and nothing is said to be below %d", page, h.low.Load()*64)
			}
			run++
			w.u.FreePages += pageSize
			w.u.Largest = max(w.u.Largest, run*pageSize)
			page++
			continue
		}
		run = 0
		n, err := w.used(page, count, d, kind)
		if err != nil {
			return err
		}
		if released := p.r.Released(shm.Offset(p.offsetOf(page)), n*pageSize); released > 0 {
			return bad("pages %d to %d are in use, and %d bytes of them given back", page, page+n, released)
		}
		w.u.Used += n * pageSize
		page += n
	}
	if err := w.lists(); err != nil {
		return err
	}
	return w.lanes()
}

// used looks at a span, run or whatever begins at a page that is not free, and returns how many pages it has.
func (w *walker) used(page, count uint64, d *descriptor, kind uint64) (n uint64, err error) {
	p := w.p
	n = numberOf(kind)
	switch kindOf(kind) {
	case pageSpan:
		if classOf(kind) >= classCount {
			return 0, bad("page %d begins a span of class %d", page, classOf(kind))
		}
		n = classes[classOf(kind)].pages
	case pageLane:
		n &= 0xffff
	case pageRun, pageMeta:
	default:
		return 0, bad("page %d is not free, belongs to nothing, and is of kind %#x", page, kind)
	}
	if n == 0 || n > count-page {
		return 0, bad("page %d begins %d pages of kind %#x, there are %d", page, n, kind, count)
	}
	for i := page; i < page+n; i++ {
		v, err := p.word(i/64, count)
		if err != nil {
			return 0, err
		}
		if v>>(i%64)&1 == 1 {
			return 0, bad("page %d is free, and belongs to the %d pages from %d on", i, n, page)
		}
		if b, err := p.page(i); err != nil {
			return 0, err
		} else if got := b.kind.Load(); i > page && kindOf(kind) == pageSpan && got != kindWord(pageBody, classOf(kind), i-page) ||
			i > page && kindOf(kind) != pageSpan && got != 0 {
			return 0, bad("page %d, of the %d pages from %d on, is of kind %#x", i, n, page, got)
		}
	}
	switch kindOf(kind) {
	case pageSpan:
		return n, w.span(page, classOf(kind), d)
	case pageRun:
		at, ok := p.find(p.offsetOf(page))
		if !ok || !at.live() {
			return 0, bad("run of %d pages at page %d in no live state", n, page)
		}
		w.live = append(w.live, foundBlock{off: p.offsetOf(page), size: n * pageSize})
		w.u.Live += n * pageSize
		w.u.LiveBlocks++
	case pageMeta:
		ok := false
		for k := range segmentCount {
			first, pages := segmentRange(k, p.most)
			ok = ok || first < count && p.h.pages.segments[k].Load() == p.offsetOf(page) && segmentPages(pages) == n
		}
		if !ok {
			return 0, bad("%d pages at page %d are no segment of the page table", n, page)
		}
		w.u.Tables += n * pageSize
	case pageLane:
		slot, lane := laneOf(kind)
		if word, err := p.laneWord(slot, lane); err != nil {
			return 0, err
		} else if word.Load() != p.offsetOf(page) {
			return 0, bad("%d pages at page %d are not those of lane %d of slot %d", n, page, lane, slot)
		}
		w.u.Tables += n * pageSize
	}
	return n, nil
}

func (w *walker) span(page uint64, c int, d *descriptor) error {
	p, k, mask := w.p, &classes[c], d.mask.Load()
	if mask&^k.full() != 0 {
		return bad("span at page %d has %d blocks, free are %#x", page, k.blocks, mask)
	}
	if mask != 0 {
		w.listed[c][page] = true
	}
	u := &w.u.Classes[c]
	u.Spans++
	for g := uint64(0); g < k.pages*pageSize/granule; g++ {
		i := g * granule / k.size
		s, err := p.seg(page + g*granule/pageSize)
		if err != nil {
			return err
		}
		state := txn.GetByte(&s.states[page*(pageSize/granule)+g-s.first*(pageSize/granule)])
		off := p.offsetOf(page) + g*granule
		switch {
		case i*k.size != g*granule || i >= k.blocks:
			if state != 0 {
				return bad("offset %d, inside a block or behind the last of a span, is in state %#x", off, state)
			}
		case state == byte(c+1)|stateLive && mask>>i&1 == 0:
			w.live = append(w.live, foundBlock{off, k.size, c, c == objectClass})
			if c != objectClass {
				w.u.Live, w.u.LiveBlocks = w.u.Live+k.size, w.u.LiveBlocks+1
			} else if o, err := shm.At[objectHead](p.r, shm.Offset(off)); err != nil {
				return err
			} else if o.creator.Load() == 0 {
				w.disowned = append(w.disowned, off)
			}
			u.Live++
		case state == byte(c+1) && mask>>i&1 == 0:
			w.cached[off] = c
			w.u.Cached, w.u.CachedBlocks = w.u.Cached+k.size, w.u.CachedBlocks+1
			u.Cached++
		case state == byte(c+1):
			w.u.Free, w.u.FreeBlocks = w.u.Free+k.size, w.u.FreeBlocks+1
			u.Free++
		default:
			return bad("block at offset %d, of %d bytes, is in state %#x, and %d in the mask of its span", off, k.size, state, mask>>i&1)
		}
	}
	if c == objectClass {
		w.u.FreeObjects += uint64(bits.OnesCount64(mask))
	}
	return nil
}

// lists looks whether the list of each class has all its spans with free blocks, and no others.
func (w *walker) lists() error {
	for c := range classes {
		before := uint64(0)
		for at := w.p.h.classes[c].head.Load(); at != 0; {
			if !w.listed[c][at-1] {
				return bad("the list of blocks of %d bytes has page %d, where no span has free ones, or has it twice", classes[c].size, at-1)
			}
			delete(w.listed[c], at-1)
			d, err := w.p.page(at - 1)
			if err != nil {
				return err
			}
			link := d.link.Load()
			if link&(1<<32-1) != before {
				return bad("span at page %d comes behind page %d, and says %d", at-1, int64(before)-1, int64(link&(1<<32-1))-1)
			}
			before, at = at, link>>32
		}
		for page := range w.listed[c] {
			return bad("span at page %d has free blocks of %d bytes, and is on no list", page, classes[c].size)
		}
	}
	return nil
}

// lanes looks at what the lanes of all processes hold.
func (w *walker) lanes() error {
	for slot := range shm.Slots {
		err := txn.Look(w.p.r, slot, w.p, func(l *txn.Lane) error {
			for c := range classes {
				m := magazineOf(l, c)
				n, err := m.count()
				if err != nil {
					return err
				}
				for i := range n {
					off := m.slots[i].Load()
					if w.kept[off] {
						w.kept[0] = true // twice: wrong if nothing changed meanwhile
					}
					w.kept[off] = true
					w.u.Slots[slot] += classes[c].size
				}
			}
			return l.Owed(func(off shm.Offset, next bool) {
				w.owed[uint64(off)] = true
				if next {
					w.moving = append(w.moving, uint64(off))
				}
			})
		})
		if err != nil {
			return err
		}
	}
	for _, b := range w.live {
		if w.owed[b.off] {
			w.u.Owed, w.u.OwedBlocks = w.u.Owed+b.size, w.u.OwedBlocks+1
		}
		if b.object {
			w.u.Objects++
		}
	}
	w.u.FreeObjects += w.u.Classes[objectClass].Cached
	return nil
}

// exact looks at what holds when nothing has changed during the walk.
func (w *walker) exact() error {
	if w.kept[0] {
		return bad("a block is in two magazines")
	}
	for _, off := range w.moving {
		if _, idle := w.cached[off]; idle {
			delete(w.cached, off)
			delete(w.kept, off)
			delete(w.owed, off)
		}
	}
	for off, c := range w.cached {
		if !w.kept[off] {
			return bad("block at offset %d, of %d bytes, is neither live nor free nor in a magazine: it is lost", off, classes[c].size)
		}
		delete(w.kept, off)
	}
	for off := range w.kept {
		return bad("a magazine has offset %d, which is no idle block", off)
	}
	n := uint64(0)
	for _, b := range w.live {
		if w.owed[b.off] {
			n++
		}
	}
	if n != uint64(len(w.owed)) {
		return bad("operations are to free %d blocks, of which %d are live", len(w.owed), n)
	}
	for _, off := range w.disowned { // as it was during the walk: others may go on since
		if !w.owed[off] {
			return bad("object at offset %d is in use, and says it is free", off)
		}
	}
	return nil
}

// Flush gives back what the magazines of this process' lanes hold, but those of operations under way.
func (p *Heap) Flush() error {
	return p.lanes.Each(func(l *txn.Lane) error { return p.Empty(l, l) })
}

// Trim gives the memory of free pages back to the system, of all but short runs, and returns how many bytes that is. It is for when
// nobody reads what was freed any more, however shortly: see [shm.Region.ReadableHoles]. O(pages).
func (p *Heap) Trim() (bytes uint64, err error) {
	if err := p.Flush(); err != nil {
		return 0, err
	}
	if err := p.lock(&p.h.pages.mu); err != nil {
		return 0, err
	}
	defer p.h.pages.mu.Unlock()
	count, err := p.recount()
	if err != nil {
		return 0, err
	}
	// The longest first: the region notes no more than so many.
	for most, least := uint64(1)<<40, max(releaseMin/pageSize, 1); least >= max(releaseMin/16/pageSize, 1); most, least = least, least/4 {
		for from := uint64(0); ; {
			first, _, ok, err := p.search(least, from, count)
			if err != nil || !ok {
				if err != nil {
					return bytes, err
				}
				break
			}
			n := least
			for first+n < count {
				v, err := p.word((first+n)/64, count)
				if err != nil {
					return bytes, err
				}
				if v>>((first+n)%64)&1 == 0 {
					break
				}
				n++
			}
			if n < most {
				given, err := p.r.Release(shm.Offset(p.offsetOf(first)), n*pageSize)
				bytes += given
				if err != nil && !errors.Is(err, shm.ErrNoSpace) {
					return bytes, err
				}
			}
			from = first + n
		}
	}
	return bytes, nil
}
