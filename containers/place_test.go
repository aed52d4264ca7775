package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// whereabouts asks a process for the place of a named object, of which it gets nothing but the names of the
// region and the object. It answers by writing to the object's words: the offset it sees there.
type whereabouts struct {
	Region string
	Name   string
	Index  int // of the process; -1: it must find nothing
}

type answers struct{ Offset, Seen [4]atomic.Uint64 }

var tellWhere = proc.Define("tell where", func(_ context.Context, a whereabouts) error {
	m, err := OpenManager(a.Region)
	if err != nil {
		return err
	}
	defer m.Close()
	found, err := Find[Ref[answers]](m, a.Name)
	if a.Index < 0 {
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("found %v, %w, want an error that is fs.ErrNotExist", found, err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	w := found.Ptr()
	off, ok := m.Region().OffsetOf(unsafe.Pointer(w))
	if !ok {
		return errors.New("the object is outside its region")
	}
	w.Offset[a.Index].Store(uint64(off))
	for i := range w.Seen {
		w.Seen[i].Add(1)
	}
	return nil
})

// A name is found in every process from when its object is made to when it is destroyed or its name is
// taken away, and leads all of them to the same place.
func TestANameLeadsEveryProcessToTheSamePlace(t *testing.T) {
	ownDir(t)
	m, err := OpenManager("r")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { m.Close(); shm.Remove("r") }()
	ctx := deadline(t)
	ask := func(indices ...int) {
		t.Helper()
		var args []whereabouts
		for _, i := range indices {
			args = append(args, whereabouts{"r", "there", i})
		}
		if err := tellWhere.Run(ctx, args...); err != nil {
			t.Fatal(err)
		}
	}
	var last shm.Offset
	for _, end := range []string{"unlinked", "destroyed"} {
		if h, err := Find[Ref[answers]](m, "there"); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("before it is made: %v, %v", h, err)
		}
		ask(-1)
		made, err := New[answers](m, Name("there"))
		if err != nil {
			t.Fatal(err)
		}
		w := made.Ptr()
		off, _ := m.Region().OffsetOf(unsafe.Pointer(w))
		if off == last {
			t.Fatal("the new object is where the living one is")
		}
		last = off
		ask(0, 1, 2, 3)
		for i := range w.Offset {
			if got := shm.Offset(w.Offset[i].Load()); got != off || w.Seen[i].Load() != 4 {
				t.Errorf("process %d found it at offset %d, here it is at %d; %d of 4 processes wrote to word %d", i, got, off, w.Seen[i].Load(), i)
			}
		}
		if end == "unlinked" { // and lives on
			err = m.Unlink("there")
		} else {
			err = made.Destroy()
		}
		if err != nil {
			t.Fatal(err)
		}
		if h, err := Find[Ref[answers]](m, "there"); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("after it was %s: %v, %v", end, h, err)
		}
		ask(-1)
	}
}

// counters is a struct whose words lie at odd places: two lines and a half.
type counters struct {
	Small atomic.Int32
	N     [19]atomic.Int64
}

type placed struct {
	C      []Ref[counters]
	Rounds int
}

func (p placed) count() {
	for range p.Rounds {
		for _, c := range p.C {
			w := c.Ptr()
			w.Small.Add(1)
			for i := range w.N {
				w.N[i].Add(1 << 31) // so that both halves of the word change
			}
		}
	}
}

var countPlaced = proc.Define("count placed", func(_ context.Context, p placed) error {
	p.count()
	return nil
})

// Memory comes aligned as asked, in every process, and 64-bit atomics in it lose nothing.
func TestAlignedMemoryCountsAtomically(t *testing.T) {
	m := newManager(t)
	p := placed{Rounds: 2000}
	for bytes := 8; bytes <= 4096; bytes *= 2 {
		for range 3 {
			c, err := New[counters](m, Align(bytes))
			if err != nil {
				t.Fatal(err)
			}
			if at := uintptr(unsafe.Pointer(c.Ptr())); at%uintptr(bytes) != 0 {
				t.Errorf("Align(%d): address %#x", bytes, at)
			}
			p.C = append(p.C, c)
		}
	}
	p.C = append(p.C, Must(New[counters](m)))
	child, err := countPlaced.Start(deadline(t), p)
	if err != nil {
		t.Fatal(err)
	}
	p.count()
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	want := int64(2 * p.Rounds)
	for k, c := range p.C {
		w := c.Ptr()
		if got := w.Small.Load(); int64(got) != want {
			t.Errorf("object %d: %d, want %d", k, got, want)
		}
		for i := range w.N {
			if got := w.N[i].Load(); got != want<<31 {
				t.Errorf("object %d, counter %d: %#x, want %#x", k, i, got, want<<31)
			}
		}
	}
	used := Must(Must(m.space()).heap.Usage()).Used
	for range 50 { // all of it is used again
		for i, c := range p.C {
			if err := c.Destroy(); err != nil {
				t.Fatal(err)
			}
			bytes := 8 << min(i/3, 9)
			p.C[i] = Must(New[counters](m, Align(bytes)))
			if at := uintptr(unsafe.Pointer(p.C[i].Ptr())); at%uintptr(bytes) != 0 {
				t.Fatalf("Align(%d) in used memory: address %#x", bytes, at)
			}
		}
	}
	if now := Must(Must(m.space()).heap.Usage()).Used; now > used+8192 {
		t.Errorf("made anew 50 times, the heap grew from %d to %d", used, now)
	}
}

