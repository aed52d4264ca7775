//go:build unix

package proc_test

import (
	"runtime/debug"
	"syscall"
)

const abortCode = -6

// abort ends the process by SIGABRT, as a crash does when told to, without a core file.
func abort() {
	syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
	debug.SetTraceback("crash")
	panic("abort")
}
