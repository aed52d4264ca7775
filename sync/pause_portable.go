//go:build !amd64 && !arm64

package sync

// pause does nothing for a while.
//
//go:noinline
func pause(n uint32) {
	for range 8 * n {
	}
}
