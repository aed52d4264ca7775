//go:build unix

package shm_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

type cutting struct {
	Path string
	Size int64
}

// cutFile cuts a file that it knows nothing about.
var cutFile = proc.Define("cutFile", func(_ context.Context, c cutting) error { return os.Truncate(c.Path, c.Size) })

// needFaultAddress skips a test where the system does not tell at what address a file was found cut, as under
// an emulator.
func needFaultAddress(tb testing.TB) {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "empty"))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		tb.Fatal(err)
	}
	defer unix.Munmap(mem)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if f, ok := recover().(interface{ Addr() uintptr }); !ok || f.Addr() != uintptr(unsafe.Pointer(&mem[0])) {
			tb.Skip("the system does not tell the address of a fault in a cut file")
		}
	}()
	sink = mem[0]
}

var sink byte

// isCut reports whether err says that the file was cut.
func isCut(err error) bool {
	return errors.Is(err, shm.ErrCorrupt) && strings.Contains(err.Error(), "was cut")
}

// erringCalls are the calls that answer with an error.
var erringCalls = map[string]func(r *shm.Region) error{
	"At":        func(r *shm.Region) error { _, err := shm.At[uint64](r, r.Data()); return err },
	"Bytes":     func(r *shm.Region) error { _, err := r.Bytes(r.Data(), 8); return err },
	"Grow":      func(r *shm.Region) error { return r.Grow(4 << 20) },
	"no growth": func(r *shm.Region) error { return r.Grow(1) },
	"Exclusive": func(r *shm.Region) error { return r.Exclusive(func() error { return nil }) },
	"Dup": func(r *shm.Region) error {
		again, err := r.Dup()
		if err == nil {
			again.Close()
		}
		return err
	},
	"OpenFile": func(r *shm.Region) error {
		again, err := shm.OpenFile(r.Path())
		if err == nil {
			again.Close()
		}
		return err
	},
	"FromFile": func(r *shm.Region) error {
		again, err := shm.FromFile(r.File())
		if err == nil {
			again.Close()
		}
		return err
	},
	"Guard": func(r *shm.Region) error {
		return r.Guard(func() error {
			b, err := r.Bytes(r.Data()+64<<10, 1)
			if err == nil {
				b[0]++
			}
			return err
		})
	},
}

// A file that another program cuts under us: whichever call comes first notices, all others know from
// there on, and the program lives.
func TestEveryCallAnswersForAFileThatWasCut(t *testing.T) {
	needFaultAddress(t)
	for _, size := range []int64{0, 4096, shm.DataStart + 4096} {
		for first, use := range erringCalls {
			if first == "At" || first == "Bytes" {
				continue // they ask the system only for what lies behind the end they know
			}
			t.Run(fmt.Sprintf("size=%d/%s", size, first), func(t *testing.T) {
				path := filepath.Join(memoryDir(t), "r")
				r, err := shm.CreateFile(path, shm.Size(1<<20), shm.Limit(8<<20))
				must(t, r, err)
				if err := os.Truncate(path, size); err != nil {
					t.Fatal(err)
				}
				if err := use(r); !isCut(err) || !strings.Contains(err.Error(), path) {
					t.Errorf("first: %v, want ErrCorrupt that says that %s was cut", err, path)
				}
				for name, use := range erringCalls {
					if err := use(r); !isCut(err) && (name != "Guard" || !errors.Is(err, shm.ErrCorrupt)) {
						t.Errorf("then %s: %v, want ErrCorrupt that says that the file was cut", name, err)
					}
				}
				r.Scan()
				if _, settled := r.Settled(shm.NewToken()); settled && size == 0 {
					t.Error("a token is settled by a file that is gone")
				}
				if r.Size() != 0 {
					t.Errorf("size %d of a lost region", r.Size())
				}
				if info, err := os.Stat(path); err != nil || info.Size() != size {
					t.Errorf("the file has %d bytes now, %v, want %d as it was cut", info.Size(), err, size)
				}
				if err := r.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
				if err := erringCalls["At"](r); !errors.Is(err, shm.ErrClosed) {
					t.Errorf("after Close: %v, want ErrClosed", err)
				}
			})
		}
	}
}

