//go:build race

package heap

// raceEnabled: memory that lock-free readers of a freed block may still look at is then cleared with atomic
// stores only.
const raceEnabled = true
