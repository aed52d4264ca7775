package bench

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	shmsync "github.com/shmkit/shmkit/sync"
)

// subject is c as one that answers a case.
func (c Contention) subject(by string, role Role) Subject {
	return Subject{By: by, Role: role, Run: func(ctx context.Context, window time.Duration) (*Sample, error) {
		c := c
		c.Windows, c.Window = 1, window
		res, err := c.Run(ctx, func() {})
		if err != nil {
			return nil, err
		}
		return &Sample{
			Ops: res.Taken, Elapsed: res.Elapsed, Shares: res.Shares, Waits: res.Waits, Longest: res.Longest,
			CPU: res.CPU, Switches: res.Switches, Total: res.Total,
		}, nil
	}}
}

// taken are the locks that processes take between them: ours, the floor, and peers. The standard library's has as
// many goroutines of one process instead.
func (c Contention) taken() []Subject {
	var all []Subject
	for _, l := range []struct {
		lock string
		role Role
	}{{Shmkit, Ours}, {Futex, Floor}, {Standard, Peer}, {Flock, Peer}, {OFD, Peer}} {
		c := c
		if c.Lock = l.lock; l.lock == Standard {
			c.Procs, c.Goroutines = 1, c.Procs*c.Goroutines
		}
		all = append(all, c.subject(l.lock, l.role))
	}
	for _, lock := range []string{"pthread", "robust", "futex3"} {
		all = append(all, peerC("C-"+lock, Peer, "contended", lock, strconv.Itoa(c.Procs*c.Goroutines),
			strconv.Itoa(int(c.Inside)), strconv.Itoa(int(c.Outside)), "100"))
	}
	if n := c.Procs * c.Goroutines; n == 2 || n == 8 {
		all = append(all, peerBoost("Boost", "contended", strconv.Itoa(n), strconv.Itoa(int(c.Inside)), strconv.Itoa(int(c.Outside))))
		if c.Inside+c.Outside == 0 {
			all = append(all, peerPython("Python", "contended", strconv.Itoa(n)))
		}
	}
	return all
}

// Work of those who contend: none; with the lock held, so that a lock does best that keeps to one processor; as
// much without it, so that two processors could do more than one.
var sections200 = []struct{ inside, outside time.Duration }{
	{0, 0}, {0, 200}, {200, 0}, {200, 200}, {2000, 0}, {2000, 200},
}

