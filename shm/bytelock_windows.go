package shm

import (
	"os"

	"golang.org/x/sys/windows"
)

// Here locks belong to the handle. After a death the system may take a while to release them.

func lockByte(f *os.File, pos int64, wait bool) (bool, error) {
	flags := uint32(windows.LOCKFILE_EXCLUSIVE_LOCK)
	if !wait {
		flags |= windows.LOCKFILE_FAIL_IMMEDIATELY
	}
	err := windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, at(pos))
	if err == windows.ERROR_LOCK_VIOLATION || err == windows.ERROR_IO_PENDING {
		return false, nil
	}
	return err == nil, err
}

func unlockByte(f *os.File, pos int64) error {
	return windows.UnlockFileEx(windows.Handle(f.Fd()), 0, 1, 0, at(pos))
}

// byteHeld reports whether somebody has one of n bytes locked, by trying; locks of f count too.
func byteHeld(f *os.File, pos, n int64) (bool, error) {
	for i := range n {
		if ok, err := lockByte(f, pos+i, false); !ok || err != nil {
			return !ok, err
		}
		if err := unlockByte(f, pos+i); err != nil {
			return true, err
		}
	}
	return false, nil
}

// stillHeld reports whether a byte is held, by whomever: the system does not tell.
func stillHeld(query, _ *os.File, pos int64) bool {
	held, err := byteHeld(query, pos, 1)
	return held && err == nil
}

func at(pos int64) *windows.Overlapped {
	return &windows.Overlapped{Offset: uint32(pos), OffsetHigh: uint32(pos >> 32)}
}
