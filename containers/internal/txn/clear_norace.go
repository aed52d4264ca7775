//go:build !race

package txn

func clearLine(b *[64]byte) { *b = [64]byte{} }

func clearBytes(b []byte) { clear(b) }

func copyBytes(b []byte, data string) { copy(b, data) }
