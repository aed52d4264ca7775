//go:build !linux

package bench

import (
	"errors"
	"sync/atomic"
)

// A FutexWord is a word that a party sleeps by in the kernel's futex, which this system does not have.
type FutexWord struct{}

// NewFutexWord returns an error that is [errors.ErrUnsupported].
func NewFutexWord(*atomic.Uint32) (FutexWord, error) { return FutexWord{}, errors.ErrUnsupported }

// Set does nothing.
func (FutexWord) Set(uint32) {}

// Wait does nothing.
func (FutexWord) Wait(uint32) {}
