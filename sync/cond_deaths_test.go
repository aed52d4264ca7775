package sync_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// mourn waits until somebody dies, or is woken, and notes that.
func mourn(ctx context.Context, r *shm.Region, y *yard) error {
	y.mu.Lock()
	seen := r.Deaths().Load()
	y.arrived++
	woken, err := y.cond.WaitDeaths(ctx, &y.mu, seen)
	if err != nil {
		return err
	}
	defer y.mu.Unlock()
	y.gone++
	if died := r.Deaths().Load() != seen; woken == died {
		return fmt.Errorf("woken is %v, and %d have died, with %d before", woken, r.Deaths().Load(), seen)
	}
	return ctx.Err()
}

var mournOnce = proc.Define("mourn once", func(ctx context.Context, o order) error { return mourn(ctx, o.Region, yardIn(o.Region)) })

// standsBy does nothing until it is killed.
var standsBy = proc.Define("be there", func(_ context.Context, o order) error {
	yardIn(o.Region).told.Add(1)
	select {}
})

// bystander starts a process that has nothing to do with any lock.
func bystander(t *testing.T, r *shm.Region, y *yard) *proc.Process {
	t.Helper()
	before := y.told.Load()
	p := start(t, standsBy, r, 0, 0)
	until(t, "the bystander is there", func() bool { return y.told.Load() == before+1 })
	return p
}

// A death ends the waits in all processes; the lock is held then, the line whole, and the next signals exact.
func TestCondADeathEndsTheWaitsOfThoseWhoCare(t *testing.T) {
	r, y := newYard(t)
	dies := bystander(t, r, y)
	ps := []*proc.Process{start(t, mournOnce, r, 0, 0), start(t, mournOnce, r, 0, 0)}
	got := make(chan error, 1)
	go func() { got <- mourn(context.Background(), r, y) }()
	y.arrive(t, 3)
	y.mu.Unlock()
	patient := goStand(y) // of the same process, and not to be disturbed
	y.arrive(t, 4)
	y.mu.Unlock()
	dies.Kill()
	wait(t, ps...)
	mustReturn(t, got)
	select {
	case err := <-patient:
		t.Fatalf("a death ended the wait of one who does not care: %v", err)
	default:
	}
	y.mu.Lock()
	y.cond.Signal()
	y.mu.Unlock()
	mustReturn(t, patient)
}

// A signal ends the wait as that of Wait; nobody has died.
func TestCondASignalEndsTheWaitOfOneWhoCaresForDeaths(t *testing.T) {
	r, y := newYard(t)
	p := start(t, mournOnce, r, 0, 0)
	y.arrive(t, 1)
	y.mu.Unlock()
	got := make(chan error, 1)
	go func() { got <- mourn(context.Background(), r, y) }()
	y.arrive(t, 2)
	y.cond.Signal()
	y.mu.Unlock()
	wait(t, p) // came first
	y.mu.Lock()
	y.cond.Signal()
	y.mu.Unlock()
	mustReturn(t, got)
}

// Who has not seen the last death does not begin to wait, and has the lock.
func TestCondADeathBeforeTheWaitIsNotMissed(t *testing.T) {
	r, y := newYard(t)
	y.mu.Lock()
	defer y.mu.Unlock()
	if woken, err := y.cond.WaitDeaths(context.Background(), &y.mu, r.Deaths().Load()-1); woken || err != nil {
		t.Errorf("%v, %v", woken, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if woken, err := y.cond.WaitDeaths(ctx, &y.mu, r.Deaths().Load()); woken || err != nil || ctx.Err() == nil {
		t.Errorf("without a death: %v, %v", woken, err)
	}
	if y.mu.TryLock() {
		t.Error("the lock is free")
	}
}

// Two wait in one process. The death is noticed by the one whose wait ends with a signal at the same time: the other
// one hears of it all the same.
func TestCondADeathIsNotOverWithASignal(t *testing.T) {
	r, y := newYard(t)
	dies := bystander(t, r, y)
	first := make(chan bool, 1)
	seen := r.Deaths().Load()
	for i := range int64(2) {
		go func() {
			y.mu.Lock()
			y.arrived++
			woken, err := y.cond.WaitDeaths(context.Background(), &y.mu, seen)
			if err == nil {
				y.mu.Unlock()
			}
			first <- woken
		}()
		y.arrive(t, i+1)
		y.mu.Unlock()
	}
	y.mu.Lock()
	before := r.Deaths().Load()
	dies.Kill()
	until(t, "the death is known", func() bool { r.Scan(); return r.Deaths().Load() != before })
	time.Sleep(20 * time.Millisecond) // the leader comes for the lock
	y.cond.Signal()
	y.mu.Unlock()
	for i := range 2 {
		select {
		case <-first:
		case <-time.After(30 * time.Second):
			t.Fatalf("%d of two waits ended after a death", i)
		}
	}
}
