//go:build !linux

package bench

import (
	"errors"
	"fmt"
	"io"
)

var errNoStreams = fmt.Errorf("bench: pipes and sockets are measured on Linux: %w", errors.ErrUnsupported)

type streams struct{ reads, writes [2]string }

func newStreams(way string) (*streams, error) {
	if way == ByPipe || way == BySocket {
		return nil, errNoStreams
	}
	return new(streams), nil
}

func (s *streams) close() error { return nil }

func (a tripper) streamLine(int) (line, func() error, error) { return line{}, nil, errNoStreams }

func openEnd(string, string, bool) (io.ReadWriteCloser, error) { return nil, errNoStreams }
