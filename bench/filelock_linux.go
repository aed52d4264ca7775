package bench

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A fileLock is a lock on a file, through a descriptor of one's own: what processes without shared memory
// lock with.
type fileLock struct {
	f   *os.File
	ofd bool // an OFD lock of the first byte, else flock
}

// newLockFile makes a file without a name, and returns the path by which this machine's processes can open it
// as long as it is open here.
func newLockFile() (*os.File, string, error) {
	f, err := os.CreateTemp("", "shmkit-bench-lock")
	if err != nil {
		return nil, "", err
	}
	return f, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()), os.Remove(f.Name())
}

// openFileLock opens that file anew: locks belong to what was opened.
func openFileLock(path, kind string) (*fileLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	return &fileLock{f, kind == OFD}, err
}

// Lock waits for the lock. A process whose file cannot be locked cannot go on: it panics.
func (l *fileLock) Lock() { l.change(unix.LOCK_EX, unix.F_WRLCK) }

// Unlock releases it.
func (l *fileLock) Unlock() { l.change(unix.LOCK_UN, unix.F_UNLCK) }

func (l *fileLock) change(how int, typ int16) {
	for {
		var err error
		if l.ofd {
			err = unix.FcntlFlock(l.f.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: typ, Len: 1})
		} else {
			err = unix.Flock(int(l.f.Fd()), how)
		}
		if err == nil {
			return
		}
		if err != unix.EINTR {
			panic("bench: lock a file: " + err.Error())
		}
	}
}
