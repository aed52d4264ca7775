package heap

import (
	"errors"
	"runtime/debug"
	"time"
	"weak"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// Pressure. Magazines keep blocks of which others may be in need. Whoever finds no memory gives back its own, raises the region's word
// of pressure, and waits for a tick: every process that has a heap open looks at the word ten times in a second, and gives back
// what its lanes keep when it has changed. A process that has stopped gives nothing back before it goes on; it is waited for
// once in a while only.

const (
	tick     = 100 * time.Millisecond // of a process that has a heap open
	patience = 5 * tick               // how long the reserves of others are waited for
	respite  = time.Second            // how long nobody is waited for after a wait that brought nothing
)

// relieve gives back what this process keeps in reserve, when memory runs short for an operation in l, and asks others to do so:
// see [Heap.Relieve].
func (p *Heap) relieve(l *txn.Lane) error {
	p.pressed.Store(p.r.Pressure().Add(1))
	return errors.Join(p.Empty(l, l), p.Flush())
}

// others waits until no other process keeps anything in reserve, but not for long, and reports whether there is less of it than before.
func (p *Heap) others() bool {
	now := time.Now()
	if now.UnixNano() < p.respite.Load() {
		return false
	}
	before := p.reserves()
	for left := before; left > 0; left = p.reserves() {
		if time.Since(now) > patience || p.r.Closed() {
			break
		}
		time.Sleep(tick / 20)
	}
	if p.reserves() < before {
		return true
	}
	if before > 0 {
		p.respite.Store(time.Now().Add(respite).UnixNano())
	}
	return false
}

// reserves returns how many bytes the magazines of other processes have, as far as can be seen while they go on.
func (p *Heap) reserves() (bytes uint64) {
	for slot := range shm.Slots {
		if slot == p.slot || p.r.Lanes(slot).Load() == 0 {
			continue
		}
		txn.Look(p.r, slot, p, func(l *txn.Lane) error {
			for c := range classes {
				m := magazineOf(l, c)
				if n, err := m.count(); err == nil && c != objectClass {
					bytes += n * classes[c].size
				}
			}
			return nil
		})
	}
	return bytes
}

// Relieve gives back what this process keeps in reserve if another one has asked for that, because memory ran short, since the last
// call. Some ns if nobody asked.
func (p *Heap) Relieve() error {
	press := p.r.Pressure().Load()
	if p.pressed.Swap(press) == press {
		return nil
	}
	return p.Flush()
}

// attend relieves a heap at each tick until its region is closed, or nobody has the heap any more.
func attend(r *shm.Region, w weak.Pointer[Heap]) {
	debug.SetPanicOnFault(true)
	defer func() { recover() }() // the file was cut: there is nothing to give back
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-r.Done():
			return
		case <-t.C:
		}
		p := w.Value()
		if p == nil {
			return
		}
		if r.Pin() { // else it is closed
			p.Relieve() // if that fails, so does the next operation there, which says so
			r.Unpin()
		}
	}
}
