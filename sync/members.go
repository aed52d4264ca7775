package sync

import (
	"context"
	"math/bits"
	"structs"
	"sync/atomic"

	"github.com/shmkit/shmkit/shm"
)

// Members says which slots of the region have a say in an object: bit i of it is set if the holding that the
// process of slot i has for the object counts. So adding up the shares costs a look at those who ever had
// one, not at 256 slots; and what a process still holds for another object, that lay at the same place and is
// gone, does not count. A process sets the bit of its own slot, with the object's lock held.
type members struct {
	_    structs.HostLayout
	word [shm.Slots / 64]atomic.Uint64
}

func (m *members) has(slot int) bool { return m.word[slot/64].Load()&(1<<(slot%64)) != 0 }

// join makes the holding h, of this process in that slot, count: empty, if it did not before.
func (m *members) join(slot int, h *shm.Holding, key uint64) {
	if m.has(slot) {
		return
	}
	if v := h.Word.Load(); v&^shm.HoldingMask == key && v != key { // else its words are 0, or another object's
		for i := range h.Words {
			h.Words[i].Store(0)
		}
	}
	for v := h.Word.Load(); v&^shm.HoldingMask == key && v != key; v = h.Word.Load() {
		h.Word.CompareAndSwap(v, key) // ends: others only make it less
	}
	crash("cleared what was held before")
	m.word[slot/64].Or(1 << (slot % 64))
	crash("joined")
}

// each calls look with the holdings that count, of processes that live. A slot whose process is dead keeps its
// bit: whoever attaches there next has no holding yet, and does not clear it.
func (m *members) each(r *shm.Region, off shm.Offset, look func(h *shm.Holding)) {
	for i := range m.word {
		for set := m.word[i].Load(); set != 0; set &= set - 1 {
			if _, h := r.Share(64*i+bits.TrailingZeros64(set), off); h != nil {
				look(h)
			}
		}
	}
}

// clear makes nobody's holding count.
func (m *members) clear() {
	for i := range m.word {
		m.word[i].Store(0)
	}
}

// unharmed is the repair of a lock whose sections leave nothing half changed, wherever they are cut off.
func unharmed(shm.Death) error { return nil }

// enterSection takes such a lock. The sections are short, so nobody's deadline ends this; an error is [shm.ErrClosed].
func enterSection(m *Mutex) error { return m.LockRepaired(context.Background(), unharmed) }
