//go:build !race

package sync

const raceEnabled = false

func raceAcquire(*Mutex) {}
func raceRelease(*Mutex) {}
