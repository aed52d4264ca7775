//go:build !linux

package shm

// checkLocks does not tell here: where locks belong to processes, trying them would drop real ones.
func checkLocks(*mapping) error { return nil }
