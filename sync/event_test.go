package sync_test

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A stage is an arena of events.
type stage struct {
	event shmsync.Event
	_     [60]byte
	other shmsync.Event
	_     [60]byte
	count atomic.Int64
	told  atomic.Int64
}

func stageIn(r *shm.Region) *stage {
	s, err := shm.At[stage](r, r.Data()+4096)
	if err != nil {
		panic(err)
	}
	return s
}

func newStage(t testing.TB) (*shm.Region, *stage) {
	r, _ := newArena(t)
	return r, stageIn(r)
}

func after(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	_ = cancel // it ends by itself
	return ctx
}

var setEvent = proc.Define("set the event", func(_ context.Context, o order) error {
	stageIn(o.Region).event.Set()
	return nil
})

var waitForEvent = proc.Define("wait for the event", func(ctx context.Context, o order) error {
	s := stageIn(o.Region)
	s.count.Add(1)
	if err := s.event.Wait(ctx); err != nil {
		return err
	}
	return check(s.event.WaitTimeout(0), "the event was set, but a second wait found it unset")
})

var waitInVain = proc.Define("wait for the event in vain", func(_ context.Context, o order) error {
	begin := time.Now()
	ok := stageIn(o.Region).event.WaitTimeout(500 * time.Millisecond)
	return check(!ok && time.Since(begin) >= 500*time.Millisecond, "set %v after %v", ok, time.Since(begin))
})

