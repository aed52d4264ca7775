package containers

import (
	"context"
	"errors"
	"testing"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

type hoard struct {
	M    *Manager
	Full AtomicInt
}

// hoarder makes and destroys values, so that its lanes keep their memory, and then does nothing.
var hoarder = proc.Define("hoard", func(ctx context.Context, h hoard) error {
	var all []Shared[[64]int64]
	for range 30 {
		v, err := NewShared(h.M, [64]int64{})
		if err != nil {
			return err
		}
		all = append(all, v)
	}
	for _, v := range all {
		if err := v.Destroy(); err != nil {
			return err
		}
	}
	h.Full.Store(1)
	<-ctx.Done()
	return nil
})

// reserves returns how many bytes the lanes of other processes keep, and those of this one.
func reserves(t *testing.T, m *Manager) (others, own uint64) {
	t.Helper()
	for slot, bytes := range Must(Must(m.space()).heap.Usage()).Slots {
		if slot == m.Region().LaneSlot() {
			own += bytes
		} else {
			others += bytes
		}
	}
	return others, own
}

// Before an allocation fails, the other processes that have the region open have given back what they keep in reserve, also one that does nothing.
func TestAnIdleProcessGivesItsReservesToOneThatNeedsThem(t *testing.T) {
	m := newManager(t, shm.Size(512<<10), shm.Limit(512<<10))
	h := hoard{m, Must(NewAtomicInt(m, 0))}
	ctx, stop := context.WithCancel(deadline(t))
	p, err := hoarder.Start(ctx, h)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	until(t, "the other process to have its reserves", func() bool { return h.Full.Load() == 1 })
	before, _ := reserves(t, m)
	if before < 1024 {
		t.Fatalf("the other process keeps %d bytes in reserve: nothing is tested", before)
	}
	for {
		if _, err := NewShared(m, [64]int64{}); err != nil {
			if !errors.Is(err, shm.ErrNoSpace) {
				t.Error(err)
			}
			break
		}
	}
	if others, _ := reserves(t, m); others >= 1024 {
		t.Errorf("no space, while another process keeps %d bytes in reserve; it kept %d before", others, before)
	}
	stop()
	p.Wait()
}
