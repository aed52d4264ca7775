//go:build !windows

package shm

// usualLimit is a matter of addresses, of which 64-bit processes have plenty.
const usualLimit = 64 << 30
