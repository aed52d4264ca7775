//go:build unix && !solaris && !aix

package bench

import (
	"os"

	"golang.org/x/sys/unix"
)

// A FileLock is flock on a file of its own: what processes without shared memory lock with.
type FileLock struct{ f *os.File }

// NewFileLock returns a lock on a file that has no name any more.
func NewFileLock() (*FileLock, error) {
	f, err := os.CreateTemp("", "flock")
	if err != nil {
		return nil, err
	}
	return &FileLock{f}, os.Remove(f.Name())
}

// Lock waits for the lock.
func (l *FileLock) Lock() error { return l.flock(unix.LOCK_EX) }

// Unlock releases it.
func (l *FileLock) Unlock() error { return l.flock(unix.LOCK_UN) }

func (l *FileLock) flock(how int) error {
	for {
		if err := unix.Flock(int(l.f.Fd()), how); err != unix.EINTR {
			return os.NewSyscallError("flock", err)
		}
	}
}

// Close gives the lock up.
func (l *FileLock) Close() error { return l.f.Close() }
