package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

type victim struct {
	N    SharedInt
	S    Shared[[40]int64]
	Work string
}

var dieInside = proc.Define("die inside", func(ctx context.Context, v victim) error {
	switch v.Work {
	case "number With":
		v.N.With(func(n *int64) { *n = 99; kill() })
	case "number Update":
		return v.N.Update(ctx, func(n *int64) error { *n = 99; kill(); return nil })
	case "number Lock":
		v.N.Lock()
		v.N.Locked().Store(2) // committed
		kill()
	case "With":
		v.S.With(func(a *[40]int64) { a[7] = 99; kill() })
	case "Update":
		return v.S.Update(ctx, func(a *[40]int64) error { a[7] = 99; kill(); return nil })
	case "Lock":
		v.S.Lock()
		v.S.Locked().Store([40]int64{7: 2}) // committed
		v.S.Locked().With(func(a *[40]int64) { a[7] = 99; kill() })
	}
	return errors.New("nothing was done")
})

// Whoever dies holding a container's lock leaves the last committed value and a lock that is free; nobody
// is told, since there is nothing to repair.
func TestKillInsideLeavesTheCommittedValue(t *testing.T) {
	for work, want := range map[string][2]int64{
		"number With":   {1, 1},
		"number Update": {1, 1},
		"number Lock":   {2, 1},
		"With":          {1, 1},
		"Update":        {1, 1},
		"Lock":          {1, 2},
	} {
		t.Run(work, func(t *testing.T) {
			m := newManager(t)
			v := victim{Must(NewSharedInt(m, 1)), Must(NewShared(m, [40]int64{7: 1})), work}
			wantKilled(t, dieInside.Run(deadline(t), v))
			if got := [2]int64{v.N.Load(), v.S.Load()[7]}; got != want {
				t.Fatalf("values %v, want %v", got, want)
			}
			if got := v.N.Add(1); got != want[0]+1 {
				t.Errorf("number is %d, want %d", got, want[0]+1)
			}
			v.S.With(func(a *[40]int64) { a[7]++ })
			if got := v.S.Load(); got != [40]int64{7: want[1] + 1} {
				t.Errorf("value is %v", got)
			}
		})
	}
}

type torture struct {
	M    *Manager
	Lock Ref[shmsync.Mutex]
	Seed uint64
}

type wide [9]int64

// tormented makes, changes, finds, unlinks and destroys objects under few names until it is killed.
var tormented = proc.Define("tormented", func(ctx context.Context, a torture) error {
	rng := rand.New(rand.NewPCG(a.Seed, 1))
	name := func() string { return fmt.Sprint("name ", rng.IntN(5)) }
	same := func(v wide) error {
		if v != (wide{v[0], v[0], v[0], v[0], v[0], v[0], v[0], v[0], v[0]}) {
			return fmt.Errorf("torn value %v", v)
		}
		return nil
	}
	step := func() error {
		n := name()
		switch rng.IntN(6) {
		case 0:
			_, err := NewShared(a.M, wide{}, Name(n))
			return err
		case 1:
			_, err := NewShared(a.M, wide{}, Name(n), OrOpen(), WithMutex(a.Lock))
			return err
		case 2:
			v, err := Find[Shared[wide]](a.M, n)
			if err != nil {
				return err
			}
			return v.Destroy()
		case 3:
			own := fmt.Sprint("own ", a.Seed)
			v, err := NewShared(a.M, wide{}, Name(own))
			if err != nil {
				return err
			}
			return errors.Join(a.M.Unlink(own), v.Destroy())
		case 4:
			v, err := NewShared(a.M, wide{5, 5, 5, 5, 5, 5, 5, 5, 5})
			if err != nil {
				return err
			}
			return errors.Join(same(v.Load()), v.Destroy())
		}
		v, err := Find[Shared[wide]](a.M, n)
		if err != nil {
			return err
		}
		return v.Update(ctx, func(w *wide) error {
			if err := same(*w); err != nil {
				return err
			}
			for i := range w {
				w[i]++
			}
			return nil
		})
	}
	for ctx.Err() == nil {
		err := step()
		for _, fine := range []error{nil, fs.ErrExist, fs.ErrNotExist, shm.ErrStale, shmsync.ErrInconsistent} {
			if errors.Is(err, fine) {
				err = nil
				break
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
})

func TestRandomKillsLeaveEverythingUsable(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector does not look into mapped memory, and makes processes start slowly")
	}
	const kills = 60
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	m := newManager(t)
	lock := Must(New[shmsync.Mutex](m))
	s := Must(m.space())
	ctx := deadline(t)
	start := func(i int) *proc.Process {
		p, err := tormented.Start(ctx, torture{m, lock, seed + uint64(i)})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	running := []*proc.Process{start(0), start(1)}
	t.Cleanup(func() {
		for _, p := range running {
			p.Kill()
			p.Wait()
			p.Close()
		}
	})
	for i := range kills {
		time.Sleep(time.Duration(rng.IntN(int(15 * time.Millisecond)))) // where it is killed, not when
		k := rng.IntN(len(running))
		p := running[k]
		if !p.Alive() {
			t.Fatalf("a process ended by itself: %v", p.Wait())
		}
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
		wantKilled(t, p.Wait())
		p.Close()
		// The caller's lock is the caller's affair. It may be held by a live process, or by none.
		err := lock.Ptr().Recover(ctx, func(shm.Death) error { return nil })
		if err != nil && !errors.Is(err, shmsync.ErrNotInconsistent) {
			t.Fatal(err)
		}
		if err := m.Check(); err != nil {
			t.Fatalf("after kill %d: %v", i, err)
		}
		running[k] = start(i + 2)
	}
	for _, p := range running {
		p.Kill()
		p.Wait()
		p.Close()
	}
	for i := range 5 {
		v, err := Find[Shared[wide]](m, fmt.Sprint("name ", i))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Destroy(); err != nil && !errors.Is(err, shmsync.ErrInconsistent) {
			t.Error(err)
		}
	}
	// The objects without a name of those that died are there; nothing else is in use that should not be.
	nothingLost(t, m)
	u := Must(s.heap.Usage())
	t.Logf("%+v", u)
	if most := uint64(kills + 2); u.Objects > most+5+1 {
		t.Errorf("%d kills left %d objects", most, u.Objects)
	}
}
