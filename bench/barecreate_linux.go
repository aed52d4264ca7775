package bench

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// bareCreate makes the system calls without which no memory is reserved, mapped and given up.
func bareCreate(size int64) error {
	fd, err := unix.MemfdCreate("bench", unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	err = unix.Fallocate(fd, 0, 0, size)
	var mem []byte
	if err == nil {
		mem, err = unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err == nil {
		err = unix.Munmap(mem)
	}
	return errors.Join(err, unix.Close(fd))
}
