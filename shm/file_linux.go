package shm

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const overlayFlags = unix.MAP_NORESERVE // address space only; the range may exceed the memory

// usualDir is where files are memory. Tests change it.
var usualDir = "/dev/shm"

// sharedMemoryDir returns where named regions lie unless told: memory, if the system offers that, and
// the temporary directory and why not if it does not.
func sharedMemoryDir() (dir, instead string) {
	if err := unix.Access(usualDir, unix.W_OK|unix.X_OK); err != nil {
		return os.TempDir(), fmt.Sprintf("%s: %v", usualDir, err)
	}
	return usualDir, ""
}

// unnamedFile makes a file in dir that has no name yet, so that a kill leaves nothing; where the file
// system cannot do that it returns a temporary name.
func unnamedFile(dir string, mode fs.FileMode) (f *os.File, temporary string, err error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, uint32(mode))
	if err == nil {
		f = os.NewFile(uintptr(fd), filepath.Join(dir, "unnamed"))
	} else if f, temporary, err = temporaryFile(dir); err != nil {
		return nil, "", err
	}
	if err := f.Chmod(mode); err != nil { // whatever the umask
		f.Close()
		if temporary != "" {
			os.Remove(temporary)
		}
		return nil, "", err
	}
	return f, temporary, nil
}

// nameFile gives f its name, unless there is a file of that name.
func nameFile(f *os.File, temporary, path string) error {
	if temporary != "" {
		return os.Link(temporary, path)
	}
	err := unix.Linkat(unix.AT_FDCWD, descriptor(f), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return &os.LinkError{Op: "link", Old: f.Name(), New: path, Err: err}
	}
	return nil
}

// anonymousFile makes a file that is not in any directory, and that nobody can shrink.
func anonymousFile(o *options) (f *os.File, path string, err error) {
	name := "shmkit-" + strconv.FormatUint(uint64(rand.Uint32()), 16)
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, "", fmt.Errorf("memfd_create: %w", err)
	}
	f = os.NewFile(uintptr(fd), name)
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		f.Close()
		return nil, "", fmt.Errorf("seal: %w", err)
	}
	return f, "", nil
}

// openPath opens a region's file. It follows no symbolic link at the path's end.
func openPath(path string, readOnly bool) (*os.File, error) {
	return os.OpenFile(path, access(readOnly)|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

// reopen opens the file of f once more: a description of its own, whose locks nobody else shares.
func reopen(f *os.File, _ string) (*os.File, error) { return reopenMode(f, "", false) }

func reopenMode(f *os.File, _ string, readOnly bool) (*os.File, error) {
	return os.OpenFile(descriptor(f), access(readOnly), 0)
}

// dropFile closes a region's file. Locks held through other descriptors stay.
func dropFile(f *os.File) error { return f.Close() }

func descriptor(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// reserve makes the file reach from off n bytes on at least, with memory or disk behind every byte.
// What was there stays. If it fails, memory that it has reserved is given back.
func reserve(f *os.File, off, n uint64) error {
	if err := checkFileSize(f, off+n); err != nil {
		return err
	}
	if err := checkRoom(f, n); err != nil {
		return err
	}
	step := uint64(64 << 20)
	for done := uint64(0); done < n; {
		k := min(step, n-done)
		switch err := fallocate(f, 0, off+done, k); err {
		case nil:
			done += k
		case unix.EINTR: // without effect; smaller steps get on between two signals
			step = max(step/2, 64<<10)
		case unix.EOPNOTSUPP:
			return writeZeros(f, off+done, n-done)
		default:
			if done > 0 {
				fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, done)
			}
			return os.NewSyscallError("fallocate", err)
		}
	}
	return nil
}

// checkRoom refuses at once what there is no room for. Where files are memory, the file system may
// promise more than the machine has; asking for that would not fail but wake the kernel's killer of
// processes. A small piece is not worth the question.
func checkRoom(f *os.File, n uint64) error {
	if n < 16<<20 {
		return nil
	}
	return roomFor(f, n)
}

// roomFor is checkRoom for pieces of any size.
func roomFor(f *os.File, n uint64) error {
	var st unix.Statfs_t
	if err := control(f, func(fd int) error { return unix.Fstatfs(fd, &st) }); err != nil {
		return nil // fallocate will tell
	}
	if free := st.Bavail * uint64(st.Bsize); st.Blocks > 0 && n > free {
		return fmt.Errorf("%d of %d bytes are free there: %w", free, st.Blocks*uint64(st.Bsize), unix.ENOSPC)
	}
	if int64(st.Type) != unix.TMPFS_MAGIC {
		return nil
	}
	if available, ok := memoryAvailable(); ok && n > available {
		return fmt.Errorf("the machine has %d bytes of memory available: %w", available, unix.ENOSPC)
	}
	return nil
}

// memoryAvailable returns the kernel's estimate of the memory that can be had without swapping.
func memoryAvailable() (bytes uint64, ok bool) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, false
	}
	_, rest, found := strings.Cut(string(data), "MemAvailable:")
	fields := strings.Fields(rest)
	if !found || len(fields) == 0 {
		return 0, false
	}
	kib, err := strconv.ParseUint(fields[0], 10, 54)
	return kib << 10, err == nil
}

