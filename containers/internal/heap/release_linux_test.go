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

// The memory of a large block goes back when it is freed, and is there again, and zero, when it is handed out.
func TestLargeFreeBlocksGoBack(t *testing.T) {
	const size = 8 << 20
	p := newHeap(t, true, shm.Limit(64<<20))
	if !p.r.ReadableHoles() {
		t.Skip("a read of a hole can fail here")
	}
	alloc(t, p, 100)
	off := alloc(t, p, size)
	alloc(t, p, 100)
	write(t, p, off, size)
	full := memoryOf(t, p.r)
	free(t, p, off)
	u := usage(t, p)
	if now := memoryOf(t, p.r); u.Released != size || now != full-size {
		t.Errorf("a block of %d bytes freed: %d bytes of memory, %d before, %d are noted as given back", size, now, full, u.Released)
	}
	for _, n := range []uint64{size, 3 << 20, size - 5000} {
		off := alloc(t, p, n)
		write(t, p, off, n)
		if err := p.Check(); err != nil { // nothing in use is noted as given back
			t.Error(err)
		}
		free(t, p, off)
	}
	if now := memoryOf(t, p.r); now > full-size {
		t.Errorf("%d bytes of memory after all was freed again, %d after the first time", now, full-size)
	}
}

// What is smaller goes back with Trim, joined to its neighbours, and what is in use stays as it is.
func TestTrimGivesBackWhatIsFree(t *testing.T) {
	p := newHeap(t, true, shm.Size(16<<20), shm.Limit(16<<20))
	var offs []shm.Offset
	for range 1000 {
		off := alloc(t, p, 4000)
		write(t, p, off, 4000)
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
	if now := memoryOf(t, p.r); n < 15<<20 || now != full-n || usage(t, p).Released != n {
		t.Errorf("%d bytes of memory after Trim, %d before, %d are noted; it says %d", now, full, usage(t, p).Released, n)
	}
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
		write(t, p, off, 4000)
	}
	free(t, p, alloc(t, p, 8<<20))
}

// A system that has no memory for a large heap that was given back is asked some times, not for every place in it, while all others wait.
func TestRefusedMemoryIsNotAskedForEverywhere(t *testing.T) {
	p := newHeap(t, true, shm.Size(32<<20), shm.Limit(32<<20))
	defer func() { reserving = nil }()
	kept := alloc(t, p, 40_000)
	free(t, p, alloc(t, p, 40_000))
	if _, err := p.Trim(); err != nil {
		t.Fatal(err)
	}
	asked := 0
	reserving = func() error { asked++; return shm.ErrNoSpace }
	if _, err := p.Alloc(50_000); !errors.Is(err, shm.ErrNoSpace) || asked > 3*refusedMost {
		t.Errorf("%v after the system was asked %d times", err, asked)
	}
	reserving = nil
	free(t, p, alloc(t, p, 50_000))
	free(t, p, kept)
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

// smallFiles makes a file system of memory, in no directory, and returns the path of its top.
func smallFiles(t *testing.T, size uint64) (dir string) {
	at := t.TempDir()
	if err := unix.Mount("shmkit-test", at, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("needs the right to mount a file system: %v", err)
	}
	top, err := os.Open(at)
	if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { top.Close() })
	return fmt.Sprintf("/proc/self/fd/%d", top.Fd())
}

func room(t *testing.T, dir string) uint64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Bavail * uint64(st.Bsize)
}

