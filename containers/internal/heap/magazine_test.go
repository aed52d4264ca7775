package heap

import (
	"errors"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

// A magazine is filled from as many spans as it takes: blocks of one class that are freed far from each other would otherwise cost
// the lock of the class for each of them.
func TestMagazineIsFilledFromSeveralSpans(t *testing.T) {
	p := newHeap(t, false, shm.Size(256<<10), shm.Limit(256<<10))
	c, _ := classFor(1000, granule)
	per, want := int(classes[c].blocks), int(classes[c].capacity/2)
	var all []shm.Offset
	for range per * want {
		all = append(all, alloc(t, p, 1000))
	}
	for i := 0; i < len(all); i += per {
		free(t, p, all[i])
	}
	if err := p.Flush(); err != nil {
		t.Fatal(err)
	}
	before := usage(t, p)
	if before.CachedBlocks != 0 {
		t.Fatalf("%d blocks in magazines after a flush", before.CachedBlocks)
	}
	all = append(all, alloc(t, p, 1000))
	after := usage(t, p)
	if got := int(after.CachedBlocks) + 1; got != want {
		t.Errorf("the magazine was filled with %d blocks, half of it is %d, and there were %d in as many spans", got, want, want)
	}
	if after.Used != before.Used {
		t.Errorf("%d bytes are in use after a block that there was room for, %d were before", after.Used, before.Used)
	}
	for i, off := range all {
		if i%per != 0 || i == len(all)-1 {
			free(t, p, off)
		}
	}
	whole(t, p)
}

// Blocks that one after the other takes out of a new heap lie one after the other: a magazine is not emptied backwards, which would cost
// those who write to them a miss each.
func TestBlocksOfANewHeapGoUp(t *testing.T) {
	p := newHeap(t, false)
	last := alloc(t, p, 64)
	for range 3 * classes[0].blocks {
		if off := alloc(t, p, 64); off <= last {
			t.Fatalf("the block behind the one at %d is at %d", last, off)
		} else {
			last = off
		}
	}
}

// A magazine that has a block twice is not emptied: the span would have it once, and somebody else the other.
func TestBlockTwiceInAMagazineIsRefused(t *testing.T) {
	p := newHeap(t, false, shm.Size(64<<10), shm.Limit(64<<10))
	free(t, p, alloc(t, p, 64))
	l, err := p.Enter()
	if err != nil {
		t.Fatal(err)
	}
	m := magazineOf(l, 0)
	if err := l.Leave(); err != nil {
		t.Fatal(err)
	}
	before := usage(t, p)
	right := m.slots[0].Load()
	m.slots[0].Store(m.slots[1].Load())
	if err := p.Flush(); !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("flush of a magazine that has a block twice: %v", err)
	}
	m.slots[0].Store(right)
	if after := usage(t, p); after.Cached != before.Cached || after.FreeBlocks != before.FreeBlocks {
		t.Errorf("a flush that was refused has changed %+v to %+v", before, after)
	}
}
