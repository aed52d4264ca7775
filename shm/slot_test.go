package shm_test

import (
	"testing"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

func TestProcessesHaveSlotsOfTheirOwn(t *testing.T) {
	r := anonymous(t)
	tokens := map[shm.Token]bool{shm.Self(): true}
	var all []*proc.Process
	for range 5 {
		p, token := holder(t, r)
		all = append(all, p)
		if tokens[token] || token == 0 || token&15 != 0 {
			t.Errorf("token %#x is another process' too, or none", uint64(token))
		}
		tokens[token] = true
	}
	for token := range tokens {
		if n := shm.SlotsOf(r, token); n != 1 {
			t.Errorf("token %v stands in %d slots, want 1", token, n)
		}
	}
	if n := occupied(r); n != len(tokens) {
		t.Errorf("%d slots are taken by %d processes", n, len(tokens))
	}
	for _, p := range all {
		if !p.Alive() {
			t.Error("a process has ended")
		}
	}
}

func TestARegionOpenedOftenIsOneMappingAndOneSlot(t *testing.T) {
	dir := named(t)
	r, err := shm.Create("r", dir)
	must(t, r, err)
	p := word(r, 0)
	for range 10 {
		again, err := shm.Open("r", dir)
		must(t, again, err)
		byDescriptor, err := shm.FromFile(r.File())
		must(t, byDescriptor, err)
		byPath, err := shm.OpenFile(r.Path())
		must(t, byPath, err)
		reader, err := shm.Open("r", dir, shm.ReadOnly())
		must(t, reader, err)
		for _, h := range []*shm.Region{again, byDescriptor, byPath, reader} {
			if word(h, 0) != p {
				t.Error("one region is mapped at two addresses")
			}
		}
	}
	if n := shm.SlotsOf(r, shm.Self()); n != 1 {
		t.Errorf("this process stands in %d slots", n)
	}
}

// What a process held in its slot is not there any more when another one has the slot.
func TestASlotIsCleanWhenItIsTaken(t *testing.T) {
	r := anonymous(t)
	i := shm.SlotOf(r)
	for j := range shm.SlotCount {
		if j != i {
			shm.Soil(r, j)
		}
	}
	_, token := holder(t, r)
	for j := range shm.SlotCount {
		if got, _, _ := shm.Slot(r, j); got == token {
			if err := shm.Clean(r, j); err != nil {
				t.Error(err)
			}
			return
		}
	}
	t.Error("the process has no slot")
}
