package proc

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"time"
)

// childVariable tells a child which descriptors are for it, as numbers separated by commas: the pipe
// that the message comes through, the pipe to answer on, then one for each region.
const childVariable = "SHMKIT_CHILD"

// messageMagic begins a message. Both sides are nearly always the same program; where its file was
// replaced in between, the number at the end of the magic tells.
const messageMagic = "shmproc1"

// A message tells a child what to do.
type message struct {
	Function string
	Name     string
	Daemon   bool
	Graceful time.Duration
	MaxProcs int
	Regions  []string // names of the regions' files, in the order of their descriptors
	Argument []byte
}

// frame returns the message as it goes through the pipe: magic, length in 8 bytes, little-endian, gob.
func (m *message) frame() ([]byte, error) {
	const head = len(messageMagic) + 8
	b := bytes.NewBuffer(make([]byte, head, head+256+len(m.Argument)))
	if err := gob.NewEncoder(b).Encode(m); err != nil {
		return nil, err
	}
	copy(b.Bytes(), messageMagic)
	binary.LittleEndian.PutUint64(b.Bytes()[len(messageMagic):], uint64(b.Len()-head))
	return b.Bytes(), nil
}

func readMessage(r io.Reader) (*message, error) {
	var head [len(messageMagic) + 8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if magic := head[:len(messageMagic)]; string(magic) != messageMagic {
		return nil, fmt.Errorf("it begins with %q, want %q", magic, messageMagic)
	}
	n := binary.LittleEndian.Uint64(head[len(messageMagic):])
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, int64(min(n, 1<<62))); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	m := new(message)
	return m, gob.NewDecoder(&b).Decode(m)
}
