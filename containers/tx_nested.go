package containers

import (
	"errors"
	"reflect"
	"runtime"
	"sync/atomic"
)

// ErrNested is the answer of [Manager.Update] when it is called by the function of another Update.
var ErrNested = errors.New("Update inside an Update")

// An Update inside the function of another one would wait for ever for the locks that this has, and change what the outer one might
// not: it could not be undone with it. So it is refused, whatever the regions. A goroutine has no identity to remember it by, but its stack tells:
// the function of an Update is called by callUpdate. It is looked at only if some other Update is running in this process: else there is none to be inside of.

// updating is how many Updates this process is in.
var updating atomic.Int64

// enterUpdate is called when an Update begins, and returns an error if it must not. Else leaveUpdate is called when it ends.
func enterUpdate() error {
	if updating.Add(1) > 1 && inUpdate() {
		updating.Add(-1)
		return ErrNested
	}
	return nil
}

func leaveUpdate() { updating.Add(-1) }

// callUpdate calls the function of an Update.
//
//go:noinline
func callUpdate(tx *Tx, fn func(*Tx) error) error { return fn(tx) }

// inUpdate reports whether this goroutine is in the function of an Update. Some ns for each function on its stack.
func inUpdate() bool {
	var pcs [64]uintptr
	entry := reflect.ValueOf(callUpdate).Pointer()
	for skip := 2; ; skip += len(pcs) {
		n := runtime.Callers(skip, pcs[:])
		for _, pc := range pcs[:n] {
			if f := runtime.FuncForPC(pc - 1); f != nil && f.Entry() == entry { // of an inlined function: that of the one it is in
				return true
			}
		}
		if n < len(pcs) {
			return false
		}
	}
}