func TestEventIsSetAndClearedAcrossProcesses(t *testing.T) {
	r, s := newStage(t)
	if size := unsafe.Sizeof(s.event); size != 4 {
		t.Errorf("%d bytes", size)
	}
	begin := time.Now()
	switch {
	case s.event.WaitTimeout(0), s.event.WaitTimeout(-time.Second), s.event.IsSet():
		t.Error("set from the start")
	case s.event.WaitTimeout(50*time.Millisecond) || time.Since(begin) < 50*time.Millisecond:
		t.Errorf("unset, after %v", time.Since(begin))
	}
	wait(t, start(t, setEvent, r, 0, 0)) // its end leaves it set
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.event.Wait(ended); err != nil || !s.event.IsSet() {
		t.Errorf("set by a process that has ended: %v", err)
	}
	wait(t, start(t, waitForEvent, r, 0, 0)) // and finds it set
	s.event.Set()
	s.event.Clear()
	if s.event.IsSet() {
		t.Error("set twice, cleared once")
	}
	s.event.Clear()
	if err := s.event.Wait(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("under an ended context: %v", err)
	}
	if err := s.event.Wait(after(10 * time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("under a deadline: %v", err)
	}
	got := make(chan error)
	go func() { got <- s.event.Wait(context.Background()) }()
	until(t, "it waits", s.event.HasWaiter)
	wait(t, start(t, setEvent, r, 0, 0))
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestEventLetsAllGoOn(t *testing.T) {
	r, s := newStage(t)
	var ps []*proc.Process
	for range 5 {
		ps = append(ps, start(t, waitForEvent, r, 0, 0))
	}
	const here = 200
	got := make(chan error)
	for range here {
		go func() {
			s.count.Add(1)
			got <- s.event.Wait(context.Background())
		}()
	}
	until(t, "all are about to wait", func() bool { return s.count.Load() == 5+here })
	s.event.Set()
	wait(t, ps...)
	for range here {
		if err := <-got; err != nil {
			t.Error(err)
		}
	}
	until(t, "no gate is left", func() bool { return !s.event.HasWaiter() })
}

func TestEventNobodySetsEndsWaitsByTime(t *testing.T) {
	t.Parallel()
	r, _ := newStage(t)
	var ps []*proc.Process
	for range 5 {
		ps = append(ps, start(t, waitInVain, r, 0, 0))
	}
	wait(t, ps...)
}

// pulse sets the event o.Rounds times, each time after the one before was answered.
var pulse = proc.Define("pulse", func(_ context.Context, o order) error {
	s := stageIn(o.Region)
	for i := range int64(o.Rounds) {
		s.event.Set()
		for s.told.Load() <= i {
			if err := s.other.Wait(context.Background()); err != nil {
				return err
			}
			s.other.Clear()
		}
	}
	return nil
})

func TestEventPulsesAreNeverSleptThrough(t *testing.T) {
	r, s := newStage(t)
	rounds := 10_000
	if testing.Short() || !shmsync.Kernel { // each round costs a nap or two then
		rounds = 500
	}
	p := start(t, pulse, r, 0, rounds)
	for i := range int64(rounds) {
		if err := s.event.Wait(after(30 * time.Second)); err != nil {
			t.Fatalf("pulse %d: %v", i, err)
		}
		s.event.Clear()
		s.told.Store(i + 1)
		s.other.Set()
	}
	wait(t, p)
}

func TestEventClearedAtOnceEndsTheWaitsThatBeganBefore(t *testing.T) {
	_, s := newStage(t)
	for range 100 {
		got := make(chan error)
		for range 3 {
			go func() { got <- s.event.Wait(context.Background()) }()
		}
		until(t, "all wait", func() bool { return s.event.Parked() == 2 && s.event.Sleeps() })
		s.event.Set()
		s.event.Clear()
		for range 3 {
			if err := <-got; err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestEventWaitEndsWhenItsRegionIsClosed(t *testing.T) {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	s := stageIn(r)
	got := make(chan error)
	for range 3 {
		go func() { got <- s.event.Wait(context.Background()) }()
	}
	until(t, "they wait", func() bool { return s.event.Parked() == 2 })
	r.Close()
	for range 3 {
		if err := <-got; !errors.Is(err, shm.ErrClosed) {
			t.Error(err)
		}
	}
	if err := s.event.Wait(context.Background()); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("after the close: %v", err)
	}
	runtime.KeepAlive(r)
}

func TestEventWaitersThatGiveUpLeaveTheOthersWaiting(t *testing.T) {
	r, s := newStage(t)
	ctx, cancel := context.WithCancel(context.Background())
	leader, parked, last := make(chan error), make(chan error), make(chan error)
	go func() { leader <- s.event.Wait(ctx) }()
	until(t, "one leads", s.event.HasWaiter)
	go func() { parked <- s.event.Wait(ctx) }()
	until(t, "one is parked", func() bool { return s.event.Parked() == 1 })
	go func() { last <- s.event.Wait(context.Background()) }()
	until(t, "two are parked", func() bool { return s.event.Parked() == 2 })
	cancel()
	for _, c := range []chan error{leader, parked} {
		if err := <-c; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	wait(t, start(t, setEvent, r, 0, 0))
	if err := <-last; err != nil {
		t.Error(err)
	}
}

// A process is killed after it has set the event, and before it wakes anybody.
func TestEventSetByAProcessThatDiesBeforeItWakesAnybody(t *testing.T) {
	_, s := newStage(t)
	got := make(chan error)
	go func() { got <- s.event.Wait(context.Background()) }()
	until(t, "it sleeps", s.event.Sleeps)
	s.event.SetWithoutWake()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func ExampleEvent() {
	var ready shmsync.Event
	go ready.Set()
	if err := ready.Wait(context.Background()); err == nil {
		os.Stdout.WriteString("ready\n")
	}
	// Output: ready
}

// A death ends the wait that asked for it, in each process, and no other one.
func TestEventADeathEndsTheWaitsOfThoseWhoCare(t *testing.T) {
	r, s := newStage(t)
	seen := r.Deaths().Load()
	dies := start(t, standsAtStage, r, 0, 0)
	until(t, "the bystander is there", func() bool { return s.count.Load() == 1 })
	mourner := start(t, mournAtEvent, r, 0, 0)
	until(t, "the other process waits", s.event.Sleeps)
	patient := make(chan error, 1)
	go func() { patient <- s.other.Wait(context.Background()) }()
	got := make(chan error, 1)
	go func() {
		set, err := s.event.WaitDeaths(context.Background(), seen)
		if set {
			err = errors.New("set, and nobody has set it")
		}
		got <- err
	}()
	dies.Kill()
	if err := <-got; err != nil {
		t.Error(err)
	}
	wait(t, mourner)
	select {
	case err := <-patient:
		t.Errorf("one that waits for an event is back: %v", err)
	default:
	}
	s.other.Set()
	if err := <-patient; err != nil {
		t.Error(err)
	}
	// What has happened already ends the wait at once; the event itself comes first.
	if set, err := s.event.WaitDeaths(context.Background(), seen); set || err != nil {
		t.Errorf("a death that was not seen: %v, %v", set, err)
	}
	if set, err := s.event.WaitDeaths(after(10*time.Millisecond), r.Deaths().Load()); set || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nothing happens: %v, %v", set, err)
	}
	time.AfterFunc(10*time.Millisecond, s.event.Set)
	if set, err := s.event.WaitDeaths(context.Background(), r.Deaths().Load()); !set || err != nil {
		t.Errorf("it is set meanwhile: %v, %v", set, err)
	}
	if set, err := s.event.WaitDeaths(context.Background(), seen); !set || err != nil {
		t.Errorf("it is set: %v, %v", set, err)
	}
}

var standsAtStage = proc.Define("be at the stage", func(_ context.Context, o order) error {
	stageIn(o.Region).count.Add(1)
	select {}
})

var mournAtEvent = proc.Define("mourn at the event", func(ctx context.Context, o order) error {
	set, err := stageIn(o.Region).event.WaitDeaths(ctx, o.Region.Deaths().Load())
	if set {
		return errors.New("set, and nobody has set it")
	}
	return err
})
