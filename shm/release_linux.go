package shm

import (
	"errors"
	"fmt"
	"os"
	"strings"
	stdsync "sync"

	"golang.org/x/sys/unix"
)

// punch gives the memory of n bytes at off back; they read as zeros, and the file stays as long as it is.
func punch(f *os.File, off, n uint64) error {
	for {
		switch err := fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n); err {
		case nil:
			return nil
		case unix.EINTR:
		case unix.EOPNOTSUPP, unix.ENOSYS:
			return fmt.Errorf("the file system cannot punch holes (%w): %w", err, errors.ErrUnsupported)
		default:
			return os.NewSyscallError("fallocate", err)
		}
	}
}

// holesReadable reports whether reading a hole of the mapped file f cannot fail. On a disk the page is one
// of zeros that all holes share. Where files are memory, reading takes memory as writing does.
func holesReadable(f *os.File) bool {
	var st unix.Statfs_t
	if err := control(f, func(fd int) error { return unix.Fstatfs(fd, &st) }); err != nil {
		return false
	}
	switch uint32(st.Type) {
	case unix.TMPFS_MAGIC: // anonymous regions too: their file system has no size
		return st.Blocks == 0 && !strictOvercommit()
	case unix.HUGETLBFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC: // of an overlay, the files may be in memory
		return false
	}
	return true
}

// strictOvercommit reports whether the system refuses memory for the sake of that which it has promised.
var strictOvercommit = stdsync.OnceValue(func() bool {
	mode, err := os.ReadFile("/proc/sys/vm/overcommit_memory")
	return err != nil || strings.TrimSpace(string(mode)) == "2"
})
