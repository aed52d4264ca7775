package shm_test

import (
	"errors"
	"math"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
)

func TestAtChecksEveryOffset(t *testing.T) {
	heap, err := shm.Heap(shm.Size(4096), shm.Limit(8192))
	for kind, r := range map[string]*shm.Region{"anonymous": anonymous(t, shm.Size(4096), shm.Limit(8192)), "heap": must(t, heap, err)} {
		first := r.Data()
		end := first + 4096
		for _, c := range []struct {
			off shm.Offset
			ok  bool
		}{
			{first, true}, {end - 8, true}, {first + 8, true},
			{0, false}, {8, false}, {first - 8, false}, // none; the header; before the data
			{first + 1, false}, {first + 4, false}, // misaligned
			{end - 7, false}, {end, false}, {end + 8, false}, {1 << 40, false}, {1<<64 - 8, false},
		} {
			p, err := shm.At[atomic.Uint64](r, c.off)
			if (err == nil) != c.ok || err != nil && !errors.Is(err, shm.ErrCorrupt) || (p != nil) != c.ok {
				t.Errorf("%s: At(%d): %v, %v, want success %v, or ErrCorrupt", kind, c.off, p, err, c.ok)
			}
			if p != nil {
				p.Add(1)
			}
		}
		if _, err := shm.At[byte](r, end-1); err != nil {
			t.Errorf("%s: the last byte: %v", kind, err)
		}
		if _, err := shm.At[[4097]byte](r, first); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("%s: more than there is: %v, want ErrCorrupt", kind, err)
		}
		for _, c := range []struct {
			off shm.Offset
			n   uint64
			ok  bool
		}{
			{first, 4096, true}, {first + 1, 4095, true}, {end, 0, true}, {first, 0, true},
			{first, 4097, false}, {end, 1, false}, {end + 1, 0, false}, {0, 1, false}, {first - 1, 1, false},
			{first, 1<<64 - 1, false}, {first + 8, 1<<64 - 8, false}, {1<<64 - 1, 2, false},
		} {
			b, err := r.Bytes(c.off, c.n)
			if (err == nil) != c.ok || err != nil && !errors.Is(err, shm.ErrCorrupt) {
				t.Errorf("%s: Bytes(%d, %d): %v, want success %v, or ErrCorrupt", kind, c.off, c.n, err, c.ok)
			}
			if c.ok && (uint64(len(b)) != c.n || cap(b) != len(b)) {
				t.Errorf("%s: Bytes(%d, %d) has length %d and capacity %d", kind, c.off, c.n, len(b), cap(b))
			}
		}
	}
}

func TestAddressesAndOffsetsAreInverse(t *testing.T) {
	heap, err := shm.Heap()
	for kind, r := range map[string]*shm.Region{"anonymous": anonymous(t), "heap": must(t, heap, err)} {
		other := anonymous(t)
		p := word(r, 3)
		want := r.Data() + 24
		if off, ok := r.OffsetOf(unsafe.Pointer(p)); off != want || !ok {
			t.Errorf("%s: OffsetOf: %d, %v, want %d", kind, off, ok, want)
		}
		if _, ok := other.OffsetOf(unsafe.Pointer(p)); ok {
			t.Errorf("%s: an address lies in two regions", kind)
		}
		found, off, ok := shm.Locate(unsafe.Pointer(p))
		if !ok || off != want || found.ID() != r.ID() {
			t.Errorf("%s: Locate: %v, %d, %v", kind, found, off, ok)
		}
		found.Close() // not counted
		if r.Closed() {
			t.Errorf("%s: what Locate returned could be closed", kind)
		}
		local := new(uint64)
		if _, _, ok := shm.Locate(unsafe.Pointer(local)); ok {
			t.Errorf("%s: a variable of Go lies in a region", kind)
		}
		if _, closed := shm.ClosedAt(unsafe.Pointer(p)); closed {
			t.Errorf("%s: an open region counts as closed", kind)
		}
	}
}

// Pointer agrees with Bytes wherever both know the end, and says nothing rather than something wrong.
func TestPointerIsThatOfBytesOrNil(t *testing.T) {
	r := anonymous(t)
	end := r.Data() + shm.Offset(r.Size())
	for _, c := range []struct {
		off shm.Offset
		n   uint64
	}{
		{r.Data(), 1}, {r.Data() + 5, 8}, {end - 8, 8}, {r.Data(), r.Size()},
		{0, 1}, {r.Data() - 1, 1}, {end - 8, 9}, {end, 1}, {end + 1, 0}, {math.MaxUint64, 2}, {r.Data(), math.MaxUint64}, {end - 1, math.MaxUint64},
	} {
		b, err := r.Bytes(c.off, c.n)
		if p := r.Pointer(c.off, c.n); (p == nil) != (err != nil) || p != nil && p != unsafe.Pointer(unsafe.SliceData(b)) {
			t.Errorf("%d bytes at %d: %v, Bytes says %v", c.n, c.off, p, err)
		}
	}
	r.Close()
	if p := r.Pointer(r.Data(), 1); p != nil {
		t.Errorf("of a closed region: %v", p)
	}
}

func TestClosedRegionsAreKnownByTheirAddresses(t *testing.T) {
	r, err := shm.Create("some-name", named(t))
	must(t, r, err)
	p := unsafe.Pointer(word(r, 0))
	r.Close()
	if _, _, ok := shm.Locate(p); ok {
		t.Error("a closed region is located")
	}
	if name, closed := shm.ClosedAt(p); name != "some-name" || !closed {
		t.Errorf("ClosedAt: %q, %v", name, closed)
	}
	if _, closed := shm.ClosedAt(unsafe.Pointer(r)); closed {
		t.Error("a variable of Go lies in a closed region")
	}
}

// The heap region's memory moves nowhere and is aligned like a mapped one.
func TestAHeapRegionBehavesLikeAMappedOne(t *testing.T) {
	r, err := shm.Heap(shm.Size(4096))
	must(t, r, err)
	if r.File() != nil || r.Path() != "" || r.Limit() != 16<<20 || r.Size() != 4096 {
		t.Errorf("file %v, path %q, limit %d, size %d", r.File(), r.Path(), r.Limit(), r.Size())
	}
	b, err := r.Bytes(r.Data(), 4096)
	if err != nil {
		t.Fatal(err)
	}
	if off := uintptr(unsafe.Pointer(&b[0])) % 4096; off != 0 {
		t.Errorf("its data begins %d bytes into a page", off)
	}
	if err := r.Grow(1 << 20); err != nil {
		t.Fatal(err)
	}
	if now, err := r.Bytes(r.Data(), 1<<20); err != nil || &now[0] != &b[0] {
		t.Errorf("growth has moved it: %v", err)
	}
	if shm.SlotsOf(r, shm.Self()) != 1 {
		t.Error("this process has no slot")
	}
	r.Scan()
	if _, settled := r.Settled(shm.NewToken()); !settled {
		t.Error("a token that stands nowhere is alive")
	}
}
