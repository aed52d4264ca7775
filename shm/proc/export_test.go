package proc

import "time"

// KillDelay changes how long SIGKILL waits.
func KillDelay(d time.Duration) Option {
	return func(o *options) { o.deadline = d }
}
