//go:build mips || mipsle || (arm && !arm.7)

package shm

import (
	"errors"
	"fmt"
	"runtime"
)

// checkShareable refuses regions that several processes map. These processors have no atomic access to
// 64 bits that Go's sync/atomic could use: it takes one of a table of locks instead, and the table is
// the process' own. [Heap] is for one process, where that is enough.
func checkShareable() error {
	return fmt.Errorf("shm: built for %s, where 64-bit atomics exclude only the goroutines of one process, regions cannot be shared"+
		" (on arm build with GOARM=7 or for arm64; Heap works): %w", runtime.GOARCH, errors.ErrUnsupported)
}
