package shm_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

func TestALiveProcessIsNeverSettled(t *testing.T) {
	r := anonymous(t)
	p, token := holder(t, r)
	enough := make(chan bool)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-enough:
					return
				default:
				}
				if pid, settled := r.Settled(token); settled || pid != p.PID() {
					t.Errorf("Settled of a live process: pid %d, %v, want %d and false", pid, settled, p.PID())
					return
				}
				shm.Sweep(r)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	if err := stop(p); err != nil { // stopped is not dead
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	close(enough)
	wg.Wait()
	if n := r.Deaths().Load(); n != 0 {
		t.Errorf("%d deaths of live processes", n)
	}
	kill(p)
	if pid, settled := r.Settled(token); !settled || pid != p.PID() {
		t.Errorf("Settled of a dead process: pid %d, %v, want %d and true", pid, settled, p.PID())
	}
	if n := r.Deaths().Load(); n != 1 {
		t.Errorf("deaths is %d, want 1", n)
	}
	if shm.SlotsOf(r, token) != 0 {
		t.Error("the slot was not freed")
	}
	if _, settled := r.Settled(token); !settled {
		t.Error("a dead process came to life")
	}
}

func TestNobodySettlesItself(t *testing.T) {
	r := anonymous(t)
	if _, settled := r.Settled(shm.Self()); settled {
		t.Error("this process is dead")
	}
	if _, settled := r.Settled(0); settled {
		t.Error("nobody is dead")
	}
	shm.Sweep(r)
	if token, state, _ := shm.Slot(r, shm.SlotOf(r)); token != shm.Self() || state != shm.SlotAttached {
		t.Errorf("a sweep has moved this process' own slot to %v, %d", token, state)
	}
	if _, settled := r.Settled(shm.NewToken()); !settled {
		t.Error("a token that stands in no slot is alive")
	}
}

func TestScanFindsTheDead(t *testing.T) {
	r := anonymous(t)
	p, token := holder(t, r)
	kill(p)
	begin := time.Now()
	wait(t, "a scan to find the dead process", func() bool { r.Scan(); return r.Deaths().Load() == 1 })
	if shm.SlotsOf(r, token) != 0 {
		t.Error("the slot was not freed")
	}
	q, _ := holder(t, r)
	kill(q)
	r.Scan()
	if n := r.Deaths().Load(); n != 1 && time.Since(begin) < 100*time.Millisecond {
		t.Errorf("two scans within 100 ms found %d deaths", n)
	}
}

// A token is freed with its slot: the next process that gets the slot is not mistaken for the dead one.
func TestSlotsAreUsedAgain(t *testing.T) {
	r := anonymous(t)
	seen := make(map[shm.Token]bool)
	for range 20 {
		p, token := holder(t, r)
		if seen[token] || shm.SlotsOf(r, token) != 1 {
			t.Fatalf("token %v stands in %d slots, seen before: %v", token, shm.SlotsOf(r, token), seen[token])
		}
		seen[token] = true
		kill(p)
		if _, settled := r.Settled(token); !settled {
			t.Fatal("not settled")
		}
	}
	for i := range shm.SlotCount {
		if _, state, _ := shm.Slot(r, i); state != shm.SlotFree && i != shm.SlotOf(r) {
			t.Errorf("slot %d has leaked: state %d", i, state)
		}
	}
}

// What a process leaves that is killed between two stores, of attaching or of recovering another, in
// slots that no live process holds.
func TestKillsBetweenAnyTwoStoresAreCleanedUp(t *testing.T) {
	r := anonymous(t)
	dead, recoverer := shm.NewToken(), shm.NewToken()
	i := (shm.SlotOf(r) + 1) % shm.SlotCount
	for _, c := range []struct {
		killed string
		token  shm.Token
		state  uint64
		by     shm.Token
	}{
		{"attaching", 0, shm.SlotAttached, dead},
		{"attached", dead, shm.SlotAttached, dead},
		{"its recoverer, undoing", dead, shm.SlotUndoing, recoverer},
		{"its recoverer, undone", dead, shm.SlotUndone, recoverer},
		{"its recoverer, draining", dead, shm.SlotDraining, recoverer},
		{"its recoverer, freeing", 0, shm.SlotDraining, recoverer},
		{"the recoverer of an attacher", 0, shm.SlotUndoing, recoverer},
		{"this process, by a panic", dead, shm.SlotUndoing, shm.Self()},
	} {
		for _, how := range []string{"Settled", "Scan", "attach"} {
			shm.StrangerIn(r, i, c.token, c.state, c.by)
			deaths := r.Deaths().Load()
			switch how {
			case "Settled":
				if c.token == 0 {
					shm.Sweep(r) // it holds no lock, so nobody asks
				} else if _, settled := r.Settled(c.token); !settled {
					t.Errorf("%s was killed: not settled", c.killed)
				}
				shm.Sweep(r)
			case "Scan":
				shm.Sweep(r)
			case "attach":
				_, end, err := shm.Strangers(r)
				if err != nil {
					t.Fatal(err)
				}
				p, _ := holder(t, r)
				if shm.SlotsOf(r, shm.Token(word(r, 1).Load())) != 1 {
					t.Errorf("%s was killed: the slot was not used", c.killed)
				}
				kill(p)
				end()
				shm.Sweep(r)
			}
			if token, state, _ := shm.Slot(r, i); token != 0 || state != shm.SlotFree {
				t.Errorf("%s was killed, %s: slot has token %v, state %d, want none and FREE", c.killed, how, token, state)
			}
			if r.Deaths().Load() == deaths && c.by != shm.Self() {
				t.Errorf("%s was killed, %s: deaths did not change", c.killed, how)
			}
		}
	}
}

