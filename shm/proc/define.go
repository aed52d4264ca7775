package proc

import (
	"bytes"
	"context"
	"encoding/gob"
	"fmt"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
)

// A Func is a function that can run as a process of its own. Make it with [Define].
type Func[A any] struct {
	name    string
	place   string        // file:line of Define
	refused error         // why arguments of type A cannot be passed
	late    bool          // defined after Main: a child would not know it
	started atomic.Uint64 // numbers the processes that were given no name
}

// A definition is what a child needs to know of a Func.
type definition struct {
	place  string
	decode func(argument []byte) (func(context.Context) error, error)
}

var definitions struct {
	mu     sync.Mutex
	byName map[string]definition
}

// An envelope holds an argument, since gob encodes fields, but not a bare nil or an empty struct.
type envelope[A any] struct{ Argument A }

// Define makes fn startable as a process. It belongs into a package variable, or into init for a
// function that starts itself, so that a child has it when it comes to [Main]. The name says in a child
// which function to run: it must be the same there.
//
// If something in the type A would not arrive as it was sent, Start and Run return an error that is
// [shm.ErrNotEncodable] and names the field.
//
// Define panics if name is empty or already taken, or if fn is nil.
func Define[A any](name string, fn func(ctx context.Context, argument A) error) *Func[A] {
	_, file, line, _ := runtime.Caller(1)
	f := &Func[A]{
		name:    name,
		place:   fmt.Sprintf("%s:%d", file, line),
		refused: checkArgument(reflect.TypeFor[A]()),
		late:    self.Load() != nil,
	}
	switch {
	case name == "":
		panic("proc: Define at " + f.place + " without a name")
	case fn == nil:
		panic(fmt.Sprintf("proc: Define of %q at %s without a function", name, f.place))
	}
	definitions.mu.Lock()
	defer definitions.mu.Unlock()
	if first, ok := definitions.byName[name]; ok {
		panic(fmt.Sprintf("proc: function %q is defined twice: at %s and at %s", name, first.place, f.place))
	}
	if definitions.byName == nil {
		definitions.byName = make(map[string]definition)
	}
	definitions.byName[name] = definition{f.place, func(argument []byte) (func(context.Context) error, error) {
		var e envelope[A]
		if err := gob.NewDecoder(bytes.NewReader(argument)).Decode(&e); err != nil {
			return nil, err
		}
		return func(ctx context.Context) error { return fn(ctx, e.Argument) }, nil
	}}
	return f
}

// encode encodes an argument.
func (f *Func[A]) encode(argument A) ([]byte, error) {
	var b bytes.Buffer
	err := gob.NewEncoder(&b).Encode(&envelope[A]{argument})
	return b.Bytes(), err
}
