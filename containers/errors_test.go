package containers

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	stdsync "sync"
	"testing"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

type unexported struct{ name string }

var neverRun = proc.Define("never run", func(context.Context, unexported) error { return nil })

// One mistake after the other, as a newcomer makes them. Each has an error of its own, and its message
// names the object, the numbers and the way out.
func TestEveryMistakeHasItsOwnErrorThatNamesTheWayOut(t *testing.T) {
	ownDir(t)
	dir := os.Getenv("SHMKIT_DIR")
	type deep struct{ Rows [2]struct{ Next *int } }
	type locked struct {
		mu stdsync.Mutex // the mistake
		N  int64
	}
	type small struct{ A int32 }
	type large struct{ A, B int64 }

	r, err := shm.Create("orders")
	if err != nil {
		t.Fatal(err)
	}
	m, err := NewManager(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewShared(m, small{1}, Name("first")); err != nil {
		t.Fatal(err)
	}
	tiny := Must(NewManager(Must(shm.Anonymous(shm.Size(64<<10), shm.Limit(64<<10)))))
	t.Cleanup(func() { tiny.Close() })
	closed, closedManager := func() (SharedInt, *Manager) {
		m := Must(NewManager(Must(shm.Anonymous())))
		n := Must(NewSharedInt(m, 0))
		m.Close()
		return n, m
	}()

	if err := os.WriteFile(filepath.Join(dir, "letter"), []byte(strings.Repeat("dear all, ", 200_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	newer, err := os.ReadFile(r.Path())
	if err != nil {
		t.Fatal(err)
	}
	binary.NativeEndian.PutUint32(newer[8:], 77) // the layout version
	if err := os.WriteFile(filepath.Join(dir, "newer"), newer, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })

	sentinels := []error{
		fs.ErrExist, fs.ErrNotExist, fs.ErrInvalid, shm.ErrClosed, shm.ErrCorrupt, shm.ErrVersion, shm.ErrTypeMismatch,
		shm.ErrNoSpace, shm.ErrNotPlain, shm.ErrStandardSync, shm.ErrNotEncodable, shm.ErrStale, shm.ErrNotAttached, proc.ErrNoMain,
	}
	for _, c := range []struct {
		mistake string
		make    func() error
		is      error
		says    []string
	}{
		{"a region that is not there", func() error { _, err := shm.Open("none"); return err }, fs.ErrNotExist, []string{"none", "Create"}},
		{"a region that is there already", func() error { _, err := shm.Create("orders"); return err }, fs.ErrExist, []string{"orders", "Open", "Remove"}},
		{"a file that is no region", func() error { _, err := shm.Open("letter"); return err }, shm.ErrCorrupt, []string{"letter", "0x"}},
		{"a newer layout", func() error { _, err := shm.Open("newer"); return err }, shm.ErrVersion, []string{"newer", "version 77", "knows 2"}},
		{"a pointer deep inside", func() error { _, err := NewShared(m, deep{}); return err }, shm.ErrNotPlain, []string{"Rows[].Next", "*int", "Link"}},
		{"a string", func() error { _, err := NewShared(m, struct{ S string }{}); return err }, shm.ErrNotPlain, []string{".S", "string", "[N]byte", "PutText"}},
		{"the standard sync", func() error { _, err := New[locked](m); return err }, shm.ErrStandardSync, []string{"locked.mu", "sync.Mutex", "shmsync \"github.com/shmkit/shmkit/sync\""}},
		{"another type than the stored one", func() error { _, err := Find[Shared[large]](m, "first"); return err }, shm.ErrTypeMismatch, []string{"int32", "int64", "size 4", "size 16"}},
		{"another kind than the stored one", func() error { _, err := Find[SharedInt](m, "first"); return err }, shm.ErrTypeMismatch, []string{"number", "value"}},
		{"a bad name of a region", func() error { _, err := shm.Create("a b"); return err }, fs.ErrInvalid, []string{"\"a b\"", "byte 1", "200"}},
		{"a bad name of an object", func() error { _, err := NewSharedInt(m, 0, Name("")); return err }, fs.ErrInvalid, []string{"name"}},
		{"an object's name that is taken", func() error { _, err := NewShared(m, small{}, Name("first")); return err }, fs.ErrExist, []string{"first", "orders", "OrOpen", "Unlink"}},
		{"an object that is not there", func() error { _, err := Find[SharedInt](m, "second"); return err }, fs.ErrNotExist, []string{"second", "orders", "OrOpen"}},
		{"an argument that would be lost", func() error { _, err := neverRun.Start(context.Background(), unexported{}); return err }, shm.ErrNotEncodable, []string{"unexported.name", "export"}},
		{"a call after Close", func() error { return closed.Update(context.Background(), func(*int64) error { return nil }) }, shm.ErrClosed, []string{"Update", "offset"}},
		{"a constructor after Close", func() error { _, err := NewSharedInt(closedManager, 0); return err }, shm.ErrClosed, []string{"region"}},
		{"more than the limit", func() error { _, err := NewSharedArray[int64](tiny, 1<<20); return err }, shm.ErrNoSpace, []string{"8388608", "limit"}},
		{"more than any region has", func() error { return r.Grow(r.Limit() + 1) }, shm.ErrNoSpace, []string{"orders", "limit"}},
	} {
		err := c.make()
		if err == nil {
			t.Errorf("%s: no error", c.mistake)
			continue
		}
		for _, s := range sentinels {
			if got, want := errors.Is(err, s), s == c.is; got != want {
				t.Errorf("%s: errors.Is(%q, %q) = %v", c.mistake, err, s, got)
			}
		}
		for _, word := range c.says {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q does not say %q", c.mistake, err, word)
			}
		}
		t.Logf("%s: %v", c.mistake, err)
	}
}
