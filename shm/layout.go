package shm

import (
	"encoding"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"reflect"
	"strconv"
	"strings"
	stdsync "sync"
)

// A Layout is how the values of a type lie in memory. Two programs may share a T if its fingerprint is the
// same in both.
type Layout struct {
	Size        uint64
	Align       uint64
	Fingerprint uint64 // of Text, the byte order and the word size; part of the format of what stores it
	Text        string // for people: struct{A int64 @0; B [4]int32 @8} size 24 align 8
	HasLock     bool   // T holds locks of ours or types of sync/atomic: it stays in one place, and is not copied
}

const (
	syncPath       = "github.com/shmkit/shmkit/sync"
	containersPath = "github.com/shmkit/shmkit/containers"

	textSubstitute  = "use [N]byte with containers.PutText and containers.Text"
	linkSubstitute  = "use a containers.Link to an object of its own"
	otherSubstitute = "use data instead, such as a number that each process looks up"
)

// layouts has the answer for every type asked about: a *Layout or an error.
var layouts stdsync.Map

// LayoutOf returns the layout of t, which must be plain data: bools, numbers, and arrays and structs of
// these. Whatever refers to memory of one process is refused with a [*TypeError] that names the field, and
// is [ErrNotPlain]; the standard library's locks, which work in one process only, are [ErrStandardSync].
// Locks of ours and the types of sync/atomic (but Pointer, Value and Uintptr) are allowed and set HasLock.
//
// Field names are part of the layout, since swapped fields of one type are not the same data; names of
// types and packages are not. int and uint have the machine's width, and so has the layout. The answer is
// kept: only the first call for a type costs anything.
func LayoutOf(t reflect.Type) (*Layout, error) {
	if t == nil {
		return nil, &TypeError{Path: "T", Got: "no type", Err: ErrNotPlain}
	}
	got, known := layouts.Load(t)
	if !known {
		got, _ = layouts.LoadOrStore(t, newLayout(t))
	}
	if err, ok := got.(error); ok {
		return nil, err
	}
	return got.(*Layout), nil
}

// newLayout returns a *Layout or a *TypeError.
func newLayout(t reflect.Type) any {
	l := &Layout{Size: uint64(t.Size()), Align: uint64(t.Align())}
	var b strings.Builder
	if err := l.describe(&b, t, t.String()); err != nil {
		return err
	}
	if t.Kind() == reflect.Struct || t.Kind() == reflect.Array {
		fmt.Fprintf(&b, " size %d align %d", l.Size, l.Align)
	}
	l.Text = b.String()
	h := fnv.New64a()
	fmt.Fprintf(h, "%s|%d|%x", l.Text, wordSize, binary.NativeEndian.AppendUint16(nil, 1))
	l.Fingerprint = h.Sum64()
	return l
}

// describe writes what t is to b. path leads to t from the type asked about.
func (l *Layout) describe(b *strings.Builder, t reflect.Type, path string) *TypeError {
	switch t.PkgPath() {
	case "sync":
		return &TypeError{
			Path: path,
			Got:  fmt.Sprintf("the standard %v, which works in one process only", t),
			Want: fmt.Sprintf("import shmsync %q", syncPath),
			Err:  ErrStandardSync,
		}
	case syncPath:
		if t.Kind() == reflect.Struct {
			l.HasLock = true
			fmt.Fprintf(b, "shmsync.%s", t.Name())
			return nil
		}
	case "sync/atomic":
		switch name := t.Name(); name {
		case "Bool", "Int32", "Int64", "Uint32", "Uint64":
			l.HasLock = true
			fmt.Fprintf(b, "atomic.%s", name)
			return nil
		}
		return notPlain(t, path, "use an atomic.Uint64 that holds a number or an offset")
	case "time":
		if t.Name() == "Time" {
			return notPlain(t, path, "use an int64 with Unix nanoseconds: t.UnixNano(), time.Unix(0, n)")
		}
	case containersPath:
		if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.BinaryUnmarshaler]()) {
			return notPlain(t, path, "it is a handle, which belongs to one process; use a containers.Link")
		}
	}
	switch k := t.Kind(); k {
	case reflect.Bool,
		reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64,
		reflect.Float32, reflect.Float64, reflect.Complex64, reflect.Complex128:
		b.WriteString(k.String())
	case reflect.Int, reflect.Uint:
		fmt.Fprintf(b, "%v:%d", k, 8*t.Size())
	case reflect.Array:
		fmt.Fprintf(b, "[%d]", t.Len())
		return l.describe(b, t.Elem(), path+"[]")
	case reflect.Struct:
		return l.describeFields(b, t, path)
	case reflect.String:
		return notPlain(t, path, textSubstitute)
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return notPlain(t, path, textSubstitute)
		}
		return notPlain(t, path, "use an array [N]"+t.Elem().String()+", or "+linkSubstitute[len("use "):])
	case reflect.Pointer, reflect.Map:
		return notPlain(t, path, linkSubstitute)
	case reflect.Uintptr, reflect.UnsafePointer:
		return notPlain(t, path, "an address means nothing to another process; use an shm.Offset")
	default: // interfaces, funcs, channels
		return notPlain(t, path, otherSubstitute)
	}
	return nil
}

func (l *Layout) describeFields(b *strings.Builder, t reflect.Type, path string) *TypeError {
	b.WriteString("struct{")
	for i := range t.NumField() {
		f := t.Field(i)
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(f.Name + " ")
		if err := l.describe(b, f.Type, path+"."+f.Name); err != nil {
			return err
		}
		b.WriteString(" @" + strconv.FormatUint(uint64(f.Offset), 10))
	}
	b.WriteString("}")
	return nil
}

// notPlain is the error for the field at path, with what would do instead.
func notPlain(t reflect.Type, path, substitute string) *TypeError {
	what := t.String()
	if t.Kind() != reflect.String || t.PkgPath() != "" {
		what = fmt.Sprintf("%s (%v)", what, t.Kind())
	}
	return &TypeError{Path: path, Got: what, Want: substitute, Err: ErrNotPlain}
}
