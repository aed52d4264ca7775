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
// of pressure, and waits: every process that has a heap open looks at the word ten times in a second, and gives back what its lanes keep
// when it has changed. Who waits tries again each time when there is less in reserve than before, and is through when there is nothing.
// A process that has stopped gives nothing back before it goes on, and one that allocates all the time has always something: so the wait
// has an end, and an end that brought nothing is not waited for again at once. Of the dead what they kept comes back by the drain, which needs a lane; a process
// that has only the one it waits in, and no memory for another, clears up after them when it has left that.
//
// The wait has no context, since it is one of a few ticks: whoever allocates is in an operation, under the lock of what it changes, and leaves as soon
// as there is memory. What it costs is said where users look, with [shm.ErrNoSpace].

const (
	tick     = 100 * time.Millisecond // of a process that has a heap open
	patience = 5 * tick               // how long the reserves of others are waited for
	respite  = time.Second            // how long nobody is waited for after a wait that brought nothing
)

// scarce calls try, which has found no memory and returned err, again after memory was given back: first what this process keeps in reserve, then what
// others do. The operation that runs short is in l, nil if it has no lane yet.
func (p *Heap) scarce(l *txn.Lane, err error, try func() error) error {
	if !errors.Is(err, shm.ErrNoSpace) {
		return err
	}
	if p.relieve(l) == nil {
		err = try()
	}
	if errors.Is(err, shm.ErrNoSpace) {
		p.others(func() bool {
			err = try()
			return !errors.Is(err, shm.ErrNoSpace)
		})
	}
	return err
}

// relieve gives back what this process keeps in reserve, when memory runs short for an operation in l, and asks others to do so:
// see [Heap.Relieve].
func (p *Heap) relieve(l *txn.Lane) error {
	p.pressed.Store(p.r.Pressure().Add(1))
	if l == nil {
		return p.Flush()
	}
	return errors.Join(p.Empty(l, l), p.Flush())
}

// others sees to it that the dead are cleared up after, waits while other processes keep something in reserve, but not for long, and calls done
// whenever there is less of it than before, until that returns true.
func (p *Heap) others(done func() bool) {
	start := time.Now()
	if start.UnixNano() < p.respite.Load() {
		return
	}
	for before := ^uint64(0); ; time.Sleep(tick / 20) {
		p.r.Scan()
		left := p.reserves()
		if left < before && done() || left == 0 {
			return
		}
		if time.Since(start) > patience || p.r.Closed() {
			p.respite.Store(time.Now().Add(respite).UnixNano())
			return
		}
		before = left
	}
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
