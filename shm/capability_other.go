//go:build !linux

package shm

// lookAround leaves the rest unknown: here nobody has looked.
func (r *Report) lookAround() {}