func fileHeap(t *testing.T, path string, opts ...shm.Option) *Heap {
	t.Helper()
	r, err := shm.CreateFile(path, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	if err := Format(r, r.Data()); err != nil {
		t.Fatal(err)
	}
	p, err := Open(r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Memory that was given back, and that others took meanwhile, is an error and not a signal; what has memory is
// handed out as ever, and the call works when there is space again.
func TestAllocOnAFullFileSystemAfterTrim(t *testing.T) {
	dir := smallFiles(t, 16<<20)
	p := fileHeap(t, dir+"/r", shm.Size(8<<20), shm.Limit(8<<20))
	var small []shm.Offset
	for range 20 {
		small = append(small, alloc(t, p, 3000))
	}
	large := alloc(t, p, 3<<20)
	write(t, p, large, 3<<20)
	for i := 0; i < len(small); i += 2 {
		free(t, p, small[i])
	}
	free(t, p, large)
	if u := usage(t, p); u.Released != 0 {
		t.Errorf("%d bytes went back where a reader can fault", u.Released)
	}
	if n, err := p.Trim(); n < 3<<20 || err != nil {
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
	for _, n := range []uint64{3 << 20, 7 << 20, 64 << 20} {
		off, err := p.Alloc(n)
		if !errors.Is(err, shm.ErrNoSpace) {
			t.Errorf("%d bytes on a full file system: %d, %v, want ErrNoSpace", n, off, err)
		}
		if limited := n > 8<<20; strings.Contains(fmt.Sprint(err), "the file system has no room") == limited {
			t.Errorf("%d bytes on a full file system: %v, want the cause", n, err)
		}
	}
	if now := usage(t, p); now.Live != before.Live || now.Used != before.Used || now.Released != before.Released || room(t, dir) != 0 {
		t.Errorf("refused allocations: %+v, before %+v; %d bytes are free", now, before, room(t, dir))
	}
	got := alloc(t, p, 3000) // has memory
	write(t, p, got, 3000)
	if err := filler.Truncate(0); err != nil {
		t.Fatal(err)
	}
	large = alloc(t, p, 3<<20)
	if err := p.Check(); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(filler, zeros{}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	write(t, p, large, 3<<20) // all of it has memory
	for i := 1; i < len(small); i += 2 {
		free(t, p, small[i])
	}
	free(t, p, got)
	free(t, p, large)
	whole(t, p)
}

// A region that cannot grow because the file system is full, or because files may not be larger, says so, has changed nothing, and grows
// when it can.
func TestGrowthOnAFullFileSystem(t *testing.T) {
	for name, fill := range map[string]func(t *testing.T, p *Heap, dir string) (undo func()){
		"file system": func(t *testing.T, _ *Heap, dir string) func() {
			name := filepath.Join(dir, "filler")
			filler, err := os.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			defer filler.Close()
			if n, err := io.Copy(filler, zeros{}); !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("%d bytes written, %v", n, err)
			}
			return func() { os.Remove(name) }
		},
		"file size": func(t *testing.T, p *Heap, _ string) func() {
			var was unix.Rlimit
			if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
				t.Fatal(err)
			}
			now := was
			now.Cur = end(p.r)
			if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &now); err != nil {
				t.Fatal(err)
			}
			return func() { unix.Setrlimit(unix.RLIMIT_FSIZE, &was) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if name == "file system" {
				dir = smallFiles(t, 8<<20)
			}
			p := fileHeap(t, dir+"/r", shm.Size(1<<20), shm.Limit(32<<20))
			kept := alloc(t, p, 300)
			write(t, p, kept, 300)
			before, size := usage(t, p), p.r.Size()
			undo := fill(t, p, dir)
			defer undo()
			for _, n := range []uint64{2 << 20, 5 << 20} {
				off, err := p.Alloc(n)
				if !errors.Is(err, shm.ErrNoSpace) || !strings.Contains(fmt.Sprint(err), "no room") {
					t.Errorf("%d bytes: %d, %v, want ErrNoSpace and the cause", n, off, err)
				}
			}
			var small []shm.Offset // up to the last byte there is
			for {
				off, err := p.Alloc(3000)
				if errors.Is(err, shm.ErrNoSpace) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				write(t, p, off, 3000)
				small = append(small, off)
			}
			for _, off := range small {
				free(t, p, off)
			}
			if err := p.Flush(); err != nil {
				t.Fatal(err)
			}
			if now := usage(t, p); now.Live != before.Live || p.r.Size() != size || len(small) < 200 {
				t.Errorf("refused growth: %+v, before %+v; %d bytes, before %d; %d small blocks", now, before, p.r.Size(), size, len(small))
			}
			undo()
			large := alloc(t, p, 5<<20)
			write(t, p, large, 5<<20)
			free(t, p, large)
			free(t, p, kept)
			whole(t, p)
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
