//go:build crashpoints

package sync_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// Goods are made and taken under a lock, and each that is made is signalled once: a signal that is lost leaves
// goods lying while somebody waits.

var trade = proc.Define("trade", func(ctx context.Context, v victim) error {
	if v.Plan != "" {
		shmsync.CrashAt(v.Plan)
	}
	y := yardIn(v.Region)
	for range 4 {
		go deal(ctx, y)
	}
	deal(ctx, y)
	return nil
})

func mendYard(y *yard) func(shm.Death) error {
	return func(shm.Death) error { return nil } // one word, changed in one step
}

// deal makes goods and takes goods, in turn, until the context ends.
func deal(ctx context.Context, y *yard) {
	for ctx.Err() == nil {
		makes := rand.IntN(2) == 0
		if err := y.mu.LockRepaired(ctx, mendYard(y)); err != nil {
			continue
		}
		if makes {
			n := 1 + rand.IntN(3)
			if y.state > 20 {
				n = 0
			}
			y.state += int64(n)
			switch rand.IntN(3) {
			case 0:
				y.cond.SignalN(n)
			case 1:
				for range n {
					y.cond.Signal()
				}
			default:
				y.cond.Broadcast()
			}
			y.mu.Unlock()
			continue
		}
		held := true
		for y.state == 0 && ctx.Err() == nil {
			c, cancel := ctx, context.CancelFunc(func() {})
			if rand.IntN(2) == 0 {
				c, cancel = context.WithTimeout(ctx, time.Duration(rand.IntN(300))*time.Microsecond)
			}
			woken, err := y.cond.Wait(c, &y.mu)
			cancel()
			if errors.Is(err, shmsync.ErrInconsistent) {
				held = y.mu.LockRepaired(ctx, mendYard(y)) == nil
			} else if err != nil {
				held = false
			} else if !woken {
				break
			}
			if !held {
				break
			}
		}
		if held {
			if y.state > 0 {
				y.state--
			}
			y.told.Add(1)
			y.mu.Unlock()
		}
	}
}

// A process kills itself between two steps, at each place there is, while it and others wait and signal: the others
// go on, the line is whole, and signals are exact again.
func TestCondAKillBetweenAnyTwoStepsStopsNobody(t *testing.T) {
	points := append(crashPoints(t, "cond.go", "cond_line.go", "cond_crowd.go"), "about to pass", "released in the gate")
	if len(points) < 20 {
		t.Fatalf("only %d points found: %q", len(points), points)
	}
	reached := map[string]bool{}
	for _, point := range points {
		if directed[point] != nil {
			t.Run(point, func(t *testing.T) { reached[point] = dieThere(t, point, directed[point]) })
			continue
		}
		for _, n := range []int{1, 3} {
			if n > 1 && testing.Short() {
				break
			}
			t.Run(fmt.Sprintf("%s/%d", point, n), func(t *testing.T) {
				reached[point] = reached[point] // it was tried
				r, y := newYard(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				const hands = 4
				ended := make(chan bool)
				for range hands {
					go func() { deal(ctx, y); ended <- true }()
				}
				witness, err := trade.Start(ctx, victim{Region: r}, proc.Daemon())
				if err != nil {
					t.Fatal(err)
				}
				p, err := trade.Start(ctx, victim{r, fmt.Sprintf("%s:%d", point, n)}, proc.Daemon())
				if err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				for dead := false; !dead; {
					select {
					case <-p.Done():
						dead = true
					case <-time.After(20 * time.Millisecond):
						// Some steps are those of one who finds a death.
						q, err := trade.Start(ctx, victim{r, points[rand.IntN(len(points))] + ":1"}, proc.Daemon())
						if err != nil {
							t.Fatal(err)
						}
						select {
						case <-q.Done():
						case <-time.After(20 * time.Millisecond):
							q.Kill()
							<-q.Done()
						}
						if time.Since(begin) > time.Minute {
							p.Kill()
							<-p.Done()
							t.Logf("the point was not reached in a minute and %d turns", y.told.Load())
							dead = true
						}
					}
				}
				if time.Since(begin) < time.Minute {
					reached[point] = true
				}
				for turns := y.told.Load(); y.told.Load() < turns+100; time.Sleep(time.Millisecond) {
					if time.Since(begin) > 2*time.Minute {
						t.Fatalf("nobody goes on: %d turns after the kill", y.told.Load()-turns)
					}
				}
				witness.Kill()
				<-witness.Done()
				cancel()
				for range hands {
					<-ended
				}
				exactAgain(t, y)
			})
		}
	}
	for _, point := range points {
		if yes, tried := reached[point]; tried && !yes {
			t.Errorf("not reached: %q", point)
		}
	}
}

// Steps that hardly come to pass by chance. Each is told to bring a process to the point, which stands in line by y.stand,
// and returns when it has; it may not have come there.
var directed = map[string]func(t *testing.T, r *shm.Region, y *yard, plan string) *proc.Process{
	"about to be known": func(t *testing.T, r *shm.Region, y *yard, plan string) *proc.Process {
		return startDoomed(t, r, plan, 0)
	},
	// One gives up, and nobody has signalled.
	"left the line": func(t *testing.T, r *shm.Region, y *yard, plan string) *proc.Process {
		p := startDoomed(t, r, plan, 20*time.Millisecond)
		y.arrive(t, 1)
		y.mu.Unlock()
		until(t, "it is dead, or has given up", func() bool {
			if err := y.mu.LockRepaired(context.Background(), mendYard(y)); err != nil {
				t.Fatal(err)
			}
			defer y.mu.Unlock()
			return !p.Alive() || y.gone > 0
		})
		return p
	},
	"paid": func(t *testing.T, r *shm.Region, y *yard, plan string) *proc.Process {
		p := startDoomed(t, r, plan, 0)
		y.arrive(t, 1)
		y.mu.Unlock()
		goStand(y)
		y.arrive(t, 2)
		y.cond.Signal()
		y.mu.Unlock()
		return p
	},
	// Two find the death of one who was signalled.
	"passed a signal on": func(t *testing.T, r *shm.Region, y *yard, plan string) *proc.Process {
		first := startDoomed(t, r, "", 0)
		y.arrive(t, 1)
		y.mu.Unlock()
		p := startDoomed(t, r, plan, 0)
		y.arrive(t, 2)
		y.mu.Unlock()
		goStand(y)
		y.arrive(t, 3)
		y.cond.Signal()
		first.Kill()
		<-first.Done()
		y.mu.Unlock()
		return p
	},
	// One who was signalled finds the lock inconsistent.
	"passed its signal on": func(t *testing.T, r *shm.Region, y *yard, plan string) *proc.Process {
		p := startDoomed(t, r, plan, 0)
		y.arrive(t, 1)
		y.mu.Unlock()
		goStand(y)
		y.arrive(t, 2)
		y.cond.Signal()
		y.mu.Poison()
		y.mu.Unlock()
		select { // nobody else mends the lock before it
		case <-p.Done():
		case <-time.After(time.Second):
		}
		return p
	},
	// The last that waits gives up while the one before, who was signalled, has not returned.
	"settled at the end": func(t *testing.T, r *shm.Region, y *yard, plan string) *proc.Process {
		goStand(y)
		y.arrive(t, 1)
		y.mu.Unlock()
		p := startDoomed(t, r, plan, 50*time.Millisecond)
		y.arrive(t, 2)
		time.Sleep(100 * time.Millisecond)
		y.cond.Signal()
		y.mu.Unlock()
		return p
	},
}

type doomed struct {
	Region *shm.Region
	Plan   string
	Time   time.Duration // 0: for ever
}

var standDoomed = proc.Define("stand in line, doomed", func(ctx context.Context, d doomed) error {
	if d.Plan != "" {
		shmsync.CrashAt(d.Plan)
	}
	if d.Time != 0 {
		ctx = after(d.Time)
	}
	yardIn(d.Region).stand(ctx)
	return nil
})

func startDoomed(t *testing.T, r *shm.Region, plan string, d time.Duration) *proc.Process {
	p, err := standDoomed.Start(context.Background(), doomed{r, plan, d})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		<-p.Done()
	})
	return p
}

