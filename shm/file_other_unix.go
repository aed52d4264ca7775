//go:build unix && !linux

package shm

import (
	"fmt"
	"io/fs"
	"os"
	stdsync "sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const overlayFlags = 0

func sharedMemoryDir() (dir, instead string) { return os.TempDir(), "" }

func unnamedFile(dir string, mode fs.FileMode) (f *os.File, temporary string, err error) {
	f, temporary, err = temporaryFile(dir)
	if err != nil {
		return nil, "", err
	}
	if err := f.Chmod(mode); err != nil {
		f.Close()
		os.Remove(temporary)
		return nil, "", err
	}
	return f, temporary, nil
}

func nameFile(_ *os.File, temporary, path string) error { return os.Link(temporary, path) }

// anonymousFile makes a file under a name that no region can have; other processes open it by that
// name. It goes with the temporary directory.
func anonymousFile(*options) (f *os.File, path string, err error) {
	return temporaryFile(os.TempDir())
}

func openPath(path string, readOnly bool) (*os.File, error) {
	return os.OpenFile(path, access(readOnly)|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

// kept are descriptors of closed regions: closing one drops this process' locks on the file.
var kept struct {
	mu    stdsync.Mutex
	files []*os.File
}

// dropFile keeps a region's file until the process ends.
func dropFile(f *os.File) error {
	kept.mu.Lock()
	defer kept.mu.Unlock()
	kept.files = append(kept.files, f)
	return nil
}

// fill does nothing: whether a file has holes is not told here.
func fill(*os.File, os.FileInfo, uint64, ...[2]uint64) error { return nil }

func reserve(f *os.File, off, n uint64) error {
	var l syscall.Rlimit
	if info, err := f.Stat(); err == nil && off+n <= uint64(info.Size()) {
		return nil // writing is what reserved it
	}
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &l); err == nil && off+n > uint64(l.Cur) {
		return fmt.Errorf("file of %d bytes, the limit of this process is %d (ulimit -f): %w", off+n, uint64(l.Cur), syscall.EFBIG)
	}
	return writeZeros(f, off, n)
}

func systemIdentity() identityRecord { return identityRecord{} }
