package shm_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

func TestClosingTwiceDoesNothing(t *testing.T) {
	r := anonymous(t)
	again, err := r.Dup()
	must(t, again, err)
	for range 3 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if again.Closed() {
		t.Error("one handle was closed three times, and the region with it")
	}
	fill(t, again, "still there")
	if err := again.Close(); err != nil || !again.Closed() {
		t.Errorf("the last handle: %v, closed %v", err, again.Closed())
	}
	select {
	case <-again.Done():
	default:
		t.Error("Done is open")
	}
}

func TestUseAfterCloseAnswersErrClosed(t *testing.T) {
	dir := named(t)
	mapped, err := shm.Create("r", dir)
	must(t, mapped, err)
	second, err := shm.Create("s", dir)
	must(t, second, err).Close()
	reader, err := shm.Open("s", dir, shm.ReadOnly())
	must(t, reader, err)
	heap, err := shm.Heap()
	for kind, r := range map[string]*shm.Region{"named": mapped, "read-only": reader, "anonymous": anonymous(t), "heap": must(t, heap, err)} {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		for op, do := range map[string]func() error{
			"At":        func() error { _, err := shm.At[uint64](r, r.Data()); return err },
			"At zero":   func() error { _, err := shm.At[uint64](r, 0); return err },
			"Bytes":     func() error { _, err := r.Bytes(r.Data(), 1); return err },
			"no bytes":  func() error { _, err := r.Bytes(r.Data(), 0); return err },
			"Grow":      func() error { return r.Grow(1 << 20) },
			"Dup":       func() error { _, err := r.Dup(); return err },
			"Exclusive": func() error { return r.Exclusive(func() error { return errors.New("inside") }) },
		} {
			if err := do(); !errors.Is(err, shm.ErrClosed) {
				t.Errorf("%s: %s: %v, want ErrClosed", kind, op, err)
			}
		}
		r.Scan()
		if _, settled := r.Settled(shm.NewToken()); settled {
			t.Errorf("%s: a closed region settles", kind)
		}
		if r.Size() != 0 {
			t.Errorf("%s: size %d", kind, r.Size())
		}
		_, _, _ = r.Name(), r.Path(), r.Removed()
	}
}

// A closed region's addresses lead to private memory: nothing faults, nobody sees what is written, and
// what others write is not seen.
func TestPointersIntoAClosedRegionLeadNowhere(t *testing.T) {
	dir := named(t)
	r, err := shm.Create("r", dir)
	must(t, r, err)
	fill(t, r, "shared")
	b, err := r.Bytes(r.Data(), r.Size())
	if err != nil {
		t.Fatal(err)
	}
	root, seed := r.Root(), r.HashSeed()
	root.Store(8)
	r.Close()
	if wholeFiles {
		t.Skip("here a view stays until no handle is left: nothing can be laid over it")
	}
	for i, c := range b {
		if c != 0 {
			t.Fatalf("byte %d of a closed region is %#x", i, c)
		}
	}
	copy(b, "private")
	if root.Load() != 0 || r.HashSeed() != seed {
		t.Errorf("root %d, seed %d, want 0 and %d", root.Load(), r.HashSeed(), seed)
	}
	again, err := shm.Open("r", dir)
	must(t, again, err)
	if err := expect(again, "shared"); err != nil {
		t.Error(err)
	}
	fill(t, again, "SHARED")
	if string(b[:7]) != "private" {
		t.Errorf("the closed region shows %q", b[:7])
	}
	runtime.KeepAlive(r)
}

// Locks that this process holds stay its own after Close. So it keeps its slot, and has it again when
// it opens the region again.
func TestAClosedRegionIsStillHeld(t *testing.T) {
	dir := named(t)
	r, err := shm.Create("r", dir)
	must(t, r, err)
	other := start(t, judge, r)
	wait(t, "the judge", func() bool { return word(r, 0).Load() == 1 })
	slot := shm.SlotOf(r)
	word(r, 1).Store(uint64(shm.Self()))
	r.Close()
	time.Sleep(50 * time.Millisecond) // the judge asks on
	r, err = shm.Open("r", dir)
	must(t, r, err)
	if got := shm.SlotOf(r); got != slot || shm.SlotsOf(r, shm.Self()) != 1 {
		t.Errorf("slot %d, want %d, which this process had", got, slot)
	}
	if n := word(r, 2).Load(); n == 0 {
		t.Error("the judge has asked nothing: the test shows nothing")
	}
	word(r, 3).Store(1)
	succeed(t, other)
}

// judge asks without end whether the process in word 1 is dead.
var judge = proc.Define("judge", func(_ context.Context, r *shm.Region) error {
	word(r, 0).Store(1)
	for word(r, 3).Load() == 0 {
		t := shm.Token(word(r, 1).Load())
		if t == 0 {
			continue
		}
		if _, settled := r.Settled(t); settled {
			word(r, 2).Store(0)
			return errors.New("a process that has closed the region counts as dead")
		}
		shm.Sweep(r)
		word(r, 2).Add(1)
	}
	return nil
})

// Nobody else can see an anonymous region whose last holder closes it, and it is given up; but somebody
// may keep a descriptor. The token must not stand in two slots then.
func TestARegionThatWasGivenUpIsAttachedAgain(t *testing.T) {
	r := anonymous(t)
	f, err := shm.Reopen(r)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	slot := shm.SlotOf(r)
	r.Close()
	if n := shm.Seats(); n != 0 {
		for range n { // of other tests
			anonymous(t).Close()
		}
	}
	r, err = shm.FromFile(f)
	must(t, r, err)
	if got := shm.SlotOf(r); got != slot || shm.SlotsOf(r, shm.Self()) != 1 {
		t.Errorf("slot %d, and %d of this process, want %d alone", got, shm.SlotsOf(r, shm.Self()), slot)
	}
	word(r, 1).Store(uint64(shm.Self()))
	p := start(t, judge, r)
	wait(t, "the judge", func() bool { return word(r, 2).Load() > 100 })
	word(r, 3).Store(1)
	succeed(t, p)
}

