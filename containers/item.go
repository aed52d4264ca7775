package containers

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"math"
	"reflect"

	"github.com/shmkit/shmkit/shm"
)

// An Item is a value together with its kind, as bytes: nothing, a bool, a number, a string, bytes, or plain data. A list whose elements
// are of many kinds is a SharedList[Item], a map with such values a SharedMap[string, Item]; a [Namespace] stores them.
// [ItemOf] makes one; [Item.Value] and [ItemAs] say what it is. An Item may be
// replaced by one of another kind. It holds no object, but a [Link] to one.
type Item []byte

// The first byte of an Item is the reflect.Kind of its value, of the first one with that size for what depends on the machine, and these:
//
//	0 nothing    |
//	bool         | 0 or 1
//	numbers      | as many bytes as the number has, the lowest first
//	string       | its bytes
//	slice        | the bytes of a []byte
//	struct       | fingerprint of the type's layout, 8 bytes, the lowest first | the value as it lies in memory
//
// So arrays and structs are both plain data. Kinds of reflect have kept their numbers since Go 1; itemKinds pins those that count here.
const (
	itemNothing = byte(reflect.Invalid)
	itemString  = byte(reflect.String)
	itemBytes   = byte(reflect.Slice)
	itemPlain   = byte(reflect.Struct)
)

var _ = map[bool]int{false: 0, itemString == 24 && itemBytes == 23 && itemPlain == 25 && reflect.Bool == 1 && reflect.Complex128 == 16: 1}

// ItemOf returns v as an Item. It takes nil, values of the basic types and of types made from them, which come back as the basic type,
// []byte, and plain arrays and structs; for what is anything else it returns a [*shm.TypeError]. Of an object of this package
// it takes a [Link].
func ItemOf(v any) (Item, error) {
	if v == nil {
		return Item{itemNothing}, nil
	}
	r := reflect.ValueOf(v)
	it := Item{byte(r.Kind())}
	switch k := r.Kind(); k {
	case reflect.Bool:
		b := byte(0)
		if r.Bool() {
			b = 1
		}
		return append(it, b), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return appendBits(it, uint64(r.Int()), r.Type().Size()), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return appendBits(it, r.Uint(), r.Type().Size()), nil
	case reflect.Float32:
		return appendBits(it, uint64(math.Float32bits(float32(r.Float()))), 4), nil
	case reflect.Float64:
		return appendBits(it, math.Float64bits(r.Float()), 8), nil
	case reflect.String:
		return append(it, r.String()...), nil
	case reflect.Slice:
		if r.Type().Elem().Kind() == reflect.Uint8 {
			return append(it, r.Bytes()...), nil
		}
	}
	if h, ok := v.(interface{ handle() base }); ok {
		return nil, fmt.Errorf("containers: an Item of %v: it would be a copy of the handle; use LinkTo: %w", h.handle(), fs.ErrInvalid)
	}
	layout, err := plainLayout(r.Type())
	if err != nil {
		return nil, err
	}
	p := reflect.New(r.Type())
	p.Elem().Set(r)
	it[0] = itemPlain
	it = binary.LittleEndian.AppendUint64(it, layout.Fingerprint)
	return append(it, viewOf[byte](p.UnsafePointer(), int(r.Type().Size()))...), nil
}

func appendBits(it Item, bits uint64, size uintptr) Item {
	for range size {
		it = append(it, byte(bits))
		bits >>= 8
	}
	return it
}

// basicType returns the type of the values that say themselves what they are, nil for others.
func basicType(kind byte) reflect.Type {
	switch reflect.Kind(kind) {
	case reflect.Bool:
		return reflect.TypeFor[bool]()
	case reflect.Int:
		return reflect.TypeFor[int]()
	case reflect.Int8:
		return reflect.TypeFor[int8]()
	case reflect.Int16:
		return reflect.TypeFor[int16]()
	case reflect.Int32:
		return reflect.TypeFor[int32]()
	case reflect.Int64:
		return reflect.TypeFor[int64]()
	case reflect.Uint:
		return reflect.TypeFor[uint]()
	case reflect.Uint8:
		return reflect.TypeFor[uint8]()
	case reflect.Uint16:
		return reflect.TypeFor[uint16]()
	case reflect.Uint32:
		return reflect.TypeFor[uint32]()
	case reflect.Uint64:
		return reflect.TypeFor[uint64]()
	case reflect.Uintptr:
		return reflect.TypeFor[uintptr]()
	case reflect.Float32:
		return reflect.TypeFor[float32]()
	case reflect.Float64:
		return reflect.TypeFor[float64]()
	case reflect.String:
		return reflect.TypeFor[string]()
	case reflect.Slice:
		return reflect.TypeFor[[]byte]()
	}
	return nil
}