// dieThere brings processes to a point until one dies there, and looks each time whether the others go on. It reports whether
// one did.
func dieThere(t *testing.T, point string, bring func(t *testing.T, r *shm.Region, y *yard, plan string) *proc.Process) (reached bool) {
	for i := 0; i < 40 && !reached && !t.Failed(); i++ {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			r, y := newYard(t)
			p := bring(t, r, y, point+":1")
			mend := func() {
				if err := y.mu.LockRepaired(context.Background(), mendYard(y)); err != nil {
					t.Fatal(err)
				}
			}
			until(t, "it is dead, or through, or in line", func() bool {
				mend()
				defer y.mu.Unlock()
				_, all := y.cond.Here()
				return !p.Alive() || all == 0 || y.gone > 0
			})
			mend()
			y.cond.Broadcast()
			y.mu.Unlock()
			<-p.Done()
			code, _ := p.ExitCode()
			reached = code != 0
			until(t, "all have returned", func() bool {
				mend()
				y.cond.Broadcast()
				y.mu.Unlock()
				_, all := y.cond.Here()
				return all == 0
			})
			exactAgain(t, y)
		})
	}
	return reached
}

// exactAgain looks whether signals release as many as they should.
func exactAgain(t *testing.T, y *yard) {
	lock := func() {
		if err := y.mu.LockRepaired(context.Background(), mendYard(y)); err != nil {
			t.Fatal(err)
		}
	}
	lock()
	y.arrived, y.gone = 0, 0
	y.mu.Unlock()
	var got []<-chan error
	for i := range int64(4) {
		got = append(got, goStand(y))
		y.arrive(t, i+1)
		y.mu.Unlock()
	}
	for i := range int64(4) {
		y.mu.Lock()
		y.cond.Signal()
		y.mu.Unlock()
		y.leave(t, i+1)
		lock()
		if y.gone != i+1 || y.order[i] != i {
			t.Errorf("%d signals, %d returned, the last was number %d", i+1, y.gone, y.order[i])
		}
		y.mu.Unlock()
	}
	mustReturn(t, got...)
}
