//go:build amd64 && !race

package txn

import (
	"sync/atomic"
	"unsafe"
)

// The processor keeps the order of stores, and an aligned one is never torn: a plain store is enough, and a fifth of the
// cost of an exchange.

func put(p *atomic.Uint64, v uint64) { *(*uint64)(unsafe.Pointer(p)) = v }

func putByte(p *byte, v byte) { *p = v }

// GetByte loads a byte that others may be writing.
func GetByte(p *byte) byte { return *p }

// release gives up what p guards, in this process' own memory.
func release(p *atomic.Uint32) { *(*uint32)(unsafe.Pointer(p)) = 0 }
