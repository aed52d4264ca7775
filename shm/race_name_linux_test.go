package shm_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

var raceFor = flag.Duration("race-for", 3*time.Second, "how long processes race for one name")

// Words of the region through which the test speaks with its processes.
const (
	fightStop   = iota // 1: close everything and say so; 2: leave nothing behind, and end
	fightClosed        // processes that have closed everything
	fightMade          // regions made, opened, seen ready, and removed
	fightOpened
	fightReady
	fightRemoved
)

const (
	contestedSize  = 16 << 10
	contestedLimit = 1 << 20
	contestedWords = 512 // that the maker fills before it says that the region is ready
)

type fighter struct {
	Control *shm.Region
	Dir     string
}

// Many processes make, open and remove the region of one name, and are killed over it and started
// again. Nobody sees a region that is not whole, and in the end nothing is left of all of them.
func TestManyProcessesRaceForOneName(t *testing.T) {
	const procs = 16
	control, dir := anonymous(t), memoryDir(t)
	fighters := make([]*proc.Process, procs)
	for i := range fighters {
		fighters[i] = start(t, fight, fighter{control, dir})
	}
	kills := 0
	for end := time.Now().Add(*raceFor); time.Now().Before(end); kills++ {
		i := rand.IntN(procs)
		select {
		case <-fighters[i].Done():
			t.Fatalf("a process ended by itself: %v", fighters[i].Wait())
		case <-time.After(time.Duration(rand.IntN(20)) * time.Millisecond):
		}
		kill(fighters[i])
		var exit *proc.ExitError
		if err := fighters[i].Wait(); !errors.As(err, &exit) || exit.Code != -9 {
			t.Fatalf("a process that was killed: %v", err)
		}
		fighters[i] = start(t, fight, fighter{control, dir})
	}
	word(control, fightStop).Store(1)
	wait(t, "every process to close its regions", func() bool {
		for _, p := range fighters {
			if !p.Alive() {
				t.Fatalf("a process ended by itself: %v", p.Wait())
			}
		}
		return word(control, fightClosed).Load() == procs
	})
	if err := shm.Remove("r", shm.Dir(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v are left in the directory", entries, err)
	}
	word(control, fightStop).Store(2)
	for _, p := range fighters {
		succeed(t, p)
	}
	counts := make(map[string]uint64)
	for name, i := range map[string]int{"made": fightMade, "opened": fightOpened, "ready": fightReady, "removed": fightRemoved} {
		if counts[name] = word(control, i).Load(); counts[name] == 0 {
			t.Errorf("no region was %s: the test shows nothing", name)
		}
	}
	t.Logf("%v, %d kills", counts, kills)
}

var fight = proc.Define("fight", func(_ context.Context, f fighter) error {
	if err := fightOn(f); err != nil {
		return err
	}
	word(f.Control, fightClosed).Add(1)
	if err := await("the others to close their regions", func() bool { return word(f.Control, fightStop).Load() == 2 }); err != nil {
		return err
	}
	own, err := shm.Anonymous() // any call of Close gives up what is due
	if err == nil {
		err = own.Close()
	}
	if err != nil {
		return err
	}
	own = nil
	return await("descriptors, mappings, seats and addresses to be given back", func() bool {
		runtime.GC()
		maps, err := os.ReadFile("/proc/self/maps")
		return err == nil && !strings.Contains(string(maps), f.Dir) && descriptorsOf(f.Dir) == 0 && shm.Seats() == 0 && shm.ClosedRanges() == 0
	})
})

// fightOn makes, opens and removes the region until it is told to stop, and holds up to two handles meanwhile.
func fightOn(f fighter) error {
	opts := []shm.Option{shm.Dir(f.Dir), shm.Size(contestedSize), shm.Limit(contestedLimit)}
	var held [2]*shm.Region
	for i := 0; word(f.Control, fightStop).Load() == 0; i++ {
		var r *shm.Region
		var err, allowed error
		switch rand.IntN(8) {
		case 0, 1:
			r, err = shm.Create("r", opts...)
			if allowed = fs.ErrExist; err == nil {
				word(f.Control, fightMade).Add(1)
				furnish(r)
			}
		case 2, 3, 4:
			r, err = shm.Open("r", opts...)
			allowed = fs.ErrNotExist
		case 5, 6:
			if r, err = shm.OpenOrCreate("r", opts...); err == nil {
				err = r.Exclusive(func() error { furnish(r); return nil })
			}
		case 7:
			allowed = fs.ErrNotExist
			if err = shm.Remove("r", opts...); err == nil {
				word(f.Control, fightRemoved).Add(1)
			}
		}
		if err != nil && (allowed == nil || !errors.Is(err, allowed)) {
			return err
		}
		if r == nil {
			continue
		}
		word(f.Control, fightOpened).Add(1)
		if err := inspect(f, r); err != nil {
			return err
		}
		if old := held[i%2]; old != nil {
			if err := errors.Join(inspect(f, old), old.Close()); err != nil {
				return err
			}
		}
		held[i%2] = r
	}
	for _, r := range held {
		if r != nil {
			if err := r.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// mark is what stands in word i of a region that is ready.
func mark(r *shm.Region, i int) uint64 {
	id := r.ID()
	return uint64(id[i%len(id)]) + uint64(i)<<8 + 1
}

// furnish fills a region, and says then that it is ready.
func furnish(r *shm.Region) {
	for i := 1; i < contestedWords; i++ {
		word(r, i).Store(mark(r, i))
	}
	r.Root().Store(uint64(r.Data()))
	word(r, 0).Store(mark(r, 0))
}

// inspect checks what is true of every region that can be seen, and of one that says that it is ready.
func inspect(f fighter, r *shm.Region) error {
	if r.Name() != "r" || r.Size() != contestedSize || r.Limit() != contestedLimit || r.ID() == (shm.ID{}) {
		return fmt.Errorf("region %q of %d bytes up to %d, %v, cannot be whole", r.Name(), r.Size(), r.Limit(), r.ID())
	}
	if n := shm.SlotsOf(r, shm.Self()); n != 1 {
		return fmt.Errorf("this process stands in %d slots", n)
	}
	ready := word(r, 0).Load() == mark(r, 0)
	if ready {
		word(f.Control, fightReady).Add(1)
		if root := r.Root().Load(); root != uint64(r.Data()) {
			return fmt.Errorf("ready, and its root is %d", root)
		}
	}
	for i := range contestedWords {
		if got := word(r, i).Load(); got != mark(r, i) && (ready || got != 0) {
			return fmt.Errorf("ready %v, and word %d is %#x, want %#x", ready, i, got, mark(r, i))
		}
	}
	return nil
}
