package shm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

func TestCreateRefusesATakenName(t *testing.T) {
	dir := named(t)
	r, err := shm.Create("jobs", dir)
	must(t, r, err)
	if _, err := shm.Create("jobs", dir); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "jobs") {
		t.Errorf("second Create: %v, want fs.ErrExist that names the region", err)
	}
}

func TestOpenOfAMissingRegion(t *testing.T) {
	dir := named(t)
	if _, err := shm.Open("jobs", dir); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "jobs") {
		t.Errorf("Open: %v, want fs.ErrNotExist that names the region", err)
	}
	if err := shm.Remove("jobs", dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Remove: %v, want fs.ErrNotExist", err)
	}
	if _, err := shm.OpenFile(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenFile: %v, want fs.ErrNotExist", err)
	}
	if _, err := shm.Open("jobs", shm.Dir(filepath.Join(t.TempDir(), "none"))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open in a missing directory: %v, want fs.ErrNotExist", err)
	}
}

func TestNamesAreChecked(t *testing.T) {
	dir := named(t)
	for _, name := range []string{"", ".", "..", ".hidden", "a/b", "../a", "a b", "é", "a\x00", strings.Repeat("x", 201)} {
		for op, do := range map[string]func() error{
			"Create":       func() error { _, err := shm.Create(name, dir); return err },
			"Open":         func() error { _, err := shm.Open(name, dir); return err },
			"OpenOrCreate": func() error { _, err := shm.OpenOrCreate(name, dir); return err },
			"Remove":       func() error { return shm.Remove(name, dir) },
			"WaitFor":      func() error { _, err := shm.WaitFor(t.Context(), name, dir); return err },
		} {
			if err := do(); !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), "1 to 200 of A-Z a-z 0-9 . _ -") {
				t.Errorf("%s(%q): %v, want fs.ErrInvalid that says what a name is", op, name, err)
			}
		}
	}
	for _, name := range []string{"a", "A-Z_0.9", strings.Repeat("x", 200)} {
		r, err := shm.Create(name, dir)
		if must(t, r, err).Name() != name {
			t.Errorf("name is %q, want %q", r.Name(), name)
		}
	}
}

func TestSizesAreChecked(t *testing.T) {
	for _, opts := range [][]shm.Option{
		{shm.Size(0)},
		{shm.Limit(0)},
		{shm.Size(0), shm.Limit(0)},
		{shm.Size(2 << 20), shm.Limit(1 << 20)},
		{shm.Size(1<<64 - 1)},
		{shm.Size(1 << 60)},
		{shm.Limit(1<<64 - 1)},
		{shm.Limit(1<<44 + 1)},
		{shm.Limit(1<<64 - shm.DataStart)}, // wraps round
	} {
		for kind, make := range map[string]func(...shm.Option) (*shm.Region, error){
			"Anonymous": shm.Anonymous,
			"Heap":      shm.Heap,
			"Create":    func(o ...shm.Option) (*shm.Region, error) { return shm.Create("r", append(o, named(t))...) },
		} {
			if r, err := make(opts...); !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%s with bad sizes: %v, %v, want fs.ErrInvalid", kind, r, err)
			}
		}
	}
}

func TestSizesAreWhatWasAsked(t *testing.T) {
	for _, c := range []struct {
		opts        []shm.Option
		size, limit uint64
	}{
		{[]shm.Option{shm.Size(1)}, 1, 0},
		{[]shm.Option{shm.Size(12345), shm.Limit(12345)}, 12345, 12345},
		{[]shm.Option{shm.Limit(100)}, 100, 100}, // below the usual size
	} {
		r := anonymous(t, c.opts...)
		if r.Size() != c.size || c.limit != 0 && r.Limit() != c.limit {
			t.Errorf("size %d limit %d, want %d and %d", r.Size(), r.Limit(), c.size, c.limit)
		}
		b, err := r.Bytes(r.Data(), c.size)
		if err != nil {
			t.Fatal(err)
		}
		b[c.size-1] = 1
		if _, err := r.Bytes(r.Data(), c.size+1); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("one byte more than the size: %v, want ErrCorrupt", err)
		}
	}
}

func TestAttachTellsTheRealSize(t *testing.T) {
	dir := memoryDir(t)
	r, err := shm.Create("r", shm.Dir(dir), shm.Size(3<<20), shm.Limit(5<<20))
	must(t, r, err)
	succeed(t, start(t, openedWithAnotherSize, dir))
}

