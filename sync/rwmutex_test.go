package sync_test

import (
	"sync/atomic"

	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A library is what the processes of a test of readers and writers share.
type library struct {
	rw     shmsync.RWMutex
	n      atomic.Int64 // changed with rw held for writing, twin after n
	twin   atomic.Int64
	_      [48]byte
	step   atomic.Int64 // the test's own word to its children
	ready  atomic.Int64
	reads  atomic.Int64
	writes atomic.Int64
	faults atomic.Int64
	inside atomic.Int64 // readers
	_      [16]byte
}

func libraryIn(r *shm.Region) *library {
	l, err := shm.At[library](r, r.Data()+8192)
	if err != nil {
		panic(err)
	}
	return l
}