func TestAFullTable(t *testing.T) {
	dir := memoryDir(t)
	r, err := shm.Create("r", shm.Dir(dir))
	must(t, r, err)
	tokens, end, err := shm.Strangers(r)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	if len(tokens) != shm.SlotCount-1 {
		t.Fatalf("%d strangers", len(tokens))
	}
	err = start(t, openAndEnd, dir).Wait()
	var exit *proc.ExitError
	if !errors.As(err, &exit) || exit.Code != 28 {
		t.Fatalf("attach to a full table: %v, want exit code 28 for ErrNoSpace", err)
	}
	end() // all of them die at once
	succeed(t, start(t, openAndEnd, dir))
	free := 0
	for i := range shm.SlotCount {
		if _, state, _ := shm.Slot(r, i); state == shm.SlotFree {
			free++
		}
	}
	if free == 0 {
		t.Error("the attached process has cleaned up nothing")
	}
	succeed(t, start(t, openAndEnd, dir))
}

var openAndEnd = proc.Define("openAndEnd", func(_ context.Context, dir string) error {
	r, err := shm.Open("r", shm.Dir(dir))
	if errors.Is(err, shm.ErrNoSpace) && strings.Contains(err.Error(), "all 256 slots belong to live processes") {
		if descriptorsOf(dir) > 0 {
			return errors.New("a refused attach has left descriptors")
		}
		os.Exit(28)
	}
	if err == nil && shm.SlotsOf(r, shm.Self()) != 1 {
		err = errors.New("no slot, or more")
	}
	return err
})

// An undoer is a recoverer for tests.
type undoer struct {
	undo, drain func(r *shm.Region, slot int) error
}

func (u undoer) Undo(r *shm.Region, slot int) error {
	if u.undo == nil {
		return nil
	}
	return u.undo(r, slot)
}

func (u undoer) Drain(r *shm.Region, slot int) error {
	if u.drain == nil {
		return nil
	}
	return u.drain(r, slot)
}

// install makes u the recoverer until the test ends.
func install(tb testing.TB, u undoer) {
	shm.SetRecoverer(u)
	tb.Cleanup(func() { shm.SetRecoverer(nil) })
}

