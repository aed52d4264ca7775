//go:build amd64 || arm64

package spin

// Pause tells the processor n times that this is a spin loop: by PAUSE on amd64, 10 to 60 ns each, by YIELD on arm64, which takes about
// one. It lets a sibling thread run, and does not let the loop run ahead of the word it looks at.
//
//go:noescape
func Pause(n uint32)
