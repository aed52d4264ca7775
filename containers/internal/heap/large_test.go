package heap

import (
	"bytes"
	"errors"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

// write fills a block, so that all of it has memory.
func write(tb testing.TB, p *Heap, off shm.Offset, n uint64) {
	tb.Helper()
	b, err := p.r.Bytes(off, n)
	if err != nil {
		tb.Fatal(err)
	}
	if len(bytes.Trim(b, "\x00")) != 0 {
		tb.Fatalf("block of %d bytes at %d is not zero", n, off)
	}
	for i := range b {
		b[i] = 1
	}
}

// What a heap says is its largest free run can be had, and no more when the region cannot grow. A region that is made as large
// as it may be is one run but for the tables; the one that grew little by little has tables in between, and at least a third in one run.
func TestLargestRunCanBeHad(t *testing.T) {
	for _, limit := range []uint64{100 << 10, 1 << 20, 1<<20 + 64<<10, 3 << 20, 16 << 20, 24<<20 + 4096} {
		for _, grown := range []bool{false, true} {
			size := limit
			if grown {
				size = min(64<<10, limit)
			}
			p := newHeap(t, true, shm.Size(size), shm.Limit(limit))
			if grown {
				var all []shm.Offset
				for {
					off, err := p.Alloc(40_000)
					if errors.Is(err, shm.ErrNoSpace) {
						break
					}
					if err != nil {
						t.Fatal(err)
					}
					all = append(all, off)
				}
				for _, off := range all {
					free(t, p, off)
				}
			} else {
				free(t, p, alloc(t, p, 40_000))
			}
			u := usage(t, p)
			least := limit/3 - u.Tables - 64<<10
			if !grown {
				least = limit - u.Tables - 64<<10
			}
			if limit > 300<<10 && u.Largest < least {
				t.Errorf("limit %d, grown %v: the largest run has %d bytes, want %d", limit, grown, u.Largest, least)
			}
			off := alloc(t, p, u.Largest)
			write(t, p, off, u.Largest)
			if err := p.Check(); err != nil {
				t.Error(err)
			}
			free(t, p, off)
			if off, err := p.Alloc(u.Largest + 1); !errors.Is(err, shm.ErrNoSpace) {
				t.Errorf("limit %d, grown %v: a byte more than the largest run: %d, %v, want ErrNoSpace", limit, grown, off, err)
			}
			whole(t, p)
			p.r.Close()
		}
	}
}

// A run may be larger than any segment of the page table, in a heap that is new and in one that has grown: it is what the heap grows by.
func TestRunAcrossSegments(t *testing.T) {
	for _, before := range []int{0, 1, 30, 100} {
		p := newHeap(t, true, shm.Size(64<<10), shm.Limit(64<<20))
		var all []shm.Offset
		for range before {
			all = append(all, alloc(t, p, 40_000))
		}
		const n = 24 << 20
		off := alloc(t, p, n)
		first := (uint64(off) - p.base) / pageSize
		if from, to := segmentOf(first), segmentOf(first+n/pageSize-1); from == to {
			t.Errorf("after %d blocks: %d pages from %d on are all in segment %d", before, n/pageSize, first, from)
		}
		write(t, p, off, n)
		if err := p.Check(); err != nil {
			t.Error(err)
		}
		free(t, p, off)
		for _, off := range all {
			free(t, p, off)
		}
		if u := usage(t, p); u.Largest < n {
			t.Errorf("after %d blocks: the largest run has %d bytes, and one had %d", before, u.Largest, n)
		}
		whole(t, p)
		p.r.Close()
	}
}
