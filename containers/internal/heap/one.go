package heap

import (
	"math/bits"
	"sync/atomic"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// The hot paths: one block out of a magazine, and one into it, in an operation of their own. They are take and give, with the lane
// entered and left, in as few instructions as it takes; whatever is not usual they leave to the others, before anything is stored.
// There is no deferred call: nothing here panics, unless the file was cut under the region, and then the region is gone.

// lookup returns the segment of the page table that has off, and the number of its granule there; nil if there is no such place, or
// this process has not seen the segment yet.
func (p *Heap) lookup(off uint64) (s *segment, g uint64) {
	page := (off - p.base) >> pageShift
	if page >= p.count.Load() || off%granule != 0 {
		return nil, 0
	}
	s = p.segments[bits.Len64(page/firstSegment)%32].Load()
	if g = (off-p.base)>>granuleShift - s.granules; g >= uint64(len(s.states)) {
		return nil, 0
	}
	return s, g
}

// allocOne is Alloc.
func allocOne[S any](p *Heap, n uint64) (shm.Offset, error) {
	if n > maxSmall || p.r.Closed() {
		return p.AllocAligned(n, granule)
	}
	l, err := p.lanes.Enter()
	if err != nil {
		return 0, err
	}
	c := classBySize[(n+granule-1)/granule]
	k := &classTable[c%64]
	words := l.Private()
	have := words[c].Load()
	if have-1 >= k.capacity {
		l.Release()
		return p.AllocAligned(n, granule)
	}
	off := words[(uint64(k.at)+have-1)&(txn.PrivateWords-1)].Load()
	s, g := p.lookup(off)
	if s == nil || txn.GetByte(&s.states[g]) != c+1 {
		l.Release()
		return p.AllocAligned(n, granule)
	}
	entry, val, word, turn := l.One()
	txn.PutAs[S](entry, off|txn.KindTook)
	txn.PutAs[S](val, have)
	// crash here: the entry does not count
	txn.PutAs[S](word, turn+txn.OneTook)
	// crash here, and from here on: Taken
	txn.PutAs[S](&words[c], have-1)
	txn.PutByteAs[S](&s.states[g], c+1|stateLive)
	if b := unsafe.Add(p.start, off); n <= granule {
		txn.ClearLine[S]((*[granule]byte)(b))
	} else {
		txn.Clear(unsafe.Slice((*byte)(b), (n+7)&^7))
	}
	txn.PutAs[S](word, turn+txn.OneDone)
	l.Done(turn + txn.OneDone)
	return shm.Offset(off), nil
}

// freeOne is Free.
func freeOne[S any](p *Heap, off shm.Offset) error {
	s, g := p.lookup(uint64(off))
	if s == nil || p.r.Closed() {
		return p.freeSlow(off)
	}
	state := txn.GetByte(&s.states[g])
	c := state&stateMask - 1
	// The descriptor is of a span of that class, or of another page of one.
	kind := s.pages[g/(pageSize/granule)].kind.Load() & 0xffff
	if state&stateLive == 0 || kind != pageSpan|uint64(c)<<8 && kind != pageBody|uint64(c)<<8 || c >= sizeClasses {
		return p.freeSlow(off)
	}
	l, err := p.lanes.Enter()
	if err != nil {
		return err
	}
	k := &classTable[c%64]
	words := l.Private()
	have := words[c].Load()
	if have >= k.capacity {
		l.Release()
		return p.freeSlow(off)
	}
	entry, _, word, turn := l.One()
	txn.PutAs[S](entry, uint64(off)|txn.KindFree)
	txn.PutAs[S](word, turn+txn.OneFree)
	txn.PutAs[S](&words[(uint64(k.at)+have)&(txn.PrivateWords-1)], uint64(off))
	txn.PutByteAs[S](&s.states[g], c+1)
	// crash here, and after the next: Given
	txn.PutAs[S](&words[c], have+1)
	txn.PutAs[S](word, turn+txn.OneDone)
	l.Done(turn + txn.OneDone)
	return nil
}

// Place stores data in a block of its own, the block's offset at ref, and v at word, as one operation: others who look at ref when
// word has v find the block, and who dies inside leaves word as it was, and no block. A lock guards both words, which the caller holds; what ref has does
// not matter to anybody before word has v. It returns false, word as it was, if that takes more than a block out of a magazine: then
// there is [Heap.AllocIn].
func (p *Heap) Place(data string, ref, word *atomic.Uint64, v uint64) bool {
	if uint64(len(data))-1 >= maxSmall || p.r.Closed() {
		return false
	}
	l, err := p.lanes.Enter()
	if err != nil {
		return false
	}
	if txn.OnStore != nil {
		return p.placeWatched(l, data, ref, word, v)
	}
	return placeOne[txn.Plain](p, l, data, ref, word, v)
}

// placeWatched is placeOne for tests, which may end it by a panic.
func (p *Heap) placeWatched(l *txn.Lane, data string, ref, word *atomic.Uint64, v uint64) (done bool) {
	cut := true
	defer func() {
		if cut {
			l.Rollback()
			l.Release()
		}
	}()
	done = placeOne[txn.Watched](p, l, data, ref, word, v)
	cut = false
	return done
}

// placeOne is Place.
func placeOne[S any](p *Heap, l *txn.Lane, data string, ref, word *atomic.Uint64, v uint64) bool {
	n := uint64(len(data))
	c := classBySize[(n+granule-1)/granule]
	k := &classTable[c%64]
	words := l.Private()
	have := words[c].Load()
	if have-1 >= k.capacity {
		var err error
		if have, err = p.filled(l, int(c)); err != nil { // AllocIn says why
			l.Leave()
			return false
		}
	}
	off := words[(uint64(k.at)+have-1)&(txn.PrivateWords-1)].Load()
	s, g := p.lookup(off)
	b := p.r.Pointer(shm.Offset(off), k.size)
	if s == nil || b == nil || txn.GetByte(&s.states[g]) != c+1 {
		l.Release()
		return false
	}
	entry, val, control, turn := l.One()
	txn.PutAs[S](entry, off|txn.KindTook)
	txn.PutAs[S](val, have)
	// crash here: the entry does not count
	txn.PutAs[S](control, turn+txn.OneTook)
	// crash here, and from here on: Taken, and the block goes back
	txn.PutAs[S](&words[c], have-1)
	txn.PutByteAs[S](&s.states[g], c+1|stateLive)
	txn.PutAs[S]((*atomic.Uint64)(unsafe.Add(b, (n-1)&^7)), 0) // nothing of its last user's behind data
	txn.CopyAs[S](unsafe.Slice((*byte)(b), n), data)
	txn.PutAs[S](ref, off)
	entry, val, later := l.OneLater(word)
	txn.PutAs[S](entry, later)
	txn.PutAs[S](val, v)
	txn.PutAs[S](control, turn+txn.OneRedo) // commits
	// crash here, and after the next: word is stored again
	txn.PutAs[S](word, v)
	txn.PutAs[S](control, turn+txn.OneDone)
	l.Done(turn + txn.OneDone)
	return true
}
