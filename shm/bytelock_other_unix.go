//go:build unix && !linux

package shm

import (
	"os"

	"golang.org/x/sys/unix"
)

// Here locks belong to the process, not to the description: closing any descriptor of the region's
// file drops them all. This package closes none while it may hold locks there; nobody else should.
const (
	setLock     = unix.F_SETLK
	setLockWait = unix.F_SETLKW
	getLock     = unix.F_GETLK
)

// stillHeld reports whether nobody else holds a byte. A process cannot see its own locks here.
func stillHeld(query, _ *os.File, pos int64) bool {
	held, err := byteHeld(query, pos, 1)
	return !held && err == nil
}
