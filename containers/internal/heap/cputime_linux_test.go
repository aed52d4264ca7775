package heap

import (
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime returns the processor time that this thread has used.
func cpuTime() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}
