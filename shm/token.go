package shm

import (
	"fmt"
	"math/rand/v2"
)

// A Token names a process: 60 random bits above four zero bits, which lock words use for flags. It is
// never 0. A token is made when the process starts and is never used again by another one; pids are,
// and mean nothing in another pid namespace.
type Token uint64

const tokenFlags = 0xf // bits of a lock word that are not the token's

// self is this process' token. Making it asks nothing of the system.
var self = newToken()

func newToken() Token {
	for {
		// The low half is what a futex compares; it must not look like a free lock's.
		if t := Token(rand.Uint64()) &^ tokenFlags; uint32(t) != 0 {
			return t
		}
	}
}

// Self returns the token of this process.
func Self() Token { return self }

// String returns the token as 15 hexadecimal digits.
func (t Token) String() string { return fmt.Sprintf("%015x", uint64(t)>>4) }
