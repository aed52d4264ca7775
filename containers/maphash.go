package containers

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/bits"
	"reflect"

	"github.com/shmkit/shmkit/shm"
)

// The hash of a key is part of the format, and so is where its bits go: the highest choose the directory's word, the lowest seven
// are the tag, and those above the tag choose the group. It folds the two halves of 128-bit products, as wyhash does, one for each word of the key and one
// at the end. The seed is the region's: all processes agree, and nobody outside can choose keys that collide.
const (
	hashWord = 0x9e3779b97f4a7c15
	hashEnd  = 0xd6e8feb86659fd93
	hashText = 0xa0761d6478bd642f // apart from plain keys, times the length

	tagBits = 7
)

func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// hash64 is the hash of a plain key of one word.
func hash64(seed, w uint64) uint64 { return fold(fold(seed^w, hashWord)^hashWord, hashEnd) }

// hashBytes is the hash of a key of any length, with zeros up to whole words, at least one.
func hashBytes(seed uint64, b []byte) uint64 {
	h := seed
	for ; len(b) > 8; b = b[8:] {
		h = fold(h^binary.NativeEndian.Uint64(b), hashWord)
	}
	return fold(fold(h^shortWord(b), hashWord)^hashWord, hashEnd)
}

// textSeed is the seed of strings of n bytes.
func textSeed(seed uint64, n int) uint64 { return seed ^ uint64(n+1)*hashText }

// hashable returns an error for types of which equal values may have different bytes.
func hashable(t reflect.Type, path string) error {
	refuse := func(path, got, want string) error {
		return fmt.Errorf("containers: %w", &shm.TypeError{Path: path, Got: got, Want: want, Err: shm.ErrNotPlain})
	}
	switch t.Kind() {
	case reflect.Float32, reflect.Float64, reflect.Complex64, reflect.Complex128:
		return refuse(path, fmt.Sprintf("%v in the key of a map, where NaN could never be found again", t), "use an integer, such as math.Float64bits of it")
	case reflect.Array:
		return hashable(t.Elem(), path+"[]")
	case reflect.Struct:
		end := uintptr(0)
		for i := range t.NumField() {
			f := t.Field(i)
			switch {
			case f.Offset != end:
				return refuse(path+"."+f.Name, fmt.Sprintf("%d bytes of padding before it, in the key of a map", f.Offset-end), "order the fields by size, or make them larger")
			case f.Name == "_":
				return refuse(path+"._", "a blank field in the key of a map, which Go does not compare", "give it a name")
			}
			if err := hashable(f.Type, path+"."+f.Name); err != nil {
				return err
			}
			end = f.Offset + f.Type.Size()
		}
		if end != t.Size() {
			return refuse(path, fmt.Sprintf("%d bytes of padding at its end, in the key of a map", t.Size()-end), "add a field of that size")
		}
	}
	return nil
}

// keyForm returns what the slots of a map have for a K, its size in words, and its layout.
func keyForm[K comparable]() (slotForm, uint64, *shm.Layout, error) {
	t := reflect.TypeFor[K]()
	form, stride, layout, err := mapPart[K]()
	if err == nil && form == formPlain {
		err = hashable(t, t.String())
	}
	if err == nil && stride/8 > mapKeyWords {
		err = fmt.Errorf("containers: keys of %d bytes: %w", stride, fs.ErrInvalid)
	}
	return form, stride / 8, layout, err
}

// mapPart is keyForm for a value, in bytes.
func mapPart[T any]() (slotForm, uint64, *shm.Layout, error) {
	form, stride := formOf[T]()
	switch form {
	case formString:
		return form, stride, stringLayout, nil
	case formBytes:
		return form, stride, bytesLayout, nil
	}
	layout, err := layoutOf[T]()
	if err == nil && layout.Size >= 1<<32 {
		err = fmt.Errorf("containers: map with keys or values of %d bytes: %w", layout.Size, fs.ErrInvalid)
	}
	return form, stride, layout, err
}
