package shm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// A region grows in place: what others have in their hands stays valid, and they see the new end.
func TestGrowthIsSeenByOthersInPlace(t *testing.T) {
	r := anonymous(t, shm.Size(4096))
	old, err := r.Bytes(r.Data(), 4096)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, growAndFill, r)
	wait(t, "the other process to grow the region", func() bool { return word(r, 0).Load() == 1 })
	if r.Size() != 8<<20 {
		t.Errorf("size %d, want %d", r.Size(), 8<<20)
	}
	end, err := shm.At[uint64](r, r.Data()+8<<20-8)
	if err != nil || *end != 4711 {
		t.Errorf("word at the new end: %v, want 4711", err)
	}
	now, err := r.Bytes(r.Data(), 8<<20)
	if err != nil || &now[0] != &old[0] {
		t.Errorf("the data has moved: %v", err)
	}
	old[100] = 42
	*end = 1
	succeed(t, p)
}

var growAndFill = proc.Define("growAndFill", func(_ context.Context, r *shm.Region) error {
	b, err := r.Bytes(r.Data(), 4096)
	if err != nil {
		return err
	}
	if err := r.Grow(8 << 20); err != nil {
		return err
	}
	end, err := shm.At[uint64](r, r.Data()+8<<20-8)
	if err != nil {
		return err
	}
	*end = 4711
	word(r, 0).Store(1)
	return await("the slice handed out before to show what the other process writes", func() bool {
		now, _ := r.Bytes(r.Data(), 4096)
		return now[100] == 42 && b[100] == 42
	})
})

func TestGrowthNeverShrinks(t *testing.T) {
	r := anonymous(t, shm.Size(1<<20))
	for _, size := range []uint64{0, 1, 1 << 20} {
		if err := r.Grow(size); err != nil || r.Size() != 1<<20 {
			t.Errorf("Grow(%d): %v, size %d, want %d", size, err, r.Size(), 1<<20)
		}
	}
}

func TestGrowthBeyondTheLimit(t *testing.T) {
	heap, err := shm.Heap(shm.Size(4096), shm.Limit(8192))
	for kind, r := range map[string]*shm.Region{"anonymous": anonymous(t, shm.Size(4096), shm.Limit(8192)), "heap": must(t, heap, err)} {
		for _, size := range []uint64{8193, 1 << 40, 1<<64 - shm.DataStart, 1<<64 - 1} {
			err := r.Grow(size)
			if !errors.Is(err, shm.ErrNoSpace) || !strings.Contains(err.Error(), fmt.Sprintf("to %d bytes, its limit is 8192", size)) {
				t.Errorf("%s: Grow(%d): %v, want ErrNoSpace with both numbers", kind, size, err)
			}
			if r.Size() != 4096 {
				t.Errorf("%s: size %d after a refused growth", kind, r.Size())
			}
		}
		if err := r.Grow(8192); err != nil || r.Size() != 8192 {
			t.Errorf("%s: Grow to the limit: %v, size %d", kind, err, r.Size())
		}
	}
}

func TestManyGrowAtOnce(t *testing.T) {
	r := anonymous(t, shm.Size(4096))
	var all []*proc.Process
	for range 3 {
		all = append(all, start(t, growByPages, r))
	}
	for _, p := range all {
		succeed(t, p)
	}
	if want := uint64(4096 * (1 + 3*2*40)); r.Size() != want {
		t.Errorf("size %d, want %d", r.Size(), want)
	}
	b, err := r.Bytes(r.Data(), r.Size())
	if err != nil {
		t.Fatal(err)
	}
	for i := 4096 + 8; i < len(b); i += 4096 {
		if b[i] != 1 {
			t.Fatalf("page %d was not grown by one", i/4096)
		}
	}
}

