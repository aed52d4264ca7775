//go:build unix && !solaris && !aix

package bench

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// bareAttach makes the system calls without which no file is mapped and given up, and nothing else.
func bareAttach(path string) (time.Duration, error) {
	begin := time.Now()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	err = bareMap(fd)
	if e := unix.Close(fd); err == nil {
		err = os.NewSyscallError("close", e)
	}
	return time.Since(begin), err
}

func bareMap(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	mem, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	return os.NewSyscallError("munmap", unix.Munmap(mem))
}
