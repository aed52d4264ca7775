package shm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// paint fills the data area with a pattern without zeros.
func paint(tb testing.TB, r *shm.Region) []byte {
	tb.Helper()
	b, err := r.Bytes(r.Data(), r.Size())
	if err != nil {
		tb.Fatal(err)
	}
	for i := range b {
		b[i] = color(i)
	}
	return b
}

func color(i int) byte { return byte(i>>12) | 1 }

// painted checks that b holds the pattern of offset i on.
func painted(b []byte, i int) error {
	for k, c := range b {
		if c != color(i+k) {
			return fmt.Errorf("byte %d is %#x, want %#x", i+k, c, color(i+k))
		}
	}
	return nil
}

// memoryOf returns how many bytes of memory or disk a region's file has.
func memoryOf(tb testing.TB, r *shm.Region) uint64 {
	tb.Helper()
	return uint64(blocks(tb, fmt.Sprintf("/proc/self/fd/%d", r.File().Fd()))) * 512
}

func TestReleasedMemoryGoesBack(t *testing.T) {
	dir := memoryDir(t)
	file, err := shm.CreateFile(filepath.Join(dir, "r"), shm.Size(8*mib))
	for name, r := range map[string]*shm.Region{"anonymous": anonymous(t, shm.Size(8*mib)), "file": must(t, file, err)} {
		t.Run(name, func(t *testing.T) {
			b := paint(t, r)
			page := os.Getpagesize()
			full := memoryOf(t, r)
			from, n := 1*mib+100, 4*mib // the first page stays
			freed, err := r.Release(r.Data()+shm.Offset(from), uint64(n))
			if err != nil {
				t.Fatal(err)
			}
			if want := uint64(n - page); freed != want || r.Released(r.Data(), r.Size()) != want {
				t.Errorf("%d bytes went back, %d are, want %d", freed, r.Released(r.Data(), r.Size()), want)
			}
			if now := memoryOf(t, r); now != full-freed {
				t.Errorf("the file has %d bytes of memory, before %d: %d bytes went back", now, full, full-now)
			}
			t.Logf("%d bytes of memory before, %d after", full, memoryOf(t, r))
			hole := (from + page - 1) &^ (page - 1)
			beside := func() error {
				return errors.Join(painted(b[:hole], 0), painted(b[hole+int(freed):], hole+int(freed)))
			}
			if err := beside(); err != nil {
				t.Errorf("beside what went back: %v", err)
			}
			if again, err := r.Release(r.Data()+shm.Offset(from), uint64(n)); again != 0 || err != nil {
				t.Errorf("given back twice: %d, %v", again, err)
			}
			if err := attachAndLeave.Run(t.Context(), r); err != nil { // does not fill the hole
				t.Fatal(err)
			}
			if now := memoryOf(t, r); now > full-freed+uint64(page) { // a page of holdings
				t.Errorf("somebody opened the region, and its file has %d bytes of memory, want %d", now, full-freed)
			}
			// A part in the middle, from the end of one page to the beginning of another.
			if err := r.Reserve(r.Data()+2*mib+shm.Offset(page)-1, mib+2); err != nil {
				t.Fatal(err)
			}
			if left := r.Released(r.Data(), r.Size()); left != freed-mib-2*uint64(page) {
				t.Errorf("%d bytes are given back, want %d", left, freed-mib-2*uint64(page))
			}
			middle := b[2*mib : 3*mib+2*page]
			if len(bytes.Trim(middle, "\x00")) != 0 {
				t.Error("what was given back and reserved again is not zero")
			}
			copy(middle, bytes.Repeat([]byte{7}, len(middle)))
			if err := r.Reserve(r.Data(), r.Size()); err != nil {
				t.Fatal(err)
			}
			if now := memoryOf(t, r); now < full || r.Released(r.Data(), r.Size()) != 0 {
				t.Errorf("all reserved: %d bytes of memory, before %d, and %d are given back", now, full, r.Released(r.Data(), r.Size()))
			}
			if err := beside(); err != nil || middle[0] != 7 || middle[len(middle)-1] != 7 {
				t.Errorf("after Reserve: %v, %d, %d", err, middle[0], middle[len(middle)-1])
			}
		})
	}
}

var attachAndLeave = proc.Define("attachAndLeave", func(_ context.Context, r *shm.Region) error {
	return r.Exclusive(func() error { return nil })
})

