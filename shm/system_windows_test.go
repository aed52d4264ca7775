package shm_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/windows"

	"github.com/shmkit/shmkit/shm/proc"
)

const (
	memory   = `C:\there is no such directory`
	procSelf = memory
)

const (
	haveModes       = false // what users may do with files is in their modes
	killsLeaveFiles = true  // a process that is killed while it makes a region leaves a file
)

// cutRefused is what the system says of an attempt to cut anonymous memory.
const cutRefused = windows.ERROR_USER_MAPPED_FILE

// wholeFiles says that the file of a mapped region is as long as its limit.
const wholeFiles = true

func canLimitFiles() error { return errors.ErrUnsupported }

func limitFiles(uint64) (func() error, error)  { return nil, errors.ErrUnsupported }
func limitMemory(uint64) (func() error, error) { return nil, errors.ErrUnsupported }

func stop(*proc.Process) error { return nil }

func makePipe(string) error { return errors.ErrUnsupported }

func blocks(tb testing.TB, _ string) int64 {
	tb.Skip("this system does not tell the blocks of a file")
	return 0
}
