//go:build !unix || solaris || aix

package bench

import "errors"

// A FileLock is flock on a file of its own, which this system does not have.
type FileLock struct{}

// NewFileLock returns an error that is [errors.ErrUnsupported].
func NewFileLock() (*FileLock, error) { return nil, errors.ErrUnsupported }

// Lock does nothing.
func (*FileLock) Lock() error { return errors.ErrUnsupported }

// Unlock does nothing.
func (*FileLock) Unlock() error { return errors.ErrUnsupported }

// Close does nothing.
func (*FileLock) Close() error { return nil }
