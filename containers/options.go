package containers

import shmsync "github.com/shmkit/shmkit/sync"

// An Option changes how an object is made.
type Option func(*options)

type options struct {
	name    string
	named   bool
	orOpen  bool
	locked  bool
	lock    Ref[shmsync.Mutex]
	align   int // bytes
	aligned bool
	init    any // func(*T) error
}

// Name gives the object a name within its Manager, to be looked up with [Find]: 1 to 200 bytes of
// printable UTF-8. Making an object under a name that is taken is an error that is [fs.ErrExist]. A named
// object appears under its name complete or, if the process dies, not at all.
func Name(name string) Option { return func(o *options) { o.name, o.named = name, true } }

// OrOpen opens the object of that name if there is one, and leaves it as it is: neither the value nor the
// other options count then, and [Init] is not called. It must be of the same type.
func OrOpen() Option { return func(o *options) { o.orOpen = true } }

// WithMutex makes the object use a lock of the caller's, in the same region, in place of its own. The lock
// stays the caller's: if a process dies while it holds it, calls on the object return
// [shmsync.ErrInconsistent], or panic with it, until the caller has recovered the lock. It cannot be destroyed while
// an object uses it.
func WithMutex(lock Ref[shmsync.Mutex]) Option {
	return func(o *options) { o.lock, o.locked = lock, true }
}

// Align makes what [New] makes start at a multiple of that many bytes, in every process: a power of two from 8
// to 4096, else the error is [fs.ErrInvalid]. Without it, and below 64, it is 64 bytes, a cache line. With
// more, the memory left out before it goes to objects that it is enough for. For other constructors, and for a
// lock alone, which stands in the header of its object, the option is an error too.
func Align(bytes int) Option {
	return func(o *options) { o.align, o.aligned = bytes, true }
}

// Init has [New] call fn with the new T, all zeros, before anybody else can see it: to give a semaphore its permits, for instance. It is called once; where
// OrOpen finds the object there already, it is not. If fn returns an error, which New returns, or panics, or the process dies inside,
// nothing is made, and the name is free.
//
// The T lies where it will be, and fn may keep nothing of it. For a named object fn runs with the lock of the manager's names held: it must not make,
// find or destroy objects, and others who do so with named ones wait for it. The type must be New's, and not a bare Mutex, in which there is nothing to set
// up, else the error is [fs.ErrInvalid]; so it is with other constructors, which take the value itself.
func Init[T any](fn func(v *T) error) Option { return func(o *options) { o.init = fn } }

func collect(opts []Option) options {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	return o
}