var openedWithAnotherSize = proc.Define("openedWithAnotherSize", func(_ context.Context, dir string) error {
	r, err := shm.OpenOrCreate("r", shm.Dir(dir), shm.Size(1<<20), shm.Limit(2<<20))
	if err == nil && (r.Size() != 3<<20 || r.Limit() != 5<<20) {
		err = fmt.Errorf("size %d, limit %d, want those it was made with", r.Size(), r.Limit())
	}
	return err
})

func TestFreshMemoryIsZero(t *testing.T) {
	heap, err := shm.Heap(shm.Size(1<<20), shm.Limit(2<<20))
	for kind, r := range map[string]*shm.Region{"anonymous": anonymous(t, shm.Size(1<<20)), "heap": must(t, heap, err)} {
		if err := r.Grow(2 << 20); err != nil {
			t.Fatal(err)
		}
		b, err := r.Bytes(r.Data(), 2<<20)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.IndexFunc(b, func(c rune) bool { return c != 0 }); i >= 0 {
			t.Errorf("%s: byte %d of fresh memory is %#x", kind, i, b[i])
		}
		if r.Root().Load() != 0 {
			t.Errorf("%s: a fresh region has a root", kind)
		}
	}
}

func TestContentsOutliveTheirProcess(t *testing.T) {
	dir := memoryDir(t)
	succeed(t, start(t, writeAndEnd, dir))
	r, err := shm.Open("r", shm.Dir(dir))
	must(t, r, err)
	if err := expect(r, "left behind"); err != nil {
		t.Error(err)
	}
	if r.Root().Load() != 4711 {
		t.Errorf("root is %d, want 4711", r.Root().Load())
	}
	r.Close()
	succeed(t, start(t, readBack, dir))
}

var writeAndEnd = proc.Define("writeAndEnd", func(_ context.Context, dir string) error {
	r, err := shm.Create("r", shm.Dir(dir))
	if err != nil {
		return err
	}
	b, err := r.Bytes(r.Data(), 11)
	copy(b, "left behind")
	r.Root().Store(4711)
	return errors.Join(err, r.Close())
})

var readBack = proc.Define("readBack", func(_ context.Context, dir string) error {
	r, err := shm.Open("r", shm.Dir(dir))
	if err != nil {
		return err
	}
	return expect(r, "left behind")
})

func TestOfManyWhoOpenOrCreateOneMakesTheRegion(t *testing.T) {
	for range 5 {
		dir := memoryDir(t)
		gate := anonymous(t)
		var all []*proc.Process
		const procs = 6
		for range procs {
			all = append(all, start(t, race, racer{dir, gate}))
		}
		wait(t, "all to be at the gate", func() bool { return word(gate, 1).Load() == procs })
		word(gate, 0).Store(1)
		for _, p := range all {
			succeed(t, p)
		}
		r, err := shm.Open("r", shm.Dir(dir))
		must(t, r, err)
		if n := word(r, 0).Load(); n != procs {
			t.Errorf("%d of %d processes share the region", n, procs)
		}
		entries, _ := os.ReadDir(dir)
		if len(entries) != 1 {
			t.Errorf("directory holds %v, want one file", entries)
		}
	}
}

type racer struct {
	Dir  string
	Gate *shm.Region
}

var race = proc.Define("race", func(_ context.Context, a racer) error {
	word(a.Gate, 1).Add(1)
	for word(a.Gate, 0).Load() == 0 {
		runtime.Gosched()
	}
	r, err := shm.OpenOrCreate("r", shm.Dir(a.Dir))
	if err == nil {
		word(r, 0).Add(1)
	}
	return err
})

