package sync

import "github.com/shmkit/shmkit/shm"

// What this process remembers by address is true as long as the region is mapped there. These are told of a range
// of addresses that is given back, before another region may come to lie there. They do not call package shm.
var forgetters = [...]func(base, size uintptr){
	forgetShares,
	forgetStakes,
}

func init() {
	shm.SetForgetter(func(base, size uintptr) {
		for _, forget := range forgetters {
			forget(base, size)
		}
	})
}
