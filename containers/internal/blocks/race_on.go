//go:build race

package blocks

// raceEnabled: memory that lock-free readers of a freed block may still look at is then cleared with atomic
// stores only.
const raceEnabled = true
