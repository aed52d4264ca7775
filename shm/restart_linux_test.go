package shm_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

type oldRegion struct {
	Path string
	Open bool // whether it can be used
	Work string
	Done []string // what must be done, if it can be used
}

// reopen is the first process after a restart. It does not know the region.
var reopen = proc.Define("reopen", func(_ context.Context, o oldRegion) error {
	var undone, checked atomic.Int32
	var done []string
	shm.SetRecoverer(undoer{undo: func(*shm.Region, int) error {
		undone.Add(1)
		done = append(done, "undo")
		if o.Work == "undo fails" {
			return errors.New("it cannot be")
		}
		return nil
	}})
	shm.SetCheck(func(r *shm.Region) error {
		checked.Add(1)
		done = append(done, "check")
		p, err := shm.At[uint64](r, r.Data())
		if err != nil {
			return err
		}
		if _, _, found := shm.Locate(unsafe.Pointer(p)); !found {
			return errors.New("locks in the region would not find it")
		}
		if err := expect(r, "data"); err != nil {
			return err
		}
		if o.Work == "check fails" {
			return fmt.Errorf("word 7: %w", shm.ErrCorrupt)
		}
		return nil
	})
	for range 2 {
		undone.Store(0)
		checked.Store(0)
		reader, err := shm.OpenFile(o.Path, shm.ReadOnly())
		if err == nil {
			err = errors.Join(expect(reader, "data"), reader.Close())
		}
		if err != nil || undone.Load() != 0 || checked.Load() != 0 {
			return fmt.Errorf("a reader: %w, %d undone, %d checks", err, undone.Load(), checked.Load())
		}
		r, err := shm.OpenFile(o.Path)
		if !o.Open {
			if err == nil || !strings.Contains(err.Error(), "repair") || !strings.Contains(err.Error(), "restart") || !errors.Is(err, shm.ErrCorrupt) {
				return fmt.Errorf("open a region that is not in order: %w, want ErrCorrupt that names repair", err)
			}
			continue
		}
		if err != nil {
			return err
		}
		defer r.Close()
	}
	if o.Open && fmt.Sprint(done) != fmt.Sprint(o.Done) {
		return fmt.Errorf("%v was done, want %v", done, o.Done)
	}
	return nil
})

func TestARegionFromBeforeARestartIsPutRightFirst(t *testing.T) {
	for work, open := range map[string]bool{"all is well": true, "undo fails": false, "check fails": false} {
		t.Run(work, func(t *testing.T) {
			path := filepath.Join(memoryDir(t), "r")
			r, err := shm.CreateFile(path)
			must(t, r, err)
			fill(t, r, "data")
			dead := shm.NewToken()
			shm.StrangerIn(r, (shm.SlotOf(r)+1)%shm.SlotCount, dead, shm.SlotAttached, dead)
			shm.StrangerIn(r, (shm.SlotOf(r)+2)%shm.SlotCount, shm.NewToken(), shm.SlotUndoing, dead)
			shm.StrangerIn(r, (shm.SlotOf(r)+3)%shm.SlotCount, 0, shm.SlotAttached, shm.NewToken())
			shm.BootWords(r)[0].Add(1)
			for _, done := range [][]string{{"undo", "undo", "undo", "check"}, nil} { // the second finds nothing to do, or the same
				if err := reopen.Run(t.Context(), oldRegion{path, open, work, done}); err != nil {
					t.Error(err)
				}
			}
			if err := expect(r, "data"); err != nil {
				t.Error(err)
			}
		})
	}
}

// Nobody looks twice in one run of the machine, nor where the system does not tell which run it is.
func TestARegionOfThisRunIsNotChecked(t *testing.T) {
	path := closedRegion(t)
	none := binary.NativeEndian.AppendUint64(nil, 0)
	for _, words := range [][]byte{nil, append(none, none...)} {
		patch(t, path, shm.BootOffset, words)
		if err := openUnchecked.Run(t.Context(), path); err != nil {
			t.Error(err)
		}
	}
}

var openUnchecked = proc.Define("openUnchecked", func(_ context.Context, path string) error {
	shm.SetCheck(func(*shm.Region) error { return errors.New("checked") })
	r, err := shm.OpenFile(path)
	if err != nil {
		return err
	}
	return r.Close()
})

