package containers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm/proc"
)

type queueDeath struct {
	Q    SharedQueue[int64]
	Op   string
	At   int       // the store before which it dies; -1: none
	Word int       // of the object: it dies when this one has been stored to; -1: none
	Out  SharedInt // where it is
	Gone SharedQueue[int64]
}

// dieBefore kills this process before its k'th store from now on.
func dieBefore(k int) {
	txn.OnStore = func(unsafe.Pointer, uintptr) {
		if k--; k < 0 {
			kill()
		}
	}
}

// dieAfter kills this process as soon as it has stored v to the word at p: nobody is told of it.
func dieAfter(p *atomic.Uint64, v uint64) {
	txn.OnStore = func(at unsafe.Pointer, _ uintptr) {
		if at == unsafe.Pointer(p) {
			p.Store(v)
			kill()
		}
	}
}

// dyingInQueue has message 1 on a lease, and dies in what it does then.
var dyingInQueue = proc.Define("dying in queue", func(ctx context.Context, d queueDeath) error {
	q := d.Q
	l := Must(q.Lease(ctx))
	dieBefore(d.At)
	defer func() { txn.OnStore = nil }()
	switch d.Op {
	case "put":
		return q.Put(ctx, 4)
	case "get":
		_, err := q.Get(ctx)
		return err
	case "lease":
		_, err := q.Lease(ctx)
		return err
	case "done":
		return l.Done()
	case "return":
		return l.Return()
	case "close":
		return q.Close()
	}
	return errors.New("nothing was done")
})

// A process is killed before each store of each operation. What it had on leases, and what it has not got, is
// delivered to others, in order; Join ends.
func TestKilledInsideAQueueOperation(t *testing.T) {
	m := newManager(t)
	ctx := deadline(t)
	for op, may := range map[string]struct{ not, besides int64 }{
		"put":    {0, 4},
		"get":    {2, 0},
		"lease":  {0, 0},
		"done":   {1, 0},
		"return": {0, 0},
		"close":  {0, 0},
	} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			before, after := []int64{1, 2, 3}, []int64{1, 2, 3}
			if may.not != 0 {
				after = slices.DeleteFunc(after, func(v int64) bool { return v == may.not })
			}
			if may.besides != 0 {
				after = append(after, may.besides)
			}
			for k := 0; ; k++ {
				q := queueForTest[int64](t, m, 4)
				Must(q.PutN(ctx, 1, 2, 3))
				joined := make(chan error, 1)
				go func() { joined <- q.Join(ctx) }()
				untilWaiting(t, q.q, waitJoin, 1)
				err := dyingInQueue.Run(ctx, queueDeath{Q: q, Op: op, At: k, Word: -1})
				if err == nil {
					if k == 0 {
						t.Error("it stores nothing: the test shows nothing")
					}
					break
				}
				wantKilled(t, err)
				var got []int64
				for q.Unfinished() > 0 {
					v, err := q.Get(ctx)
					if err != nil {
						t.Fatalf("killed before store %d: %v", k, err)
					}
					got = append(got, v)
				}
				if !slices.Equal(got, before) && !slices.Equal(got, after) {
					t.Errorf("killed before store %d: it held %v, want %v or %v", k, got, before, after)
				}
				if err := <-joined; err != nil {
					t.Errorf("killed before store %d: Join: %v", k, err)
				}
				if err := errors.Join(q.Check(), q.Destroy()); err != nil {
					t.Errorf("killed before store %d: %v", k, err)
				}
			}
		})
	}
}

// tellsNobody does one thing, and dies before it can wake anybody.
var tellsNobody = proc.Define("tells nobody", func(ctx context.Context, d queueDeath) error {
	q := d.Q
	w := q.q.word(d.Word)
	switch d.Op {
	case "put":
		dieAfter(w, w.Load()+1)
		return q.Put(ctx, 7)
	case "get":
		dieAfter(w, w.Load()+1)
		_, err := q.Get(ctx)
		return err
	case "lease":
		dieAfter(w, w.Load()+1)
		_, err := q.Lease(ctx)
		return err
	case "close":
		dieAfter(w, w.Load()|queueClosed)
		return q.Close()
	case "done":
		l := Must(q.Lease(ctx))
		p := Must(q.q.entry(l.entry))
		dieAfter(word(p, leaseControl), l.control&^(oneTurn-1)|leaseFree)
		return l.Done()
	}
	return errors.New("nothing was done")
})

