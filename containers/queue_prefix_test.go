package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

type prefixes struct{ Dir, Op string }

const prefixSize = 512 << 10

func longMessage(c string) string { return strings.Repeat(c, 40) }

// takesPrefixes does one operation on a queue of strings in a file, and copies the file before each store.
var takesPrefixes = proc.Define("takes prefixes", func(ctx context.Context, p prefixes) error {
	path := filepath.Join(p.Dir, "region")
	r, err := shm.CreateFile(path, shm.Size(prefixSize), shm.Limit(1<<20))
	if err != nil {
		return err
	}
	m := Must(NewManager(r))
	q := Must(NewSharedQueue[string](m, 4, Name("queue")))
	Must(q.PutN(ctx, longMessage("a"), longMessage("b"), "short", longMessage("c")))
	a, b := Must(q.Lease(ctx)), Must(q.Lease(ctx))
	if err := b.Return(); err != nil {
		return err
	}
	if p.Op == "get" || p.Op == "lease" { // nothing returned
		if b, err = q.Lease(ctx); err != nil {
			return err
		}
		if p.Op == "get" {
			Must(q.Get(ctx)) // what comes next is long
		}
	}
	n := 0
	copied := func(unsafe.Pointer, uintptr) {
		whole := Must(os.ReadFile(path))
		if err := os.WriteFile(filepath.Join(p.Dir, fmt.Sprintf("%04d", n)), whole, 0o600); err != nil {
			panic(err)
		}
		n++
	}
	txn.OnStore = copied
	switch p.Op {
	case "put":
		err = q.Put(ctx, longMessage("d"))
	case "put short":
		err = q.Put(ctx, "d")
	case "get", "get returned":
		_, err = q.Get(ctx)
	case "lease", "lease returned":
		_, err = q.Lease(ctx)
	case "done":
		err = a.Done()
	case "return":
		err = a.Return()
	case "destroy":
		err = q.Destroy()
	}
	txn.OnStore = nil
	copied(nil, 0)
	return err
})

// An operation on messages with blocks is cut off before each of its stores, all writing of its process ends there, and
// others find what it left: as before or as after, and no block that nobody knows.
func TestQueueOfTextsIsCutOffAtEveryStore(t *testing.T) {
	const all = "a b short c"
	for op, want := range map[string]struct{ before, after string }{
		"put":            {all, all + " d"},
		"put short":      {all, all + " d"},
		"get":            {"a b c", "a b"},
		"get returned":   {all, "a short c"},
		"lease":          {all, all},
		"lease returned": {all, all},
		"done":           {all, "b short c"},
		"return":         {all, all},
		"destroy":        {all, "destroyed"},
	} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			dir := regionDir(t)
			if err := takesPrefixes.Run(deadline(t), prefixes{dir, op}); err != nil {
				t.Fatal(err)
			}
			copies := Must(filepath.Glob(filepath.Join(dir, "[0-9]*")))
			slices.Sort(copies)
			happened := false
			blocks := uint64(0)
			for k, path := range copies {
				got, live := drainCopy(t, path)
				switch {
				case got == want.after:
					happened = true
				case got != want.before || happened:
					t.Fatalf("cut off before store %d of %d it holds %q, want %q or %q", k, len(copies)-1, got, want.before, want.after)
				}
				if k == 0 {
					blocks = live
				}
				if leak := live - blocks; leak != 0 && (op != "destroy" || leak > 1) {
					t.Fatalf("cut off before store %d of %d, and emptied, %d blocks are left, want %d", k, len(copies)-1, live, blocks)
				}
			}
			if !happened || len(copies) < 2 {
				t.Errorf("%d copies, and it did not happen: the test shows nothing", len(copies))
			}
		})
	}
}

// drainCopy returns the messages of the queue in a copy of a region, and how many blocks there are when it is empty
// and destroyed.
func drainCopy(t *testing.T, path string) (string, uint64) {
	t.Helper()
	r, err := shm.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := NewManager(r)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	ctx := deadline(t)
	for _, a := range Must(r.Attachments()) { // else it is found within some time that the other one is dead
		r.Settled(a.Token)
	}
	var got []string
	q, err := Find[SharedQueue[string]](m, "queue")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, shm.ErrStale) {
		got = append(got, "destroyed")
	} else if err != nil {
		t.Fatal(err)
	} else {
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
		if err := q.Check(); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for {
			v, err := q.Get(ctx)
			if errors.Is(err, ErrQueueClosed) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(v) == 40 {
				v = v[:1]
			}
			got = append(got, v)
		}
		if err := errors.Join(q.Check(), q.Destroy()); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Check(); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	s := Must(m.space())
	for end := time.Now().Add(10 * time.Second); len(Must(r.Attachments())) > 1; time.Sleep(100 * time.Microsecond) { // drained
		if time.Now().After(end) {
			t.Fatalf("%s: what the dead kept is not given back", path)
		}
	}
	return strings.Join(got, " "), Must(s.heap.Usage()).LiveBlocks
}