func fallocate(f *os.File, mode uint32, off, n uint64) error {
	return control(f, func(fd int) error { return unix.Fallocate(fd, mode, int64(off), int64(n)) })
}

// fill puts memory or disk behind every byte of some parts of a file, of which each is a beginning and an
// end; elsewhere the file has up to so many bytes of it. It asks for room before it takes any. It never gives back
// what it took, as reserve does: there is data between the holes, and others may write to what was one.
func fill(f *os.File, info os.FileInfo, elsewhere uint64, parts ...[2]uint64) error {
	var need, has uint64
	for _, p := range parts {
		need += p[1] - p[0]
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		has = uint64(st.Blocks) * 512
	}
	if has >= need+elsewhere {
		return nil
	}
	if has < need {
		if err := roomFor(f, need-has); err != nil {
			return err
		}
	}
	for _, p := range parts {
		for at := p[0]; at < p[1]; {
			k := min(4<<20, p[1]-at) // small enough to get on between two signals
			switch err := fallocate(f, 0, at, k); err {
			case nil:
				at += k
			case unix.EINTR:
			case unix.EOPNOTSUPP: // such a file system makes no promise
				return nil
			default:
				return os.NewSyscallError("fallocate", err)
			}
		}
	}
	return nil
}

// checkFileSize refuses a longer file than the limit on the size of files allows: the kernel would send
// a signal that ends the program.
func checkFileSize(f *os.File, end uint64) error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &l); err != nil || end <= uint64(l.Cur) {
		return nil
	}
	if info, err := f.Stat(); err == nil && end <= uint64(info.Size()) {
		return nil
	}
	return fmt.Errorf("file of %d bytes, the limit of this process is %d (ulimit -f): %w", end, uint64(l.Cur), unix.EFBIG)
}

func systemIdentity() identityRecord {
	var id identityRecord
	if stat, err := os.ReadFile("/proc/self/stat"); err == nil {
		// The name, in parentheses, may contain anything; what follows it is fields 3 to 52.
		if fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); len(fields) > 19 {
			id.started, _ = strconv.ParseUint(fields[19], 10, 64)
		}
	}
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/pid", &st) == nil {
		id.pidns = st.Ino
	}
	if boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		hex := strings.ReplaceAll(strings.TrimSpace(string(boot)), "-", "")
		if len(hex) == 32 {
			id.boot[0], _ = strconv.ParseUint(hex[:16], 16, 64)
			id.boot[1], _ = strconv.ParseUint(hex[16:], 16, 64)
		}
	}
	return id
}
