//go:build !linux

package proc

import (
	"os"
)

// program returns what a child executes: the file that this program was started from.
func program() (string, error) { return os.Executable() }

func showName() {}

// kept are descriptors that are not needed, but closing one would drop this process' locks on the file,
// where locks belong to processes.
var kept []*os.File

// keep decides about the descriptor of a region that is attached.
func keep(f *os.File) { kept = append(kept, f) }
