package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/shmkit/shmkit/shm"
)

// times makes a sample of single times.
func times(ds []time.Duration) *Sample {
	s := &Sample{Ops: int64(len(ds)), Elapsed: median(ds) * time.Duration(len(ds)), CPU: -1}
	for _, d := range ds {
		s.Waits.Add(d)
		s.Longest = max(s.Longest, d)
	}
	return s
}

var _ = Register(func() (cases []Case) {
	for _, w := range []struct{ least, spread time.Duration }{
		{0, 500 * time.Microsecond},
		{100 * time.Millisecond, 100 * time.Millisecond},
	} {
		for _, waiters := range []int{1, 4} {
			c := Kills{Waiters: waiters, Waited: w.least, Spread: w.spread}
			cases = append(cases, Case{
				Name:  fmt.Sprintf("kill/waited=%v/waiters=%d", w.least, waiters),
				Asks:  "from the kill of a lock's holder until the first waiter has it; the floor: until the kernel frees what the dead held",
				Quick: w.least == 0 && waiters == 1,
				Subjects: []Subject{
					{By: Shmkit, Role: Ours, Run: counted(4, 100, func(ctx context.Context, n int64) (*Sample, error) {
						c := c
						c.Rounds = int(n)
						res, err := c.Run(ctx, func() {})
						if err != nil {
							return nil, err
						}
						s := times(res.First)
						s.Extra = map[string]float64{"µs-last": us(median(res.Last))}
						return s, nil
					})},
					{By: "kernel", Role: Floor, Run: counted(4, 100, func(ctx context.Context, n int64) (*Sample, error) {
						took, err := KillFloor(ctx, int(n))
						if err != nil {
							return nil, err
						}
						return times(took), nil
					})},
				},
			})
		}
	}
	for _, locks := range []int{1, 1000} {
		crowd := func(by string, role Role, c Crowd) Subject {
			return Subject{By: by, Role: role, Run: func(ctx context.Context, window time.Duration) (*Sample, error) {
				c := c
				c.Hold = min(3*window, 300*time.Millisecond)
				res, err := c.Run(ctx, func() {})
				if err != nil {
					return nil, err
				}
				return &Sample{Ops: int64(c.Goroutines), Elapsed: res.Drain, CPU: -1, Extra: map[string]float64{
					"goroutines": float64(c.Goroutines), "threads": float64(res.Threads), "threads-peak": float64(res.Peak),
				}}, nil
			}}
		}
		cs := Case{
			Name:     fmt.Sprintf("crowd/locks=%d", locks),
			Asks:     "thousands of goroutines that wait for locks of another process: what each costs to drain, and threads",
			Subjects: []Subject{crowd(Shmkit, Ours, Crowd{Lock: Shmkit, Goroutines: 10_000, Locks: locks})},
		}
		if locks == 1 { // fewer: each costs a thread
			cs.Subjects = append(cs.Subjects, crowd(Futex, Peer, Crowd{Lock: Futex, Goroutines: 500, Locks: 1}))
		}
		cases = append(cases, cs)
	}
	cases = append(cases, Case{
		Name: "syscalls", Asks: "system calls that each call makes on a lock that nobody else wants; control: a call that makes one",
		Subjects: []Subject{{By: Shmkit, Role: Ours, Run: func(ctx context.Context, _ time.Duration) (*Sample, error) {
			all, err := Syscalls{Rounds: 1000}.Run(ctx)
			if err != nil {
				return nil, err
			}
			s := &Sample{CPU: -1, Extra: map[string]float64{}}
			for _, r := range all {
				s.Extra["syscalls/"+r.Call] = r.PerOp
			}
			return s, nil
		}}},
	})
	for _, how := range []string{ByName, ByFile} {
		one := func(by string, role Role, of func(*AttachesResult) time.Duration) Subject {
			return Subject{By: by, Role: role, Run: counted(attachBatch, 1000, func(ctx context.Context, n int64) (*Sample, error) {
				res, err := Attaches{How: how, Rounds: int(n)}.Run(ctx)
				if err != nil {
					return nil, err
				}
				return &Sample{Ops: n, Elapsed: time.Duration(n) * of(res), CPU: -1, Extra: map[string]float64{"µs-first": us(res.First)}}, nil
			})}
		}
		cases = append(cases, Case{
			Name: "attach/how=" + how, Asks: "the first open of a region in a process, and its close; the floor: open, fstat, mmap, munmap, close",
			Quick: how == ByName,
			Subjects: []Subject{
				one(Shmkit, Ours, func(r *AttachesResult) time.Duration { return r.Both }),
				one("system-calls", Floor, func(r *AttachesResult) time.Duration { return r.Bare }),
			},
		})
	}
	for _, region := range []bool{false, true} {
		start := func(by string, role Role, c Starts) Subject {
			return Subject{By: by, Role: role, Run: counted(2, 100, func(ctx context.Context, n int64) (*Sample, error) {
				c := c
				c.Rounds = int(n)
				res, err := c.Run(ctx)
				if err != nil {
					return nil, err
				}
				s := times(res.Ended)
				s.Extra = map[string]float64{"µs-running": us(median(res.Running))}
				return s, nil
			})}
		}
		cases = append(cases, Case{
			Name: fmt.Sprintf("start/region=%v", region), Quick: region,
			Asks: "a process from its start to its end; the floor: os/exec of the same program, which does nothing",
			Subjects: []Subject{
				start(Shmkit, Ours, Starts{Region: region}),
				start("os-exec", Floor, Starts{Bare: true}),
			},
		})
	}
	for _, size := range []uint64{1 << 16, 1 << 20, 1 << 24} {
		cases = append(cases, Case{
			Name: fmt.Sprintf("create/size=%d", size), Quick: size == 1<<20,
			Asks: "a region made, with its memory really reserved, and closed; the floor: memfd_create, fallocate, mmap, munmap, close",
			Subjects: []Subject{
				{By: Shmkit, Role: Ours, Run: alone(func() (batch, error) {
					return batch{most: 64, calls: func(n int) error {
						for range n {
							r, err := shm.Anonymous(shm.Size(size), shm.Limit(size))
							if err != nil {
								return err
							}
							if err := r.Close(); err != nil {
								return err
							}
						}
						return nil
					}}, nil
				})},
				{By: "system-calls", Role: Floor, Run: alone(func() (batch, error) {
					return batch{most: 64, calls: func(n int) error {
						for range n {
							if err := bareCreate(int64(size)); err != nil {
								return err
							}
						}
						return nil
					}}, nil
				})},
			},
		})
	}
	return cases
})

func us(d time.Duration) float64 { return d.Seconds() * 1e6 }
