package shm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	"golang.org/x/sys/unix"
)

// What a copy lacks is not made up for by memory that it has where none is needed: holdings, and ranges that are
// noted as given back and have it.
func TestHolesAreFilledWhateverElseHasMemory(t *testing.T) {
	for name, prepare := range map[string]func(r *shm.Region) error{
		"holdings": func(r *shm.Region) error {
			for range 3 {
				if err := attachAndLeave.Run(t.Context(), r); err != nil {
					return err
				}
			}
			return nil
		},
		"given back": func(r *shm.Region) error {
			if _, err := r.Release(r.Data()+512<<10, 256<<10); err != nil {
				return err
			}
			return unix.Fallocate(int(r.File().Fd()), 0, int64(r.Data()), mib)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(memoryDir(t), "r")
			r, err := shm.CreateFile(path, shm.Size(mib))
			must(t, r, err)
			if err := prepare(r); err != nil {
				t.Fatal(err)
			}
			before := blocks(t, path)
			page := int64(os.Getpagesize())
			hole := (int64(r.Data()) + 64<<10) &^ (page - 1)
			if err := unix.Fallocate(int(r.File().Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, hole, page); err != nil {
				t.Fatal(err)
			}
			if now := blocks(t, path); now >= before {
				t.Fatalf("%d blocks with a hole, %d without", now, before)
			}
			r.Close()
			again, err := shm.OpenFile(path)
			must(t, again, err)
			if now := blocks(t, path); now < before {
				t.Errorf("%d blocks of memory, %d before a page was lost: its hole is there still", now, before)
			}
		})
	}
}

// A region that others give memory back in, and take it again, is opened on a full file system.
func TestOpenWhileOthersReleaseOnAFullFileSystem(t *testing.T) {
	dir := smallMemory(t, 4*mib)
	r, err := shm.Create("r", shm.Dir(dir), shm.Size(2*mib))
	must(t, r, err)
	succeed(t, start(t, openOften, openings{dir, 1})) // takes a slot, with holdings
	leave(t, dir, 40*4096)                            // for slots
	p := start(t, openOften, openings{dir, 2000})
	ended := make(chan error, 1)
	go func() { ended <- p.Wait() }()
	for n := 0; ; n++ {
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
			t.Logf("%d times given back meanwhile", n)
			return
		default:
		}
		if _, err := r.Release(r.Data()+mib, mib/2); err != nil {
			t.Fatal(err)
		}
		if err := r.Reserve(r.Data()+mib, mib/2); err != nil {
			t.Fatal(err)
		}
	}
}

type openings struct {
	Dir   string
	Times int
}

var openOften = proc.Define("openOften", func(_ context.Context, o openings) error {
	for i := range o.Times {
		r, err := shm.Open("r", shm.Dir(o.Dir))
		if err != nil {
			return fmt.Errorf("opening %d: %w", i, err)
		}
		if err := r.Close(); err != nil {
			return err
		}
	}
	return nil
})

// A region that just fits is made, and one that is a page too large is refused as such.
func TestCreateUpToTheLastPage(t *testing.T) {
	for _, pages := range []uint64{64 - 10 - 2, 64 - 10 - 1} { // without header, slots and owners, and holdings
		dir := smallMemory(t, 64*4096)
		r, err := shm.Create("r", shm.Dir(dir), shm.Size(pages*4096))
		switch {
		case err == nil:
			r.Close()
		case !errors.Is(err, shm.ErrNoSpace):
			t.Errorf("create with %d pages of data: %v, want ErrNoSpace", pages, err)
		}
	}
}
