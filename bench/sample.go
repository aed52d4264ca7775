package bench

import (
	"time"
)

// A Sample is what one round of one subject came to.
type Sample struct {
	Ops     int64         // operations in Elapsed
	Elapsed time.Duration // from the opening of the gate, or of the window; of waits: their sum

	Shares   []int64       // operations of each process or goroutine; nil: there is only one
	Waits    Waits         // of single operations, or of some of them; empty: not looked at
	Longest  time.Duration // the longest wait of all; 0: not looked at
	CPU      time.Duration // processor time of all processes; less than 0: not known
	Switches int64         // times that a processor went from one of their threads to another; less than 0: not known
	Total    int64         // operations that CPU and Switches are of, if those are not Ops

	Bytes int64              // moved by one operation, where that is the point
	Extra map[string]float64 // what only this kind of case has, by unit: "threads"
}

// NsPerOp returns the time for one operation.
func (s *Sample) NsPerOp() float64 { return float64(s.Elapsed) / float64(max(s.Ops, 1)) }

// A usage is what a process has used of the machine.
type usage struct {
	cpu      time.Duration
	switches int64
}

// since returns what was used after before, in the form of a Sample: -1 where it is not known.
func (u usage) since(before usage) (cpu time.Duration, switches int64) {
	if u.cpu < 0 || before.cpu < 0 {
		return -1, -1
	}
	return u.cpu - before.cpu, u.switches - before.switches
}
