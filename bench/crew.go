package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// A gate holds those back that would start before the others are there. It lies in shared memory.
type gate struct {
	ready atomic.Int64 // those who wait at it
	_     [120]byte
	open  atomic.Int64 // not 0: go. Stored by the one who holds the clock
	_     [120]byte
}

// pass waits until the gate is open. It sleeps until everybody is there, so that starting the last
// processes is not slowed by the first, and looks without sleeping from then on, so that all leave
// together.
func (g *gate) pass(everybody int) {
	g.ready.Add(1)
	for g.ready.Load() < int64(everybody) {
		time.Sleep(50 * time.Microsecond)
	}
	for g.open.Load() == 0 {
		runtime.Gosched()
	}
}

// A crew is the processes of a case.
type crew struct {
	ps     []*proc.Process
	cancel context.CancelFunc
}

// hire starts one process per argument, or none and returns an error.
func hire[A any](ctx context.Context, f *proc.Func[A], arguments ...A) (_ *crew, err error) {
	ctx, cancel := context.WithCancel(ctx)
	c := &crew{cancel: cancel}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.dismiss())
		}
	}()
	for _, a := range arguments {
		p, err := f.Start(ctx, a, proc.Daemon(), proc.MaxProcs(runtime.GOMAXPROCS(0))) // ends when this process does, however that happens
		if err != nil {
			return nil, err
		}
		c.ps = append(c.ps, p)
	}
	return c, nil
}

// until waits for a state that the processes bring about. It returns an error if one of them ends
// instead.
func (c *crew) until(what string, done func() bool) error {
	for nap := 20 * time.Microsecond; !done(); nap = min(2*nap, time.Millisecond) {
		for _, p := range c.ps {
			if !p.Alive() && !done() {
				return fmt.Errorf("bench: %s ended before %s: %w", p.Name(), what, errors.Join(p.Wait(), errEnded))
			}
		}
		time.Sleep(nap)
	}
	return nil
}

var errEnded = errors.New("ended too early")

// wait waits until all have ended. When one fails the others are ended, who may wait for it, and its error is returned.
func (c *crew) wait() (err error) {
	ends := make(chan error)
	for _, p := range c.ps {
		go func() { ends <- p.Wait() }()
	}
	for range c.ps {
		if end := <-ends; end != nil && err == nil {
			err = end
			c.cancel()
		}
	}
	return err
}

// dismiss ends those that still run, and gives the handles up.
func (c *crew) dismiss() (err error) {
	c.cancel()
	for _, p := range c.ps {
		<-p.Done()
		err = errors.Join(err, p.Close())
	}
	return err
}

// newShared makes a region that holds a T, zeroed, at the beginning of its data.
func newShared[T any](size uint64) (*shm.Region, *T, error) {
	r, err := shm.Anonymous(shm.Size(size), shm.Limit(max(size, 1<<20)))
	if err != nil {
		return nil, nil, err
	}
	t, err := shm.At[T](r, r.Data())
	if err != nil {
		return nil, nil, errors.Join(err, r.Close())
	}
	return r, t, nil
}

// clock returns the time in a form that processes can compare: ns since 1970.
func clock() int64 { return time.Now().UnixNano() }
