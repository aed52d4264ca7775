//go:build crashpoints

package sync_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A quarry is what processes fight for in these tests; a victim kills itself at a point.
type quarry struct {
	Region *shm.Region
	Kind   string
	Plan   string
}

var scuffle = proc.Define("scuffle", func(ctx context.Context, q quarry) error {
	if q.Plan != "" {
		shmsync.CrashAt(q.Plan)
	}
	d := depotIn(q.Region)
	for range 3 {
		go scuffles[q.Kind](ctx, d, q.Plan == "")
	}
	scuffles[q.Kind](ctx, d, q.Plan == "")
	return nil
})

// bequeath dies over a task that it has added; with a number, somebody is to be done with it all the same.
var bequeath = proc.Define("die over a task", func(_ context.Context, o order) error {
	d := depotIn(o.Region)
	d.group.Add(1)
	if o.Number != 0 {
		d.most.Add(1)
	}
	p, _ := os.FindProcess(os.Getpid())
	p.Kill()
	select {}
})

const quarryPermits = 3000 // a stake has room for one third of them

// scuffles are fights until the context ends, of those who survive and of those who may not.
var scuffles = map[string]func(ctx context.Context, d *depot, survives bool){
	"semaphore": func(ctx context.Context, d *depot, survives bool) {
		for ctx.Err() == nil {
			n := []int{1, 1, 1000, 2000, quarryPermits}[rand.IntN(5)]
			short, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(5000))*time.Microsecond)
			held := false
			switch rand.IntN(5) {
			case 4:
				n, held = 1, anyOf(short, d, &d.sem)
			case 0:
				held = d.sem.TryAcquire(n)
			case 1:
				held = d.sem.AcquireTimeout(n, time.Millisecond)
			case 2:
				held = d.sem.Acquire(short, n) == nil
			default:
				held = d.sem.Acquire(ctx, n) == nil
			}
			cancel()
			if !held {
				continue
			}
			if survives {
				if d.inside.Add(int64(n)) > quarryPermits {
					d.missed.Add(1)
				}
			}
			linger(d)
			if survives {
				d.inside.Add(int64(-n))
				d.got.Add(1)
			}
			if n > 1 && rand.IntN(2) == 0 {
				d.sem.Release(1)
				n--
			}
			d.sem.Release(n)
		}
	},
	"counting": func(ctx context.Context, d *depot, survives bool) {
		for ctx.Err() == nil {
			short, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(2000))*time.Microsecond)
			held := false
			switch rand.IntN(4) {
			case 3:
				held = anyOf(short, d, &d.ping)
			case 0:
				held = d.ping.TryAcquire()
			case 1:
				held = d.ping.Acquire(short) == nil
			default:
				held = d.ping.AcquireTimeout(time.Duration(rand.IntN(2000)) * time.Microsecond)
			}
			cancel()
			if held && survives {
				d.inside.Add(1)
			}
			if held {
				linger(d)
				if rand.IntN(4) == 0 && d.ping.TryAcquire() {
					d.ping.Release(2) // of those who wait one is woken, and wakes the next
				} else {
					d.ping.Release(1)
				}
			}
			switch {
			case survives && held:
				d.inside.Add(-1)
				d.got.Add(1)
			case survives && d.inside.Load() == 0 && d.ping.Value() == 0 && rand.IntN(20) == 0:
				d.ping.Release(1) // those of the dead are lost
			}
			if survives && d.ping.Value() > 2 { // where there are many, nobody waits
				d.ping.TryAcquire()
			}
		}
	},
	"group": func(ctx context.Context, d *depot, survives bool) {
		w := &d.group
		for ctx.Err() == nil {
			switch rand.IntN(5) {
			case 0:
				w.Add(2)
				linger(d)
				w.Done()
				w.Done()
			case 1:
				w.Add(1)
				w.Take(1)
				linger(d)
				w.Done()
			case 2: // for somebody else to be done with
				w.Add(1)
				if rand.IntN(2) == 0 {
					w.Leave()
				}
				d.most.Add(1)
			case 3: // all that were left: else there would be ever more of them, and the group hardly ever at its end
				for n := d.most.Load(); n > 0; n = d.most.Load() {
					if d.most.CompareAndSwap(n, n-1) {
						w.Done()
					}
				}
			default:
				short, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(1000))*time.Microsecond)
				err := w.Wait(short)
				cancel()
				if err != nil && !errors.Is(err, shmsync.ErrMemberDied) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
					panic(err)
				}
			}
			if survives {
				d.got.Add(1)
			}
		}
	},
}

// anyOf waits for a thing or a permit that somebody gives in a moment, and reports whether it has the thing.
func anyOf(ctx context.Context, d *depot, thing shmsync.Waitable) bool {
	given := time.AfterFunc(time.Duration(rand.IntN(3000))*time.Microsecond, func() { d.pong.Release(1) })
	i, err := shmsync.WaitAny(ctx, thing, &d.pong)
	if !given.Stop() && (err != nil || i != 1) {
		d.pong.TryAcquire()
	}
	for d.pong.Value() > 1 { // where there are many, nobody waits
		d.pong.TryAcquire()
	}
	return err == nil && i == 0
}