// Value returns what the Item is: nil, or a value of a basic type, or a []byte, which is a copy. It returns a [*shm.TypeError] for
// plain data, for which [ItemAs] names the type, and an error that is [shm.ErrCorrupt] for bytes that ItemOf has not made.
func (it Item) Value() (any, error) {
	if len(it) == 0 {
		return nil, fmt.Errorf("containers: an Item of no bytes: %w", shm.ErrCorrupt)
	}
	if it[0] == itemNothing && len(it) == 1 {
		return nil, nil
	}
	if it[0] == itemPlain {
		return nil, fmt.Errorf("containers: %w", &shm.TypeError{Path: "Item", Got: "asked for without a type", Want: "it is plain data; say which with ItemAs", Err: shm.ErrTypeMismatch})
	}
	t := basicType(it[0])
	if t == nil {
		return nil, fmt.Errorf("containers: an Item of kind %d: %w", it[0], shm.ErrCorrupt)
	}
	v := reflect.New(t).Elem()
	if err := it.decode(v); err != nil {
		return nil, err
	}
	return v.Interface(), nil
}

// ItemAs returns what the Item is, which is a T: of the very kind for numbers, of the same layout for plain data. Else the error is a
// [*shm.TypeError]: nothing is converted.
func ItemAs[T any](it Item) (v T, err error) {
	t := reflect.TypeFor[T]()
	r := reflect.ValueOf(&v).Elem()
	switch kind := byte(t.Kind()); {
	case len(it) == 0:
		return v, fmt.Errorf("containers: an Item of no bytes: %w", shm.ErrCorrupt)
	case it[0] == kind && basicType(kind) != nil && (kind != itemBytes || t.Elem().Kind() == reflect.Uint8):
		return v, it.decode(r)
	case it[0] != itemPlain || basicType(kind) != nil:
		return v, it.mismatch(t)
	}
	layout, err := plainLayout(t)
	if err != nil {
		return v, err
	}
	switch data := it[1:]; {
	case len(data) < 8 || binary.LittleEndian.Uint64(data) != layout.Fingerprint:
		return v, it.mismatch(t)
	case uint64(len(data)-8) != sizeOf[T]():
		return v, fmt.Errorf("containers: an Item of %d bytes for a %v: %w", len(data)-8, t, shm.ErrCorrupt)
	default:
		copy(bytesOf(&v), data[8:])
	}
	return v, nil
}

func (it Item) mismatch(t reflect.Type) error {
	what := "plain data of another layout"
	switch stored := basicType(it[0]); {
	case it[0] == itemNothing:
		what = "nothing"
	case stored != nil:
		what = stored.String()
	}
	return fmt.Errorf("containers: %w", &shm.TypeError{Path: "Item", Got: "asked for as " + t.String(), Want: "it is " + what, Err: shm.ErrTypeMismatch})
}

// decode sets v, which is of a type of it's kind.
func (it Item) decode(v reflect.Value) error {
	data := it[1:]
	switch it[0] {
	case itemString:
		v.SetString(string(data))
		return nil
	case itemBytes:
		v.SetBytes(append([]byte{}, data...))
		return nil
	}
	if len(data) != int(v.Type().Size()) || v.Kind() == reflect.Bool && data[0] > 1 {
		return fmt.Errorf("containers: an Item of %d bytes for a %v: %w", len(data), v.Type(), shm.ErrCorrupt)
	}
	bits := uint64(0)
	for i, b := range data {
		bits |= uint64(b) << (8 * i)
	}
	switch {
	case v.Kind() == reflect.Bool:
		v.SetBool(bits != 0)
	case v.CanInt():
		unused := 64 - 8*len(data)
		v.SetInt(int64(bits<<unused) >> unused)
	case v.CanUint():
		v.SetUint(bits)
	case v.Kind() == reflect.Float32:
		v.SetFloat(float64(math.Float32frombits(uint32(bits))))
	default:
		v.SetFloat(math.Float64frombits(bits))
	}
	return nil
}