// In a copy there are holes besides those that the region knows of; they are filled when it is opened.
func TestACopyHasItsOtherHolesFilled(t *testing.T) {
	dir := memoryDir(t)
	r, err := shm.CreateFile(filepath.Join(dir, "r"), shm.Size(4*mib))
	must(t, r, err)
	fill(t, r, "beginning")
	if _, err := r.Release(r.Data()+mib, mib); err != nil {
		t.Fatal(err)
	}
	r.Close()
	to := filepath.Join(dir, "copy") // of which only the beginning has memory
	if err := os.WriteFile(to, contents(t, r.Path())[:shm.DataStart+4096], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(to, fileSize(t, r.Path())); err != nil {
		t.Fatal(err)
	}
	c, err := shm.OpenFile(to)
	must(t, c, err)
	if given := c.Released(c.Data(), c.Size()); given < mib-8192 {
		t.Errorf("%d bytes are given back in the copy", given)
	}
	want := int64(3*mib + shm.DataStart - (256+511)*4096) // no more holdings, and spare pages, than are there
	if n := blocks(t, to) * 512; n < want || n > want+2*8192+10*4096+(256+511)*4096 {
		t.Errorf("the copy has %d bytes of memory, want about %d", n, want)
	}
}

func TestReleaseIsChecked(t *testing.T) {
	dir := memoryDir(t)
	w, err := shm.CreateFile(filepath.Join(dir, "r"), shm.Size(mib))
	must(t, w, err)
	reader, err := shm.OpenFile(filepath.Join(dir, "r"), shm.ReadOnly())
	must(t, reader, err).Close() // is w
	heap, err := shm.Heap()
	must(t, heap, err)
	closed := anonymous(t)
	closed.Close()
	for _, c := range []struct {
		name             string
		r                *shm.Region
		off              shm.Offset
		n                uint64
		release, reserve error
	}{
		{"the header", w, 0, 8192, shm.ErrCorrupt, shm.ErrCorrupt},
		{"behind the end", w, w.Data(), mib + 1, shm.ErrCorrupt, shm.ErrCorrupt},
		{"far off", w, 1 << 60, 1 << 63, shm.ErrCorrupt, shm.ErrCorrupt},
		{"less than a page", w, w.Data() + 1, uint64(os.Getpagesize()), nil, nil},
		{"nothing", w, w.Data(), 0, nil, nil},
		{"Go memory", heap, heap.Data(), 65536, errors.ErrUnsupported, nil},
		{"closed", closed, closed.Data(), 65536, shm.ErrClosed, shm.ErrClosed},
	} {
		before := w.Released(w.Data(), w.Size())
		if n, err := c.r.Release(c.off, c.n); n != 0 || !errors.Is(err, c.release) {
			t.Errorf("Release, %s: %d, %v, want %v", c.name, n, err, c.release)
		}
		if err := c.r.Reserve(c.off, c.n); !errors.Is(err, c.reserve) {
			t.Errorf("Reserve, %s: %v, want %v", c.name, err, c.reserve)
		}
		if now := w.Released(w.Data(), w.Size()); now != before {
			t.Errorf("%s: %d bytes are given back", c.name, now)
		}
	}
	if err := releaseReadOnly.Run(t.Context(), w.Path()); err != nil {
		t.Error(err)
	}
}

var releaseReadOnly = proc.Define("releaseReadOnly", func(_ context.Context, path string) error {
	r, err := shm.OpenFile(path, shm.ReadOnly())
	if err != nil {
		return err
	}
	_, err = r.Release(r.Data(), 65536)
	if err2 := r.Reserve(r.Data(), 65536); !errors.Is(err, fs.ErrPermission) || !errors.Is(err2, fs.ErrPermission) {
		return fmt.Errorf("Release: %w, Reserve: %w, want fs.ErrPermission", err, err2)
	}
	return nil
})

// There is room to note 63 ranges. Beyond that nothing goes back, and what is noted can be had again.
func TestManyReleasedRanges(t *testing.T) {
	r := anonymous(t, shm.Size(2*mib))
	b := paint(t, r)
	at := func(i int) shm.Offset { return r.Data() + shm.Offset(i*4*os.Getpagesize()) }
	n := 3 * uint64(os.Getpagesize())
	full := 0
	for i := range 100 {
		freed, err := r.Release(at(i), n)
		switch {
		case errors.Is(err, shm.ErrNoSpace) && freed == 0:
			full++
		case err != nil || freed != n:
			t.Fatalf("range %d: %d, %v", i, freed, err)
		}
	}
	if full != 100-63 {
		t.Errorf("%d ranges of 100 were refused, want 37", full)
	}
	if err := painted(b[at(63)-r.Data():], int(at(63)-r.Data())); err != nil {
		t.Errorf("in a range that was refused: %v", err)
	}
	page := shm.Offset(os.Getpagesize())
	if err := r.Reserve(at(5)+page, 1); err != nil { // in the middle, where no room is for two
		t.Fatal(err)
	}
	if got := r.Released(at(5), n); got != uint64(page) {
		t.Errorf("%d bytes of the range are given back, want the first page", got)
	}
	b[at(5)-r.Data()+page] = 1
	if freed, err := r.Release(at(0), n+uint64(page)); freed != uint64(page) || err != nil { // joins two
		t.Errorf("joining two ranges: %d, %v", freed, err)
	}
	if freed, err := r.Release(at(80), n); freed != n || err != nil {
		t.Errorf("with room for one more: %d, %v", freed, err)
	}
	if err := r.Reserve(r.Data(), r.Size()); err != nil || r.Released(r.Data(), r.Size()) != 0 {
		t.Errorf("all reserved: %v, %d bytes are given back", err, r.Released(r.Data(), r.Size()))
	}
	clear(b)
}

// A process that died while it split a run has left two that overlap. The next one joins them.
func TestOverlappingRunsAreJoined(t *testing.T) {
	r := anonymous(t, shm.Size(2*mib))
	runs := shm.HoleWords(r)
	first := uint64(r.Data()) / 4096
	runs[0].Store(1) // busy
	runs[7].Store((first+10)<<32 | 20)
	runs[3].Store((first+25)<<32 | 10)
	if got := r.Released(r.Data(), r.Size()); got != 25*4096 {
		t.Errorf("%d bytes are noted, want %d", got, 25*4096)
	}
	if err := r.Reserve(r.Data()+100*4096, 4096); err != nil { // of what was not given back
		t.Fatal(err)
	}
	n := 0
	for i := range runs[1:] {
		if runs[1+i].Load() != 0 {
			n++
		}
	}
	if got := r.Released(r.Data(), r.Size()); got != 25*4096 || n != 1 || runs[0].Load()&0xff != 2 {
		t.Errorf("%d bytes are noted in %d runs, state %#x; want %d in one", got, n, runs[0].Load(), 25*4096)
	}
}

// On a full file system Reserve takes nothing, forgets nothing, and works when there is room.
func TestReserveOnAFullFileSystemChangesNothing(t *testing.T) {
	needFaultAddress(t)
	dir := smallMemory(t, 8*mib)
	r, err := shm.Create("r", shm.Dir(dir), shm.Size(4*mib))
	must(t, r, err)
	if r.ReadableHoles() {
		t.Error("reading a hole can fail here")
	}
	b := paint(t, r)
	var given uint64
	for _, at := range []shm.Offset{0, 2 * mib} {
		n, err := r.Release(r.Data()+at, mib)
		if err != nil {
			t.Fatal(err)
		}
		given += n
	}
	filler := leave(t, dir, 1*mib+4096) // enough for one of the two
	for range 2 {
		err := r.Reserve(r.Data(), r.Size())
		if !errors.Is(err, shm.ErrNoSpace) {
			t.Errorf("Reserve: %v, want ErrNoSpace", err)
		}
		if now := room(t, dir); now != mib+4096 {
			t.Errorf("after a refused Reserve %d bytes are free, before %d", now, mib+4096)
		}
		if now := r.Released(r.Data(), r.Size()); now != given {
			t.Errorf("after a refused Reserve %d bytes are given back, before %d", now, given)
		}
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	filler = leave(t, dir, 0)
	if err := r.Reserve(r.Data()+shm.Offset(os.Getpagesize()), 1); !errors.Is(err, shm.ErrNoSpace) {
		t.Errorf("Reserve of one byte: %v, want ErrNoSpace", err)
	}
	// Who touches it nevertheless can be told, and has not lost the region.
	for name, touch := range map[string]func(){"read": func() { b[2*mib+mib/2]++ }, "write": func() { b[2*mib+mib/2] = 1 }} {
		err := r.Guard(func() error { touch(); return nil })
		if !errors.Is(err, shm.ErrNoSpace) || errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("%s under Guard: %v, want ErrNoSpace", name, err)
		}
	}
	if err := r.Exclusive(func() error { return painted(b[mib+4096:2*mib], mib+4096) }); err != nil {
		t.Errorf("beside what was given back: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := r.Reserve(r.Data(), r.Size()); err != nil {
		t.Fatal(err)
	}
	filler = leave(t, dir, 0)
	for i := range b { // all has memory
		b[i]++
	}
}

func TestAnonymousHolesCanBeRead(t *testing.T) {
	r := anonymous(t)
	if mode, err := os.ReadFile("/proc/sys/vm/overcommit_memory"); err != nil || mode[0] == '2' {
		t.Skipf("overcommit rules %q, %v", mode, err)
	}
	if !r.ReadableHoles() {
		t.Error("nothing limits anonymous memory")
	}
}

// releases are what a process does when it dies. The region has 2 MiB, of which these are given back before:
// [256 KiB, 320 KiB) and [384 KiB, 448 KiB).
var releases = map[string]func(r *shm.Region) error{
	"release": func(r *shm.Region) error {
		_, err := r.Release(r.Data()+mib, 128<<10)
		return err
	},
	"release between two": func(r *shm.Region) error {
		_, err := r.Release(r.Data()+320<<10, 64<<10)
		return err
	},
	"reserve one":  func(r *shm.Region) error { return r.Reserve(r.Data()+256<<10, 64<<10) },
	"reserve both": func(r *shm.Region) error { return r.Reserve(r.Data(), mib) },
	"reserve a beginning": func(r *shm.Region) error {
		return r.Reserve(r.Data()+256<<10, 10)
	},
	"reserve a middle": func(r *shm.Region) error {
		return r.Reserve(r.Data()+280<<10, 16<<10)
	},
}

type dieReleasing struct {
	R    *shm.Region
	Work string
	Step int
}

var releaseAndDie = proc.Define("releaseAndDie", func(_ context.Context, a dieReleasing) error {
	n := 0
	shm.AtEachStep(func(done string) {
		if n++; n == a.Step {
			os.Stdout.WriteString(done)
			if self, err := os.FindProcess(os.Getpid()); err == nil {
				self.Kill()
			}
			select {}
		}
	})
	return releases[a.Work](a.R)
})

// Whatever step of giving back or taking again a process is killed at: no hole is forgotten, nothing else is
// lost, and the next one goes on.
func TestKillAtEveryStepOfReleaseForgetsNoHole(t *testing.T) {
	reached := map[string]bool{}
	for name := range releases {
		t.Run(name, func(t *testing.T) {
			for at := 1; ; at++ {
				r := anonymous(t, shm.Size(2*mib), shm.Limit(2*mib))
				b := paint(t, r)
				for _, off := range []shm.Offset{256 << 10, 384 << 10} {
					if n, err := r.Release(r.Data()+off, 64<<10); n != 64<<10 || err != nil {
						t.Fatal(n, err)
					}
				}
				full := memoryOf(t, r) + 128<<10
				var out bytes.Buffer
				p, err := releaseAndDie.Start(t.Context(), dieReleasing{r, name, at}, proc.Stdout(&out), proc.Daemon())
				if err != nil {
					t.Fatal(err)
				}
				err = p.Wait()
				p.Close()
				var exit *proc.ExitError
				if err == nil {
					if at == 1 {
						t.Error("there is no step to die at")
					}
					return
				}
				if !errors.As(err, &exit) || exit.Code != -9 {
					t.Fatal(err)
				}
				done := out.String()
				reached[done] = true
				given := r.Released(r.Data(), r.Size())
				if now := memoryOf(t, r); now+given < full {
					t.Errorf("after %q: %d bytes have no memory, only %d are noted", done, full-now, given)
				}
				for i := 0; i < len(b); i += 4096 {
					touched := i >= 256<<10 && i < 448<<10 || i >= mib && i < mib+128<<10
					if r.Released(r.Data()+shm.Offset(i), 4096) > 0 && !touched {
						t.Fatalf("after %q: page at %d, which is in use, is noted as given back", done, i)
					}
					if !touched {
						if err := painted(b[i:i+4096], i); err != nil {
							t.Fatalf("after %q: %v", done, err)
						}
					}
				}
				for _, next := range []string{"release between two", "reserve a middle", "release"} {
					if err := releases[next](r); err != nil {
						t.Fatalf("after %q, %s: %v", done, next, err)
					}
				}
				now, given := memoryOf(t, r), r.Released(r.Data(), r.Size())
				if now+given < full {
					t.Errorf("after %q and more: %d bytes have no memory, only %d are noted", done, full-now, given)
				}
				if err := r.Reserve(r.Data(), r.Size()); err != nil || memoryOf(t, r) < full || r.Released(r.Data(), r.Size()) != 0 {
					t.Errorf("after %q: all reserved: %v, %d bytes of memory, want %d, %d noted", done, err, memoryOf(t, r), full, r.Released(r.Data(), r.Size()))
				}
				r.Close()
			}
		})
	}
	source := contents(t, "release.go")
	for _, m := range regexp.MustCompile(`step\("(.*)"\)`).FindAllStringSubmatch(string(source), -1) {
		if !reached[m[1]] {
			t.Errorf("no process died after %q", m[1])
		}
	}
}

// A part of what is given back counts as far as it goes, whichever part it is.
func TestAPartOfWhatIsGivenBackCounts(t *testing.T) {
	r := anonymous(t, shm.Size(mib))
	page := uint64(os.Getpagesize())
	from := (r.Data() + shm.Offset(page) - 1) &^ shm.Offset(page-1)
	if n, err := r.Release(from, 8*page); n != 8*page || err != nil {
		t.Fatal(n, err)
	}
	for first := range uint64(8) {
		for n := range 9 - first {
			at, n := from+shm.Offset(first*page), n*page
			if got := r.Released(at, n); got != n {
				t.Errorf("pages %d to %d: %d bytes are given back, want %d", first, first+n/page, got, n)
			}
			if again, err := r.Release(at, n); again != 0 || err != nil {
				t.Errorf("pages %d to %d given back twice: %d, %v", first, first+n/page, again, err)
			}
		}
	}
}

// One goroutine closes the region while another one gives memory back: a hole that nothing notes would end
// whoever uses that memory when the file system is full.
func TestCloseDuringReleaseForgetsNoHole(t *testing.T) {
	defer shm.AtEachStep(nil)
	path := filepath.Join(memoryDir(t), "r")
	for round := range 20 {
		r, err := shm.CreateFile(path, shm.Size(mib))
		if err != nil {
			t.Fatal(err)
		}
		b := paint(t, r)
		full := blocks(t, path) * 512
		closed := make(chan error, 1)
		var once sync.Once
		shm.AtEachStep(func(string) {
			once.Do(func() {
				go func() { closed <- r.Close() }()
				for end := time.Now().Add(patience); b[0] != 0 && time.Now().Before(end); { // private memory from then on
					runtime.Gosched()
				}
			})
		})
		if _, err := r.Release(r.Data()+64<<10, 512<<10); !errors.Is(err, shm.ErrClosed) {
			t.Errorf("Release of a region that is closed meanwhile: %v, want ErrClosed", err)
		}
		shm.AtEachStep(nil)
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		now := blocks(t, path) * 512
		r, err = shm.OpenFile(path, shm.ReadOnly())
		if err != nil {
			t.Fatal(err)
		}
		if given := int64(r.Released(r.Data(), r.Size())); now+given < full {
			t.Errorf("round %d: %d bytes have no memory, only %d are noted", round, full-now, given)
		}
		r.Close()
		os.Remove(path)
	}
}

// Where holes cannot be punched, nothing is noted either.
func TestReleaseWithoutHolesNotesNothing(t *testing.T) {
	dir := mounted(t, "ramfs", "")
	r, err := shm.CreateFile(filepath.Join(dir, "r"), shm.Size(mib))
	must(t, r, err)
	b := paint(t, r)
	for range 2 {
		if n, err := r.Release(r.Data(), mib); n != 0 || !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Release: %d, %v, want ErrUnsupported", n, err)
		}
		if n := r.Released(r.Data(), mib); n != 0 {
			t.Errorf("%d bytes are noted as given back", n)
		}
	}
	if err := painted(b, 0); err != nil {
		t.Error(err)
	}
}

// An overlay keeps its files elsewhere, in memory perhaps.
func TestHolesOfAnOverlayCountAsUnreadable(t *testing.T) {
	top := mounted(t, "tmpfs", "size=4m")
	for _, d := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(top, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	dir := mounted(t, "overlay", fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", top))
	r, err := shm.CreateFile(filepath.Join(dir, "r"), shm.Size(mib))
	must(t, r, err)
	if r.ReadableHoles() {
		t.Error("a read of a hole can fail here")
	}
}

// mounted mounts a file system until the test ends, and returns where.
func mounted(tb testing.TB, kind, data string) (dir string) {
	tb.Helper()
	dir = tb.TempDir()
	if err := unix.Mount("shmkit-test", dir, kind, 0, data); err != nil {
		tb.Skipf("needs the right to mount a file system: %v", err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			tb.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}
