package bench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// streams are pipes or a socket between two parties that were not given them: pipes are opened by the
// descriptors of the process that made them, sockets have a name that is no file. Neither leaves anything.
type streams struct {
	reads, writes [2]string // of each party
	files         []*os.File
}

var streamsMade atomic.Int64

func newStreams(way string) (*streams, error) {
	s := new(streams)
	switch way {
	case ByPipe:
		for party := range 2 {
			r, w, err := os.Pipe() // read by this party
			if err != nil {
				return nil, errors.Join(err, s.close())
			}
			s.files = append(s.files, r, w)
			s.reads[party] = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.Fd())
			s.writes[1-party] = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), w.Fd())
		}
	case BySocket:
		name := fmt.Sprintf("@shmkit-bench-%d-%d", os.Getpid(), streamsMade.Add(1))
		s.reads = [2]string{name, name}
	}
	return s, nil
}

func (s *streams) close() (err error) {
	for _, f := range s.files {
		err = errors.Join(err, f.Close())
	}
	s.files = nil
	return err
}

// streamLine opens the party's end.
func (a tripper) streamLine(party int) (l line, hang func() error, err error) {
	buffer := make([]byte, 1)
	if a.Case.Way == ByPipe {
		r, err := os.OpenFile(a.Ends[party], os.O_RDONLY, 0)
		if err != nil {
			return l, nil, err
		}
		w, err := os.OpenFile(a.Writes[party], os.O_WRONLY, 0)
		if err != nil {
			return l, nil, errors.Join(err, r.Close())
		}
		l.send = func() error { _, err := w.Write(buffer); return err }
		l.await = func() error { _, err := r.Read(buffer); return err }
		return l, func() error { return errors.Join(r.Close(), w.Close()) }, nil
	}
	conn, err := meetAt(a.Ends[party], party)
	if err != nil {
		return l, nil, err
	}
	l.send = func() error { _, err := conn.Write(buffer); return err }
	l.await = func() error { _, err := conn.Read(buffer); return err }
	return l, conn.Close, nil
}

// openEnd opens one end of what newStreams made for a flow, to write or to read.
func openEnd(way, end string, write bool) (io.ReadWriteCloser, error) {
	switch {
	case way == ByPipe && write:
		return os.OpenFile(end, os.O_WRONLY, 0)
	case way == ByPipe:
		return os.OpenFile(end, os.O_RDONLY, 0)
	case write:
		return meetAt(end, 0)
	}
	return meetAt(end, 1)
}

// meetAt connects the two parties.
func meetAt(name string, party int) (net.Conn, error) {
	if party == 1 {
		listener, err := net.Listen("unix", name)
		if err != nil {
			return nil, err
		}
		defer listener.Close()
		return listener.Accept()
	}
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("unix", name)
		if err == nil || time.Since(begin) > 30*time.Second {
			return conn, err
		}
	}
}
