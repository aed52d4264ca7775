//go:build !unix

package bench

import "time"

// cpuTime returns the processor time that this process has used so far, or false where it is not known.
func cpuTime() (time.Duration, bool) { return 0, false }
