package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// pipeAtomic is what a pipe takes at once and in one piece (PIPE_BUF of Linux).
const pipeAtomic = 4096

// streamed says whether the messages are bytes of a stream.
func (c Flow) streamed() bool { return c.By == ByPipe || c.By == BySocket }

// whole says whether those who get from a stream get whole messages: one who gets alone puts the pieces together;
// several do from one pipe only what was written in one piece; a socket has one at each end.
func (c Flow) whole() bool {
	return c.Procs == 1 || c.By == ByPipe && c.Batch*c.Size <= pipeAtomic
}

// write puts numbered messages until it is told to stop.
func (c Flow) write(bed *flowBed, to io.Writer, party int) error {
	l, batch := &bed.lanes[party], make([]byte, c.Batch*c.Size)
	sum, count := uint64(0), int64(0)
	for count == 0 || !bed.stop.Load() {
		for i := 0; i < len(batch); i += c.Size {
			count++
			number := uint64(party)<<48 | uint64(count)
			sum += number
			binary.NativeEndian.PutUint64(batch[i:], number)
		}
		if _, err := to.Write(batch); err != nil {
			return err
		}
		l.count.Store(count)
	}
	l.sum = sum
	return nil
}

// read gets messages until all who put have closed their ends.
func (c Flow) read(bed *flowBed, from io.Reader, party int) error {
	l, batch := &bed.lanes[party], make([]byte, c.Batch*c.Size)
	for have := 0; ; {
		n, err := from.Read(batch[have:])
		have += n
		whole := have / c.Size * c.Size
		for i := 0; i < whole; i += c.Size {
			l.sum += binary.NativeEndian.Uint64(batch[i:])
		}
		l.count.Store(l.count.Load() + int64(whole/c.Size))
		have = copy(batch, batch[whole:have])
		switch {
		case errors.Is(err, io.EOF) && have > 0:
			return fmt.Errorf("bench: %s ended in the middle of a message", c.By)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}
