package shm

import (
	"fmt"
	"os"
	stdsync "sync"
	"sync/atomic"
)

// A Region is a handle on memory that processes share. Opening a region twice in one process gives two
// handles on one mapping; the region is closed when the last is. Any number of goroutines may use a
// handle at once.
type Region struct {
	m    *mapping
	once *stdsync.Once // of this handle's Close
}

// handle returns one more handle on m. regions.mu is held.
func (m *mapping) handle() *Region {
	m.handles++
	return &Region{m, new(stdsync.Once)}
}

// Close gives this handle up; more calls do nothing. With the last handle of the process the region
// is closed here: its addresses stay but are cut off from it, so that nothing faults, and calls on
// objects in it answer [ErrClosed]. Locks that this process holds in the region stay held until it
// ends: Close never takes itself for dead. Close does not remove the region.
func (r *Region) Close() (err error) {
	r.once.Do(func() {
		regions.mu.Lock()
		defer regions.mu.Unlock()
		r.m.handles--
		switch last := r.m.handles == 0; {
		case r.m.unseated.Load(), last && r.m.unseatLocked():
			err = errUnseated
		case last:
			err = r.m.closeLast()
		}
		if err != nil {
			err = r.m.fail("close", err)
		}
	})
	return err
}

// Dup returns one more handle on the region.
func (r *Region) Dup() (*Region, error) {
	regions.mu.Lock()
	defer regions.mu.Unlock()
	if r.m.closed.Load() {
		return nil, r.m.fail("open", ErrClosed)
	}
	if err := r.m.intact("open"); err != nil {
		return nil, err
	}
	return r.m.handle(), nil
}

// Closed reports whether the last handle of this process is closed.
func (r *Region) Closed() bool { return r.m.closed.Load() }

// Done returns a channel that is closed when the last handle of this process is.
func (r *Region) Done() <-chan struct{} { return r.m.done }

// Pin keeps the memory of r where it is until [Region.Unpin] is called: Close waits for that. It reports false, and
// does nothing, if r is closed already. It is for steps that belong together and take microseconds, like
// taking a lock and finding out whether that was in time.
func (r *Region) Pin() bool {
	r.m.pins.Add(1) // before the look: Close does these two the other way round
	if r.m.closed.Load() {
		r.m.pins.Add(-1)
		return false
	}
	return true
}

// Unpin takes back what a Pin that was true has done.
func (r *Region) Unpin() { r.m.pins.Add(-1) }

// File returns the region's open file, to be handed to another process; nil for a region of [Heap].
// It stays the region's: do not close it.
func (r *Region) File() *os.File { return r.m.file }

// Name returns the name, empty for a region without one.
func (r *Region) Name() string { return r.m.name }

// Path returns the path of the region's file, empty where it has none.
func (r *Region) Path() string { return r.m.path }

// ID returns what names the region for ever.
func (r *Region) ID() ID { return r.m.id }

// Size returns the size of the data area in bytes. Other processes may let it grow.
func (r *Region) Size() uint64 { return max(r.m.size(), dataStart) - dataStart }

// Limit returns how far the data area can grow, in bytes.
func (r *Region) Limit() uint64 { return r.m.limit - dataStart }

// Data returns the offset of the data area.
func (r *Region) Data() Offset { return dataStart }

// HashSeed returns the seed of hash functions for this region; it is the same in every process.
func (r *Region) HashSeed() uint64 { return r.m.seed }

// Root returns the header's word for the offset of the object from which all others are found.
func (r *Region) Root() *atomic.Uint64 { return &r.m.header.root }

// Grow makes the data area size bytes long, if it is not longer already; nothing moves, and every
// process may use the new end at once. The memory is really reserved: on a full file system Grow
// returns [ErrNoSpace], having changed nothing, and so it does beyond the limit.
func (r *Region) Grow(size uint64) error {
	if limit := r.m.limit - dataStart; size > limit {
		return r.m.fail("grow", fmt.Errorf("to %d bytes, its limit is %d: %w", size, limit, ErrNoSpace))
	}
	return r.m.grow(dataStart + size)
}

// Removed reports whether the region's name has been taken away: no process can open it any more. By
// [Remove], or by others: systemd clears /dev/shm of the files of a user who logs out (RemoveIPC=no in
// logind.conf keeps them; so does another directory). It is always true of anonymous regions.
func (r *Region) Removed() bool {
	if r.m.file == nil || r.m.closed.Load() {
		return true
	}
	is, err := nameless(r.m.file, r.m.path)
	return is || err != nil
}

// Exclusive runs fn while no other call of Exclusive on this region runs, in any process. The kernel
// ends the exclusion if the process dies inside: fn must find and finish, or replace, what an earlier
// call left half done. It is meant for set-up, not for speed.
func (r *Region) Exclusive(fn func() error) error {
	m := r.m
	if err := m.usable("exclusive"); err != nil {
		return err
	}
	m.seat.setting.Lock()
	defer m.seat.setting.Unlock()
	if m.file != nil {
		if _, err := m.seat.take(exclusiveByte, true); err != nil {
			return m.fail("exclusive", err)
		}
		defer m.seat.give(exclusiveByte)
	}
	if err := m.usable("exclusive"); err != nil { // while we waited
		return err
	}
	if err := m.intact("exclusive"); err != nil {
		return err
	}
	return fn()
}
