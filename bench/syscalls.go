package bench

import (
	"context"
	"errors"
	"time"

	shmsync "github.com/shmkit/shmkit/sync"
)

// Syscalls asks how many system calls a call on a Mutex makes that nobody else wants. One thread of
// another process makes the calls, in several batches, and is traced. The answer is that of the best
// batch: a batch in which the scheduler interfered shows calls that the lock did not make, and a call
// that the lock makes is in every batch.
type Syscalls struct {
	Rounds int // calls in a batch
}

// A SyscallsResult says how many system calls one call makes.
type SyscallsResult struct {
	Call  string
	PerOp float64
}

// uncontended is the calls. Each leaves the lock free.
var uncontended = []struct {
	name string
	call func(mu *shmsync.Mutex)
}{
	{"Lock", func(mu *shmsync.Mutex) {
		mu.Lock()
		mu.Unlock()
	}},
	{"TryLock", func(mu *shmsync.Mutex) {
		if !mu.TryLock() {
			panic("TryLock refused a free lock")
		}
		mu.Unlock()
	}},
	{"LockTimeout", func(mu *shmsync.Mutex) {
		if !mu.LockTimeout(time.Second) {
			panic("LockTimeout refused a free lock")
		}
		mu.Unlock()
	}},
	{"LockContext", func(mu *shmsync.Mutex) {
		if err := mu.LockContext(context.Background()); err != nil {
			panic(err)
		}
		mu.Unlock()
	}},
	{"Do", func(mu *shmsync.Mutex) {
		if err := mu.Do(context.Background(), nothing); err != nil {
			panic(err)
		}
	}},
	{"TryLock.refused", func(mu *shmsync.Mutex) { // by a lock that is held
		mu.Lock()
		if mu.TryLock() {
			panic("TryLock took a held lock")
		}
		mu.Unlock()
	}},
	{Control, func(*shmsync.Mutex) { oneSyscall() }},
}

// Control is the name of a call that makes one system call: what the count must show of it.
const Control = "control"

func nothing() error { return nil }

// ErrNotTraced says that this system, or a filter in front of it, does not let processes be traced.
var ErrNotTraced = errors.New("bench: processes cannot be traced here")