// Processes that make regions are killed at all moments; whatever can be seen meanwhile and afterwards
// is complete.
func TestAHalfMadeRegionIsNeverSeen(t *testing.T) {
	dir := memoryDir(t)
	made := 0
	for i := range 25 {
		p := start(t, makeMany, maker{dir, i})
		first := fmt.Sprintf("r%d-0", i)
		r, err := shm.WaitFor(t.Context(), first, shm.Dir(dir))
		if err != nil {
			t.Fatal(err)
		}
		wait(t, "some more", func() bool {
			made++
			infos, err := shm.List(shm.Dir(dir))
			if err != nil {
				t.Fatal(err)
			}
			for _, info := range infos {
				if info.Err != nil {
					t.Fatalf("half a region: %v", info.Err)
				}
			}
			return made%3 == 0
		})
		kill(p)
		r.Close()
		runtime.GC() // gives the addresses of closed regions back
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if killsLeaveFiles && strings.HasPrefix(e.Name(), ".") {
				continue
			}
			r, err := shm.Open(e.Name(), shm.Dir(dir))
			if err == nil {
				err = expect(r, "\x00")
				err = errors.Join(err, r.Close())
			}
			if err != nil {
				t.Fatalf("%s was left by a killed process: %v", e.Name(), err)
			}
			if err := shm.Remove(e.Name(), shm.Dir(dir)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if killsLeaveFiles {
		r, err := shm.Create("r", shm.Dir(dir)) // the first here of this process
		must(t, r, err)
		wait(t, "what the killed have left to be deleted", func() bool {
			runtime.GC() // gives the addresses of removed regions back
			entries, err := os.ReadDir(dir)
			return err == nil && len(entries) == 1
		})
		return
	}
	if n := descriptors(t, dir); n != 0 {
		t.Errorf("%d removed regions are still held", n)
	}
}

type maker struct {
	Dir    string
	Number int
}

var makeMany = proc.Define("makeMany", func(ctx context.Context, a maker) error {
	for i := 0; ; i++ {
		r, err := shm.Create(fmt.Sprintf("r%d-%d", a.Number, i), shm.Dir(a.Dir))
		if err != nil {
			return err
		}
		r.Close()
	}
})

func TestWaitForComesBackWithTheRegion(t *testing.T) {
	dir := memoryDir(t)
	got := make(chan error, 1)
	go func() {
		r, err := shm.WaitFor(t.Context(), "r", shm.Dir(dir))
		if err == nil {
			err = errors.Join(expect(r, "left behind"), r.Close())
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("WaitFor returned before there was a region: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
	tmp := memoryDir(t)
	succeed(t, start(t, writeAndEnd, tmp))
	if err := os.Rename(filepath.Join(tmp, "r"), filepath.Join(dir, "r")); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := shm.WaitFor(ctx, "none", shm.Dir(dir)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WaitFor of nothing: %v, want the context's error", err)
	}
}

func TestWaitForAnswersAtOnceWhatWaitingDoesNotChange(t *testing.T) {
	dir := memoryDir(t)
	r, err := shm.Create("r", shm.Dir(dir))
	must(t, r, err)
	ended, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("out of patience")
	cancel(cause)
	got, err := shm.WaitFor(ended, "r", shm.Dir(dir)) // it is there
	if must(t, got, err).ID() != r.ID() {
		t.Error("WaitFor gave another region")
	}
	if _, err := shm.WaitFor(ended, "none", shm.Dir(dir)); !errors.Is(err, cause) || !strings.Contains(err.Error(), "none") {
		t.Errorf("nothing there, and the context has ended: %v, want its cause and the name", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "text"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := shm.WaitFor(t.Context(), "text", shm.Dir(dir)); !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("a file that is no region: %v, want ErrCorrupt", err)
	}
	if _, err := shm.WaitFor(t.Context(), ".dot", shm.Dir(dir)); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("no name: %v, want fs.ErrInvalid", err)
	}
}

// Attaching implies no removal, however it ends, and an orderly end is silent.
func TestTheEndOfAnAttachedProcessRemovesNothingAndSaysNothing(t *testing.T) {
	dir := memoryDir(t)
	r, err := shm.Create("r", shm.Dir(dir))
	must(t, r, err)
	for range 2 {
		var out bytes.Buffer
		p, err := openAndEnd.Start(t.Context(), dir, proc.Stdout(&out), proc.Stderr(&out), proc.Env("GORACE=atexit_sleep_ms=0"))
		if err != nil {
			t.Fatal(err)
		}
		succeed(t, p)
		if out.Len() != 0 {
			t.Errorf("it says %q", out.String())
		}
	}
	killed, _ := holder(t, r)
	kill(killed)
	if r.Removed() {
		t.Error("the region was removed")
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("the directory holds %v, %v, want the region alone", names, err)
	}
	r.Close()
	succeed(t, start(t, openAndEnd, dir))
}

func TestListTellsRegionsFromOtherFiles(t *testing.T) {
	dir := memoryDir(t)
	if infos, err := shm.List(shm.Dir(filepath.Join(dir, "none"))); len(infos) != 0 || err != nil {
		t.Errorf("List of a missing directory: %v, %v, want nothing", infos, err)
	}
	for _, name := range []string{"b", "a"} {
		r, err := shm.Create(name, shm.Dir(dir), shm.Size(1000), shm.Limit(1000))
		must(t, r, err)
		if name == "b" {
			r.Close()
		}
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "text"), []byte("hello"), 0o600),
		os.WriteFile(filepath.Join(dir, ".dot"), nil, 0o600), os.Mkdir(filepath.Join(dir, "sub"), 0o700),
		os.Symlink("a", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	newer := contents(t, filepath.Join(dir, "b"))
	newer[shm.VersionOffset]++
	if err := os.WriteFile(filepath.Join(dir, "newer"), newer, 0o600); err != nil {
		t.Fatal(err)
	}
	infos, err := shm.List(shm.Dir(dir))
	if err != nil || len(infos) != 4 {
		t.Fatalf("List: %v, %v, want four", infos, err)
	}
	for i, want := range []string{"a", "b", "newer", "text"} {
		info := infos[i]
		if info.Name != want || info.Path != filepath.Join(dir, want) || want < "c" && (info.Err != nil || info.Size != shm.DataStart+1000) {
			t.Errorf("region %d: %+v, want %s", i, info, want)
		}
	}
	if !errors.Is(infos[2].Err, shm.ErrVersion) {
		t.Errorf("region of a newer layout: %v, want ErrVersion", infos[2].Err)
	}
	if !errors.Is(infos[3].Err, shm.ErrCorrupt) {
		t.Errorf("text file: %v, want ErrCorrupt", infos[3].Err)
	}
}

func TestARemovedRegionLivesOnForThoseWhoHaveIt(t *testing.T) {
	dir := memoryDir(t)
	r, err := shm.Create("r", shm.Dir(dir))
	must(t, r, err)
	p, _ := holder(t, r)
	if r.Removed() {
		t.Error("Removed before Remove")
	}
	if err := shm.Remove("r", shm.Dir(dir)); err != nil {
		t.Fatal(err)
	}
	if !r.Removed() {
		t.Error("not Removed after Remove")
	}
	if err := r.Grow(2 << 20); err != nil {
		t.Errorf("Grow of a removed region: %v", err)
	}
	next, err := shm.Create("r", shm.Dir(dir))
	must(t, next, err)
	if next.ID() == r.ID() || word(next, 0).Load() != 0 {
		t.Error("the new region of the name is the old one")
	}
	if !p.Alive() {
		t.Error("the other process is gone")
	}
}

// A descriptor is what a closed region keeps, to prove that its process lives. It must not keep the
// memory of a region that nobody can reach any more.
func TestARemovedRegionIsFreedByTheOneWhoClosedIt(t *testing.T) {
	dir := memoryDir(t)
	for _, removeFirst := range []bool{true, false} {
		r, err := shm.Create("r", shm.Dir(dir))
		must(t, r, err)
		if removeFirst {
			err = errors.Join(shm.Remove("r", shm.Dir(dir)), r.Close())
		} else {
			err = r.Close()
			if n := descriptors(t, dir); n != 1 {
				t.Errorf("a closed region that has its name is held by %d descriptors, want 1", n)
			}
			err = errors.Join(err, shm.Remove("r", shm.Dir(dir)))
		}
		if err != nil {
			t.Fatal(err)
		}
		if n := descriptors(t, dir); n != 0 {
			t.Errorf("removed first: %v: %d descriptors are left", removeFirst, n)
		}
	}
}

// descriptors is descriptorsOf, for tests.
func descriptors(tb testing.TB, prefix string) int {
	tb.Helper()
	n := descriptorsOf(prefix)
	if n < 0 {
		tb.Skip("this system does not show descriptors")
	}
	return n
}

// descriptorsOf counts those of this process that lead to files whose path begins with a prefix. It
// returns -1 where the system does not tell.
func descriptorsOf(prefix string) (n int) {
	entries, err := os.ReadDir(procSelf + "/fd")
	if err != nil {
		return -1
	}
	for _, e := range entries {
		if to, err := os.Readlink(procSelf + "/fd/" + e.Name()); err == nil && strings.HasPrefix(to, prefix) {
			n++
		}
	}
	return n
}

func TestFilesOfAnyName(t *testing.T) {
	path := filepath.Join(diskDir(t), "a region.with [any] name")
	r, err := shm.CreateFile(path, shm.Mode(0o640))
	must(t, r, err)
	if r.Path() != path || r.Name() != "" {
		t.Errorf("path %q, name %q", r.Path(), r.Name())
	}
	if _, err := shm.CreateFile(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second CreateFile: %v, want fs.ErrExist", err)
	}
	info, err := os.Stat(path)
	if err != nil || haveModes && info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v, want 0640", info.Mode(), err)
	}
	again, err := shm.OpenFile(path)
	must(t, again, err)
	if again.ID() != r.ID() || shm.SlotsOf(r, shm.Self()) != 1 {
		t.Error("OpenFile gave another region")
	}
	if _, err := shm.CreateFile(filepath.Join(t.TempDir(), "none", "r")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("CreateFile in a missing directory: %v, want fs.ErrNotExist", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := shm.OpenFile(link); err == nil {
		t.Error("OpenFile followed a symbolic link")
	}
}

func TestWhatIsNoRegularFileIsRefused(t *testing.T) {
	dir := t.TempDir()
	paths := map[string]string{"directory": dir, "fifo": filepath.Join(dir, "fifo"), "device": os.DevNull}
	if err := makePipe(paths["fifo"]); errors.Is(err, errors.ErrUnsupported) {
		delete(paths, "fifo")
	} else if err != nil {
		t.Fatal(err)
	}
	for name, path := range paths {
		for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}} {
			if _, err := shm.OpenFile(path, opts...); err == nil {
				t.Errorf("%s: opened", name)
			}
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := shm.FromFile(r, shm.ReadOnly()); !errors.Is(err, shm.ErrCorrupt) { // must not wait for a writer
		t.Errorf("FromFile of a pipe: %v, want ErrCorrupt", err)
	}
	w.Close()
	if _, err := shm.FromFile(w); !errors.Is(err, os.ErrClosed) {
		t.Errorf("FromFile of a closed file: %v, want os.ErrClosed", err)
	}
}

func TestAnonymousMemoryCannotBeCut(t *testing.T) {
	r := anonymous(t)
	if err := r.File().Truncate(0); !errors.Is(err, cutRefused) {
		t.Errorf("Truncate of an anonymous region: %v, want %v", err, cutRefused)
	}
	if r.Path() != "" || r.Name() != "" || !r.Removed() {
		t.Errorf("path %q, name %q, removed %v", r.Path(), r.Name(), r.Removed())
	}
	fill(t, r, "from the parent")
	succeed(t, start(t, reply, r))
	if err := expect(r, "from the child!"); err != nil {
		t.Error(err)
	}
}

var reply = proc.Define("reply", func(_ context.Context, r *shm.Region) error {
	if err := expect(r, "from the parent"); err != nil {
		return err
	}
	b, err := r.Bytes(r.Data(), 15)
	copy(b, "from the child!")
	return err
})

func TestFromFileAttachesOnceAndLeavesTheDescriptor(t *testing.T) {
	r := anonymous(t)
	fill(t, r, "x")
	again, err := shm.FromFile(r.File())
	must(t, again, err)
	if again.ID() != r.ID() || shm.SlotsOf(r, shm.Self()) != 1 {
		t.Error("FromFile of an open region made another one")
	}
	again.Close()
	if _, err := r.File().Stat(); err != nil || r.Closed() {
		t.Errorf("the file or the region was closed with the second handle: %v", err)
	}
}

func TestReadOnlyTakesNoSlotAndChangesNothing(t *testing.T) {
	dir := memoryDir(t)
	r, err := shm.Create("r", shm.Dir(dir))
	must(t, r, err)
	fill(t, r, "to be looked at")
	succeed(t, start(t, look, dir))
}

var look = proc.Define("look", func(_ context.Context, dir string) error {
	r, err := shm.Open("r", shm.Dir(dir), shm.ReadOnly())
	if err != nil {
		return err
	}
	err = expect(r, "to be looked at")
	if shm.SlotsOf(r, shm.Self()) != 0 {
		err = errors.Join(err, errors.New("a reader has a slot"))
	}
	if e := r.Grow(1 << 20); !errors.Is(e, fs.ErrPermission) {
		err = errors.Join(err, fmt.Errorf("Grow: %w, want fs.ErrPermission", e))
	}
	if e := r.Exclusive(func() error { return nil }); !errors.Is(e, fs.ErrPermission) {
		err = errors.Join(err, fmt.Errorf("Exclusive: %w, want fs.ErrPermission", e))
	}
	r.Scan()
	if _, settled := r.Settled(shm.NewToken()); settled {
		err = errors.Join(err, errors.New("a reader judges deaths"))
	}
	// One who writes gets a mapping of its own, and then serves readers too.
	w, e := shm.Open("r", shm.Dir(dir))
	if e != nil {
		return errors.Join(err, e)
	}
	if shm.SlotsOf(w, shm.Self()) != 1 {
		err = errors.Join(err, errors.New("a writer beside a reader has no slot"))
	}
	return errors.Join(err, r.Close(), w.Close())
})

func TestExclusiveExcludesProcesses(t *testing.T) {
	r := anonymous(t)
	const procs, each = 4, 150
	var all []*proc.Process
	for range procs {
		all = append(all, start(t, countExclusively, counter{r, each}))
	}
	for _, p := range all {
		succeed(t, p)
	}
	if n := word(r, 0).Load(); n != procs*each {
		t.Errorf("counted %d of %d: two were inside at once", n, procs*each)
	}
}

type counter struct {
	Region *shm.Region
	Each   int
}

var countExclusively = proc.Define("countExclusively", func(_ context.Context, a counter) error {
	for range a.Each {
		err := a.Region.Exclusive(func() error {
			n := word(a.Region, 0).Load()
			time.Sleep(10 * time.Microsecond)
			word(a.Region, 0).Store(n + 1)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
})

func TestExclusiveExcludesGoroutines(t *testing.T) {
	heap, err := shm.Heap()
	for kind, r := range map[string]*shm.Region{"anonymous": anonymous(t), "heap": must(t, heap, err)} {
		n, done := 0, make(chan error) // n is guarded by Exclusive alone
		for range 8 {
			go func() { done <- r.Exclusive(func() error { n++; return nil }) }()
		}
		for range 8 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if n != 8 {
			t.Errorf("%s: counted %d of 8", kind, n)
		}
	}
}

// The exclusion belongs to the region, not to the handle: a call that began before the region was
// closed excludes those of the region that was opened again.
func TestExclusiveHoldsAcrossCloseAndOpen(t *testing.T) {
	dir := named(t)
	r, err := shm.Create("r", dir)
	must(t, r, err)
	var again *shm.Region
	entered := make(chan bool, 1)
	done := make(chan error)
	err = r.Exclusive(func() error {
		r.Close()
		again, err = shm.Open("r", dir)
		must(t, again, err)
		go func() { done <- again.Exclusive(func() error { entered <- true; return nil }) }()
		select {
		case <-entered:
			return errors.New("two are inside")
		case <-time.After(30 * time.Millisecond):
			return nil
		}
	})
	if err := errors.Join(err, <-done); err != nil {
		t.Error(err)
	}
}

func TestExclusiveEndsWithItsProcess(t *testing.T) {
	r := anonymous(t)
	p := start(t, stayInside, r)
	wait(t, "the process to be inside", func() bool { return word(r, 0).Load() == 1 })
	got := make(chan error, 1)
	go func() { got <- r.Exclusive(func() error { return nil }) }()
	select {
	case err := <-got:
		t.Fatalf("inside while a live process is: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	kill(p)
	if err := <-got; err != nil {
		t.Error(err)
	}
}

var stayInside = proc.Define("stayInside", func(ctx context.Context, r *shm.Region) error {
	return r.Exclusive(func() error {
		word(r, 0).Store(1)
		<-ctx.Done()
		return nil
	})
})

func TestExclusiveReturnsWhatItsFunctionReturns(t *testing.T) {
	r := anonymous(t)
	if err := r.Exclusive(func() error { return os.ErrProcessDone }); err != os.ErrProcessDone {
		t.Errorf("got %v", err)
	}
	func() {
		defer func() { recover() }()
		r.Exclusive(func() error { panic("inside") })
	}()
	if err := r.Exclusive(func() error { return nil }); err != nil {
		t.Errorf("after a panic: %v", err)
	}
}

func TestAnotherRegionHasAnotherIdentity(t *testing.T) {
	a, b := anonymous(t), anonymous(t)
	if a.ID() == b.ID() || a.HashSeed() == b.HashSeed() || a.ID() == (shm.ID{}) {
		t.Errorf("ids %v and %v, seeds %d and %d", a.ID(), b.ID(), a.HashSeed(), b.HashSeed())
	}
}

func TestContinueAfterDeathBelongsToTheRegion(t *testing.T) {
	dir := named(t)
	r, err := shm.Create("r", dir, shm.ContinueAfterDeath())
	must(t, r, err).Close()
	r, err = shm.Open("r", dir)
	if must(t, r, err); !r.ContinuesAfterDeath() {
		t.Error("the region has forgotten it")
	}
	if anonymous(t).ContinuesAfterDeath() {
		t.Error("it holds for regions that did not ask")
	}
}
