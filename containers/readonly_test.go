package containers

import (
	"context"
	"fmt"
	"testing"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

type readerFirst struct {
	Reader *Manager
	N      SharedInt
}

type readerLast struct {
	N      SharedInt
	Reader *Manager
}

type regionsFirst struct {
	Reader, Writer *shm.Region
	N              SharedInt
}

var addReaderFirst = proc.Define("add, reader first", func(_ context.Context, a readerFirst) error { return add(a.N) })
var addReaderLast = proc.Define("add, reader last", func(_ context.Context, a readerLast) error { return add(a.N) })
var addRegionsFirst = proc.Define("add, regions first", func(_ context.Context, a regionsFirst) error { return add(a.N) })

func add(n SharedInt) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("a handle that cannot be locked: %v", p)
		}
	}()
	n.Add(1)
	return nil
}

// Who has a region both for reading and for writing gets handles that can be locked, whatever came first.
func TestHandlesArriveWhereTheyCanBeWritten(t *testing.T) {
	ownDir(t)
	made, err := OpenManager("r")
	if err != nil {
		t.Fatal(err)
	}
	defer shm.Remove("r")
	Must(NewSharedInt(made, 0, Name("n")))
	if err := made.Close(); err != nil {
		t.Fatal(err)
	}
	r := Must(shm.Open("r", shm.ReadOnly())) // before the writer, or it would be the writer
	reader := Must(NewManager(r))
	defer reader.Close()
	writer := Must(OpenManager("r"))
	defer writer.Close()
	n := Must(Find[SharedInt](writer, "n"))
	if panicOf(t, func() { Must(Find[SharedInt](reader, "n")).Add(1) }) == nil {
		t.Fatal("the reader can write: the test shows nothing")
	}
	for name, run := range map[string]func() error{
		"reader first":  func() error { return addReaderFirst.Run(deadline(t), readerFirst{reader, n}) },
		"reader last":   func() error { return addReaderLast.Run(deadline(t), readerLast{n, reader}) },
		"regions first": func() error { return addRegionsFirst.Run(deadline(t), regionsFirst{r, writer.Region(), n}) },
		"here": func() error {
			var back SharedInt
			if err := back.UnmarshalBinary(Must(Must(Find[SharedInt](reader, "n")).MarshalBinary())); err != nil {
				return err
			}
			return add(back)
		},
	} {
		before := n.Load()
		if err := run(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := n.Load(); got != before+1 {
			t.Errorf("%s: %d, want %d", name, got, before+1)
		}
	}
}
