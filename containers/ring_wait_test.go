package containers

import (
	"runtime"
	"sync/atomic"
	"testing"
)

// onOneProcessor has Go run one goroutine at a time, until the test ends.
func onOneProcessor(t *testing.T) {
	was := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(was) })
}

// ringSleeper reports whether somebody sleeps who waits for what e tells.
func ringSleeper(e *ringEnd) bool {
	return as[atomic.Uint32](addr(e.tell)).Load()&3 == 1 // not set, and somebody may sleep
}

// With one processor it is the other side that has to run: who waits lets it, before it looks on or says that it is going to sleep.
func TestRingWaitLetsTheOtherSideHaveTheOnlyProcessor(t *testing.T) {
	was := ringSpin
	ringSpin = -1
	defer func() { ringSpin = was }()
	onOneProcessor(t)
	p, c := endsOf(t, ringForTest[int64](t, newManager(t), 1))
	ctx := deadline(t)
	const rounds = 40
	var told [2]int // how often one that waited had said so when the other one came
	for v := range int64(rounds) {
		put, got := make(chan error), make(chan int64)
		go func() { // runs when this one lets it
			if !p.e.tell.IsSet() {
				told[consuming]++
			}
			put <- p.Put(ctx, v)
		}()
		if got, err := c.Get(ctx); got != v || err != nil {
			t.Fatalf("got %d, %v, want %d", got, err, v)
		}
		if err := <-put; err != nil {
			t.Fatal(err)
		}
		if err := p.Put(ctx, v); err != nil { // and now it is full
			t.Fatal(err)
		}
		go func() {
			if !c.e.tell.IsSet() {
				told[producing]++
			}
			got <- Must(c.Get(ctx))
		}()
		if err := p.Put(ctx, -v); err != nil {
			t.Fatal(err)
		}
		if first, second := <-got, Must(c.Get(ctx)); first != v || second != -v {
			t.Fatalf("got %d and %d, want %d and %d", first, second, v, -v)
		}
	}
	for side, n := range told { // now and then Go gives the processor back at once
		if n > rounds/2 {
			t.Errorf("the %v end was about to sleep %d times of %d before the other one could run", ringSide(side), n, rounds)
		}
	}
}

// Who finds nothing to do for long sleeps, and leaves the processor to others; it goes on when there is something.
func TestRingWaitSleepsWithOneProcessor(t *testing.T) {
	onOneProcessor(t)
	p, c := endsOf(t, ringForTest[int64](t, newManager(t), 1))
	ctx := deadline(t)
	got, put := make(chan int64), make(chan error)
	go func() { got <- Must(c.Get(ctx)) }()
	until(t, "the consumer sleeps", func() bool { return ringSleeper(p.e) })
	if err := p.Put(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if v := <-got; v != 1 {
		t.Errorf("got %d", v)
	}
	Must(p.TryPut(2))
	go func() { put <- p.Put(ctx, 3) }()
	until(t, "the producer sleeps", func() bool { return ringSleeper(c.e) })
	if v := Must(c.Get(ctx)); v != 2 {
		t.Errorf("got %d", v)
	}
	if err := <-put; err != nil {
		t.Fatal(err)
	}
	if v := Must(c.Get(ctx)); v != 3 {
		t.Errorf("got %d", v)
	}
}
