package proc_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

func anonymous(t *testing.T) *shm.Region {
	t.Helper()
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// regionDir returns a temporary directory. Unlike that of TempDir it may hold regions that are in use
// when the test ends, which cannot be removed everywhere.
func regionDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "shmkit-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

type twoRegions struct {
	A, B *shm.Region
	None *shm.Region
	By   map[string]*shm.Region
}

// increment adds to a word of each region, and says whether the handles agree.
var increment = proc.Define("increment", func(_ context.Context, a twoRegions) error {
	for _, r := range []*shm.Region{a.A, a.B} {
		n, err := shm.At[uint64](r, r.Data())
		if err != nil {
			return err
		}
		*n++
	}
	fmt.Print(a.None == nil, a.By["a"].ID() == a.A.ID(), a.A.ID(), a.B.ID())
	a.By["a"].Close() // one handle of several
	_, err := shm.At[uint64](a.A, a.A.Data())
	return err
})

func TestRegionsInTheArgumentArriveAttached(t *testing.T) {
	a := anonymous(t)
	b, err := shm.CreateFile(regionDir(t)+"/region", shm.Limit(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for range 2 {
		var out buffer
		p := start(t, increment, twoRegions{A: a, B: b, By: map[string]*shm.Region{"a": a}}, proc.Stdout(&out))
		if err := p.Wait(); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprint(true, true, a.ID(), b.ID()); out.String() != want {
			t.Errorf("the child has %s, want %s", out.String(), want)
		}
	}
	for _, r := range []*shm.Region{a, b} {
		n, err := shm.At[uint64](r, r.Data())
		if err != nil {
			t.Fatal(err)
		}
		if *n != 2 {
			t.Errorf("two children have left %d", *n)
		}
	}
}

var handOn = proc.Define("handOn", func(ctx context.Context, a twoRegions) error {
	return increment.Run(ctx, a)
})

func TestRegionsArriveAtGrandchildren(t *testing.T) {
	a, b := anonymous(t), anonymous(t)
	arg := twoRegions{A: a, B: b, By: map[string]*shm.Region{"a": a}}
	if err := start(t, handOn, arg, proc.Stdout(nil)).Wait(); err != nil {
		t.Fatal(err)
	}
	if n, err := shm.At[uint64](b, b.Data()); err != nil || *n != 1 {
		t.Errorf("%d, %v", *n, err)
	}
}

var reopens = proc.Define("reopens", func(_ context.Context, r *shm.Region) error {
	reference, err := r.MarshalBinary()
	if err != nil {
		return err
	}
	r.Close()
	return new(shm.Region).UnmarshalBinary(reference)
})

func TestRegionStaysAttachedWhenTheFunctionClosesItsHandle(t *testing.T) {
	if err := reopens.Run(t.Context(), anonymous(t)); err != nil {
		t.Error(err)
	}
}

func TestRegionThatWasRemovedArrives(t *testing.T) {
	dir := shm.Dir(regionDir(t))
	a, err := shm.Create("r", dir, shm.Limit(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := shm.Remove("r", dir); err != nil {
		t.Fatal(err)
	}
	arg := twoRegions{A: a, B: a, By: map[string]*shm.Region{"a": a}}
	if err := start(t, increment, arg, proc.Stdout(nil)).Wait(); err != nil {
		t.Error(err)
	}
}

func TestRegionOnTheHeapIsRefused(t *testing.T) {
	r, err := shm.Heap()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, err = increment.Start(t.Context(), twoRegions{A: r})
	if !errors.Is(err, shm.ErrNotEncodable) || !strings.Contains(err.Error(), r.ID().String()) || !strings.Contains(err.Error(), "shm.Heap") {
		t.Errorf("Start() = %v", err)
	}
}

func TestClosedRegionIsRefused(t *testing.T) {
	r := anonymous(t)
	r.Close()
	if _, err := increment.Start(t.Context(), twoRegions{A: r}); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("Start() = %v", err)
	}
}

var look = proc.Define("look", func(_ context.Context, r *shm.Region) error {
	n, err := shm.At[uint64](r, r.Data())
	if err != nil {
		return err
	}
	fmt.Print(*n, " ", r.Grow(r.Size()+1) != nil)
	return nil
})

func TestReadOnlyRegionStaysReadOnly(t *testing.T) {
	path := regionDir(t) + "/region"
	w, err := shm.CreateFile(path, shm.Limit(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	n, err := shm.At[uint64](w, w.Data())
	if err != nil {
		t.Fatal(err)
	}
	*n = 7
	w.Close()
	r, err := shm.OpenFile(path, shm.ReadOnly())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var out buffer
	if err := start(t, look, r, proc.Stdout(&out)).Wait(); err != nil {
		t.Fatal(err)
	}
	if out.String() != "7 true" {
		t.Errorf("the child reads, and cannot grow it: %s", out.String())
	}
}
