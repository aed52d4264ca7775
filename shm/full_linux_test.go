package shm_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	"golang.org/x/sys/unix"
)

// smallMemory makes a file system of size bytes of memory and returns the path of its top, which other
// processes can use as long as this one lives. It is in no directory: it is gone with its last descriptor.
func smallMemory(tb testing.TB, size uint64) (dir string) {
	tb.Helper()
	at := tb.TempDir()
	if err := unix.Mount("shmkit-test", at, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		tb.Skipf("needs the right to mount a file system: %v", err)
	}
	top, err := os.Open(at)
	if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
		tb.Errorf("unmount %s: %v", at, err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { top.Close() })
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), top.Fd())
}

// room returns how many bytes are free in the file system of dir.
func room(tb testing.TB, dir string) uint64 {
	tb.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		tb.Fatal(err)
	}
	return st.Bavail * uint64(st.Bsize)
}

// leave fills a file system up to the last left bytes with a file, and returns its name.
func leave(tb testing.TB, dir string, left uint64) (filler string) {
	tb.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, zeros{}, int64(room(tb, dir)-left)); err != nil {
		tb.Fatal(err)
	}
	if now := room(tb, dir); now != left {
		tb.Fatalf("%d bytes are free, want %d", now, left)
	}
	return f.Name()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestAFullFileSystemChangesNothing(t *testing.T) {
	const size = 1 << 20
	for _, left := range []uint64{0, 4096, shm.SlotsStart + 32<<10, 1 << 20} { // nothing; a page; no data; half of it
		t.Run(fmt.Sprintf("left=%d", left), func(t *testing.T) {
			dir := smallMemory(t, 4<<20)
			r, err := shm.Create("r", shm.Dir(dir), shm.Size(size))
			must(t, r, err)
			b, err := r.Bytes(r.Data(), size)
			if err != nil {
				t.Fatal(err)
			}
			for i := range b {
				b[i] = byte(i / 7)
			}
			holes := filepath.Join(dir, "holes") // a copy, of which only the beginning has memory
			if err := os.WriteFile(holes, contents(t, r.Path())[:8192], 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(holes, shm.DataStart+size); err != nil {
				t.Fatal(err)
			}
			filler := leave(t, dir, left)
			before, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			length := fileSize(t, r.Path())

			calls := []struct {
				name string
				do   func() error
			}{
				{"Grow", func() error { return r.Grow(size + left + 4096) }},
				{"Create", func() error {
					second, err := shm.Create("second", shm.Dir(dir), shm.Size(left+4096))
					if err == nil {
						err = errors.Join(second.Close(), shm.Remove("second", shm.Dir(dir)))
					}
					return err
				}},
				{"Open of a file with holes", func() error {
					r, err := shm.OpenFile(holes)
					if err == nil {
						err = r.Close()
					}
					return err
				}},
			}
			for _, c := range calls {
				for range 2 {
					if err := c.do(); !errors.Is(err, shm.ErrNoSpace) || !strings.Contains(err.Error(), "no room for") {
						t.Errorf("%s: %v, want ErrNoSpace with the number of bytes", c.name, err)
					}
					if now := room(t, dir); now != left {
						t.Errorf("%s failed, and %d bytes are free, before %d", c.name, now, left)
					}
				}
			}
			if shm.SlotOf(r) != 0 { // the holdings of the first slot have memory from the start
				dead := shm.NewToken()
				shm.StrangerIn(r, 0, dead, shm.SlotAttached, dead)
			}
			taken := occupied(r)
			if left == 0 {
				if err := openFull.Run(t.Context(), dir); err != nil {
					t.Error(err)
				}
			}
			if n := occupied(r); n != taken {
				t.Errorf("%d slots are taken after a failed attachment, %d before", n, taken)
			}
			if r.Size() != size || fileSize(t, r.Path()) != length {
				t.Errorf("size %d, file %d bytes, want %d and %d as before", r.Size(), fileSize(t, r.Path()), size, length)
			}
			for i := range b {
				if b[i] != byte(i/7) {
					t.Fatalf("byte %d has changed", i)
				}
			}
			if after, err := os.ReadDir(dir); err != nil || len(after) != len(before) {
				t.Errorf("the directory holds %v, %v, before %v", after, err, before)
			}

			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			for _, c := range calls {
				if err := c.do(); err != nil {
					t.Errorf("%s after space was made: %v", c.name, err)
				}
			}
			if r.Size() != size+left+4096 {
				t.Errorf("size %d after growth", r.Size())
			}
			grown, err := r.Bytes(r.Data()+size, left+4096)
			if err != nil {
				t.Fatal(err)
			}
			for i, c := range grown {
				if c != 0 {
					t.Fatalf("byte %d of what was grown is %d", i, c)
				}
			}
			succeed(t, start(t, openAndEnd, dir))
		})
	}
}

// A large copy with holes: those are filled, and only those are asked for. If there is no room nothing of
// what stands beside them is touched.
func TestTheHolesOfALargeCopyAreFilledAroundItsData(t *testing.T) {
	const size = 96 << 20
	dir := smallMemory(t, 100<<20)
	path := filepath.Join(dir, "r")
	r, err := shm.CreateFile(path, shm.Size(size), shm.Limit(size))
	must(t, r, err)
	marks := []int{0, 4095, 20 << 20, 70 << 20, size - 1}
	write := func() {
		b, err := r.Bytes(r.Data(), size)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range marks {
			b[i] = byte(i>>12) | 1
		}
	}
	write()
	r.Close()
	punch := func(off, n int64) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, shm.DataStart+off, n); err != nil {
			t.Fatal(err)
		}
	}
	punch(1<<20, 16<<20)
	punch(80<<20, 8<<20)
	filler := leave(t, dir, 20<<20) // the holes need 24
	if err := openSparse.Run(t.Context(), sparseCopy{path, marks, true}); err != nil {
		t.Errorf("without room: %v", err)
	}
	if now := room(t, dir); now != 20<<20 {
		t.Errorf("%d bytes are free after a refused Open, before %d", now, 20<<20)
	}
	if err := os.Truncate(filler, 0); err != nil {
		t.Fatal(err)
	}
	if err := openSparse.Run(t.Context(), sparseCopy{path, marks, false}); err != nil {
		t.Errorf("with room: %v", err)
	}
	if n := blocks(t, path) * 512; n < size {
		t.Errorf("%d bytes have memory after Open, want %d", n, size)
	}
}

