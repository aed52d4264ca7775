package proc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/windows"
)

// inherit makes cmd hand files on, and returns the numbers they have in the child: those of duplicates
// that may be inherited, and that done closes.
func inherit(cmd *exec.Cmd, files []*os.File) (numbers string, done func(), err error) {
	var handles []syscall.Handle
	var list []string
	done = func() {
		for _, h := range handles {
			syscall.CloseHandle(h)
		}
	}
	me := windows.CurrentProcess()
	for _, f := range files {
		var h windows.Handle
		if err := windows.DuplicateHandle(me, windows.Handle(f.Fd()), me, &h, 0, true, windows.DUPLICATE_SAME_ACCESS); err != nil {
			done()
			return "", nil, fmt.Errorf("duplicate the handle of %s: %w", f.Name(), err)
		}
		handles = append(handles, syscall.Handle(h))
		list = append(list, strconv.FormatUint(uint64(h), 10))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{AdditionalInheritedHandles: handles}
	return strings.Join(list, ","), done, nil
}

// inherited returns the handles of those numbers, which nobody else gets from now on.
func inherited(numbers string) (handles []uintptr, err error) {
	var errs []error
	for n := range strings.SplitSeq(numbers, ",") {
		h, err := strconv.ParseUint(n, 10, 64)
		if err == nil {
			err = windows.SetHandleInformation(windows.Handle(h), windows.HANDLE_FLAG_INHERIT, 0)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("handle %q: %w", n, err))
		}
		handles = append(handles, uintptr(h))
	}
	if len(errs) == 0 && len(handles) < 2 {
		errs = append(errs, errors.New("want two handles at least"))
	}
	return handles, errors.Join(errs...)
}

// readOnly reports whether a handle is for reading only, by writing nothing.
func readOnly(f *os.File) bool {
	var n uint32
	return windows.WriteFile(windows.Handle(f.Fd()), nil, &n, nil) == windows.ERROR_ACCESS_DENIED
}

// sendSignal ends the process, whatever the signal: there is no other here.
func sendSignal(p *os.Process, _ syscall.Signal) error {
	err := p.Kill()
	if errors.Is(err, syscall.EINVAL) { // what it says once it was waited for
		return os.ErrProcessDone
	}
	return err
}

// exitCode returns the code of a process that has ended, or the signal that it was sent instead of a
// bare end.
func exitCode(state *os.ProcessState, sent syscall.Signal) int {
	if code := state.ExitCode(); sent == 0 || code != 1 {
		return code
	}
	return -int(sent)
}

func signalName(n int) string {
	return fmt.Sprintf("signal %d (%v)", n, syscall.Signal(n))
}

// die ends this process as if by a signal.
func die(sig syscall.Signal) { os.Exit(128 + int(sig)) }