var _ = Register(func() (cases []Case) {
	cases = append(cases, Case{
		Name: "uncontended", Quick: true,
		Asks: "Lock and Unlock of a lock that nobody else wants",
		Subjects: []Subject{
			{By: Shmkit, Role: Ours, Run: alone(inRegion(func(mu *shmsync.Mutex, n int) error {
				for range n {
					mu.Lock()
					mu.Unlock()
				}
				return nil
			}))},
			{By: "two-locked-instructions", Role: Floor, Run: alone(inRegion(func(w *atomic.Uint64, n int) error {
				for range n {
					if !w.CompareAndSwap(0, 1) || !w.CompareAndSwap(1, 0) {
						return fmt.Errorf("bench: somebody changed a word that nobody else has")
					}
				}
				return nil
			}))},
			{By: Futex, Role: Peer, Run: alone(inRegion(func(w *atomic.Uint32, n int) error {
				mu, err := NewFutexLock(w)
				if err != nil {
					return err
				}
				for range n {
					mu.Lock()
					mu.Unlock()
				}
				return nil
			}))},
			{By: Standard, Role: Peer, Run: alone(inRegion(func(mu *sync.Mutex, n int) error {
				for range n {
					mu.Lock()
					mu.Unlock()
				}
				return nil
			}))},
			{By: Flock, Role: Peer, Run: alone(func() (batch, error) { return fileBatch(Flock) })},
			{By: OFD, Role: Peer, Run: alone(func() (batch, error) { return fileBatch(OFD) })},
			peerC("C-pthread", Peer, "alone", "pthread"),
			peerC("C-robust", Peer, "alone", "robust"),
			peerC("C-futex3", Peer, "alone", "futex3"),
			peerBoost("Boost", "alone"),
			peerPython("Python", "lock"),
		},
	}, Case{
		Name: "uncontended/lock=RWMutex", Quick: true,
		Asks: "RLock and RUnlock of a lock that nobody else wants",
		Subjects: []Subject{
			{By: Shmkit, Role: Ours, Run: alone(inRegion(func(mu *shmsync.RWMutex, n int) error {
				for range n {
					mu.RLock()
					mu.RUnlock()
				}
				return nil
			}))},
			{By: StandardRW, Role: Peer, Run: alone(inRegion(func(mu *sync.RWMutex, n int) error {
				for range n {
					mu.RLock()
					mu.RUnlock()
				}
				return nil
			}))},
			peerC("C-rwlock", Peer, "alone", "rwlock"),
		},
	})
	for _, s := range sections200 {
		for _, procs := range []int{1, 2, 4, 8, 16} {
			c := Contention{Procs: procs, Goroutines: 1, Inside: s.inside, Outside: s.outside}
			cases = append(cases, Case{
				Name:     fmt.Sprintf("contended/inside=%v/outside=%v/procs=%d", s.inside, s.outside, procs),
				Asks:     "one lock taken by processes that work inside and outside of it; a wait is until one has it",
				Quick:    (procs == 2 || procs == 8) && s.inside <= 200 && s.inside == s.outside || procs == 2 && s.inside == 200,
				Subjects: c.taken(),
			})
		}
	}
	for _, s := range sections200[:4] {
		c := Contention{Procs: 8, Goroutines: 1, Inside: s.inside, Outside: s.outside}
		cases = append(cases, Case{
			Name: fmt.Sprintf("second/inside=%v/outside=%v/procs=8", s.inside, s.outside), Least: time.Second,
			Asks:     "the same over a whole second: how even the shares are",
			Subjects: c.taken()[:2],
		})
		for _, n := range []int{2, 4, 8} {
			c := Contention{Lock: Shmkit, Procs: 1, Goroutines: n, Inside: s.inside, Outside: s.outside}
			std := c
			std.Lock = Standard
			cases = append(cases, Case{
				Name:     fmt.Sprintf("goroutines/inside=%v/outside=%v/goroutines=%d", s.inside, s.outside, n),
				Asks:     "the same by goroutines of one process, who need no lock across processes",
				Subjects: []Subject{c.subject(Shmkit, Ours), std.subject(Standard, Peer)},
			})
		}
	}
	for _, procs := range []int{2, 4} {
		c := Contention{Procs: procs, Goroutines: 4, Inside: 200}
		cases = append(cases, Case{
			Name:     fmt.Sprintf("mixed/inside=%v/goroutines=4/procs=%d", c.Inside, procs),
			Asks:     "the same by four goroutines of each process",
			Quick:    procs == 2,
			Subjects: c.taken()[:3],
		})
	}
	for _, writes := range []int{0, 1, 10, 50} {
		for _, procs := range []int{1, 2, 4, 8} {
			c := Contention{Lock: ShmkitRW, Procs: procs, Goroutines: 1, Writes: writes}
			std := c
			std.Lock, std.Procs, std.Goroutines = StandardRW, 1, procs
			cs := Case{
				Name:  fmt.Sprintf("rw/writes=%d%%/procs=%d", writes, procs),
				Asks:  "one lock for readers and writers, empty sections; sync.RWMutex by as many goroutines",
				Quick: procs == 4 && writes <= 1,
				Subjects: []Subject{
					c.subject(Shmkit, Ours), std.subject(StandardRW, Peer),
					peerC("C-rwlock", Peer, "contended", "rwlock", strconv.Itoa(procs), "0", "0", strconv.Itoa(writes)),
				},
			}
			if writes == 0 {
				own := c
				own.Lock = Loops
				cs.Subjects = append(cs.Subjects, own.subject("words-of-their-own", Floor))
			} else {
				mu := Contention{Lock: Shmkit, Procs: procs, Goroutines: 1}
				cs.Subjects = append(cs.Subjects, mu.subject("shmkit.Mutex", Peer))
			}
			cases = append(cases, cs)
		}
	}
	return cases
})

// fileBatch locks a file that nobody else locks.
func fileBatch(kind string) (batch, error) {
	f, path, err := newLockFile()
	if err != nil {
		return batch{}, err
	}
	mu, err := openFileLock(path, kind)
	if err != nil {
		f.Close()
		return batch{}, err
	}
	return batch{close: f.Close, calls: func(n int) error {
		for range n {
			mu.Lock()
			mu.Unlock()
		}
		return nil
	}}, nil
}