// Calls without an error must not end the program either, whichever comes first.
func TestAFileCutToNothingEndsNoCall(t *testing.T) {
	needFaultAddress(t)
	for name, use := range map[string]func(r *shm.Region){
		"Size":    func(r *shm.Region) { r.Size() },
		"Scan":    func(r *shm.Region) { r.Scan() },
		"Settled": func(r *shm.Region) { r.Settled(shm.NewToken()) },
		"behind the end": func(r *shm.Region) {
			if _, err := shm.At[uint64](r, r.Data()+2<<20); !isCut(err) {
				t.Errorf("At behind the end: %v, want ErrCorrupt that says that the file was cut", err)
			}
		},
		"Close": func(r *shm.Region) {
			if err := r.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		},
	} {
		path := filepath.Join(memoryDir(t), "r")
		r, err := shm.CreateFile(path, shm.Size(1<<20), shm.Limit(8<<20))
		must(t, r, err)
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
		use(r)
		r.Close()
		if _, err := shm.OpenFile(path); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("Open after %s and Close: %v, want ErrCorrupt", name, err)
		}
	}
}

func TestGuardTurnsAFaultOnAnOldPointerIntoAnError(t *testing.T) {
	needFaultAddress(t)
	path := filepath.Join(memoryDir(t), "r")
	r, err := shm.CreateFile(path, shm.Size(1<<20))
	must(t, r, err)
	last, err := shm.At[uint64](r, r.Data()+1<<20-8)
	if err != nil {
		t.Fatal(err)
	}
	*last = 4711
	if err := r.Guard(func() error {
		if *last != 4711 {
			return errors.New("not what was written")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := cutFile.Run(t.Context(), cutting{path, shm.DataStart + 8192}); err != nil {
		t.Fatal(err)
	}
	released := false
	err = r.Guard(func() error {
		defer func() { released = true }()
		*last++
		return nil
	})
	if !isCut(err) || !strings.Contains(err.Error(), fmt.Sprintf("cut to %d bytes", shm.DataStart+8192)) {
		t.Errorf("Guard: %v, want ErrCorrupt that says how far the file was cut", err)
	}
	if !released {
		t.Error("a deferred call of the guarded function did not run")
	}
	var kept uint64
	if err := r.Guard(func() error { kept = *last; return nil }); !errors.Is(err, shm.ErrCorrupt) || kept != 0 {
		t.Errorf("Guard again: %v, read %d", err, kept)
	}
	for name, use := range erringCalls {
		if err := use(r); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("%s after the fault: %v, want ErrCorrupt", name, err)
		}
	}
}

// A region that is whole again is one again after Close and Open.
func TestARegionThatWasCutCanBeOpenedWhenItIsWholeAgain(t *testing.T) {
	needFaultAddress(t)
	path := filepath.Join(memoryDir(t), "r")
	r, err := shm.CreateFile(path, shm.Size(64<<10))
	must(t, r, err)
	fill(t, r, "whole")
	whole := contents(t, path)
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	if err := r.Grow(1); !isCut(err) {
		t.Errorf("Grow: %v", err)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Grow(1); !isCut(err) {
		t.Errorf("Grow when the file is long again: %v, want that it was cut", err)
	}
	r.Close()
	r, err = shm.OpenFile(path)
	if err := expect(must(t, r, err), "whole"); err != nil {
		t.Error(err)
	}
	if n := shm.SlotsOf(r, shm.Self()); n != 1 {
		t.Errorf("this process stands in %d slots", n)
	}
}

func TestGuardLeavesOtherPanicsAndFaultsAlone(t *testing.T) {
	needFaultAddress(t)
	dir := memoryDir(t)
	r, err := shm.CreateFile(filepath.Join(dir, "r"), shm.Size(64<<10))
	must(t, r, err)
	other, err := shm.CreateFile(filepath.Join(dir, "other"), shm.Size(64<<10))
	must(t, other, err)
	stale, err := shm.At[uint64](other, other.Data())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(other.Path(), 0); err != nil {
		t.Fatal(err)
	}
	reader, err := shm.CreateFile(filepath.Join(dir, "reader"))
	must(t, reader, err).Close()
	reader, err = shm.OpenFile(reader.Path(), shm.ReadOnly())
	must(t, reader, err)
	locked, err := shm.At[uint64](reader, reader.Data())
	if err != nil {
		t.Fatal(err)
	}
	wild := unsafe.Add(unsafe.Pointer(stale), 32<<20) // inside the addresses of the region, far behind its end
	mine := errors.New("mine")
	var null *int
	for name, c := range map[string]struct {
		r    *shm.Region
		do   func() error
		want func(p any, err error) bool
	}{
		"an error": {r, func() error { return mine }, func(p any, err error) bool { return p == nil && err == mine }},
		"a panic":  {r, func() error { panic(mine) }, func(p any, err error) bool { return p == mine }},
		"nil":      {r, func() error { *null++; return nil }, func(p any, err error) bool { return strings.Contains(fmt.Sprint(p), "nil pointer") }},
		"a fault elsewhere": {r, func() error { *stale++; return nil }, func(p any, err error) bool {
			f, ok := p.(interface{ Addr() uintptr })
			return ok && f.Addr() == uintptr(unsafe.Pointer(stale))
		}},
		"behind the end":     {other, func() error { *(*uint64)(wild)++; return nil }, func(p any, err error) bool { return p != nil }},
		"write to read-only": {reader, func() error { *locked++; return nil }, func(p any, err error) bool { return p != nil }},
		"nested":             {other, func() error { return r.Guard(func() error { *stale++; return nil }) }, func(p any, err error) bool { return p == nil && isCut(err) }},
	} {
		for _, before := range []bool{true, false} {
			was := debug.SetPanicOnFault(before)
			var p any
			err := func() (err error) {
				defer func() { p = recover() }()
				return c.r.Guard(c.do)
			}()
			if now := debug.SetPanicOnFault(was); now != before {
				t.Errorf("%s: panics on faults are %v after Guard, %v before", name, now, before)
			}
			if !c.want(p, err) {
				t.Errorf("%s: panic %v, error %v", name, p, err)
			}
		}
	}
	if err := erringCalls["At"](r); err != nil {
		t.Errorf("a region that was not cut: %v", err)
	}
	if err := erringCalls["At"](reader); err != nil {
		t.Errorf("a read-only region after a write to it: %v", err)
	}
	heap, err := shm.Heap()
	if err := must(t, heap, err).Guard(func() error { return mine }); err != mine {
		t.Errorf("heap: %v", err)
	}
	ended := make(chan bool)
	go func() {
		defer close(ended)
		r.Guard(func() error { runtime.Goexit(); return nil })
		t.Error("Guard returned from a goroutine that ended inside")
	}()
	<-ended
}

// A file with another one laid over its name is removed; the name leads to the new one.
func TestAReplacedFileIsAnotherRegion(t *testing.T) {
	dir := memoryDir(t)
	old, err := shm.Create("r", shm.Dir(dir))
	must(t, old, err)
	fill(t, old, "old")
	next, err := shm.Create("next", shm.Dir(dir))
	must(t, next, err)
	fill(t, next, "new")
	if old.Removed() || next.Removed() {
		t.Error("removed from the beginning")
	}
	if err := os.Rename(filepath.Join(dir, "next"), filepath.Join(dir, "r")); err != nil {
		t.Fatal(err)
	}
	if !old.Removed() || next.Removed() {
		t.Errorf("removed: %v and %v, want only the one that was replaced", old.Removed(), next.Removed())
	}
	got, err := shm.Open("r", shm.Dir(dir))
	must(t, got, err)
	if got.ID() != next.ID() {
		t.Errorf("Open gives region %v, want %v", got.ID(), next.ID())
	}
	if err := errors.Join(expect(old, "old"), expect(got, "new"), old.Grow(1<<20)); err != nil {
		t.Error(err)
	}
	if _, err := shm.Open("next", shm.Dir(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open under the former name: %v, want fs.ErrNotExist", err)
	}
	if err := seesTheNew.Run(t.Context(), dir); err != nil {
		t.Error(err)
	}
}

var seesTheNew = proc.Define("seesTheNew", func(_ context.Context, dir string) error {
	r, err := shm.Open("r", shm.Dir(dir))
	if err != nil {
		return err
	}
	return expect(r, "new")
})

func BenchmarkGuard(b *testing.B) {
	r := anonymous(b)
	w := word(r, 0)
	for b.Loop() {
		if err := r.Guard(func() error { w.Add(1); return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
