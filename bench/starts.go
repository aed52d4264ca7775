package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// Starts asks what it costs to start a process that runs a function, beside os/exec of this same
// program that does nothing: both pay for the program's size, Go's run time and package
// initialisation. In both, the process says by one byte to its standard output, a pipe, that it has come to its work.
type Starts struct {
	Rounds int
	Bare   bool // by os/exec
	Region bool // the argument is a region, which the process attaches
}

// A StartsResult has the time of each round.
type StartsResult struct {
	Running, Ended []time.Duration // from Start to the byte of the function, and to the return of Wait
}

type started struct {
	Region *shm.Region
	Given  bool
}

var sayStarted = proc.Define("bench: say that it runs", func(_ context.Context, s started) error {
	if s.Given && s.Region.Closed() {
		return errors.New("the region is closed")
	}
	_, err := os.Stdout.Write([]byte{'.'})
	return err
})

// Run runs the case.
func (c Starts) Run(ctx context.Context) (_ *StartsResult, err error) {
	if c.Rounds < 1 {
		return nil, fmt.Errorf("bench: %d rounds: nothing to do", c.Rounds)
	}
	var region *shm.Region
	if c.Region {
		if region, err = shm.Anonymous(shm.Limit(1 << 20)); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, region.Close()) }()
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	from, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, from.Close(), to.Close()) }()
	heard := func() error {
		// A process that fails never says it: the pipe would stay silent for ever, since it is ours.
		if err := from.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			return err
		}
		_, err := io.ReadFull(from, make([]byte, 1))
		return err
	}

	res := new(StartsResult)
	for range c.Rounds {
		var end func() error
		begin := time.Now()
		if c.Bare {
			cmd := exec.CommandContext(ctx, self)
			cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), bareVar+"=1"), to, os.Stderr
			if err := cmd.Start(); err != nil {
				return nil, err
			}
			end = cmd.Wait
		} else {
			p, err := sayStarted.Start(ctx, started{region, c.Region}, proc.Stdout(to))
			if err != nil {
				return nil, err
			}
			defer p.Close()
			end = p.Wait
		}
		silent := heard()
		running := time.Since(begin)
		if err := errors.Join(end(), silent); err != nil {
			return nil, err
		}
		res.Running, res.Ended = append(res.Running, running), append(res.Ended, time.Since(begin))
	}
	return res, nil
}

// median returns the middle one, the higher of two; 0 if there is none.
func median(ds []time.Duration) time.Duration { return quantile(ds, 0.5) }

// quantile returns the smallest duration that is not less than the q'th part of all.
func quantile(ds []time.Duration, q float64) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	ds = slices.Sorted(slices.Values(ds))
	return ds[min(int(q*float64(len(ds))), len(ds)-1)]
}
