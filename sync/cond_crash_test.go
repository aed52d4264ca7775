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
	points := crashPoints(t, "cond.go", "cond_line.go", "cond_crowd.go")
	if len(points) < 20 {
		t.Fatalf("only %d points found: %q", len(points), points)
	}
	reached := map[string]bool{}
	for _, point := range points {
		for _, n := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s/%d", point, n), func(t *testing.T) {
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
						if time.Since(begin) > 20*time.Second {
							p.Kill()
							<-p.Done()
							t.Logf("the point was not reached in 20 s and %d turns", y.told.Load())
							dead = true
						}
					}
				}
				if time.Since(begin) < 20*time.Second {
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
		if !reached[point] {
			t.Logf("not reached: %q", point)
		}
	}
	if len(reached) < len(points)-2 { // some of them come to pass seldom
		t.Errorf("%d of %d points were reached", len(reached), len(points))
	}
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