func linger(d *depot) {
	switch rand.IntN(10) {
	case 0:
		time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
	case 1:
		for range rand.IntN(10_000) {
			d.ready.Add(1)
		}
	}
}

// settled checks what is left when everybody has stopped and the victim's death is noticed.
var settled = map[string]func(t *testing.T, d *depot){
	"semaphore": func(t *testing.T, d *depot) {
		if v, n := d.sem.Value(), d.sem.Claims(); v != quarryPermits || n != 0 || d.missed.Load() != 0 {
			t.Errorf("value %d, %d claims, %d times too many out", v, n, d.missed.Load())
		}
		if !d.sem.TryAcquire(quarryPermits) {
			t.Error("not all permits are there")
		}
	},
	"counting": func(t *testing.T, d *depot) {
		if v := d.ping.Value(); v < 0 || v > 1<<20 {
			t.Errorf("value %d", v)
		}
	},
	"group": func(t *testing.T, d *depot) {
		if answered, count := d.group.Answered(); answered > count {
			t.Errorf("%d outstanding, %d are answered for", count, answered)
		}
		d.group.Add(-d.group.Count())
		if err := d.group.Wait(context.Background()); err != nil {
			t.Error(err)
		}
		if answered, count := d.group.Answered(); answered != 0 || count != 0 {
			t.Errorf("%d outstanding, %d are answered for", count, answered)
		}
	},
}

func TestAKillBetweenAnyTwoStepsOfASemaphoreStopsNobody(t *testing.T) {
	killBetweenAny(t, "semaphore", "semaphore.go", "waitany_semaphore.go", "members.go")
}

func TestAKillBetweenAnyTwoStepsOfACountingSemaphoreStopsNobody(t *testing.T) {
	killBetweenAny(t, "counting", "countingsemaphore.go", "waitany_counting.go")
}

func TestAKillBetweenAnyTwoStepsOfAWaitGroupStopsNobody(t *testing.T) {
	killBetweenAny(t, "group", "waitgroup.go", "members.go")
}

func killBetweenAny(t *testing.T, kind string, files ...string) {
	points := crashPoints(t, files...)
	reached := 0
	for i, point := range points {
		if slices.Contains(points[:i], point) {
			t.Fatalf("two points are called %q", point)
		}
		once := false
		for _, n := range []int{1, 3} {
			if n > 1 && (point == "joined" || point == "cleared what was held before" || point == "subtracted the dead") {
				continue // once in a process
			}
			if n > 1 && once && testing.Short() {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", point, n), func(t *testing.T) {
				r, d := newDepot(t)
				d.sem.Init(quarryPermits)
				d.ping.Init(2)
				d.pong.Init(0)
				if point == "subtracted the dead" {
					d.group.Init(shmsync.SubtractDead)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ended := make(chan bool)
				for range 2 {
					go func() { scuffles[kind](ctx, d, true); ended <- true }()
				}
				stop := func() {
					cancel()
					<-ended
					<-ended
				}
				witness, err := scuffle.Start(context.Background(), quarry{r, kind, ""}, proc.Daemon())
				if err != nil {
					t.Fatal(err)
				}
				p, err := scuffle.Start(context.Background(), quarry{r, kind, fmt.Sprintf("%s:%d", point, n)}, proc.Daemon())
				if err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				for dead := false; !dead; {
					select {
					case <-p.Done():
						dead = true
					case <-time.After(5 * time.Millisecond):
						if lost := point == "done with tasks that others have taken"; lost || point == "subtracted the dead" {
							number := 0
							if lost {
								number = 1
							}
							q, err := bequeath.Start(context.Background(), order{r, number, 0}, proc.Daemon())
							if err != nil {
								t.Fatal(err)
							}
							<-q.Done()
							r.Scan()
						}
						if time.Since(begin) > time.Minute {
							p.Kill()
							witness.Kill()
							<-p.Done()
							<-witness.Done()
							stop()
							t.Skipf("the point was not reached in a minute and %d turns", d.got.Load())
						}
					}
				}
				once = true
				for turns := d.got.Load(); d.got.Load() < turns+200; time.Sleep(time.Millisecond) {
					if time.Since(begin) > 2*time.Minute {
						t.Fatalf("nobody goes on: %d turns after the kill", d.got.Load()-turns)
					}
				}
				stop()         // first: what the witness has out is not counted down when it dies
				witness.Kill() // anywhere: it is one more death
				<-witness.Done()
				until(t, "the deaths are noticed", func() bool { r.Scan(); return shmsync.Attached(r) == 1 })
				settled[kind](t, d)
			})
		}
		if once {
			reached++
		} else {
			t.Logf("%q was not reached", point)
		}
	}
	if reached < len(points) {
		t.Errorf("%d of %d points were reached", reached, len(points))
	}
}
