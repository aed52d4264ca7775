//go:build !linux

package shm

import (
	"errors"
	"os"
)

// punch is not possible here.
func punch(*os.File, uint64, uint64) error { return errors.ErrUnsupported }

func holesReadable(*os.File) bool { return false }
