package containers

import (
	"bytes"
	"fmt"
	"io/fs"
)

// Strings do not fit into plain data: a string's bytes lie elsewhere, in this process. A [N]byte field
// takes their place; PutText and Text convert.
//
//	containers.PutText(account.Owner[:], "Harry")
//	name := containers.Text(account.Owner[:])

// PutText copies s to dst and ends it with a zero byte if there is room; what dst holds behind that stays.
// A text that is longer than dst is refused with an error that is [fs.ErrInvalid], and so is one with a
// zero byte in it, which would come back shorter; dst then keeps what it had.
func PutText(dst []byte, s string) error {
	if len(s) > len(dst) {
		return fmt.Errorf("containers: text of %d bytes for an array of %d: %w", len(s), len(dst), fs.ErrInvalid)
	}
	for i := range len(s) {
		if s[i] == 0 {
			return fmt.Errorf("containers: text with a zero byte at %d: %w", i, fs.ErrInvalid)
		}
	}
	if n := copy(dst, s); n < len(dst) {
		dst[n] = 0
	}
	return nil
}

// Text returns the text in src, up to the first zero byte or the end. It is a copy.
func Text(src []byte) string {
	text, _, _ := bytes.Cut(src, []byte{0})
	return string(text)
}
