//go:build !race

package sync

const raceEnabled = false

func raceAcquire[T any](*T)      {}
func raceRelease[T any](*T)      {}
func raceReleaseMerge[T any](*T) {}

func raceIgnore() {}
func raceHeed()   {}
