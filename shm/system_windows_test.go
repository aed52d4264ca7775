package shm_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/windows"

	"github.com/shmkit/shmkit/shm"
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

// removeDir takes the names of the regions in dir away first. A file that is in use cannot be deleted, and
// this process keeps its slot, and the file open, as long as the region has a name.
func removeDir(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		shm.Remove(e.Name(), shm.Dir(dir))
	}
	os.RemoveAll(dir)
}

func canLimitFiles() error { return errors.ErrUnsupported }

func limitFiles(uint64) (func() error, error)  { return nil, errors.ErrUnsupported }
func limitMemory(uint64) (func() error, error) { return nil, errors.ErrUnsupported }

func stop(*proc.Process) error { return nil }

func makePipe(string) error { return errors.ErrUnsupported }

func blocks(tb testing.TB, _ string) int64 {
	tb.Skip("this system does not tell the blocks of a file")
	return 0
}
