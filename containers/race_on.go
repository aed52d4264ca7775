//go:build race

package containers

// raceEnabled: memory that lock-free readers may look at is then written with atomic stores only, and With
// hands out a private copy, so that the race detector has nothing to say about reads that are checked
// afterwards and thrown away.
const raceEnabled = true
