package heap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shmkit/shmkit/shm"
	"golang.org/x/sys/unix"
)

// memoryOf returns how many bytes of memory a region's file has.
func memoryOf(tb testing.TB, r *shm.Region) uint64 {
	tb.Helper()
	info, err := r.File().Stat()
	if err != nil {
		tb.Fatal(err)
	}
	return uint64(info.Sys().(*syscall.Stat_t).Blocks) * 512
}

// The memory of a large block goes back when it is freed, and is there again when it is handed out.
func TestLargeFreeBlocksGoBack(t *testing.T) {
	const size = 8 << 20
	p := newHeap(t, true, shm.Limit(64<<20))
	if !p.r.ReadableHoles() {
		t.Skip("a read of a hole can fail here")
	}
	alloc(t, p, 100)
	off := alloc(t, p, size)
	alloc(t, p, 100)
	b, err := p.r.Bytes(off, size)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] = 1
	}
	full := memoryOf(t, p.r)
	free(t, p, off)
	given := usage(t, p).Released
	if now := memoryOf(t, p.r); given < size-2*4096 || now != full-given {
		t.Errorf("%d bytes of memory, %d while the block was used: %d are noted as given back", now, full, given)
	}
	t.Logf("a block of %d bytes freed: %d bytes of memory before, %d after", size, full, memoryOf(t, p.r))
	small := alloc(t, p, 1<<20) // takes a piece of it, or fresh memory
	if err := p.Check(); err != nil {
		t.Error(err)
	}
	free(t, p, small)
	for _, n := range []uint64{size, 3 << 20, size - 5000} { // after the first they keep it
		off := alloc(t, p, n)
		b, err := p.r.Bytes(off, n)
		if err != nil || len(bytes.Trim(b, "\x00")) != 0 {
			t.Fatalf("%d bytes are not zero (%v)", n, err)
		}
		for i := range b {
			b[i] = 2
		}
		if err := p.Check(); err != nil {
			t.Error(err)
		}
		free(t, p, off)
	}
}

// Blocks that are taken again as soon as they are free stay as they are, unless they are very large.
func TestBlocksInTurnoverKeepTheirMemory(t *testing.T) {
	p := newHeap(t, true, shm.Limit(128<<20))
	if !p.r.ReadableHoles() {
		t.Skip("a read of a hole can fail here")
	}
	given := func(n uint64) bool {
		off := alloc(t, p, n)
		alloc(t, p, 100)
		free(t, p, off)
		given := usage(t, p).Released > 0
		if err := p.r.Reserve(p.r.Data(), p.r.Size()); err != nil {
			t.Fatal(err)
		}
		return given
	}
	if !given(2 << 20) {
		t.Error("the first block has kept its memory")
	}
	off := alloc(t, p, 2<<20)
	free(t, p, off)
	off = alloc(t, p, 2<<20) // it was given back
	free(t, p, off)
	if given(2<<20) || given(3<<20) {
		t.Error("a block in turnover was given back")
	}
	if !given(5<<20) || !given(33<<20) {
		t.Error("a larger block has kept its memory")
	}
	free(t, p, alloc(t, p, 33<<20))
	if !given(33 << 20) {
		t.Error("a very large block has kept its memory")
	}
}

// Small blocks are joined and go back with Trim.
func TestTrimGivesBackWhatIsFree(t *testing.T) {
	p := newHeap(t, true, shm.Size(16<<20), shm.Limit(16<<20))
	var offs []shm.Offset
	for range 1000 {
		off := alloc(t, p, 4000)
		b, err := p.r.Bytes(off, 4000)
		if err != nil {
			t.Fatal(err)
		}
		for i := range b {
			b[i] = 1
		}
		offs = append(offs, off)
	}
	full := memoryOf(t, p.r)
	for _, off := range offs[:900] {
		free(t, p, off)
	}
	if u := usage(t, p); u.Released != 0 {
		t.Errorf("%d bytes went back by themselves", u.Released)
	}
	n, err := p.Trim()
	if err != nil {
		t.Fatal(err)
	}
	if now := memoryOf(t, p.r); n < 15<<20 || now != full-n {
		t.Errorf("%d bytes of memory after Trim, before %d; it says %d", now, full, n)
	}
	t.Logf("900 of 1000 blocks of 4000 bytes freed, 12 MiB never used: %d bytes of memory before Trim, %d after", full, memoryOf(t, p.r))
	for _, off := range offs[900:] {
		b, err := p.r.Bytes(off, 4000)
		if err != nil || !bytes.Equal(b, bytes.Repeat([]byte{1}, 4000)) {
			t.Fatalf("the block at %d is in use and was changed (%v)", off, err)
		}
	}
	if again, err := p.Trim(); again != 0 || err != nil {
		t.Errorf("Trim again: %d, %v", again, err)
	}
	for range 900 {
		off := alloc(t, p, 4000)
		if b, err := p.r.Bytes(off, 4000); err != nil || len(bytes.Trim(b, "\x00")) != 0 {
			t.Fatalf("the block at %d is not zero (%v)", off, err)
		}
	}
	free(t, p, alloc(t, p, 8<<20))
}