func TestUndoComesBeforeSettledAndDrainAfterwards(t *testing.T) {
	r := anonymous(t)
	p, token := holder(t, r)
	undone, drained := false, make(chan error, 1)
	install(t, undoer{
		undo: func(rr *shm.Region, slot int) error {
			undone = true
			if got, state, by := shm.Slot(rr, slot); got != token || state != shm.SlotUndoing || by != shm.Self() || rr.ID() != r.ID() {
				t.Errorf("during Undo: token %v, state %d by %v", got, state, by)
			}
			return nil
		},
		drain: func(rr *shm.Region, slot int) error {
			got, state, _ := shm.Slot(rr, slot)
			if _, settled := rr.Settled(token); !settled || got != token || state != shm.SlotDraining {
				drained <- fmt.Errorf("during Drain: token %v, state %d, settled %v", got, state, settled)
			}
			drained <- rr.Exclusive(func() error { return rr.Grow(rr.Size() + 1) }) // an ordinary operation
			return nil
		},
	})
	kill(p)
	if _, settled := r.Settled(token); !settled || !undone {
		t.Errorf("settled %v, undone %v, want both", settled, undone)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
	wait(t, "the slot to be free", func() bool { return shm.SlotsOf(r, token) == 0 })
}

func TestAFailedUndoSettlesNothing(t *testing.T) {
	r := anonymous(t)
	p, token := holder(t, r)
	broken := true
	install(t, undoer{undo: func(*shm.Region, int) error {
		if broken {
			return errors.New("broken")
		}
		return nil
	}})
	kill(p)
	if _, settled := r.Settled(token); settled {
		t.Error("settled although its operations are not undone")
	}
	succeed(t, start(t, settleIt, victim{r, token})) // another process may fare better
	broken = false
	if _, settled := r.Settled(token); !settled {
		t.Error("not settled although somebody has undone it")
	}
}

type victim struct {
	Region *shm.Region
	Token  shm.Token
}

var settleIt = proc.Define("settleIt", func(_ context.Context, v victim) error {
	shm.SetRecoverer(undoer{undo: func(r *shm.Region, _ int) error {
		word(r, 2).Add(1)
		return nil
	}})
	return await("the victim to be settled", func() bool {
		_, settled := v.Region.Settled(v.Token)
		return settled
	})
})

func TestOfManyRecoverersOneUndoes(t *testing.T) {
	r := anonymous(t)
	for turn := range 3 {
		p, token := holder(t, r)
		var all []*proc.Process
		const procs = 4
		for range procs {
			all = append(all, start(t, settleIt, victim{r, token}))
		}
		wait(t, "somebody to attach", func() bool { return occupied(r) > 2 })
		kill(p)
		for _, q := range all {
			succeed(t, q)
		}
		if n := word(r, 2).Load(); n != uint64(turn+1) {
			t.Errorf("%d deaths were undone %d times", turn+1, n)
		}
		shm.Sweep(r)
		word(r, 2).Store(uint64(turn + 1)) // those who ended were undone here, by nobody
	}
}

func occupied(r *shm.Region) (n int) {
	for i := range shm.SlotCount {
		if _, state, _ := shm.Slot(r, i); state != shm.SlotFree {
			n++
		}
	}
	return n
}

// A recoverer dies in the middle of Undo. Until then nobody else settles its victim, however long that
// takes; afterwards another process undoes it again.
func TestARecovererThatDiesIsTakenOver(t *testing.T) {
	r := anonymous(t)
	p, token := holder(t, r)
	kill(p)
	q := start(t, stickInUndo, victim{r, token})
	wait(t, "the recoverer to be in Undo", func() bool { return word(r, 2).Load() == 1 })
	undone := 0
	install(t, undoer{undo: func(_ *shm.Region, slot int) error {
		if got, _, _ := shm.Slot(r, slot); got == token {
			undone++
		}
		return nil
	}})
	for range 50 {
		if _, settled := r.Settled(token); settled || undone != 0 {
			t.Fatalf("settled %v, undone %d times, while another process undoes", settled, undone)
		}
		shm.Sweep(r)
	}
	kill(q)
	if _, settled := r.Settled(token); !settled || undone != 1 {
		t.Errorf("settled %v, undone %d times, want true and once", settled, undone)
	}
}

var stickInUndo = proc.Define("stickInUndo", func(ctx context.Context, v victim) error {
	shm.SetRecoverer(undoer{undo: func(r *shm.Region, _ int) error {
		word(r, 2).Store(1)
		<-ctx.Done()
		return errors.New("not done")
	}})
	v.Region.Settled(v.Token)
	return nil
})

// The same for Drain: the lock may be taken over meanwhile, but the slot is not used again.
func TestADrainThatDiesIsTakenOver(t *testing.T) {
	r := anonymous(t)
	p, token := holder(t, r)
	kill(p)
	q := start(t, stickInDrain, victim{r, token})
	wait(t, "the recoverer to be in Drain", func() bool { return word(r, 2).Load() == 1 })
	drained := make(chan int, 10)
	install(t, undoer{drain: func(_ *shm.Region, slot int) error {
		if got, _, _ := shm.Slot(r, slot); got == token {
			drained <- slot
		}
		return nil
	}})
	for range 20 {
		if _, settled := r.Settled(token); !settled {
			t.Fatal("not settled while its reserve is given back")
		}
		shm.Sweep(r)
	}
	if len(drained) != 0 || shm.SlotsOf(r, token) != 1 {
		t.Errorf("drained %d times, and stands in %d slots, while another process drains", len(drained), shm.SlotsOf(r, token))
	}
	kill(q)
	shm.Sweep(r)
	<-drained
	wait(t, "the slot to be free", func() bool { return shm.SlotsOf(r, token) == 0 })
	shm.Sweep(r)
	if len(drained) != 0 {
		t.Error("drained twice")
	}
}

var stickInDrain = proc.Define("stickInDrain", func(ctx context.Context, v victim) error {
	shm.SetRecoverer(undoer{drain: func(r *shm.Region, _ int) error {
		word(r, 2).Store(1)
		<-ctx.Done()
		return errors.New("not done")
	}})
	v.Region.Settled(v.Token)
	<-ctx.Done()
	return nil
})

// Attaching to a full table recovers before the region can be found by anybody, and leaves a mapping
// behind if it fails.
func TestAttachingToAFullTableRunsTheRecoverer(t *testing.T) {
	dir := memoryDir(t)
	r, err := shm.Create("r", shm.Dir(dir))
	must(t, r, err)
	_, end, err := shm.Strangers(r)
	if err != nil {
		t.Fatal(err)
	}
	end()
	succeed(t, start(t, openUndoing, dir))
}

var openUndoing = proc.Define("openUndoing", func(_ context.Context, dir string) error {
	var undone, drained int
	var mu sync.Mutex
	shm.SetRecoverer(undoer{
		undo: func(r *shm.Region, _ int) error {
			undone++
			return expect(r, "\x00")
		},
		drain: func(r *shm.Region, _ int) error {
			mu.Lock()
			defer mu.Unlock()
			drained++
			return r.Grow(1 << 20)
		},
	})
	r, err := shm.Open("r", shm.Dir(dir))
	if err != nil {
		return err
	}
	if undone != shm.SlotCount-1 {
		return fmt.Errorf("undone %d of %d", undone, shm.SlotCount-1)
	}
	return await("all but one to be drained", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return drained == shm.SlotCount-2 && occupied(r) == 2
	})
})

