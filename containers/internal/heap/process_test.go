package heap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

type churnArgs struct {
	Region *shm.Region
	Seed   uint64
	Rounds int
}

var churn = proc.Define("heap churn", func(_ context.Context, a churnArgs) error {
	p, err := Open(a.Region, a.Region.Data())
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(a.Seed, 0))
	type held struct{ off, n uint64 }
	var mine []held
	release := func() error {
		k := rng.IntN(len(mine))
		b := mine[k]
		mine[k] = mine[len(mine)-1]
		mine = mine[:len(mine)-1]
		got, err := p.r.Bytes(shm.Offset(b.off), b.n)
		if err != nil {
			return err
		}
		for _, c := range got {
			if c != byte(a.Seed) {
				return fmt.Errorf("block at %d holds %d, which another process wrote", b.off, c)
			}
		}
		return p.Free(shm.Offset(b.off))
	}
	for range a.Rounds {
		if len(mine) > 0 && rng.IntN(100) < 48 {
			if err := release(); err != nil {
				return err
			}
			continue
		}
		n := rng.Uint64N(1 << (1 + rng.IntN(12)))
		off, err := p.Alloc(n)
		if err != nil {
			return err
		}
		b, err := p.r.Bytes(off, n)
		if err != nil {
			return err
		}
		for i := range b {
			if b[i] != 0 {
				return fmt.Errorf("block at %d is not zero", off)
			}
			b[i] = byte(a.Seed)
		}
		mine = append(mine, held{uint64(off), n})
	}
	for len(mine) > 0 {
		if err := release(); err != nil {
			return err
		}
	}
	return nil
})

func TestProcessesShareTheHeap(t *testing.T) {
	p := newHeap(t, true, shm.Size(16<<10))
	ctx, stop := context.WithTimeout(t.Context(), 60*time.Second)
	defer stop()
	var args []churnArgs
	for i := range 4 {
		args = append(args, churnArgs{p.r, uint64(i + 1), 5000})
	}
	if err := churn.Run(ctx, args...); err != nil {
		t.Error(err)
	}
	if u := usage(t, p); u.LiveBlocks != 0 || u.Unlisted != 0 {
		t.Errorf("all was freed, and yet: %+v", u)
	}
}

type dieArgs struct {
	Region *shm.Region
	Work   string
	Step   int // which step to die at, from 1 on
}

// works are what a process does when it dies inside. Each starts from the heap that prepare makes; full
// ones from one with nothing left behind its last block.
var works = map[string]struct {
	full bool
	do   func(p *Heap, offs []shm.Offset) error
}{
	"alloc fresh": {false, func(p *Heap, _ []shm.Offset) error {
		_, err := p.Alloc(3000)
		return err
	}},
	"alloc listed": {false, func(p *Heap, _ []shm.Offset) error {
		_, err := p.Alloc(500)
		return err
	}},
	"alloc split": {true, func(p *Heap, _ []shm.Offset) error {
		_, err := p.Alloc(300)
		return err
	}},
	"alloc aligned, fresh": {false, func(p *Heap, _ []shm.Offset) error {
		_, err := p.AllocAligned(3000, 4096)
		return err
	}},
	"alloc aligned, from a block": {true, func(p *Heap, offs []shm.Offset) error {
		for i := 3; i < 9; i += 2 {
			if err := p.Free(offs[i]); err != nil {
				return err
			}
		}
		_, err := p.AllocAligned(1500, 1024) // behind a gap, before a rest, after a merge
		return err
	}},
	"free a large block": {true, func(p *Heap, offs []shm.Offset) error {
		releaseMin = 4096
		return p.Free(offs[12])
	}},
	"alloc from what was given back": {true, func(p *Heap, offs []shm.Offset) error {
		releaseMin = 4096
		if err := p.Free(offs[12]); err != nil {
			return err
		}
		if p.r.Released(p.r.Data(), p.r.Size()) == 0 {
			return errors.New("nothing was given back")
		}
		_, err1 := p.AllocAligned(5000, 2048)
		_, err2 := p.Alloc(9000)
		return errors.Join(err1, err2)
	}},
	"trim": {true, func(p *Heap, offs []shm.Offset) error {
		releaseMin = 1 << 20
		if err := p.Free(offs[12]); err != nil {
			return err
		}
		releaseMin = 4096
		if n, err := p.Trim(); n == 0 || err != nil {
			return fmt.Errorf("Trim: %d bytes, %w", n, err)
		}
		_, err := p.Alloc(18000)
		return err
	}},
	"alloc from trimmed room": {false, func(p *Heap, offs []shm.Offset) error {
		if n, err := p.Trim(); n == 0 || err != nil {
			return fmt.Errorf("Trim: %d bytes, %w", n, err)
		}
		_, err := p.Alloc(12000)
		return err
	}},
	"free": {false, func(p *Heap, offs []shm.Offset) error {
		return p.Free(offs[1])
	}},
	"alloc object": {false, func(p *Heap, _ []shm.Offset) error {
		_, err := p.AllocObject()
		return err
	}},
	"alloc object from a new slab": {false, func(p *Heap, _ []shm.Offset) error {
		for range slabObjectsMin {
			if _, err := p.AllocObject(); err != nil {
				return err
			}
		}
		return nil
	}},
	"free object": {false, func(p *Heap, offs []shm.Offset) error {
		return p.FreeObject(offs[len(offs)-1])
	}},
	"grow": {true, func(p *Heap, _ []shm.Offset) error {
		_, err := p.Alloc(20 << 10)
		return err
	}},
	"merge": {true, func(p *Heap, offs []shm.Offset) error {
		for i := 3; i < 9; i += 2 { // three blocks and their neighbours become one
			if err := p.Free(offs[i]); err != nil {
				return err
			}
		}
		_, err := p.Alloc(3800)
		return err
	}},
}