// One process at a time moves the end: the size could go back otherwise.
func TestGrowthWaitsForAnotherProcess(t *testing.T) {
	r := anonymous(t, shm.Size(4096))
	done, err := shm.HoldGrowth(r)
	if err != nil {
		t.Fatal(err)
	}
	grown := make(chan error, 1)
	go func() { grown <- r.Grow(8192) }()
	select {
	case err := <-grown:
		t.Errorf("Grow returned while another one grows: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
	done()
	if err := <-grown; err != nil || r.Size() != 8192 {
		t.Errorf("Grow: %v, size %d", err, r.Size())
	}
}

// growByPages claims pages, two goroutines at once, and makes each exist.
var growByPages = proc.Define("growByPages", func(_ context.Context, r *shm.Region) error {
	done := make(chan error, 2)
	for range 2 {
		go func() {
			for range 40 {
				end := 4096 * (1 + word(r, 0).Add(1))
				if err := r.Grow(end); err != nil {
					done <- err
					return
				}
				b, err := r.Bytes(r.Data()+shm.Offset(end)-4096, 4096)
				if err != nil {
					done <- err
					return
				}
				b[8]++
			}
			done <- nil
		}()
	}
	return errors.Join(<-done, <-done)
})

// A full file system, played by a limit on the size of files.
func TestAFullFileSystem(t *testing.T) {
	if err := canLimitFiles(); err != nil {
		t.Skipf("a limit on the size of files: %v", err)
	}
	if err := fillUp.Run(t.Context(), memoryDir(t)); err != nil {
		t.Error(err)
	}
}

var fillUp = proc.Define("fillUp", func(ctx context.Context, dir string) error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	full := func(err error) bool { return errors.Is(err, shm.ErrNoSpace) && strings.Contains(err.Error(), "ulimit") }

	r, err := shm.Create("r", shm.Dir(dir), shm.Size(1<<20))
	if err != nil {
		return err
	}
	restore, err := limitFiles(shm.DataStart + 1<<20 + 4096)
	if err != nil {
		return err
	}
	err = r.Grow(4 << 20)
	check(full(err), "Grow: %v, want ErrNoSpace that names the limit", err)
	check(r.Size() == 1<<20, "size %d after a failed growth", r.Size())
	check(r.Grow(1<<20+4096) == nil, "Grow to the limit of files failed")

	_, err = shm.Create("second", shm.Dir(dir), shm.Size(8<<20))
	check(full(err), "Create: %v, want ErrNoSpace that names the limit", err)
	entries, _ := os.ReadDir(dir)
	check(len(entries) == 1, "a failed Create has left %v", entries)
	_, err = shm.Anonymous(shm.Size(8 << 20))
	check(full(err), "Anonymous: %v, want ErrNoSpace that names the limit", err)

	// What exists can be opened under any limit.
	if _, err = limitFiles(4096); err != nil {
		return err
	}
	_, err = shm.OpenFile(filepath.Join(dir, "r"))
	check(err == nil, "Open under a low limit: %v", err)
	name := filepath.Join(dir, "other")
	if err := restore(); err != nil {
		return err
	}
	if _, err := shm.CreateFile(name); err != nil {
		return err
	}
	p, err := openUnderALowLimit.Start(ctx, name)
	if err != nil {
		return err
	}
	err = p.Wait()
	check(err == nil, "Open by another process under a low limit: %v", err)

	check(r.Grow(4<<20) == nil && r.Size() == 4<<20, "Grow after the limit was raised: size %d", r.Size())
	second, err := shm.Create("second", shm.Dir(dir), shm.Size(8<<20))
	check(err == nil, "Create after the limit was raised: %v", err)
	if err == nil {
		check(expect(second, "\x00") == nil, "fresh memory is not zero")
	}
	return errors.Join(errs...)
})

var openUnderALowLimit = proc.Define("openUnderALowLimit", func(_ context.Context, path string) error {
	if _, err := limitFiles(4096); err != nil {
		return err
	}
	_, err := shm.OpenFile(path)
	return err
})
