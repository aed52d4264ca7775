//go:build unix

package shm

import (
	"errors"
	"os"
	"syscall"
	"unsafe"

	"github.com/edsrzf/mmap-go"
	"golang.org/x/sys/unix"
)

// overlay puts private memory over a closed region that ended at end: whoever still reads or writes
// there neither faults nor reaches anybody. No pointer leads behind the end, and no memory is put
// there: limits on the memory of processes count it as if it were used.
func (m *mapping) overlay(end uint64) error {
	page := uint64(os.Getpagesize())
	used := min((end+page-1)&^(page-1), m.limit)
	lay := func(from, to uint64, prot int) error {
		if from == to {
			return nil
		}
		_, err := unix.MmapPtr(-1, 0, unsafe.Pointer(&m.mem[from]), uintptr(to-from),
			prot, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_FIXED|overlayFlags)
		return os.NewSyscallError("mmap", err)
	}
	return errors.Join(lay(0, used, unix.PROT_READ|unix.PROT_WRITE), lay(used, m.limit, unix.PROT_NONE))
}

// nameless reports whether a file has no name any more.
func nameless(f *os.File, _ string) (bool, error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Nlink == 0, nil
}

// afresh returns the file of a region that has its name now.
func afresh(f *os.File, _ string, _ os.FileInfo) *os.File { return f }

func removeFile(path string) error { return os.Remove(path) }

// mapShared maps n bytes of a file.
func mapShared(f *os.File, n uint64, readOnly bool) ([]byte, error) {
	prot := mmap.RDWR
	if readOnly {
		prot = mmap.RDONLY
	}
	return mmap.MapRegion(f, int(n), prot, 0, 0)
}

func unmap(mem []byte) {
	m := mmap.MMap(mem)
	m.Unmap()
}

func access(readOnly bool) int {
	if readOnly {
		return os.O_RDONLY
	}
	return os.O_RDWR
}

func openNew(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

func closedToOthers(info os.FileInfo) bool { return info.Mode().Perm()&0o077 == 0 }

func ownedByUs(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// tellsClosed reports whether an error says that a file is closed.
func tellsClosed(err error) bool { return errors.Is(err, os.ErrClosed) }

// isFull reports whether an error says that there is no room for a longer file.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}