// Of many processes that come first after a restart, one puts the region right, and the others wait for it.
func TestOfManyAfterARestartOneChecks(t *testing.T) {
	path, control := closedRegion(t), anonymous(t)
	patch(t, path, shm.BootOffset, []byte{1, 2, 3})
	if err := openAtOnce.Run(t.Context(), atOnce{control, path}, atOnce{control, path}, atOnce{control, path}); err != nil {
		t.Error(err)
	}
	if n := word(control, 1).Load(); n != 1 {
		t.Errorf("%d checks, want 1", n)
	}
}

type atOnce struct {
	Control *shm.Region
	Path    string
}

var openAtOnce = proc.Define("openAtOnce", func(_ context.Context, a atOnce) error {
	shm.SetCheck(func(*shm.Region) error {
		word(a.Control, 1).Add(1)
		time.Sleep(50 * time.Millisecond) // others come
		word(a.Control, 2).Store(1)
		return nil
	})
	word(a.Control, 0).Add(1)
	if err := await("the others", func() bool { return word(a.Control, 0).Load() == 3 }); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			r, err := shm.OpenFile(a.Path)
			if err != nil || word(a.Control, 2).Load() != 1 {
				fmt.Fprintf(os.Stderr, "%v, checked before: %d\n", err, word(a.Control, 2).Load())
				os.Exit(1)
			}
			r.Close()
		})
	}
	wg.Wait()
	return nil
})

// A program that has no check leaves it to one that has.
func TestAProgramWithoutACheckLeavesItToOthers(t *testing.T) {
	path := closedRegion(t)
	patch(t, path, shm.BootOffset, []byte{1, 2, 3})
	for range 2 {
		succeed(t, start(t, attachTo, path))
	}
	control := anonymous(t)
	for range 2 {
		succeed(t, start(t, openCounting, atOnce{control, path}))
	}
	if n := word(control, 1).Load(); n != 1 {
		t.Errorf("%d checks, want 1", n)
	}
}

var attachTo = proc.Define("attachTo", func(_ context.Context, path string) error {
	r, err := shm.OpenFile(path)
	if err != nil {
		return err
	}
	return r.Close()
})

var openCounting = proc.Define("openCounting", func(_ context.Context, a atOnce) error {
	shm.SetCheck(func(*shm.Region) error { word(a.Control, 1).Add(1); return nil })
	r, err := shm.OpenFile(a.Path)
	if err != nil {
		return err
	}
	return r.Close()
})

// Others clear up after the dead at the same time: those who attach and find most slots taken, for instance.
func TestASlotThatOthersClearIsNoDamage(t *testing.T) {
	path := filepath.Join(memoryDir(t), "r")
	r, err := shm.CreateFile(path)
	must(t, r, err)
	end, err := shm.ClearSlot(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	}()
	for range 500 {
		shm.BootWords(r)[0].Add(1)
		again, err := shm.OpenFile(path)
		if err != nil {
			t.Fatal(err)
		}
		again.Close()
	}
}

// Who dies while it puts a region right leaves that to the next one.
func TestAfterADeathOverTheCheckTheNextOneChecks(t *testing.T) {
	path := closedRegion(t)
	patch(t, path, shm.BootOffset, []byte{1, 2, 3})
	for range 2 {
		p := start(t, openAndDie, path)
		var exit *proc.ExitError
		if err := p.Wait(); !errors.As(err, &exit) || exit.Code != -9 {
			t.Fatalf("the first one: %v, want killed", err)
		}
	}
	control := anonymous(t)
	for range 2 {
		succeed(t, start(t, openCounting, atOnce{control, path}))
	}
	if n := word(control, 1).Load(); n != 1 {
		t.Errorf("%d checks, want 1", n)
	}
}

var openAndDie = proc.Define("openAndDie", func(_ context.Context, path string) error {
	shm.SetCheck(func(*shm.Region) error {
		self, err := os.FindProcess(os.Getpid())
		if err == nil {
			err = self.Kill()
		}
		time.Sleep(patience) // does not return
		return err
	})
	_, err := shm.OpenFile(path)
	return err
})
