package sync

import (
	"context"
	"errors"
	"structs"
	"sync/atomic"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
)

// A Once lets one goroutine of all processes do something, once for as long as its memory lasts. Its zero
// value is ready for use: nothing is done yet. It is 16 bytes and lives in a region, inside any struct, or
// outside of regions, where it works among the goroutines of its process. It must not be copied.
//
// That it is done is one word, which is stored once and never changes again. Who is about to do it holds a
// [Mutex]; so there is never more than one, and when its process dies the next in line begins anew.
type Once struct {
	_    structs.HostLayout
	mu   Mutex         // held while the function runs
	runs atomic.Uint32 // begun so far; guarded by mu
	done atomic.Uint32 // onceDone: final; stored with mu held
}

const onceDone = 1

var _ [16]byte = [unsafe.Sizeof(Once{})]byte{}

// Do calls fn if no call of Do for o has succeeded yet, and returns when one has: nil, or the error of its
// own fn. The others wait meanwhile. If fn fails or panics, Do returns its error or panics, nothing is done,
// and the next in line calls its own fn. So it is when the process dies that runs fn, at any instruction: fn
// has to bear that a part of it was done before; [Once.Runs] tells it.
//
// Other errors are the context's, [shm.ErrClosed], and those of a lock. What is done is done whatever the
// context. What fn did, in whatever process, synchronizes before the return of every Do that finds it done.
// A Do inside fn for the same o waits for ever. Once done, Do is one load.
func (o *Once) Do(ctx context.Context, fn func() error) error {
	if o.Done() {
		return nil
	}
	return o.doSlow(ctx, fn)
}

// Done reports whether a call of Do has succeeded.
func (o *Once) Done() bool {
	if o.done.Load() == 0 {
		return false
	}
	if raceEnabled {
		raceAcquire(&o.done)
	}
	return true
}

// Runs returns how often a function was begun so far, including one that runs now. A function that reads
// more than 1 knows that one before it failed, or died.
func (o *Once) Runs() int { return int(o.runs.Load()) }

func (o *Once) doSlow(ctx context.Context, fn func() error) (err error) {
	r, _, err := locate(o, "do once")
	if err != nil {
		return err
	}
	// What the dead left half done is for fn to see to, and it is told; so the lock is made consistent.
	if err := o.mu.LockRepaired(ctx, func(shm.Death) error { return nil }); err != nil {
		if !errors.Is(err, shm.ErrClosed) && o.Done() {
			return nil
		}
		return err
	}
	defer func() {
		closed := o.mu.unlockOpen()
		if closed == nil && r != nil && r.Closed() { // it was the zeros of now that we locked
			closed = closedError("do once", r)
		}
		if closed != nil {
			err = errors.Join(err, closed)
		}
	}()
	if !runsNow(o.done.Load()) {
		return nil
	}
	o.runs.Add(1)
	crash("once begun")
	if err := fn(); err != nil {
		return err
	}
	crash("once run")
	if raceEnabled {
		raceRelease(&o.done)
	}
	o.done.Store(onceDone)
	crash("once done") // the next in line finds it done, and the lock inconsistent
	return nil
}

// runsNow says whether one who holds the lock runs its function, by what done reads then.
func runsNow(done uint32) bool { return done == 0 }
