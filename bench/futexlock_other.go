//go:build !linux

package bench

import (
	"errors"
	"sync/atomic"
)

// A FutexLock is a plain lock of three states on the kernel's futex, which this system does not have.
type FutexLock struct{}

// NewFutexLock returns an error that is [errors.ErrUnsupported].
func NewFutexLock(*atomic.Uint32) (FutexLock, error) { return FutexLock{}, errors.ErrUnsupported }

// Lock does nothing.
func (FutexLock) Lock() {}

// Unlock does nothing.
func (FutexLock) Unlock() {}
