//go:build unix

package proc_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/shmkit/shmkit/containers"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

type closedStreams struct {
	Flag   containers.AtomicInt
	Ran    containers.Ref[shmsync.Event]
	Itself []int // streams that the process closes
	Before []int // streams that are closed when it begins
}

var withoutStreams = proc.Define("withoutStreams", func(_ context.Context, c closedStreams) error {
	streams := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	for _, n := range c.Itself {
		if err := streams[n].Close(); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(streams[n], "into the void"); !errors.Is(err, os.ErrClosed) {
			c.Flag.Store(-1)
		}
	}
	for _, n := range c.Before { // and nothing of ours has come to have the number
		fmt.Fprintln(streams[n], "into the void")
		if info, err := streams[n].Stat(); err == nil && info.Mode()&os.ModeDevice == 0 {
			c.Flag.Store(-2)
		}
	}
	c.Flag.Add(1)
	c.Ran.Ptr().Set()
	return nil
})

// A process whose output is closed runs, shares, and ends well.
func TestProcessWithClosedOutputRuns(t *testing.T) {
	closed, err := os.Create(t.TempDir() + "/closed")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, streams := range [][]int{{1}, {2}, {1, 2}} {
		for _, before := range []bool{false, true} {
			t.Run(fmt.Sprintf("streams=%v/before=%v", streams, before), func(t *testing.T) {
				c := closedStreams{
					Flag: containers.Must(containers.NewAtomicInt(nil, 0)),
					Ran:  containers.Must(containers.New[shmsync.Event](nil)),
				}
				var opts []proc.Option
				if before {
					c.Before = streams
					for _, n := range streams {
						if n == 1 {
							opts = append(opts, proc.Stdout(closed))
						} else {
							opts = append(opts, proc.Stderr(closed))
						}
					}
				} else {
					c.Itself = streams
				}
				p := start(t, withoutStreams, c, opts...)
				err := p.Wait()
				if code, ended := p.ExitCode(); err != nil || code != 0 || !ended {
					t.Errorf("exit code %d, ended %v: %v", code, ended, err)
				}
				if got := c.Flag.Load(); got != 1 {
					t.Errorf("the shared flag is %d, want 1", got)
				}
				if !c.Ran.Ptr().IsSet() {
					t.Error("the shared event is not set")
				}
			})
		}
	}
}
