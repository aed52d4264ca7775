package containers

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// A slot of a list of strings or bytes has two words. Up to 15 bytes stand in the slot; its last byte is
// their number. More are in a block of their own:
//
//	short  bytes 0 to 7, the first lowest | bytes 8 to 14, number << 56
//	long   offset of the block            | number, outOfLine << 56
//
// Nothing marks an end: a string may hold any bytes, zeros too.
const (
	textSlot   = 16
	textInline = 15
	outOfLine  = 0x80
	textLength = 1<<56 - 1 // mask
)

// quickAppendText is quickAppend for a string, or bytes, whose block is at hand.
func quickAppendText(b base, data string) bool {
	if b.mu == nil || b.mu != &b.obj.mu || !b.mu.TryLockIdle() {
		return false
	}
	d := deque{b.s, b.obj, shapeOf(textSlot, formString)}
	last := d.o.words[listLast].Load()
	if d.o.gen.Load() == b.gen && !d.s.closed.Load() && last&d.mask() != 0 {
		if w := d.s.region.Pointer(chunkWord(d.o.words[listDir].Load(), last>>d.shift()), 8); w != nil {
			off := word(w, 0).Load() + last&d.mask()*textSlot
			if p := d.s.region.Pointer(shm.Offset(off), textSlot); p != nil && off&7 == 0 {
				done := true
				if len(data) > textInline {
					txn.Put(word(p, 1), uint64(len(data))|outOfLine<<56)
					done = d.s.heap.Place(data, word(p, 0), &d.o.words[listLast], last+1)
				} else {
					short := packShort(data)
					txn.Announce(p, textSlot)
					store(p, &short)
					txn.Put(&d.o.words[listLast], last+1) // commits
				}
				b.release()
				return done
			}
		}
	}
	b.mu.Unlock()
	return false
}

// packShort makes the slot for a short b.
func packShort[S ~string | ~[]byte](b S) [2]uint64 {
	var all [16]byte
	copy(all[:textInline], b)
	all[textInline] = byte(len(b))
	return [2]uint64{binary.LittleEndian.Uint64(all[:]), binary.LittleEndian.Uint64(all[8:])}
}

// packText makes the slot for b, and for a long b its block, in the operation in tx.
func packText[S ~string | ~[]byte](tx *txn.Lane, d deque, b S) (slot [2]uint64, err error) {
	n := len(b)
	if n <= textInline {
		return packShort(b), nil
	}
	size := blockSize(uint64(n))
	off, err := d.s.heap.AllocIn(tx, size, 8)
	if err != nil {
		return slot, err
	}
	p, err := addrOf(d.s.region, off, size)
	if err != nil {
		return slot, err
	}
	if raceEnabled {
		storeWords(p, []byte(b))
	} else {
		copy(viewOf[byte](p, n), b)
	}
	return [2]uint64{uint64(off), uint64(n) | outOfLine<<56}, nil
}

// blockOf returns the offset of the block that a slot refers to, 0 for none.
func blockOf(slot [2]uint64) uint64 {
	if slot[1]>>56 == outOfLine {
		return slot[0]
	}
	return 0
}

// blockIn returns the offset of the block that slot v refers to, 0 for none.
func (d deque) blockIn(v uint64) (uint64, error) {
	if d.form() == formPlain {
		return 0, nil
	}
	p, err := d.slot(v)
	if err != nil {
		return 0, err
	}
	return blockOf(loadText(p)), nil
}

func loadText(p addr) [2]uint64 { return [2]uint64{word(p, 0).Load(), word(p, 1).Load()} }

// text returns a copy of the bytes of the slot at p. still says whether what the caller knows of the list
// still holds: a block may be freed, and be anything, while it is copied. The caller asks again afterwards.
func (d deque) text(p addr, still func() bool) ([]byte, error) {
	slot := loadText(p)
	if !still() {
		return nil, errOvertaken
	}
	n := slot[1] & textLength
	switch tag := slot[1] >> 56; {
	case tag <= textInline:
		b := make([]byte, tag)
		for i := range b {
			b[i] = byte(slot[i>>3] >> (i & 7 * 8))
		}
		return b, nil
	case tag != outOfLine || n > d.s.region.Limit():
		return nil, errTextSlot
	}
	block, err := addrOf(d.s.region, shm.Offset(slot[0]), blockSize(n))
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if raceEnabled {
		loadWords(b, block)
	} else {
		copy(b, viewOf[byte](block, int(n)))
	}
	finishLoads()
	return b, nil
}

// Outcomes of an optimistic look at a slot. errOvertaken: a writer has changed the list meanwhile.
var (
	errOvertaken = errors.New("overtaken by a writer")
	errTextSlot  = fmt.Errorf("slot is neither a short string nor a long one: %w", shm.ErrCorrupt)
)
