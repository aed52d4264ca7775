package shm

import (
	"os"

	"golang.org/x/sys/unix"
)

// Locks of an open file description go with its last descriptor, whatever thread or goroutine took
// them; a query through another description sees them, also from this process.
const (
	setLock     = unix.F_OFD_SETLK
	setLockWait = unix.F_OFD_SETLKW
	getLock     = unix.F_OFD_GETLK
)

// stillHeld reports whether lock holds a byte, which it once has locked. query is another description
// of the file.
func stillHeld(query, lock *os.File, pos int64) bool {
	if held, err := byteHeld(query, pos, 1); !held || err != nil {
		return false
	}
	// By whom? Locking again what is ours changes nothing.
	mine, err := lockByte(lock, pos, false)
	return mine && err == nil
}
