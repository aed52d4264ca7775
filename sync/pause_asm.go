//go:build amd64 || arm64

package sync

// pause tells the processor n times that this is a spin loop.
//
//go:noescape
func pause(n uint32)
