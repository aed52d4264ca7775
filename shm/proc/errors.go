package proc

import (
	"errors"
	"fmt"
)

// Beside these, [shm.ErrClosed] is what a closed [Process] returns, and [shm.ErrNotEncodable] what an
// argument that would be damaged on its way gets.
var (
	ErrNoMain      = errors.New("proc.Main was not called")         // a process started before Main, or a child that never came to it
	ErrDaemonChild = errors.New("a daemon may not start processes") // nobody would wait for them
	ErrRunning     = errors.New("the process is still running")     // Close came too early
)

var errNotStarted = errors.New("proc: a Process comes from Start; this one was never started")

// An ExitError says that a process ended with a code other than 0.
type ExitError struct {
	Name string
	PID  int
	Code int // of os.Exit, 1 for an error, 2 for a panic; the negative number of the signal that ended it
}

// Error names the process and says how it ended.
func (e *ExitError) Error() string {
	if e.Code < 0 {
		return fmt.Sprintf("proc: %s (pid %d) was ended by %s", e.Name, e.PID, signalName(-e.Code))
	}
	return fmt.Sprintf("proc: %s (pid %d) exited with code %d", e.Name, e.PID, e.Code)
}
