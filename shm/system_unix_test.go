//go:build unix

package shm_test

import (
	"os"
	"syscall"
	"testing"

	"github.com/shmkit/shmkit/shm/proc"
)

const (
	memory   = "/dev/shm"   // where files are memory, if the system has that
	procSelf = "/proc/self" // what it tells of this process, if it does
)

const (
	haveModes       = true  // what users may do with files is in their modes
	killsLeaveFiles = false // a process that is killed while it makes a region leaves a file
)

// cutRefused is what the system says of an attempt to cut anonymous memory.
const cutRefused = syscall.EPERM

// wholeFiles says that the file of a mapped region is as long as its limit.
const wholeFiles = false

func removeDir(dir string) { os.RemoveAll(dir) }

func canLimitFiles() error { return nil }

// limitFiles limits the size of files of this process.
func limitFiles(size uint64) (restore func() error, err error) {
	return limit(syscall.RLIMIT_FSIZE, size)
}

// limitMemory limits the private memory of this process.
func limitMemory(size uint64) (restore func() error, err error) {
	return limit(syscall.RLIMIT_DATA, size)
}

func limit(resource int, size uint64) (restore func() error, err error) {
	var was syscall.Rlimit
	if err := syscall.Getrlimit(resource, &was); err != nil {
		return nil, err
	}
	now := was
	set(&now.Cur, size)
	return func() error { return syscall.Setrlimit(resource, &was) }, syscall.Setrlimit(resource, &now)
}

// set is an assignment whose type depends on the system.
func set[T int64 | uint64](to *T, v uint64) { *to = T(v) }

// stop stops a process without ending it.
func stop(p *proc.Process) error { return syscall.Kill(p.PID(), syscall.SIGSTOP) }

func makePipe(path string) error { return syscall.Mkfifo(path, 0o600) }

// blocks returns how many blocks of 512 bytes a file has.
func blocks(tb testing.TB, path string) int64 {
	tb.Helper()
	info, err := os.Stat(path)
	if err != nil {
		tb.Fatal(err)
	}
	return int64(info.Sys().(*syscall.Stat_t).Blocks)
}
