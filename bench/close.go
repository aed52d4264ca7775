package bench

import "sync"

var closers struct {
	sync.Mutex
	fns []func()
}

// onClose says what [Close] is to do.
func onClose(fn func()) {
	closers.Lock()
	defer closers.Unlock()
	closers.fns = append(closers.fns, fn)
}

// Close ends what peers have running for several cases. A program calls it before it ends, also when it was
// interrupted.
func Close() {
	closers.Lock()
	defer closers.Unlock()
	for _, fn := range closers.fns {
		fn()
	}
	closers.fns = nil
}
