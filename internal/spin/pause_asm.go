//go:build amd64 || arm64

package spin

// Pause tells the processor n times that this is a spin loop.
//
//go:noescape
func Pause(n uint32)