// One that was to wake a sleeper is killed between what it did and the wake. The sleeper goes on.
func TestWakesOfTheDeadAreMadeUpFor(t *testing.T) {
	m := newManager(t)
	ctx := deadline(t)
	get := func(q SharedQueue[int64]) string {
		v, err := q.Get(ctx)
		return fmt.Sprint(v, errors.Is(err, ErrQueueClosed))
	}
	put := func(q SharedQueue[int64]) string {
		err := q.Put(ctx, 9)
		return fmt.Sprint(err == nil, errors.Is(err, ErrQueueClosed))
	}
	join := func(q SharedQueue[int64]) string { return fmt.Sprint(q.Join(ctx)) }
	for name, c := range map[string]struct {
		full  bool // of one message
		sleep func(q SharedQueue[int64]) string
		waits waitFor
		op    string
		word  int
		want  string
	}{
		"put and Get":   {false, get, waitMessage, "put", queueTail, "7 false"},
		"get and Put":   {true, put, waitRoom, "get", queueHead, "true false"},
		"lease and Put": {true, put, waitRoom, "lease", queueHead, "true false"},
		"get and Join":  {true, join, waitJoin, "get", queueHead, "<nil>"},
		"done and Join": {true, join, waitJoin, "done", queueHead, "<nil>"},
		"close and Get": {false, get, waitMessage, "close", queueState, "0 true"},
		"close and Put": {true, put, waitRoom, "close", queueState, "false true"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := queueForTest[int64](t, m, 1)
			if c.full {
				Must(q.TryPut(5))
			}
			const sleepers = 2
			got := make(chan string, sleepers)
			go func() { got <- c.sleep(q) }()
			untilWaiting(t, q.q, c.waits, 1)
			wantKilled(t, tellsNobody.Run(ctx, queueDeath{Q: q, Op: c.op, Word: c.word}))
			if got := <-got; got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// sleepsAndDies waits for a message, and dies when it is woken, before it takes it.
var sleepsAndDies = proc.Define("sleeps and dies", func(ctx context.Context, d queueDeath) error {
	txn.OnStore = func(at unsafe.Pointer, _ uintptr) {
		if at == unsafe.Pointer(d.Q.q.word(queueHead)) {
			kill()
		}
	}
	_, err := d.Q.Get(ctx)
	return err
})

// The one that a message wakes is killed before it takes it: another one that waits gets it.
func TestMessageOfAWokenOneThatDiesIsForTheNext(t *testing.T) {
	m := newManager(t)
	q := queueForTest[int64](t, m, 4)
	ctx := deadline(t)
	p, err := sleepsAndDies.Start(ctx, queueDeath{Q: q})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	untilWaiting(t, q.q, waitMessage, 1)
	got := make(chan int64, 1)
	go func() { v, _ := q.Get(ctx); got <- v }()
	untilWaiting(t, q.q, waitMessage, 2)
	if err := q.Put(ctx, 7); err != nil {
		t.Fatal(err)
	}
	wantKilled(t, p.Wait())
	if v := <-got; v != 7 {
		t.Errorf("got %d", v)
	}
}

var getsFromQueue = proc.Define("gets from queue", func(ctx context.Context, d queueDeath) error {
	_, err := d.Q.Get(ctx)
	return err
})

// One that waits is killed: nobody takes it for one that waits, and messages go to others.
func TestKilledWaiterIsCountedNoMore(t *testing.T) {
	m := newManager(t)
	q := queueForTest[int64](t, m, 4)
	ctx := deadline(t)
	p, err := getsFromQueue.Start(ctx, queueDeath{Q: q})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	untilWaiting(t, q.q, waitMessage, 1)
	got := make(chan int64, 2)
	for range 2 {
		go func() { v, _ := q.Get(ctx); got <- v }()
	}
	untilWaiting(t, q.q, waitMessage, 3)
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	wantKilled(t, p.Wait())
	for end := time.Now().Add(30 * time.Second); q.q.waiting(waitMessage) != 2; time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("%d are counted that wait, want 2", q.q.waiting(waitMessage))
		}
	}
	for i := range int64(2) {
		if err := q.Put(ctx, i); err != nil {
			t.Fatal(err)
		}
		if v := <-got; v != i {
			t.Errorf("got %d, want %d", v, i)
		}
	}
	if q.q.waiting(waitMessage) != 0 {
		t.Errorf("%d are counted that wait, want none", q.q.waiting(waitMessage))
	}
}

// Nobody waits, so nobody looks for the dead but those who ask for messages.
func TestPollingFindsTheLeasesOfTheDead(t *testing.T) {
	for name, busy := range map[string]bool{"nothing else there": false, "never empty": true} {
		t.Run(name, func(t *testing.T) {
			m := newManager(t)
			q := queueForTest[int64](t, m, 4)
			ctx := deadline(t)
			Must(q.PutN(ctx, 1, 2, 3))
			wantKilled(t, queueVictim.Run(ctx, work{Jobs: q, What: "lease"}))
			for end := time.Now().Add(30 * time.Second); ; {
				if busy {
					Must(q.TryPut(4))
				}
				l, ok, err := q.TryLease()
				if err != nil {
					t.Fatal(err)
				}
				if ok && l.Attempt == 2 {
					break
				}
				if ok {
					err = l.Done()
				}
				if err != nil {
					t.Fatal(err)
				}
				if time.Now().After(end) {
					t.Fatal("no message was delivered again")
				}
			}
		})
	}
}

type queueProducer struct {
	Q     SharedQueue[int64]
	Acked AtomicInt // only this process writes it
	ID    int64
}

const producerShift = 32

// produces puts its numbers in order, and notes how many were acknowledged, until it is killed.
var produces = proc.Define("produces", func(ctx context.Context, p queueProducer) error {
	for n := int64(0); ; n++ {
		if err := p.Q.Put(ctx, p.ID<<producerShift|n); err != nil {
			return err
		}
		p.Acked.Store(n + 1)
	}
})

type queueConsumer struct {
	Q   SharedQueue[int64]
	Log SharedList[int64]
}

// consumes gets messages and notes them, until it is killed.
var consumes = proc.Define("consumes", func(ctx context.Context, c queueConsumer) error {
	for {
		v, err := c.Q.Get(ctx)
		if errors.Is(err, ErrQueueClosed) {
			return nil
		}
		if err == nil {
			err = c.Log.Append(v)
		}
		if err != nil {
			return err
		}
	}
})

// Producers and consumers are killed all the time. What a producer was told that it has put is got once, by one consumer;
// a consumer that is killed takes one message with it at most, and a producer leaves one at most that it was not told of.
func TestQueueBetweenProcessesThatAreKilled(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector does not look into mapped memory, and makes processes start slowly")
	}
	const kills = 12
	m := newManager(t)
	q := queueForTest[int64](t, m, 7)
	ctx := deadline(t)
	var acked []AtomicInt
	var logs []SharedList[int64]
	start := func(producer bool) (p *proc.Process, err error) {
		if producer {
			acked = append(acked, Must(NewAtomicInt(m, 0)))
			p, err = produces.Start(ctx, queueProducer{q, acked[len(acked)-1], int64(len(acked) - 1)})
		} else {
			logs = append(logs, Must(NewSharedList[int64](m)))
			p, err = consumes.Start(ctx, queueConsumer{q, logs[len(logs)-1]})
		}
		if err != nil {
			t.Fatal(err)
		}
		return p, nil
	}
	var running [4]*proc.Process // producers, and consumers
	for i := range running {
		running[i] = Must(start(i < 2))
	}
	end := func(i int) {
		p := running[i]
		p.Kill()
		wantKilled(t, p.Wait())
		p.Close()
	}
	for k := range kills {
		time.Sleep(time.Duration(2+k%5) * 2 * time.Millisecond) // where it is killed, not when
		end(k % 4)
		running[k%4] = Must(start(k%4 < 2))
	}
	end(0)
	end(1)
	if err := errors.Join(q.Close(), q.Join(ctx)); err != nil {
		t.Fatal(err)
	}
	for _, p := range running[2:] {
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
		p.Close()
	}
	seen := map[int64]int{}
	for _, l := range logs {
		last := map[int64]int64{}
		for _, v := range l.All() {
			id, n := v>>producerShift, v&(1<<producerShift-1)
			if before, ok := last[id]; ok && n <= before {
				t.Errorf("message %d of producer %d came after %d", n, id, before)
			}
			last[id] = n
			seen[v]++
		}
	}
	lost, all := 0, 0
	for id, a := range acked {
		n := a.Load()
		all += int(n)
		for v := range n + 1 {
			switch c := seen[int64(id)<<producerShift|v]; {
			case c > 1:
				t.Errorf("message %d of producer %d was got %d times", v, id, c)
			case c == 0 && v < n:
				lost++
			}
			delete(seen, int64(id)<<producerShift|v)
		}
	}
	if len(seen) != 0 {
		t.Errorf("got what was not put: %v", seen)
	}
	if lost > len(logs)-2 {
		t.Errorf("%d messages are lost with %d consumers killed", lost, len(logs)-2)
	}
	if all == 0 {
		t.Error("nothing was put: the test shows nothing")
	}
	t.Logf("%d messages of %d producers; %d went with %d consumers", all, len(acked), lost, len(logs)-2)
}
