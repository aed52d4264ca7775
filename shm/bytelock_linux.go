package shm

import "golang.org/x/sys/unix"

// Locks of an open file description go with its last descriptor, whatever thread or goroutine took
// them; a query through another description sees them, also from this process.
const (
	setLock     = unix.F_OFD_SETLK
	setLockWait = unix.F_OFD_SETLKW
	getLock     = unix.F_OFD_GETLK
)
