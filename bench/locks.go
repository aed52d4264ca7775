package bench

import (
	"fmt"
	"sync"
	"sync/atomic"

	shmsync "github.com/shmkit/shmkit/sync"
)

// The locks that cases compare.
const (
	Shmkit   = "shmkit"     // [shmsync.Mutex] in a region
	Futex    = "futex"      // [FutexLock] in a region: the floor
	Standard = "sync.Mutex" // in one process only: the peer
	Flock    = "flock"      // flock on a file
	OFD      = "OFD"        // a lock of the first byte of a file, of an open file description

	// Locks for readers and writers.
	ShmkitRW   = "shmkit.RWMutex" // [shmsync.RWMutex] in a region
	StandardRW = "sync.RWMutex"   // in one process only: the peer
	Loops      = "loops"          // no lock: everybody changes a word of its own, twice: the floor of reading
)

// Locks lists those of them that cases of any kind can use.
var Locks = []string{Shmkit, Futex, Standard}

// A lockset is one lock of each kind that works across processes, on cache lines of its own. What the
// lock guards lies beside it, as in a user's struct.
type lockset struct {
	_     [128]byte
	mu    shmsync.Mutex
	word  atomic.Uint32
	_     uint32
	data  int64 // guarded by the lock that the case uses
	stamp int64 // guarded too
	_     [96]byte
}

// locker returns the lock of that kind; a Standard one is the caller's own.
func (l *lockset) locker(kind string, own *sync.Mutex) (sync.Locker, error) {
	switch kind {
	case Shmkit:
		return &l.mu, nil
	case Futex:
		return NewFutexLock(&l.word)
	case Standard:
		return own, nil
	}
	return nil, fmt.Errorf("bench: unknown lock %q", kind)
}

// checkLock refuses what cannot be run here.
func checkLock(kind string, procs int) error {
	var l lockset
	if kind == Standard && procs > 1 {
		return fmt.Errorf("bench: %s works in one process, not in %d", kind, procs)
	}
	_, err := l.locker(kind, nil)
	return err
}
