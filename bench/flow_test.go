package bench_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/shmkit/shmkit/bench"
)

func TestFlowsLoseNoMessage(t *testing.T) {
	for _, c := range []bench.Flow{
		{By: bench.Shmkit, Procs: 1, Size: 8, Batch: 1},
		{By: bench.Shmkit, Procs: 2, Size: 64, Batch: 16},
		{By: bench.Shmkit, Procs: 1, Size: 4096, Batch: 1},
		{By: bench.ByChannel, Procs: 2, Size: 8, Batch: 4},
		{By: bench.ByPipe, Procs: 2, Size: 64, Batch: 64},
		{By: bench.ByPipe, Procs: 1, Size: 4096, Batch: 3}, // more than a pipe takes in one piece
		{By: bench.BySocket, Procs: 1, Size: 8, Batch: 4},
	} {
		t.Run(fmt.Sprintf("by=%s/procs=%d/size=%d/batch=%d", c.By, c.Procs, c.Size, c.Batch), func(t *testing.T) {
			c.Window = 10 * time.Millisecond
			res, err := c.Run(t.Context())
			skipUnsupported(t, err)
			if err != nil {
				t.Fatal(err)
			}
			if res.Total < 1 || res.Got > res.Total || len(res.Shares) != c.Procs || res.Elapsed < c.Window || res.CPU == 0 {
				t.Errorf("%+v", res)
			}
		})
	}
	for _, c := range []bench.Flow{
		{}, {By: bench.ByPipe, Procs: 2, Size: 4096, Batch: 2, Window: 1}, {By: bench.BySocket, Procs: 2, Size: 8, Batch: 1, Window: 1},
		{By: bench.Shmkit, Procs: 1, Size: 9, Batch: 1, Window: 1}, {By: "river", Procs: 1, Size: 8, Batch: 1, Window: 1},
	} {
		if _, err := c.Run(t.Context()); err == nil {
			t.Errorf("%+v was run", c)
		}
	}
}