// needHoles are the works that need memory that is given back.
var needHoles = []string{"alloc from what was given back", "trim", "alloc from trimmed room"}

// canGiveBack reports whether the memory of a region can be given back here.
func canGiveBack(tb testing.TB) bool {
	tb.Helper()
	r, err := shm.Anonymous(shm.Size(64 << 10))
	if err != nil {
		tb.Fatal(err)
	}
	defer r.Close()
	_, err = r.Release(r.Data(), r.Size())
	return !errors.Is(err, errors.ErrUnsupported)
}

// prepare leaves blocks of 500 bytes, every other one free, and an object. It is the same in every run.
func prepare(tb testing.TB, p *Heap, full bool) {
	var offs []shm.Offset
	for range 12 {
		offs = append(offs, alloc(tb, p, 500))
	}
	for i := 0; i < len(offs); i += 2 {
		free(tb, p, offs[i])
	}
	if _, err := p.AllocObject(); err != nil {
		tb.Fatal(err)
	}
	if full {
		alloc(tb, p, p.room()&^(granule-1)-blockHead)
	}
}

var die = proc.Define("heap die", func(_ context.Context, a dieArgs) error {
	p, err := Open(a.Region, a.Region.Data())
	if err != nil {
		return err
	}
	var offs []shm.Offset
	first := p.first + blockHead
	for i := range 12 {
		offs = append(offs, shm.Offset(first+uint64(i)*576))
	}
	last := p.first
	for at, top := p.first, p.h.top.Load(); at < top; {
		_, size, _, err := p.block(at)
		if err != nil {
			return err
		}
		last, at = at, at+size
	}
	offs = append(offs, shm.Offset(last+blockHead))
	if err := p.eachSlab(func(_, first, _ uint64) bool { offs = append(offs, shm.Offset(first)); return false }); err != nil {
		return err
	}
	n, times := 0, map[string]int{}
	crashPoint = func(done string) {
		if times[done]++; times[done] > 2 { // the same again and again, in a loop
			return
		}
		if n++; n == a.Step {
			os.Stdout.WriteString(done)
			kill()
		}
	}
	return works[a.Work].do(p, offs)
})

// Whatever step a process is killed at, the next one goes on at once with a heap that is in order, and no
// more than one block is lost.
func TestKillAtEveryStepLosesOneBlockAtMost(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector does not look into mapped memory, and makes processes start slowly")
	}
	reached := map[string]bool{}
	givesBack := canGiveBack(t)
	for name, work := range works {
		t.Run(name, func(t *testing.T) {
			if !givesBack && slices.Contains(needHoles, name) {
				t.Skip("this system gives no memory back")
			}
			for step := 1; ; step++ {
				p := newHeap(t, true, shm.Size(32<<10), shm.Limit(64<<10))
				prepare(t, p, work.full)
				before := usage(t, p)
				done, killed := dieAt(t, p, name, step)
				if !killed {
					if step == 1 {
						t.Error("there is no step to die at")
					}
					return // the work has no more steps
				}
				reached[done] = true
				if err := p.Check(); err != nil {
					t.Fatalf("after %q: %v", done, err)
				}
				// The next merge finds what is missing from the lists.
				if _, err := p.Alloc(1 << 20); !errors.Is(err, shm.ErrNoSpace) {
					t.Fatalf("after %q: %v, want ErrNoSpace", done, err)
				}
				after := usage(t, p)
				if after.Unlisted != 0 || after.LiveBlocks > before.LiveBlocks+1 {
					t.Errorf("after %q and a merge: %+v, before the death %+v", done, after, before)
				}
				if got := after.Live + after.Free + slabBytes(t, p); got != after.Used {
					t.Errorf("after %q: %d bytes are in blocks, %d are used", done, got, after.Used)
				}
				alloc(t, p, 500)
				if _, err := p.AllocObject(); err != nil {
					t.Errorf("after %q: %v", done, err)
				}
			}
		})
	}
	for _, file := range []string{"heap.go", "object.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`step\("(.*)"\)`).FindAllStringSubmatch(string(source), -1) {
			if !reached[m[1]] && (givesBack || m[1] != "given back" && m[1] != "trimmed") {
				t.Errorf("no process died after %q of %s", m[1], file)
			}
		}
	}
}

// dieAt lets a process do the work and kill itself at a step. It returns what the process had done, and
// whether the work had that many steps.
func dieAt(t *testing.T, p *Heap, work string, step int) (done string, killed bool) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	var out bytes.Buffer
	child, err := die.Start(ctx, dieArgs{p.r, work, step}, proc.Stdout(&out))
	if err != nil {
		t.Fatal(err)
	}
	defer child.Close()
	err = child.Wait()
	var exit *proc.ExitError
	switch {
	case err == nil:
		return "", false
	case errors.As(err, &exit) && exit.Code == killedCode:
		return out.String(), true
	}
	t.Fatal(err)
	return "", false
}

func slabBytes(t *testing.T, p *Heap) (sum uint64) {
	t.Helper()
	err := p.eachSlab(func(at, _, _ uint64) bool {
		_, size, _, err := p.block(at)
		if err != nil {
			t.Error(err)
		}
		sum += size
		return err == nil
	})
	if err != nil {
		t.Error(err)
	}
	return sum
}
