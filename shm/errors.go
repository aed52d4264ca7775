package shm

import (
	"errors"
	"fmt"
	"strings"
)

// Beside these, errors of this package are Go's own where Go has a word: [io/fs.ErrExist],
// [io/fs.ErrNotExist], [io/fs.ErrInvalid] for names and sizes, [os.ErrDeadlineExceeded],
// [errors.ErrUnsupported].
//
// A call that stores something in a region, and finds no memory, asks all processes to give back what they keep in reserve before it
// returns ErrNoSpace, and waits for that without a look at its context, if it has one: up to half a second, and if that brings nothing
// not again for a second.
var (
	ErrClosed       = errors.New("region closed")                       // used after Close, in this process
	ErrCorrupt      = errors.New("not a region, or a damaged one")      // an invariant no correct process breaks is broken: trust nothing
	ErrVersion      = errors.New("region of another layout version")    // written by a newer or older shmkit, or for another word size or byte order
	ErrTypeMismatch = errors.New("another type is stored here")         // a T differs from the stored one
	ErrNoSpace      = errors.New("no space")                            // the region, its file system or its slot table is full; nothing was changed
	ErrNotAttached  = errors.New("region not attached in this process") // a handle was decoded whose region cannot be found
	ErrStale        = errors.New("stale handle")                        // the object behind a handle was destroyed
	ErrNotPlain     = errors.New("not plain data")                      // a T holds what means nothing to another process
	ErrStandardSync = errors.New("standard sync type")                  // a T holds a lock that works in one process only
	ErrNotEncodable = errors.New("cannot be passed to a process")       // an argument would lose something in its encoding
)

// A TypeError says which part of a type cannot live in a region, or differs from what is stored there.
type TypeError struct {
	Path string // of the offending field, from the type's name on: "Account.Owner.Name"
	Got  string // the type found there
	Want string // what would do instead, or what is stored; may be empty
	Err  error  // ErrNotPlain, ErrStandardSync, ErrTypeMismatch or ErrNotEncodable
}

// Error names the field, the type found and the way out.
func (e *TypeError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is %s", e.Path, e.Got)
	if e.Want != "" {
		fmt.Fprintf(&b, "; %s", e.Want)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

// Unwrap returns the sentinel.
func (e *TypeError) Unwrap() error { return e.Err }
