//go:build linux && !futexpoll

package sync_test

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm/proc"
)

// standInAStorm waits while signals come in: for ever until it is signalled, or for a time.
var standInAStorm = proc.Define("stand in line in a storm", func(ctx context.Context, o order) error {
	y := yardIn(o.Region)
	signals := weather()
	if o.Number == 0 {
		if err := y.stand(ctx); err != nil {
			return err
		}
		return check(signals.Load() > 0, "no signals came")
	}
	y.mu.Lock()
	y.arrived++
	defer y.mu.Unlock()
	begin := time.Now()
	woken, err := y.other.WaitTimeout(&y.mu, time.Duration(o.Rounds)*time.Millisecond)
	took := time.Since(begin)
	return errors.Join(err, check(!woken && took >= time.Duration(o.Rounds)*time.Millisecond, "woken %v after %v", woken, took))
})

func TestCondWaitsAreNotEndedBySignalsOfTheSystem(t *testing.T) {
	r, y := newYard(t)
	long, short := start(t, standInAStorm, r, 0, 0), start(t, standInAStorm, r, 1, 700)
	y.arrive(t, 2)
	y.mu.Unlock()
	calm := storm([]*proc.Process{long, short})
	wait(t, short)
	y.mu.Lock()
	if y.gone != 0 {
		t.Error("a wait ended without a signal")
	}
	y.cond.Signal()
	y.mu.Unlock()
	wait(t, long)
	if calm() == 0 {
		t.Error("no signals were sent")
	}
}

// standAsleep waits on a thread of its own for a while, and tells how often that fell asleep, and how long it ran.
var standAsleep = proc.Define("sleep in line", func(_ context.Context, o order) error {
	y := yardIn(o.Region)
	runtime.LockOSThread()
	y.mu.Lock()
	defer y.mu.Unlock()
	begin, before := time.Now(), usageOfThread()
	woken, err := y.cond.WaitTimeout(&y.mu, time.Duration(o.Rounds)*time.Millisecond)
	took, used := time.Since(begin), usageOfThread().since(before)
	y.told.Add(int64(used.processor))
	return errors.Join(err, check(!woken, "woken"), used.slept(took, 3*(4+int64(took/(100*time.Millisecond)))+16))
})

func TestCondWaitersOfTenProcessesSleepInTheKernel(t *testing.T) {
	r, y := newYard(t)
	var ps []*proc.Process
	for i := range 10 {
		ps = append(ps, start(t, standAsleep, r, i, idleTime()))
	}
	wait(t, ps...)
	t.Logf("ten waiters ran for %v", time.Duration(y.told.Load()))
}