func TestCloseRacesWithEveryUse(t *testing.T) {
	dir := named(t)
	r, err := shm.Create("r", dir)
	must(t, r, err)
	var current atomic.Pointer[shm.Region]
	current.Store(r)
	var wg sync.WaitGroup
	stop := make(chan bool)
	for i := range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				runtime.Gosched() // or it takes seconds on few processors
				r := current.Load()
				var err error
				switch i {
				case 0:
					var w *atomic.Uint64
					if w, err = shm.At[atomic.Uint64](r, r.Data()); err == nil {
						w.Add(1)
					}
				case 1:
					var b []byte
					if b, err = r.Bytes(r.Data(), 4096); err == nil {
						b[4000] = 1
					}
				case 2:
					err = r.Grow(r.Size() + 64)
				case 3:
					shm.Sweep(r)
				case 4:
					r.Settled(shm.NewToken())
				case 5:
					err = r.Exclusive(func() error { return nil })
				case 6:
					var d *shm.Region
					if d, err = r.Dup(); err == nil {
						d.Close()
					}
				case 7:
					shm.Locate(unsafe.Pointer(r.Root()))
					r.Root().Store(8)
					r.Removed()
					r.Scan()
				}
				if err != nil && !errors.Is(err, shm.ErrClosed) {
					t.Errorf("use %d: %v, want nil or ErrClosed", i, err)
					return
				}
			}
		})
	}
	for range 100 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if r, err = shm.Open("r", dir); err != nil {
			t.Fatal(err)
		}
		current.Store(r)
		time.Sleep(200 * time.Microsecond)
	}
	close(stop)
	wg.Wait()
	if n := shm.SlotsOf(r, shm.Self()); n != 1 {
		t.Errorf("this process stands in %d slots", n)
	}
	r.Close()
}

// 3,000 regions of 64 GiB of addresses are more than a process has.
func TestClosedRegionsLeaveNothingBehind(t *testing.T) {
	in := memoryDir(t)
	dir := shm.Dir(in)
	settle := func() (fds, maps int) {
		wait(t, "the addresses of closed regions to come back", func() bool {
			runtime.GC()
			return shm.ClosedRanges() == 0
		})
		return descriptors(t, ""), count(t, procSelf+"/maps")
	}
	fds, maps := settle()
	rounds := 3000
	if testing.Short() {
		rounds = 300
	}
	for i := range rounds {
		var r *shm.Region
		var err error
		switch i % 3 {
		case 0:
			if r, err = shm.Create("r", dir); err == nil {
				err = shm.Remove("r", dir)
			}
		case 1:
			if r, err = shm.Create("r", dir); err == nil {
				err = r.Close()
			}
			if err == nil {
				r, err = shm.Open("r", dir)
			}
			if err == nil {
				err = shm.Remove("r", dir)
			}
		default:
			r, err = shm.Anonymous()
		}
		if err == nil {
			fill(t, r, "x")
			err = r.Close()
		}
		if err != nil {
			t.Fatalf("region %d: %v", i, err)
		}
	}
	after, mapped := settle()
	if after > fds {
		t.Errorf("%d descriptors, %d before", after, fds)
	}
	if mapped > maps+50 { // the collector's own vary
		t.Errorf("%d mappings, %d before", mapped, maps)
	}
	if names, err := os.ReadDir(in); err != nil || len(names) != 0 {
		t.Errorf("the directory holds %v, %v", names, err)
	}
}

func count(tb testing.TB, file string) (lines int) {
	tb.Helper()
	f, err := os.Open(file)
	if err != nil {
		tb.Skip(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); lines++ {
	}
	return lines
}

// A limit on private memory counts what is laid over a closed region. If that were all its addresses,
// the program would end with its next allocation.
func TestCloseUnderALimitOnMemory(t *testing.T) {
	r := anonymous(t)
	p := start(t, closeUnderALimit, r)
	succeed(t, p)
	if err := expect(r, "from the child"); err != nil {
		t.Error(err)
	}
}

var closeUnderALimit = proc.Define("closeUnderALimit", func(_ context.Context, r *shm.Region) error {
	fill := func(s string) ([]byte, error) {
		b, err := r.Bytes(r.Data(), r.Size())
		copy(b, s)
		return b, err
	}
	b, err := fill("from the child")
	if err != nil {
		return err
	}
	used, err := privateMemory()
	if err != nil {
		return nil // this system does not tell
	}
	if _, err := limitMemory(used + 4<<30); err != nil {
		return err
	}
	if err := shm.CloseAll(r); err != nil { // package proc has a handle too
		return fmt.Errorf("close under a limit on memory: %w", err)
	}
	copy(b, "after closing")
	b[len(b)-1] = 1
	more := make([]byte, 64<<20)
	for i := range more {
		more[i] = b[i%len(b)]
	}
	if !strings.HasPrefix(string(b), "after closing") {
		return errors.New("the overlay does not hold what is written")
	}
	return nil
})

// privateMemory returns what the kernel counts against RLIMIT_DATA.
func privateMemory() (bytes uint64, err error) {
	f, err := os.Open(procSelf + "/status")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if _, err := fmt.Sscanf(s.Text(), "VmData: %d kB", &bytes); err == nil {
			return bytes << 10, nil
		}
	}
	return 0, errors.New("no VmData")
}
