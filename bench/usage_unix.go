//go:build unix

package bench

import (
	"time"

	"golang.org/x/sys/unix"
)

// used returns what this process has used so far; -1 where that is not known.
func used() usage {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return usage{-1, -1}
	}
	return usage{time.Duration(u.Utime.Nano() + u.Stime.Nano()), int64(u.Nvcsw) + int64(u.Nivcsw)}
}