func TestAlignIsChecked(t *testing.T) {
	m := newManager(t)
	for _, bytes := range []int{0, -8, 1, 4, 7, 12, 63, 4095, 8192, math.MinInt} {
		if r, err := New[counters](m, Align(bytes)); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Align(%d): %v, %v, want an error that is fs.ErrInvalid", bytes, r, err)
		}
	}
	for name, call := range map[string]func() error{
		"a lock":   func() error { _, err := New[shmsync.Mutex](m, Align(64)); return err },
		"a number": func() error { _, err := NewSharedInt(m, 1, Align(64)); return err },
		"an array": func() error { _, err := NewSharedArray[int64](m, 10, Align(64), Name("array")); return err },
	} {
		if err := call(); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Align for %s: %v, want an error that is fs.ErrInvalid", name, err)
		}
	}
	if h, err := Find[SharedArray[int64]](m, "array"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the refused array has a name: %v, %v", h, err)
	}
}

// A thousand objects of each kind, made and destroyed, leave no name, no memory, no descriptor and no
// mapping.
func TestAThousandObjectsLeaveNothingBehind(t *testing.T) {
	m := newManager(t)
	s := Must(m.space())
	lock := Must(New[shmsync.Mutex](m))
	makers := map[string]func(opts ...Option) (interface{ Destroy() error }, error){
		"number": func(opts ...Option) (interface{ Destroy() error }, error) { return NewSharedInt(m, 1, opts...) },
		"atomic": func(opts ...Option) (interface{ Destroy() error }, error) { return NewAtomicInt(m, 1, opts...) },
		"value":  func(opts ...Option) (interface{ Destroy() error }, error) { return NewShared(m, wide{1}, opts...) },
		"array": func(opts ...Option) (interface{ Destroy() error }, error) {
			a, err := NewSharedArray[wide](m, 100, opts...)
			if err == nil {
				a.With(func(v []wide) { v[99][0] = 7 })
			}
			return a, err
		},
		"list": func(opts ...Option) (interface{ Destroy() error }, error) {
			l, err := NewSharedList[wide](m, opts...)
			for range 20 {
				if err == nil {
					err = l.Append(wide{3})
				}
			}
			return l, err
		},
		"struct": func(opts ...Option) (interface{ Destroy() error }, error) { return New[counters](m, opts...) },
		"aligned": func(opts ...Option) (interface{ Destroy() error }, error) {
			return New[counters](m, append(opts, Align(4096))...)
		},
		"lock": func(opts ...Option) (interface{ Destroy() error }, error) { return New[shmsync.Mutex](m, opts...) },
	}
	round := func(n int) {
		t.Helper()
		for kind, make := range makers {
			for i := range n {
				var opts []Option
				if i%2 == 0 {
					opts = append(opts, Name(fmt.Sprint(kind, i)))
				}
				if i%5 == 0 && kind != "atomic" && kind != "struct" && kind != "aligned" && kind != "lock" {
					opts = append(opts, WithMutex(lock))
				}
				o, err := make(opts...)
				if err == nil {
					err = o.Destroy()
				}
				if err != nil {
					t.Fatalf("%s %d: %v", kind, i, err)
				}
			}
		}
	}
	names := func() (n int) {
		for i := range s.root.buckets {
			for link := &s.root.buckets[i]; link.Load() != 0; n++ {
				entry, _, err := s.entryAt(shm.Offset(link.Load()))
				if err != nil {
					t.Fatal(err)
				}
				if o, err := shm.At[object](m.Region(), shm.Offset(word(entry, entryObject).Load())); err == nil && o.gen.Load() == word(entry, entryGen).Load() {
					t.Errorf("a name leads to a live object")
				}
				link = word(entry, entryNext)
			}
		}
		return n
	}
	live := func() (blocks, bytes, objects uint64) {
		t.Helper()
		u := Must(s.heap.Usage())
		return u.LiveBlocks, u.Live, u.Objects
	}
	sweepNames := func() { // whoever meets the name of what is gone takes it out
		t.Helper()
		for kind := range makers {
			for i := range 1000 {
				if _, err := Find[SharedInt](m, fmt.Sprint(kind, i)); !errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("%s %d: %v, want fs.ErrNotExist", kind, i, err)
				}
			}
		}
	}
	round(10) // the layouts of the types stay
	sweepNames()
	blocks, bytes, objects := live()
	descriptors, mappings := openDescriptors(), openMappings()
	round(1000)
	sweepNames()
	if n := names(); n != 0 {
		t.Errorf("%d names are left", n)
	}
	if b, n, o := live(); b != blocks || n != bytes || o != objects {
		t.Errorf("%d blocks of %d bytes and %d objects are live, before %d of %d and %d", b, n, o, blocks, bytes, objects)
	}
	if n := openDescriptors(); n > descriptors {
		t.Errorf("%d descriptors, before %d", n, descriptors)
	}
	if n := openMappings(); n > mappings+20 { // the collector's own vary
		t.Errorf("%d mappings, before %d", n, mappings)
	}
}

// openDescriptors returns how many there are, 0 where the system does not tell.
func openDescriptors() int {
	entries, _ := os.ReadDir("/proc/self/fd")
	return len(entries)
}

// openMappings returns how many mappings this process has, 0 where the system does not tell.
func openMappings() (n int) {
	maps, _ := os.ReadFile("/proc/self/maps")
	for _, c := range maps {
		if c == '\n' {
			n++
		}
	}
	return n
}
