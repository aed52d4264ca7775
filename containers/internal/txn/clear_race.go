//go:build race

package txn

import (
	"sync/atomic"
	"unsafe"
)

// The detector wants to see that who still reads here does so on purpose.

func clearLine(b *[64]byte) { clearBytes(b[:]) }

func clearBytes(b []byte) {
	for i := 0; i < len(b); i += 8 {
		(*atomic.Uint64)(unsafe.Pointer(&b[i])).Store(0)
	}
}

func copyBytes(b []byte, data string) {
	for i := 0; i < len(data); i += 8 {
		var w [8]byte
		copy(w[:], data[i:])
		(*atomic.Uint64)(unsafe.Pointer(&b[i])).Store(*(*uint64)(unsafe.Pointer(&w)))
	}
}
