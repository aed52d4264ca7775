package heap

import (
	"fmt"
	"sync/atomic"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// What lanes need of the heap: see [txn.Blocks].

var _ txn.Blocks = (*Heap)(nil)

// A magazine is the part of a lane that keeps blocks of one class for the next operations there. Blocks in it are idle, and in no
// mask. The last one to come is the first to go.
type magazine struct {
	n     *atomic.Uint64  // how many there are
	slots []atomic.Uint64 // their offsets
}

func magazineOf(l *txn.Lane, c int) magazine {
	words, k := l.Private(), &classes[c]
	return magazine{&words[c], words[k.at:k.end]}
}

// count returns how many blocks there are.
func (m *magazine) count() (uint64, error) {
	n := m.n.Load()
	if n > uint64(len(m.slots)) {
		return 0, fmt.Errorf("heap: magazine with %d blocks, %d fit: %w", n, len(m.slots), shm.ErrCorrupt)
	}
	return n, nil
}

// laneWord returns the word that has the offset of a slot's control lines, or of a lane's memory, or of its log's extension more-1.
func (p *Heap) laneWord(slot, lane int) (*atomic.Uint64, error) {
	lane, more := lane&0xff, lane>>8
	if slot < shm.Slots && lane == laneLines && more == 0 {
		return p.r.Lanes(slot), nil
	}
	if slot < shm.Slots && lane < txn.MaxLanes && more <= txn.Extensions {
		w, err := txn.MemoryWord(p.r, slot, lane)
		if more > 0 {
			w, err = txn.MoreWord(p.r, slot, lane, more-1)
		}
		if w != nil || err != nil {
			return w, err
		}
	}
	return nil, fmt.Errorf("heap: memory for lane %d of slot %d: %w", lane, slot, shm.ErrCorrupt)
}

// laneOf returns which lane's memory begins at a page of that kind, as laneWord has it.
func laneOf(kind uint64) (slot, lane int) {
	return int(numberOf(kind) >> 16 & 0xffff), int(numberOf(kind) >> 32)
}

// Lines makes control lines for a slot: see [txn.Blocks].
func (p *Heap) Lines(slot int) error {
	lines := func() error { return p.bootPages(txn.LinesSize/pageSize, slot, laneLines) }
	return p.scarce(nil, lines(), lines)
}

// Memory makes the memory of a lane: see [txn.Blocks]. Only the first one of a process is worth a wait.
func (p *Heap) Memory(slot, lane int) error {
	memory := func() error { return p.bootPages(txn.MemorySize/pageSize, slot, lane) }
	err := memory()
	if lane == 0 {
		err = p.scarce(nil, err, memory)
	}
	return err
}

// More makes an extension of a lane's log: see [txn.Blocks].
func (p *Heap) More(l *txn.Lane, k int) error {
	more := func() error { return p.bootPages(1<<k, l.Slot(), l.Number()|(k+1)<<8) }
	return p.scarce(l, more(), more)
}

// take takes a block of class c out of the magazine of l, and notes it in the operation there.
func (p *Heap) take(l *txn.Lane, c int) (uint64, error) {
	m := magazineOf(l, c)
	n := m.n.Load()
	if n-1 >= uint64(len(m.slots)) {
		var err error
		if n, err = p.filled(l, c); err != nil {
			return 0, err
		}
	}
	off := m.slots[n-1].Load()
	at, ok := p.find(off)
	if !ok || txn.GetByte(at.state) != byte(c+1) {
		return 0, p.notIdle(off, c)
	}
	if err := l.Took(shm.Offset(off), n); err != nil {
		return 0, err
	}
	// crash here, and from here on: Taken
	txn.Put(m.n, n-1)
	txn.PutByte(at.state, byte(c+1)|stateLive)
	return off, nil
}

// filled fills the magazine of l that is empty, and returns how many blocks it has then.
//
//go:noinline
func (p *Heap) filled(l *txn.Lane, c int) (uint64, error) {
	m := magazineOf(l, c)
	n, err := m.count()
	if err == nil {
		err = p.fill(l, c)
	}
	if err != nil {
		return 0, err
	}
	if n = m.n.Load(); n == 0 || n > uint64(len(m.slots)) {
		return 0, fmt.Errorf("heap: magazine with %d blocks after it was filled: %w", n, shm.ErrCorrupt)
	}
	return n, nil
}

// Taken settles the taking of a block: see [txn.Blocks]. The state is the last that take stores, so a block that is not live is still
// where it was.
func (p *Heap) Taken(l *txn.Lane, e txn.Entry) (bool, error) {
	at, ok := p.find(uint64(e.At))
	if !ok {
		return false, p.noBlock("taken", uint64(e.At))
	}
	if at.live() {
		return true, nil // runs are taken by an inner operation, with the entry
	}
	m := magazineOf(l, classOf(at.kind))
	if n := m.n.Load(); e.Val == 0 || e.Val > uint64(len(m.slots)) || n != e.Val && n != e.Val-1 || m.slots[e.Val-1].Load() != uint64(e.At) {
		return false, p.noBlock("taken", uint64(e.At))
	}
	txn.Put(m.n, e.Val)
	return false, nil
}

// Give gives a live block back: see [txn.Blocks].
func (p *Heap) Give(l *txn.Lane, e txn.Entry, next uint64) error {
	at, ok := p.find(uint64(e.At))
	if !ok || !at.live() {
		return p.noBlock("free", uint64(e.At))
	}
	return p.give(l, uint64(e.At), at, next)
}

func (p *Heap) give(l *txn.Lane, off uint64, at place, next uint64) error {
	c := classOf(at.kind)
	if kindOf(at.kind) == pageRun {
		return p.giveRun(l, off, at, next)
	}
	m := magazineOf(l, c)
	n := m.n.Load()
	if n >= uint64(len(m.slots)) || c == objectClass {
		var err error
		if n, err = p.makeRoom(l, c, off); err != nil {
			return err
		}
	}
	txn.Put(&m.slots[n], off)
	txn.PutByte(at.state, byte(c+1))
	// crash here, and after the next: Given
	txn.Put(m.n, n+1)
	l.Step(next)
	return nil
}

// makeRoom prepares the magazine of l for a block, and returns how many it has.
//
//go:noinline
func (p *Heap) makeRoom(l *txn.Lane, c int, off uint64) (uint64, error) {
	m := magazineOf(l, c)
	n, err := m.count()
	if n == uint64(len(m.slots)) && err == nil {
		err = p.drain(l, l, c, n/2)
		n = m.n.Load()
	}
	if c == objectClass && err == nil {
		err = p.disown(off)
	}
	if n >= uint64(len(m.slots)) && err == nil {
		err = fmt.Errorf("heap: magazine with %d blocks after it was emptied: %w", n, shm.ErrCorrupt)
	}
	return n, err
}

// Given settles the return of a block: see [txn.Blocks]. One that is idle, and not counted in the magazine yet, lies behind its end.
func (p *Heap) Given(l *txn.Lane, e txn.Entry) (bool, error) {
	at, ok := p.find(uint64(e.At))
	if !ok {
		return false, p.noBlock("free", uint64(e.At))
	}
	if at.live() {
		return false, nil
	}
	m := magazineOf(l, classOf(at.kind))
	n, err := m.count()
	switch {
	case err != nil:
		return false, err
	case n > 0 && m.slots[n-1].Load() == uint64(e.At):
		return true, nil
	case n < uint64(len(m.slots)) && m.slots[n].Load() == uint64(e.At):
		txn.Put(m.n, n+1)
		return true, nil
	}
	return false, p.noBlock("free", uint64(e.At))
}

// Empty gives back what the magazines of a dead process' lane hold: see [txn.Blocks].
func (p *Heap) Empty(op, l *txn.Lane) error {
	for c := range classes {
		if err := p.drain(op, l, c, 0); err != nil {
			return err
		}
	}
	return nil
}

//go:noinline
func (p *Heap) notIdle(off uint64, c int) error {
	return fmt.Errorf("heap: magazine has offset %d, which is no idle block of %d bytes: %w", off, classes[c].size, shm.ErrCorrupt)
}

//go:noinline
func (p *Heap) noBlock(what string, off uint64) error {
	return fmt.Errorf("heap: %s offset %d, which is no block: %w", what, off, shm.ErrCorrupt)
}
