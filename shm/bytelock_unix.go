//go:build unix

package shm

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// lockByte locks a byte for f, and waits for it if told to.
func lockByte(f *os.File, pos int64, wait bool) (bool, error) {
	cmd := setLock
	if wait {
		cmd = setLockWait
	}
	err := flock(f, cmd, &unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: pos, Len: 1})
	if err == unix.EAGAIN || err == unix.EACCES {
		return false, nil
	}
	return err == nil, err
}

func unlockByte(f *os.File, pos int64) error {
	return flock(f, setLock, &unix.Flock_t{Type: unix.F_UNLCK, Whence: io.SeekStart, Start: pos, Len: 1})
}

// byteHeld reports whether somebody else than f has one of n bytes locked.
func byteHeld(f *os.File, pos, n int64) (bool, error) {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: pos, Len: n}
	err := flock(f, getLock, &l)
	return l.Type != unix.F_UNLCK, err
}

// othersHeld reports whether somebody else than f has the byte of a slot locked.
func othersHeld(f *os.File, _ int) (bool, error) { return byteHeld(f, slotByte(0), slotCount) }

func flock(f *os.File, cmd int, l *unix.Flock_t) error {
	return control(f, func(fd int) error {
		for {
			if err := unix.FcntlFlock(uintptr(fd), cmd, l); err != unix.EINTR {
				return err
			}
		}
	})
}

// control calls fn with the descriptor of f, which stays open meanwhile: closed in between, its number
// could be that of another region's file. If f is closed it returns [os.ErrClosed].
func control(f *os.File, fn func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if c.Control(func(fd uintptr) { err = fn(int(fd)) }) != nil {
		return os.ErrClosed // the only reason, and not told by this name
	}
	return err
}
