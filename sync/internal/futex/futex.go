// Package futex lets a goroutine sleep until a word of memory changes, wherever the word is mapped and
// whichever process changes it: by the kernel's futex on Linux, by polling elsewhere and under the
// build tag futexpoll.
//
// Sleepers are not private to the process: the kernel knows a word of a mapped file by the file and
// the place in it. A sleeping goroutine holds a thread; who may sleep is the caller's affair.
package futex

// A Result says why a wait ended.
type Result int

const (
	Changed Result = iota // the word had another value before the sleep began
	Woken                 // by a wake, a signal, or for no reason
	Expired               // the time was over
)
