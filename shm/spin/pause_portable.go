//go:build !amd64 && !arm64

package spin

// Pause does nothing for a while.
//
//go:noinline
func Pause(n uint32) {
	for range 8 * n {
	}
}
