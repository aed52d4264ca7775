package bench

import (
	"context"
	"fmt"
	"sync"
	"time"

	shmsync "github.com/shmkit/shmkit/sync"
)

func (c Trips) subject(role Role) Subject {
	return Subject{By: c.Way, Role: role, Run: func(ctx context.Context, window time.Duration) (*Sample, error) {
		c := c
		c.Window = window
		res, err := c.Run(ctx)
		if err != nil {
			return nil, err
		}
		return &Sample{
			Ops: res.Trips, Elapsed: res.Elapsed, Waits: res.Waits, Longest: res.Longest,
			CPU: res.CPU, Switches: res.Switches,
		}, nil
	}}
}

func (c Handoffs) subject(role Role) Subject {
	return Subject{By: c.Lock, Role: role, Run: counted(50, 1<<24, func(ctx context.Context, n int64) (*Sample, error) {
		c := c
		c.Rounds = n
		res, err := c.Run(ctx, func() {})
		if err != nil {
			return nil, err
		}
		return &Sample{Ops: n, Elapsed: res.Elapsed, Waits: res.Passes, CPU: -1}, nil
	})}
}

func (c Sleeper) subject(role Role) Subject {
	return Subject{By: c.Lock, Role: role, Run: func(ctx context.Context, window time.Duration) (*Sample, error) {
		c := c
		c.Rounds = max(3, int(window/c.Pause))
		res, err := c.Run(ctx, func() {})
		if err != nil {
			return nil, err
		}
		return &Sample{Ops: int64(c.Rounds), Elapsed: res.Waited, Waits: res.Waits, Longest: res.Longest, CPU: -1}, nil
	}}
}

func (c Lending) subject(by string, role Role) Subject {
	return Subject{By: by, Role: role, Run: counted(1000, 1<<30, func(ctx context.Context, n int64) (*Sample, error) {
		c := c
		c.Rounds = n
		res, err := c.Run(ctx, func() {})
		if err != nil {
			return nil, err
		}
		return &Sample{Ops: res.Taken, Elapsed: res.Elapsed, CPU: -1}, nil
	})}
}

var _ = Register(func() (cases []Case) {
	for _, dwell := range []time.Duration{0, 100 * time.Microsecond} {
		for _, procs := range []int{1, 2} {
			subjects := []Subject{
				Handoffs{Lock: Shmkit, Procs: procs, Dwell: dwell}.subject(Ours),
				Handoffs{Lock: Futex, Procs: procs, Dwell: dwell}.subject(Floor),
			}
			if procs == 1 {
				subjects = append(subjects, Handoffs{Lock: Standard, Procs: 1, Dwell: dwell}.subject(Peer))
			}
			cases = append(cases, Case{
				Name:     fmt.Sprintf("handoff/dwell=%v/procs=%d", dwell, procs),
				Asks:     "a lock passed to one who waits for it, after dwelling; a wait is from the release until the other one has it",
				Quick:    procs == 2 && dwell == 0,
				Subjects: subjects,
			})
		}
	}
	for _, inside := range []time.Duration{0, 200} {
		c := Sleeper{Goroutines: 8, Inside: inside, Pause: 10 * time.Millisecond}
		var subjects []Subject
		for _, l := range []struct {
			lock string
			role Role
		}{{Shmkit, Ours}, {Futex, Floor}, {Standard, Peer}} {
			c.Lock = l.lock
			subjects = append(subjects, c.subject(l.role))
		}
		cases = append(cases, Case{
			Name:  fmt.Sprintf("sleeper/inside=%v/goroutines=8", inside),
			Asks:  "the wait of a process that wants a lock every 10 ms, which eight goroutines of another one hammer",
			Quick: inside == 0, Subjects: subjects,
		})
	}
	for _, procs := range []int{1, 2} {
		trip := func(way string, role Role) Subject { return Trips{Way: way, Procs: procs}.subject(role) }
		ping := []Subject{
			trip(ByCounting, Ours), trip(ByFutex, Floor), trip(ByEvent, Ours), trip(ByPipe, Peer), trip(BySocket, Peer),
		}
		cond := []Subject{trip(ByCond, Ours), trip(ByFutex, Floor)}
		barrier := []Subject{trip(ByBarrier, Ours), trip(ByFutex, Floor)}
		if procs == 2 {
			ping = append(ping, peerC("C-semaphore", Peer, "pingpong"))
		}
		if procs == 1 {
			ping = append(ping, trip(ByChannel, Peer))
			cond = append(cond, trip(ByStdCond, Peer))
		}
		for _, c := range []struct {
			kind, asks string
			subjects   []Subject
		}{
			{"pingpong", "one wakes the other and is woken by its answer: a round trip", ping},
			{"cond", "the same through a condition and its lock", cond},
			{"barrier", "two passes of a barrier of two", barrier},
		} {
			cases = append(cases, Case{
				Name: fmt.Sprintf("%s/procs=%d", c.kind, procs), Asks: c.asks,
				Quick: procs == 2, Subjects: c.subjects,
			})
		}
	}
	ctx := context.Background()
	cases = append(cases, Case{
		Name: "permits", Asks: "to take and give back what nobody else wants", Quick: true,
		Subjects: []Subject{
			{By: "Semaphore", Role: Ours, Run: alone(inRegion(func(s *shmsync.Semaphore, n int) error {
				for range n {
					if err := s.Acquire(ctx, 1); err != nil {
						return err
					}
					s.Release(1)
				}
				return nil
			}))},
			{By: ByCounting, Role: Ours, Run: alone(inRegion(func(s *shmsync.CountingSemaphore, n int) error {
				s.Release(1)
				for range n {
					if err := s.Acquire(ctx); err != nil {
						return err
					}
					s.Release(1)
				}
				return s.Acquire(ctx)
			}))},
			{By: "WaitGroup", Role: Ours, Run: alone(inRegion(func(g *shmsync.WaitGroup, n int) error {
				for range n {
					g.Add(1)
					g.Done()
				}
				return nil
			}))},
			{By: "shmkit.Mutex", Role: Peer, Run: alone(inRegion(func(mu *shmsync.Mutex, n int) error {
				for range n {
					mu.Lock()
					mu.Unlock()
				}
				return nil
			}))},
			{By: "channel", Role: Peer, Run: alone(func() (batch, error) {
				permits := make(chan struct{}, 1)
				return batch{calls: func(n int) error {
					for range n {
						permits <- struct{}{}
						<-permits
					}
					return nil
				}}, nil
			})},
			{By: "sync.WaitGroup", Role: Peer, Run: alone(func() (batch, error) {
				g := new(sync.WaitGroup)
				return batch{calls: func(n int) error {
					for range n {
						g.Add(1)
						g.Done()
					}
					return nil
				}}, nil
			})},
		},
	})
	for _, procs := range []int{1, 2, 4, 8} {
		for _, permits := range []int{1, procs} {
			cases = append(cases, Case{
				Name: fmt.Sprintf("lending/permits=%d/procs=%d", permits, procs),
				Asks: "processes that take one permit of a few between them, without any work",
				Subjects: []Subject{
					Lending{Kind: Owned, Procs: procs, Permits: permits}.subject("Semaphore", Ours),
					Lending{Kind: Ownerless, Procs: procs, Permits: permits}.subject(ByCounting, Ours),
				},
			})
			if procs == 1 {
				break
			}
		}
	}
	return cases
})
