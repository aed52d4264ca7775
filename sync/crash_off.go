//go:build !crashpoints

package sync

// crash is where a process may be made to kill itself, between two steps that others can see: under the
// build tag crashpoints, for the tests.
func crash(string) {}
