package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"testing"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

var incrementAttribute = proc.Define("containers: increment x, and set y", func(ctx context.Context, n Namespace) error {
	if y, err := Attribute[string](n, "y"); err != nil || y != "old" && y != "new" {
		return fmt.Errorf("y is %q, %v", y, err)
	}
	for range 50 {
		err := n.Update(ctx, "x", func(old any, ok bool) (any, error) {
			if !ok {
				return nil, errors.New("x is not there")
			}
			return old.(int) + 1, nil
		})
		if err != nil {
			return err
		}
	}
	return n.Set("y", "new")
})

func TestNamespaceIsSharedByProcesses(t *testing.T) {
	m := newManager(t)
	n := Must(NewNamespace(m, Name("settings")))
	for name, v := range map[string]any{"x": 7, "y": "old", "z": 1.5} {
		if err := n.Set(name, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := incrementAttribute.Run(deadline(t), n, n); err != nil {
		t.Fatal(err)
	}
	if x, err := n.Get("x"); err != nil || x != 107 {
		t.Errorf("x is %v, %v, want 107", x, err)
	}
	if y, err := n.Get("y"); err != nil || y != "new" {
		t.Errorf("y is %v, %v", y, err)
	}
	again := Must(Find[Namespace](m, "settings"))
	if got := slices.Sorted(again.Names()); !slices.Equal(got, []string{"x", "y", "z"}) || again.Len() != 3 {
		t.Errorf("names %v, %d of them", got, again.Len())
	}
}

func TestNamespaceWithoutAnAttributeSaysSo(t *testing.T) {
	m := newManager(t)
	n := Must(NewNamespace(m))
	if err := n.Set("x", 1); err != nil {
		t.Fatal(err)
	}
	if err := n.Delete("x"); err != nil {
		t.Fatal(err)
	}
	wantErrors(t, fs.ErrNotExist, map[string]func() error{
		"Get":       func() error { _, err := n.Get("x"); return err },
		"Attribute": func() error { _, err := Attribute[int](n, "x"); return err },
		"Delete":    func() error { return n.Delete("x") },
	})
	if err := n.Set("f", func() {}); !errors.Is(err, shm.ErrNotPlain) || n.Len() != 0 {
		t.Errorf("a function: %v, and %d attributes", err, n.Len())
	}
	changed := errors.New("changed its mind")
	if err := n.Set("x", 1); err != nil {
		t.Fatal(err)
	}
	if err := n.Update(t.Context(), "x", func(any, bool) (any, error) { return 2, changed }); err != changed {
		t.Errorf("Update: %v", err)
	}
	if x, err := n.Get("x"); x != 1 || err != nil {
		t.Errorf("x is %v, %v: the update failed", x, err)
	}
	if _, err := Attribute[string](n, "x"); !errors.Is(err, shm.ErrTypeMismatch) {
		t.Errorf("x as a string: %v", err)
	}
	if err := n.Destroy(); err != nil {
		t.Fatal(err)
	}
	wantErrors(t, shm.ErrStale, map[string]func() error{
		"Get":    func() error { _, err := n.Get("x"); return err },
		"Set":    func() error { return n.Set("x", 1) },
		"Update": func() error { return n.Update(t.Context(), "x", nil) },
	})
}

// A namespace is not taken for a map that happens to have the same types.
func TestNamespaceIsFoundAsWhatItIs(t *testing.T) {
	m := newManager(t)
	Must(NewNamespace(m, Name("n")))
	Must(NewSharedMap[string, Item](m, Name("m")))
	wantErrors(t, shm.ErrTypeMismatch, map[string]func() error{
		"a namespace as a map": func() error { _, err := Find[SharedMap[string, Item]](m, "n"); return err },
		"a map as a namespace": func() error { _, err := Find[Namespace](m, "m"); return err },
	})
}
