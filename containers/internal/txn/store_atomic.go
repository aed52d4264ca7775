//go:build !amd64 || race

package txn

import (
	"sync/atomic"
	"unsafe"
)

// On arm64 these are stores with release order, which are never joined into pairs; on 32-bit processors a plain store of a
// word would be two. The race detector wants to see them.

func put(p *atomic.Uint64, v uint64) { atomic.StoreUint64((*uint64)(unsafe.Pointer(p)), v) }

// A byte is never torn, and has no atomic operation. Between those who write it and those who look there is a lock or a
// lane; who only checks may come at any time.
//
//go:norace
func putByte(p *byte, v byte) { *p = v }

// GetByte loads a byte that others may be writing.
//
//go:norace
func GetByte(p *byte) byte { return *p }

// release gives up what p guards, in this process' own memory.
func release(p *atomic.Uint32) { p.Store(0) }
