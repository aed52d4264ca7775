//go:build unix

package proc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// inherit makes cmd hand files on, and returns the numbers they have in the child.
func inherit(cmd *exec.Cmd, files []*os.File) (numbers string, done func(), err error) {
	list := make([]string, len(files))
	for i := range files {
		list[i] = strconv.Itoa(3 + i)
	}
	cmd.ExtraFiles = files
	return strings.Join(list, ","), func() {}, nil
}

// inherited returns the descriptors of those numbers, which nobody else gets from now on.
func inherited(numbers string) (fds []uintptr, err error) {
	var errs []error
	for n := range strings.SplitSeq(numbers, ",") {
		fd, err := strconv.Atoi(n)
		if err == nil {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC)
		}
		if err == nil && fd < 3 {
			err = errors.New("is a standard stream")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("descriptor %q: %w", n, err))
		}
		fds = append(fds, uintptr(fd))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if len(fds) < 2 {
		return nil, errors.New("want two descriptors at least")
	}
	unix.SetNonblock(int(fds[0]), true) // so that a goroutine waits for the pipe's end, not a thread
	return fds, nil
}

// readOnly reports whether a descriptor is for reading only.
func readOnly(f *os.File) bool {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_ACCMODE == unix.O_RDONLY
}

func sendSignal(p *os.Process, sig syscall.Signal) error { return p.Signal(sig) }

// exitCode returns the code of a process that has ended.
func exitCode(state *os.ProcessState, _ syscall.Signal) int {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return -int(ws.Signal())
	}
	return state.ExitCode()
}

func signalName(n int) string {
	if name := unix.SignalName(syscall.Signal(n)); name != "" {
		return name
	}
	return fmt.Sprintf("signal %d", n)
}

// die ends this process by a signal, with its default action.
func die(sig syscall.Signal) {
	signal.Reset(sig)
	syscall.Kill(os.Getpid(), sig)
	time.Sleep(time.Second) // it is under way to some thread
	os.Exit(128 + int(sig)) // blocked by a mask that this process was started with
}
