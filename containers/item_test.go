package containers

import (
	"errors"
	"io/fs"
	"math"
	"reflect"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

type point struct{ X, Y int32 }

// A list whose elements are of many kinds is what Python's ShareableList is.
func TestItemsOfManyKindsInOneList(t *testing.T) {
	m := newManager(t)
	l := Must(NewSharedList[Item](m))
	all := []any{"text", []byte{1, 0}, -273.154, 100, nil, true, int8(-5), uint64(math.MaxUint64), "", float32(0.1), math.Inf(1), []byte{}}
	for _, v := range all {
		if err := l.Append(Must(ItemOf(v))); err != nil {
			t.Fatal(err)
		}
	}
	for i, v := range all {
		if got, err := l.At(i).Value(); err != nil || !reflect.DeepEqual(got, v) {
			t.Errorf("element %d: %#v (%v), want %#v", i, got, err, v)
		}
	}
	// Any element may change its kind, and its length.
	long := make([]byte, 1000)
	for _, v := range []any{long, false, "x"} {
		if err := l.Set(3, Must(ItemOf(v))); err != nil {
			t.Fatal(err)
		}
		if got, err := l.At(-len(all) + 3).Value(); err != nil || !reflect.DeepEqual(got, v) {
			t.Errorf("replaced: %#v (%v), want %#v", got, err, v)
		}
	}
}

func TestItemIsReadAsTheTypeThatItIs(t *testing.T) {
	type celsius float64
	it := Must(ItemOf(celsius(20.5)))
	if v, err := ItemAs[celsius](it); err != nil || v != 20.5 {
		t.Errorf("celsius: %v, %v", v, err)
	}
	if v, err := ItemAs[float64](it); err != nil || v != 20.5 {
		t.Errorf("float64: %v, %v", v, err)
	}
	it = Must(ItemOf(point{3, -4}))
	if v, err := ItemAs[point](it); err != nil || v != (point{3, -4}) {
		t.Errorf("point: %v, %v", v, err)
	}
	if v, err := ItemAs[[2]int32](Must(ItemOf([2]int32{1, 2}))); err != nil || v != [2]int32{1, 2} {
		t.Errorf("array: %v, %v", v, err)
	}
	m := newManager(t)
	n := Must(NewSharedInt(m, 7))
	link, err := ItemAs[Link[SharedInt]](Must(ItemOf(LinkTo(n))))
	if err != nil {
		t.Fatal(err)
	}
	if got := Must(link.In(m)).Load(); got != 7 {
		t.Errorf("through a link: %d, want 7", got)
	}
}

func TestItemOfAnotherTypeIsRefused(t *testing.T) {
	for name, read := range map[string]func() error{
		"a float as an int":       func() error { _, err := ItemAs[int](Must(ItemOf(1.0))); return err },
		"an int32 as an int64":    func() error { _, err := ItemAs[int64](Must(ItemOf(int32(1)))); return err },
		"nothing as a string":     func() error { _, err := ItemAs[string](Must(ItemOf(nil))); return err },
		"a string as bytes":       func() error { _, err := ItemAs[[]byte](Must(ItemOf("x"))); return err },
		"bytes as a []int":        func() error { _, err := ItemAs[[]int](Must(ItemOf([]byte("12345678")))); return err },
		"a point as two floats":   func() error { _, err := ItemAs[[2]float32](Must(ItemOf(point{}))); return err },
		"a point without a type":  func() error { _, err := Must(ItemOf(point{})).Value(); return err },
		"an int as a point":       func() error { _, err := ItemAs[point](Must(ItemOf(1))); return err },
		"plain data as an int":    func() error { _, err := ItemAs[int](Must(ItemOf(point{}))); return err },
		"an int as an unsafe int": func() error { _, err := ItemAs[uintptr](Must(ItemOf(1))); return err },
	} {
		if err := read(); !errors.Is(err, shm.ErrTypeMismatch) {
			t.Errorf("%s: %v, want a type mismatch", name, err)
		}
	}
	for name, v := range map[string]any{"a map": map[int]int{}, "a pointer": new(int), "a slice": []int{1}, "a struct with a string": struct{ S string }{}, "a function": func() {}} {
		if _, err := ItemOf(v); !errors.Is(err, shm.ErrNotPlain) {
			t.Errorf("%s: %v, want it to be no plain data", name, err)
		}
	}
	m := newManager(t)
	if _, err := ItemOf(Must(NewSharedInt(m, 0))); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a handle: %v, want it refused", err)
	}
}

// Whatever bytes others have written, reading them ends in a value or an error.
func FuzzItem(f *testing.F) {
	for _, v := range []any{nil, true, 1, "x", []byte{1}, 1.5, point{1, 2}} {
		f.Add([]byte(Must(ItemOf(v))))
	}
	f.Add([]byte{})
	f.Add([]byte{1, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := Item(b).Value()
		if err == nil {
			again, err := ItemOf(v)
			if err != nil || string(again) != string(b) && b[0] != byte(reflect.Float32) && b[0] != byte(reflect.Float64) { // a signalling NaN comes back quiet
				t.Errorf("%x is %#v, which is %x (%v)", b, v, again, err)
			}
		}
		_, _ = ItemAs[point](Item(b))
		_, _ = ItemAs[bool](Item(b))
	})
}
