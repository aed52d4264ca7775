package shm_test

import (
	"errors"
	"testing"

	"github.com/shmkit/shmkit/shm/proc"
)

func limitFiles(uint64) (func() error, error)  { return nil, errors.ErrUnsupported }
func limitMemory(uint64) (func() error, error) { return nil, errors.ErrUnsupported }

func stop(*proc.Process) error { return nil }

func makePipe(string) error { return errors.ErrUnsupported }

func blocks(tb testing.TB, _ string) int64 {
	tb.Skip("this system does not tell the blocks of a file")
	return 0
}
