package proc

import (
	"encoding"
	"encoding/gob"
	"reflect"
	"runtime"

	"github.com/shmkit/shmkit/shm"
)

// gob sends what it can and drops the rest without a word: unexported fields, functions, channels, the
// difference between a nil pointer and one to zero. checkArgument finds such places in a type, so that
// an argument either arrives as it was or is refused.
func checkArgument(t reflect.Type) error {
	return (&checker{seen: make(map[place]bool)}).check(t, t.String(), true)
}

type checker struct {
	seen map[place]bool // a recursive type comes by again
}

// A place is a type and whether gob can take its address, which decides whether methods of the
// pointer count.
type place struct {
	reflect.Type
	addressable bool
}

// refuse says what is wrong at path, and the type there if that helps. At the root the path is the type.
func refuse(path string, t reflect.Type, got, want string) error {
	if t != nil && t.String() != path {
		got = t.String() + ", " + got
	}
	return &shm.TypeError{Path: path, Got: got, Want: want, Err: shm.ErrNotEncodable}
}

func (c *checker) check(t reflect.Type, path string, addressable bool) error {
	if c.seen[place{t, addressable}] {
		return nil
	}
	c.seen[place{t, addressable}] = true
	if own, err := encodesItself(t, path, addressable); own || err != nil {
		return err
	}
	switch t.Kind() {
	case reflect.Pointer:
		return refuse(path, t, "a pointer", "pass the value, or the handle of a shared object")
	case reflect.Interface:
		return refuse(path, t, "an interface", "give it the type of the value")
	case reflect.Func:
		return refuse(path, nil, "a function", "name it by Define and start it in the child")
	case reflect.Chan:
		return refuse(path, t, "a channel, which means nothing to another process", "pass the handle of a shared object")
	case reflect.Uintptr, reflect.UnsafePointer:
		return refuse(path, t, "an address, which means nothing to another process", "pass an offset")
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			switch {
			case f.Name == "_": // padding
			case !f.IsExported():
				return refuse(path+"."+f.Name, nil, "unexported and would be lost", "export it")
			default:
				if err := c.check(f.Type, path+"."+f.Name, addressable); err != nil {
					return err
				}
			}
		}
	case reflect.Array:
		return c.check(t.Elem(), path+"[]", addressable)
	case reflect.Slice:
		return c.check(t.Elem(), path+"[]", true)
	case reflect.Map:
		if err := c.check(t.Key(), path+"[key]", false); err != nil {
			return err
		}
		return c.check(t.Elem(), path+"[value]", false)
	}
	return nil
}

var (
	gobEncoder        = reflect.TypeFor[gob.GobEncoder]()
	gobDecoder        = reflect.TypeFor[gob.GobDecoder]()
	binaryMarshaler   = reflect.TypeFor[encoding.BinaryMarshaler]()
	binaryUnmarshaler = reflect.TypeFor[encoding.BinaryUnmarshaler]()
)

// encodesItself reports whether gob leaves the encoding of t to t's own methods, and finds the cases
// in which these do not do. Methods for text do not count: gob does not call them.
func encodesItself(t reflect.Type, path string, addressable bool) (bool, error) {
	if t.Kind() == reflect.Interface {
		return false, nil
	}
	has := func(method reflect.Type) bool {
		return t.Implements(method) || reflect.PointerTo(t).Implements(method)
	}
	// gob prefers its own interfaces, for each direction apart.
	encoder, decoder, asked := gobEncoder, gobDecoder, "GobEncode and GobDecode"
	if !has(gobEncoder) && !has(gobDecoder) {
		encoder, decoder, asked = binaryMarshaler, binaryUnmarshaler, "MarshalBinary and UnmarshalBinary"
	}
	switch {
	case !has(encoder) && !has(decoder):
		return false, nil
	case !has(encoder) || !has(decoder):
		return false, refuse(path, t, "a type with one of "+asked, "give it both")
	case !addressable && !t.Implements(encoder):
		return false, refuse(path, t, "a type that is encoded through a pointer, and a map's parts have no address", "give its encoding method a value receiver, or use a slice")
	}
	if field, ok := encodesAs(t, encoder, decoder); ok {
		return false, refuse(path, t, "a type whose encoding is that of the embedded "+field+" alone", "give "+field+" a field name of its own")
	}
	return true, nil
}

// encodesAs reports which embedded field of a struct lends it its encoding, both ways. The struct's other
// fields would be lost, if it has any.
func encodesAs(t, encoder, decoder reflect.Type) (field string, ok bool) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t.NumField() < 2 {
		return "", false
	}
	for i := range t.NumField() {
		f := t.Field(i)
		has := func(method reflect.Type) bool {
			return f.Type.Implements(method) || reflect.PointerTo(f.Type).Implements(method)
		}
		if f.Anonymous && has(encoder) && has(decoder) {
			return f.Name, promoted(t, encoder)
		}
	}
	return "", false
}

// promoted reports whether a struct has its encoding method from an embedded field. Reflection does not
// tell, but the compiler writes such methods itself, and they lie in no file.
func promoted(t reflect.Type, encoder reflect.Type) bool {
	if !t.Implements(encoder) {
		t = reflect.PointerTo(t)
	}
	var m reflect.Method
	if encoder == gobEncoder { // constant names: with others the linker keeps every method of every type
		m, _ = t.MethodByName("GobEncode")
	} else {
		m, _ = t.MethodByName("MarshalBinary")
	}
	f := runtime.FuncForPC(m.Func.Pointer())
	if f == nil {
		return false
	}
	file, _ := f.FileLine(f.Entry())
	return file == "<autogenerated>"
}
