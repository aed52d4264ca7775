//go:build !linux

package heap

import "time"

var started = time.Now()

// cpuTime returns the time that has passed: as near as it gets here.
func cpuTime() time.Duration { return time.Since(started) }
