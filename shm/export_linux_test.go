//go:build !futexpoll

package shm

import "weak"

// HangBell hangs the bell of r now, and reports whether this process rings any.
func HangBell(r *Region) bool {
	hangBellNow(weak.Make(r.m))
	return guardian.thread != 0
}

// Bells returns how many bells of this process hang.
func Bells() int {
	regions.mu.Lock()
	defer regions.mu.Unlock()
	return len(guardian.hung)
}
