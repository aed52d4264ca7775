package heap

import (
	"errors"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
)

// exhaust allocates blocks of a size until there is no memory.
func exhaust(t *testing.T, p *Heap, size uint64) (all []shm.Offset) {
	t.Helper()
	for {
		off, err := p.Alloc(size)
		if errors.Is(err, shm.ErrNoSpace) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, off)
	}
}

// relieving lets a process give back what it is asked for, until the test ends, as one that has its heap open does.
func relieving(t *testing.T, p *Heap) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				if err := p.Relieve(); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
	})
}

// Who waits for memory goes on when there is less in reserve than before, though somebody, who is stopped perhaps, gives nothing back.
func TestWaitForMemoryEndsWhenThereIsSome(t *testing.T) {
	w := newWorld(t, 256<<10, 256<<10)
	p, gives, stopped := w.process(survivor), w.process(survivor2), w.process(deadSlot)
	for _, q := range []*Heap{gives, stopped} {
		free(t, q, alloc(t, q, 1000))
	}
	l, err := p.Enter()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Leave()
	kept := func(q *Heap) uint64 { return usage(t, p).Slots[q.slot] }
	if kept(gives) == 0 || kept(stopped) == 0 {
		t.Fatal("nobody keeps anything in reserve: nothing is tested")
	}
	calls := 0
	if err := p.relieve(l); err != nil { // raises the pressure
		t.Fatal(err)
	}
	relieving(t, gives)
	p.others(func() bool {
		calls++
		return kept(gives) == 0
	})
	if calls == 0 || kept(gives) != 0 || kept(stopped) == 0 {
		t.Errorf("asked for memory %d times; one process keeps %d bytes, another one, who is stopped, %d", calls, kept(gives), kept(stopped))
	}
	if p.respite.Load() != 0 {
		t.Error("the wait went on until its end, though there was memory")
	}
	// There is nothing to come from the other one, which is found out once.
	for range 3 {
		p.others(func() bool { return false })
		if p.respite.Load() == 0 {
			t.Fatal("a wait that brought nothing does not count")
		}
	}
}

// A process' first operation in a region that is full has what others keep in reserve: it needs control lines, and a lane's memory.
func TestFirstLaneOfAProcessInAFullRegion(t *testing.T) {
	for _, haveLines := range []bool{false, true} {
		w := newWorld(t, 512<<10, 512<<10)
		p, q := w.process(survivor), w.process(survivor2)
		all := exhaust(t, q, 8192)
		exhaust(t, q, 4096)
		if l, err := p.Enter(); !errors.Is(err, shm.ErrNoSpace) {
			t.Fatalf("a lane in a full region: %v, %v", l, err)
		}
		if haveLines {
			free(t, q, all[2])
			if err := errors.Join(q.Flush(), p.Lines(survivor)); err != nil {
				t.Fatal(err)
			}
		}
		for _, off := range all[:2] { // into a magazine
			free(t, q, off)
		}
		if n := p.reserves(); n != 2*8192 {
			t.Fatalf("%d bytes are in reserve", n)
		}
		relieving(t, q)
		l, err := p.Enter()
		if err != nil {
			t.Fatalf("with control lines: %v: %v", haveLines, err)
		}
		if err := l.Leave(); err != nil {
			t.Error(err)
		}
		if err := p.Check(); err != nil {
			t.Error(err)
		}
	}
}

// What a process kept in reserve that was killed is had before memory runs out, though nobody waits for one of its locks.
func TestReservesOfTheDeadAreHadBeforeMemoryRunsOut(t *testing.T) {
	r, err := shm.Anonymous(shm.Size(512<<10), shm.Limit(512<<10))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := Format(r, r.Data()+thingsSize); err != nil {
		t.Fatal(err)
	}
	p, err := Open(r, r.Data()+thingsSize)
	if err != nil {
		t.Fatal(err)
	}
	one, err := p.Enter()
	if err != nil {
		t.Fatal(err)
	}
	two, err := p.Enter() // the drain needs a lane besides that of the operation that waits
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(one.Leave(), two.Leave()); err != nil {
		t.Fatal(err)
	}
	startFiller(t, r).Kill()
	if p.reserves() == 0 {
		t.Fatal("nothing is in reserve: nothing is tested")
	}
	exhaust(t, p, 64)
	if n := p.reserves(); n != 0 {
		t.Errorf("no space, while a dead process keeps %d bytes in reserve", n)
	}
}
