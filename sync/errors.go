package sync

import (
	"errors"
	"fmt"
	"os"

	"github.com/shmkit/shmkit/shm"
)

var (
	// ErrInconsistent says that a lock was not taken because its last holder died, or panicked,
	// with the data half changed. [Mutex.Recover] is the way in.
	ErrInconsistent = errors.New("sync: lock inconsistent")
	// ErrNotInconsistent is what Recover answers about a lock whose data nobody left half changed.
	ErrNotInconsistent = errors.New("sync: lock not inconsistent")
	// ErrMisuse is in the panic of a call that gives back what its process does not hold: see [MisuseError].
	ErrMisuse = errors.New("sync: misuse")
	// ErrMemberDied says that what is waited for cannot come: see [MemberDiedError].
	ErrMemberDied = errors.New("sync: member died")
)

// A MemberDiedError says that processes have died that answered for tasks of a [WaitGroup]. It is [ErrMemberDied].
type MemberDiedError struct {
	Lost        int // tasks that nobody will do
	Outstanding int // tasks that are not done, those included
}

// Error says how many tasks are lost, and what to do.
func (e *MemberDiedError) Error() string {
	return fmt.Sprintf("%v: %d of %d outstanding tasks are lost; take them with Take, or give them up with Done", ErrMemberDied, e.Lost, e.Outstanding)
}

// Unwrap returns [ErrMemberDied].
func (e *MemberDiedError) Unwrap() error { return ErrMemberDied }

// An OwnerDiedError says whose death left a lock inconsistent, as far as that is known. It is
// [ErrInconsistent] for [errors.Is].
type OwnerDiedError struct {
	Death shm.Death
	Err   error // of the handler that could not repair, or nil
}

// Error says who died and what to do.
func (e *OwnerDiedError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("sync: lock inconsistent: %v; the handler of shm.OnOwnerDied failed: %v", e.Death, e.Err)
	}
	return fmt.Sprintf("sync: lock inconsistent: %v; repair the data in Recover, or in a handler set by shm.OnOwnerDied", e.Death)
}

// Unwrap returns the handler's error.
func (e *OwnerDiedError) Unwrap() error { return e.Err }

// Is reports whether target is [ErrInconsistent].
func (e *OwnerDiedError) Is(target error) bool { return target == ErrInconsistent }

// A MisuseError is the panic value of a call that is a mistake whatever others do, such as an Unlock by a
// process that does not hold the lock; nothing has changed. It is [ErrMisuse].
type MisuseError struct {
	What   string    // was tried; empty: unlock of a lock that this process does not hold
	Holder shm.Token // of that lock instead; 0: nobody
}

// Error says what was tried, and who holds the lock instead.
func (e *MisuseError) Error() string {
	switch {
	case e.What != "":
		return fmt.Sprintf("%v: %s", ErrMisuse, e.What)
	case e.Holder == 0:
		return ErrMisuse.Error() + ": unlock of a lock that nobody holds"
	}
	return fmt.Sprintf("%v: unlock of a lock that process %v holds, not this one", ErrMisuse, e.Holder)
}

// Unwrap returns [ErrMisuse].
func (e *MisuseError) Unwrap() error { return ErrMisuse }

// errTimeout is how a wait with a limit ends when there is no context to ask.
var errTimeout = fmt.Errorf("sync: lock: %w", os.ErrDeadlineExceeded)

// closedError says that a wait was for something in a region that is closed now.
func closedError(what string, r *shm.Region) error { return closedIn(what, r.Name()) }

func closedIn(what, region string) error {
	return fmt.Errorf("sync: %s: region %s: %w", what, region, shm.ErrClosed)
}
