//go:build !linux

package bench

import (
	"errors"
	"sync/atomic"
)

// A FutexTurn passes a turn by the kernel's futex, which this system does not have.
type FutexTurn struct{}

// NewFutexTurn returns an error that is [errors.ErrUnsupported].
func NewFutexTurn(*atomic.Uint32) (FutexTurn, error) { return FutexTurn{}, errors.ErrUnsupported }

// Await does nothing.
func (FutexTurn) Await(party uint32) {}

// Leave does nothing.
func (FutexTurn) Leave(party uint32) {}
