package heap

import (
	"errors"
	"fmt"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

// Wherever memory is refused: the call says so, nothing has changed, and when there is memory again it works.
func TestRefusedMemoryChangesNothing(t *testing.T) {
	full := fmt.Errorf("refused: %w", shm.ErrNoSpace)
	defer func() { reserving = nil }()
	for _, name := range sortedKeys(scenarios) {
		sc := scenarios[name]
		size, limit := sc.size, sc.limit
		if size == 0 {
			size, limit = 64<<10, 1<<20
		}
		for k := 1; ; k++ {
			w := newWorld(t, size, limit)
			if err := sc.prepare(w, w.process(deadSlot)); err != nil {
				t.Fatal(name, err)
			}
			p := w.process(deadSlot)
			before, err := w.state(p)
			if err != nil {
				t.Fatal(name, err)
			}
			asked := 0
			reserving = func() error {
				if asked++; asked >= k {
					return full
				}
				return nil
			}
			err = sc.do(w, p)
			reserving = nil
			if asked < k {
				break
			}
			if err == nil { // it found another way
				continue
			}
			if !errors.Is(err, shm.ErrNoSpace) {
				t.Fatalf("%s, reservation %d refused: %v, want ErrNoSpace", name, k, err)
			}
			if err := p.Check(); err != nil {
				t.Fatalf("%s, reservation %d refused: %v", name, k, err)
			}
			w.loose = 0
			if got, err := w.state(p); err != nil || got != before {
				t.Fatalf("%s, reservation %d refused: %v: state\n%s, was\n%s", name, k, err, got, before)
			}
			if err := sc.do(w, p); err != nil {
				t.Fatalf("%s, again after reservation %d was refused: %v", name, k, err)
			}
		}
	}
}

// A region that is full refuses, whatever the size, and serves again after a free.
func TestFullRegionServesAfterFree(t *testing.T) {
	for _, n := range []uint64{8, 64, 1000, 5000, 20_000, 40_000} {
		p := newHeap(t, true, shm.Size(512<<10), shm.Limit(512<<10))
		for round := range 3 {
			var all []shm.Offset
			for {
				off, err := p.Alloc(n)
				if errors.Is(err, shm.ErrNoSpace) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, off)
			}
			if sum := uint64(len(all)) * n; n > 60 && sum < 256<<10 {
				t.Errorf("%d bytes: only %d blocks in 512 KiB", n, len(all))
			}
			free(t, p, all[len(all)/2])
			all[len(all)/2] = alloc(t, p, n)
			for _, off := range all {
				free(t, p, off)
			}
			// What is cached in pieces of one size serves another one too.
			free(t, p, alloc(t, p, 300<<10))
			if round == 2 {
				whole(t, p)
			}
		}
		if _, err := p.Alloc(1 << 20); !errors.Is(err, shm.ErrNoSpace) {
			t.Errorf("more than the region: %v", err)
		}
		if _, err := p.Alloc(1<<64 - 1); !errors.Is(err, shm.ErrNoSpace) {
			t.Errorf("more than there can be: %v", err)
		}
	}
}