// Memory that was given back, and that others took meanwhile, is an error and not a signal; what has memory is
// handed out as ever.
func TestAllocOnAFullFileSystemAfterTrim(t *testing.T) {
	at := t.TempDir()
	if err := unix.Mount("shmkit-test", at, "tmpfs", 0, fmt.Sprintf("size=%d", 16<<20)); err != nil {
		t.Skipf("needs the right to mount a file system: %v", err)
	}
	top, err := os.Open(at)
	if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	dir := fmt.Sprintf("/proc/self/fd/%d", top.Fd())
	room := func() uint64 {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		return st.Bavail * uint64(st.Bsize)
	}
	r, err := shm.CreateFile(dir+"/r", shm.Size(8<<20), shm.Limit(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := Format(r, r.Data()); err != nil {
		t.Fatal(err)
	}
	p, err := Open(r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	var small []shm.Offset
	for range 20 {
		small = append(small, alloc(t, p, 3000))
	}
	large := alloc(t, p, 3<<20)
	alloc(t, p, 3000)
	for i := 0; i < len(small); i += 2 {
		free(t, p, small[i])
	}
	free(t, p, large)
	if u := usage(t, p); u.Released != 0 {
		t.Errorf("%d bytes went back where a reader can fault", u.Released)
	}
	if n, err := p.Trim(); n < 7<<20 || err != nil {
		t.Fatalf("Trim: %d, %v", n, err)
	}
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	if n, err := io.Copy(filler, zeros{}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("%d bytes written, %v", n, err)
	}
	before := usage(t, p)
	for _, n := range []uint64{3 << 20, 100_000, 7 << 20, 64 << 20} {
		off, err := p.Alloc(n)
		if !errors.Is(err, shm.ErrNoSpace) {
			t.Errorf("%d bytes on a full file system: %d, %v, want ErrNoSpace", n, off, err)
		}
		if limited := n > 4<<20; strings.Contains(fmt.Sprint(err), "the file system has no room") == limited {
			t.Errorf("%d bytes on a full file system: %v, want the cause", n, err)
		}
	}
	if now := usage(t, p); now.Live != before.Live || now.Released != before.Released || room() != 0 {
		t.Errorf("refused allocations: %+v, before %+v; %d bytes are free", now, before, room())
	}
	var got []shm.Offset
	for range 10 { // these have memory
		off := alloc(t, p, 3000)
		if b, err := r.Bytes(off, 3000); err != nil || len(bytes.Trim(b, "\x00")) != 0 {
			t.Fatalf("the block at %d is not zero (%v)", off, err)
		}
		got = append(got, off)
	}
	if err := filler.Truncate(0); err != nil {
		t.Fatal(err)
	}
	got = append(got, alloc(t, p, 3<<20))
	if err := p.Check(); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(filler, zeros{}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	b, err := r.Bytes(got[10], 3<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b { // all of it has memory
		b[i]++
	}
	for _, off := range got {
		free(t, p, off)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func BenchmarkAllocFreeLarge(b *testing.B) {
	for _, size := range []uint64{1<<20 - 4096, 1 << 20, 16 << 20} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			p := newHeap(b, true)
			for b.Loop() {
				off, err := p.Alloc(size)
				if err != nil {
					b.Fatal(err)
				}
				if err := p.Free(off); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A note that covers memory in use, of a region that lost stores in a crash of the machine, is found.
func TestCheckFindsALiveBlockWithoutMemory(t *testing.T) {
	p := newHeap(t, true, shm.Size(4<<20))
	off := alloc(t, p, 1<<20)
	for _, n := range []uint64{1 << 20, 2 << 20} { // up to its end, and beyond
		if _, err := p.r.Release(off, n); err != nil {
			t.Fatal(err)
		}
		if err := p.Check(); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("Check with %d bytes given back from a live block on: %v, want ErrCorrupt", n, err)
		}
	}
	if err := p.r.Reserve(p.r.Data(), p.r.Size()); err != nil {
		t.Fatal(err)
	}
}

// A piece of a block that was given back counts as taken again, and is not given back again.
func TestPiecesInTurnoverKeepTheirMemory(t *testing.T) {
	p := newHeap(t, true, shm.Limit(64<<20))
	if !p.r.ReadableHoles() {
		t.Skip("a read of a hole can fail here")
	}
	free(t, p, alloc(t, p, 16<<20))
	before := usage(t, p).Released
	piece := alloc(t, p, 2<<20)
	took := before - usage(t, p).Released
	free(t, p, piece)
	if now := usage(t, p).Released; took < 2<<20 || now != before-took {
		t.Errorf("%d bytes are given back, %d while a piece of %d was in use, %d before", now, before-took, 2<<20, before)
	}
}
