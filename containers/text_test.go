package containers

import (
	"errors"
	"io/fs"
	"testing"
)

func TestTextInAByteArray(t *testing.T) {
	s := Must(NewShared(newHeapManager(t), [6]byte{}))
	put := func(text string) (err error) {
		s.With(func(v *[6]byte) { err = PutText(v[:], text) })
		return err
	}
	for _, c := range []struct {
		put  string
		fits bool
		want [6]byte
		text string
	}{
		{"hello!", true, [6]byte{'h', 'e', 'l', 'l', 'o', '!'}, "hello!"},
		{"abc", true, [6]byte{'a', 'b', 'c', 0, 'o', '!'}, "abc"},
		{"too long", false, [6]byte{'a', 'b', 'c', 0, 'o', '!'}, "abc"},
		{"x\x00y", false, [6]byte{'a', 'b', 'c', 0, 'o', '!'}, "abc"},
		{"", true, [6]byte{0, 'b', 'c', 0, 'o', '!'}, ""},
	} {
		err := put(c.put)
		if c.fits && err != nil || !c.fits && !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("PutText %q: %v", c.put, err)
		}
		if v := s.Load(); v != c.want || Text(v[:]) != c.text {
			t.Errorf("after PutText %q: %q, text %q, want %q and %q", c.put, v, Text(v[:]), c.want, c.text)
		}
	}
}

// What does not compile in Go, text for a number, is refused where types meet at run time.
func TestValueOfTheWrongKindIsRefusedAndTheOldKept(t *testing.T) {
	m := newHeapManager(t)
	n := Must(NewSharedInt(m, 5, Name("n")))
	if _, err := Find[Shared[[4]byte]](m, "n"); err == nil {
		t.Error("a number was opened as text")
	}
	b := Must(NewShared(m, [1]byte{'a'}))
	err := b.Update(t.Context(), func(v *[1]byte) error { return PutText(v[:], "bc") })
	if !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("two bytes into one: %v, want ErrInvalid", err)
	}
	if n.Load() != 5 || b.Load() != [1]byte{'a'} {
		t.Errorf("the old values are %d and %q now", n.Load(), b.Load())
	}
}