// A region is closed while this process recovers another one: Close waits for Undo, and what Drain was
// doing is done again when the region is opened again.
func TestCloseDuringARecovery(t *testing.T) {
	dir := named(t)
	r, err := shm.Create("r", dir)
	must(t, r, err)
	p, token := holder(t, r)
	kill(p)
	inUndo, goOn, inDrain := make(chan bool), make(chan bool), make(chan bool, 2)
	stay := make(chan bool)
	install(t, undoer{
		undo: func(*shm.Region, int) error {
			inUndo <- true
			<-goOn
			return nil
		},
		drain: func(*shm.Region, int) error {
			inDrain <- true
			<-stay
			return nil
		},
	})
	settled := make(chan bool)
	go func() {
		_, ok := r.Settled(token)
		settled <- ok
	}()
	<-inUndo
	closed := make(chan error)
	go func() { closed <- r.Close() }()
	select {
	case <-closed:
		t.Error("Close did not wait for Undo")
	case <-time.After(30 * time.Millisecond):
	}
	goOn <- true
	if !<-settled {
		t.Error("not settled")
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	<-inDrain
	r, err = shm.Open("r", dir)
	must(t, r, err)
	if _, ok := r.Settled(token); !ok {
		t.Error("not settled after Close and Open")
	}
	close(stay)
	shm.Sweep(r)
	<-inDrain
	wait(t, "the slot to be free", func() bool { return shm.SlotsOf(r, token) == 0 })
}

// Processes come and go by kill at random moments, each recovering the others.
func TestManyDeathsLeaveNoSlotBehind(t *testing.T) {
	r := anonymous(t)
	for range 4 {
		var all []*proc.Process
		for range 4 {
			all = append(all, start(t, sweepOn, r))
		}
		before := word(r, 0).Load()
		wait(t, "sweeps", func() bool { return word(r, 0).Load() > before+20 })
		for _, p := range all {
			time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
			kill(p)
		}
	}
	shm.Sweep(r)
	if n := occupied(r); n != 1 {
		t.Errorf("%d slots are taken, want 1", n)
	}
}

var sweepOn = proc.Define("sweepOn", func(ctx context.Context, r *shm.Region) error {
	for ctx.Err() == nil {
		i := rand.IntN(shm.SlotCount)
		if _, state, _ := shm.Slot(r, i); state != shm.SlotFree {
			continue
		}
		shm.Sweep(r)
		word(r, 0).Add(1)
	}
	return nil
})

func TestOwnerDiedHandlerIsKept(t *testing.T) {
	if shm.OwnerDiedHandler() != nil {
		t.Error("there is a handler before one was set")
	}
	shm.OnOwnerDied(func(d shm.Death) error { return errors.New(d.String()) })
	err := shm.OwnerDiedHandler()(shm.Death{Region: "r", Lock: 64, PID: 42})
	if want := `process 42 died holding the lock at offset 64 of region "r"`; err.Error() != want {
		t.Errorf("handler: %q, want %q", err, want)
	}
	shm.OnOwnerDied(nil)
	if shm.OwnerDiedHandler() != nil {
		t.Error("the handler cannot be taken away")
	}
}