type sparseCopy struct {
	Path  string
	Marks []int
	Full  bool
}

var openSparse = proc.Define("openSparse", func(_ context.Context, c sparseCopy) error {
	r, err := shm.OpenFile(c.Path)
	if c.Full {
		if !errors.Is(err, shm.ErrNoSpace) {
			return fmt.Errorf("Open: %w, want ErrNoSpace", err)
		}
		r, err = shm.OpenFile(c.Path, shm.ReadOnly())
	}
	if err != nil {
		return err
	}
	for _, i := range c.Marks {
		b, err := r.Bytes(r.Data()+shm.Offset(i), 1)
		if err != nil {
			return err
		}
		if b[0] != byte(i>>12)|1 {
			return fmt.Errorf("byte %d is %#x, want %#x: what was beside a hole is gone", i, b[0], byte(i>>12)|1)
		}
	}
	return r.Close()
})

// openFull attaches to a region whose file system has no room for the holdings of one more slot.
var openFull = proc.Define("openFull", func(_ context.Context, dir string) error {
	for range 2 {
		if _, err := shm.Open("r", shm.Dir(dir)); !errors.Is(err, shm.ErrNoSpace) || !strings.Contains(err.Error(), "no room for") {
			return fmt.Errorf("attach to a region on a full file system: %w, want ErrNoSpace", err)
		}
	}
	if n := shm.Seats(); n != 0 {
		return fmt.Errorf("%d seats are left of a failed attachment", n)
	}
	reader, err := shm.Open("r", shm.Dir(dir), shm.ReadOnly()) // needs no slot
	if err != nil {
		return err
	}
	return reader.Close()
})

func fileSize(tb testing.TB, path string) int64 {
	tb.Helper()
	info, err := os.Stat(path)
	if err != nil {
		tb.Fatal(err)
	}
	return info.Size()
}
