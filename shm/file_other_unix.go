//go:build unix && !linux

package shm

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	stdsync "sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const overlayFlags = 0

func sharedMemoryDir() string { return os.TempDir() }

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

func reopen(f *os.File, path string) (*os.File, error) { return reopenMode(f, path, false) }

// reopenMode opens the file of f once more by its path, and makes sure that it is the same.
func reopenMode(f *os.File, path string, readOnly bool) (*os.File, error) {
	if path == "" {
		path = f.Name()
	}
	g, err := os.OpenFile(path, access(readOnly), 0)
	if err != nil {
		return nil, err
	}
	was, err1 := f.Stat()
	is, err2 := g.Stat()
	if err1 != nil || err2 != nil || !os.SameFile(was, is) {
		g.Close()
		return nil, fmt.Errorf("%s is another file now: %w", filepath.Base(path), fs.ErrNotExist)
	}
	return g, nil
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

// sparse does not tell here.
func sparse(os.FileInfo, uint64) bool { return false }

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
