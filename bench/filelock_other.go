//go:build !linux

package bench

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

var errNoFileLocks = fmt.Errorf("bench: locks on files are measured on Linux: %w", errors.ErrUnsupported)

func newLockFile() (*os.File, string, error) { return nil, "", errNoFileLocks }

func openFileLock(string, string) (sync.Locker, error) { return nil, errNoFileLocks }
