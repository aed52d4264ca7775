package heap

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

var kills = flag.Int("kills", 1000, "processes that the torture kills")

const (
	torturers = 6
	each      = rootWords / 8 // entries of the table that belong to one torturer
)

// A ledger is what a torturer has written down of its own, in a region that nothing else is in.
type ledger struct {
	begun, ended atomic.Uint64       // operations
	entry, size  atomic.Uint64       // of the last begun: size 0 destroys; entry each: a change of pair size
	now          [each]atomic.Uint64 // sizes of the blocks after the last ended
	changes      [4]atomic.Uint64    // of each pair, ended
	doubtful     [4]atomic.Uint64    // cut off: applied or not
	token        atomic.Uint64       // of the process
	_            [32 - 17]atomic.Uint64
}

type tortureArgs struct {
	Region, Ledgers *shm.Region
	Number          int
	Seed            uint64
	Rounds          int // 0: until killed
}

var torture = proc.Define("heap torture", func(_ context.Context, a tortureArgs) error {
	w := &world{t: fatal{}, r: a.Region, at: a.Region.Data() + thingsSize}
	var err error
	if w.th, err = shm.At[things](w.r, w.r.Data()); err != nil {
		return err
	}
	p, err := Open(w.r, w.at)
	if err != nil {
		return err
	}
	all, err := shm.At[[torturers]ledger](a.Ledgers, a.Ledgers.Data())
	if err != nil {
		return err
	}
	all[a.Number].token.Store(uint64(shm.Self()))
	return torment(w, p, &all[a.Number], a)
})

// torment does random operations, and writes each down before and after. First it sees to the one that its predecessor was killed in.
func torment(w *world, p *Heap, l *ledger, a tortureArgs) error {
	rng := rand.New(rand.NewPCG(a.Seed, uint64(a.Number)))
	base := a.Number * each
	size := func(i int) (uint64, error) {
		off := w.th.table[base+i].Load()
		if off == 0 {
			return 0, nil
		}
		n, err := shm.At[atomic.Uint64](w.r, shm.Offset(off))
		if err != nil {
			return 0, err
		}
		return n.Load(), nil
	}
	w.lock(&w.th.mu) // whoever died with it is undone when we have it
	w.unlock(&w.th.mu)
	if b := l.begun.Load(); b != l.ended.Load() {
		if e := l.entry.Load(); e == each {
			l.doubtful[l.size.Load()].Add(1)
		} else {
			got, err := size(int(e))
			if err != nil {
				return err
			}
			if got != l.size.Load() && got != l.now[e].Load() {
				return fmt.Errorf("entry %d has %d bytes; it had %d, and its process died when it was to have %d", base+int(e), got, l.now[e].Load(), l.size.Load())
			}
			l.now[e].Store(got)
		}
		l.ended.Store(b)
	}
	for round := 0; a.Rounds == 0 || round < a.Rounds; round++ {
		i := rng.IntN(each + 2)
		if i >= each {
			k := rng.IntN(4)
			l.entry.Store(each)
			l.size.Store(uint64(k))
			l.begun.Add(1)
			if err := w.change(p, k, 64+rng.Uint64N(2000), true); err != nil {
				return err
			}
			l.ended.Add(1) // killed before the next: one more than is counted, which the check allows for
			l.changes[k].Add(1)
			continue
		}
		got, err := size(i)
		if err != nil {
			return err
		}
		if got != l.now[i].Load() {
			return fmt.Errorf("entry %d has %d bytes, %d were written down", base+i, got, l.now[i].Load())
		}
		n := uint64(0)
		if got == 0 {
			n = 8 + rng.Uint64N(1<<(4+rng.IntN(13)))
		}
		l.entry.Store(uint64(i))
		l.size.Store(n)
		l.begun.Add(1)
		if n == 0 {
			err = w.destroy(p, base+i)
		} else {
			err = w.create(p, base+i, n, 64)
		}
		if err != nil {
			return err
		}
		l.now[i].Store(n)
		l.ended.Add(1)
	}
	return nil
}

// fatal ends a process whose world is broken.
type fatal struct{ testing.TB }

func (fatal) Fatal(args ...any) { panic(fmt.Sprint(args...)) }
func (fatal) Helper()           {}

// useRecoverer makes this process one that can undo what the dead leave in worlds.
func useRecoverer() {
	shm.SetRecoverer(Recoverer{func(r *shm.Region) (*Heap, error) { return Open(r, r.Data()+thingsSize) }})
}

// Processes are killed all the time, wherever they are: nothing is lost, nothing leaks, no lock stays held, and what each of them had done is done.
func TestTorturedProcessesLoseNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector does not look into mapped memory, and makes processes start slowly")
	}
	r, err := shm.Anonymous(shm.Size(64<<10), shm.Limit(64<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ledgers, err := shm.Anonymous(shm.Size(64<<10), shm.Limit(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	defer ledgers.Close()
	w := &world{t: t, r: r, at: r.Data() + thingsSize}
	if w.th, err = shm.At[things](r, r.Data()); err != nil {
		t.Fatal(err)
	}
	if err := Format(r, w.at); err != nil {
		t.Fatal(err)
	}
	p, err := Open(r, w.at)
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	all, err := shm.At[[torturers]ledger](ledgers, ledgers.Data())
	if err != nil {
		t.Fatal(err)
	}
	var children [torturers]*proc.Process
	var goals [torturers]uint64 // how many operations are to have ended before the next kill
	start := func(i, rounds int) {
		goals[i] = all[i].ended.Load() + 1 + rng.Uint64N(50)
		child, err := torture.Start(t.Context(), tortureArgs{r, ledgers, i, rng.Uint64(), rounds})
		if err != nil {
			t.Fatal(err)
		}
		children[i] = child
	}
	for i := range children {
		start(i, 0)
	}
	n := *kills
	if testing.Short() {
		n = min(n, 100)
	}
	operations := func() (sum uint64) {
		for i := range all {
			sum += all[i].ended.Load()
		}
		return sum
	}
	began := time.Now()
	told, toldKills := began, 0
	for k := 0; k < n; {
		// Each has to get somewhere, or only starting is tortured.
		var victims []int
		for _, i := range rng.Perm(torturers) {
			select {
			case <-children[i].Done():
				t.Fatalf("kill %d: %v", k, children[i].Wait())
			default:
			}
			if all[i].ended.Load() >= goals[i] && len(victims) < n-k && (len(victims) == 0 || rng.IntN(2) == 0) {
				victims = append(victims, i)
			}
		}
		if len(victims) == 0 {
			time.Sleep(200 * time.Microsecond)
			continue
		}
		for _, i := range victims {
			if err := children[i].Kill(); err != nil {
				t.Fatal(err)
			}
		}
		soon := rng.IntN(4) != 0 // else the others find out
		for _, i := range victims {
			var exit *proc.ExitError
			if err := children[i].Wait(); !errors.As(err, &exit) || exit.Code != killedCode {
				t.Fatalf("kill %d: %v", k, err)
			}
			children[i].Close()
			if soon {
				r.Settled(shm.Token(all[i].token.Load()))
			}
			start(i, 0)
			if k++; k%20 == 0 {
				if err := p.Check(); err != nil { // of a live heap
					t.Fatalf("kill %d: %v", k, err)
				}
			}
		}
		if since := time.Since(told); since >= 10*time.Second {
			t.Logf("%d of %d kills, %.0f in a second; %d operations", k, n, float64(k-toldKills)/since.Seconds(), operations())
			told, toldKills = time.Now(), k
		}
	}
	for i := range children {
		children[i].Kill()
		children[i].Wait()
		children[i].Close()
		start(i, 200) // looks at what it finds, and goes on in peace
	}
	for i := range children {
		if err := children[i].Wait(); err != nil {
			t.Errorf("torturer %d: %v", i, err)
		}
		children[i].Close()
	}
	settle(t, r, p)
	if err := p.Check(); err != nil {
		t.Error(err)
	}
	if _, err := w.state(p); err != nil {
		t.Error(err)
	}
	for k := range w.th.pairs {
		least, most := uint64(0), uint64(0)
		for i := range all {
			least += all[i].changes[k].Load()
			most += all[i].doubtful[k].Load()
		}
		if got := w.th.pairs[k].a.Load(); got < least || got > least+most+uint64(n) {
			t.Errorf("pair %d is %d, after %d changes and %d of which nobody knows", k, got, least, most)
		}
	}
	u, err := p.Usage()
	if err != nil {
		t.Fatal(err)
	}
	for name, mu := range w.locks(p) {
		if !mu.TryLock() {
			t.Errorf("lock %q is stuck", name)
			continue
		}
		mu.Unlock()
	}
	t.Logf("%d kills, %.0f in a second; %d operations; %d live blocks, %d KiB used", n, float64(n)/time.Since(began).Seconds(), operations(), u.LiveBlocks, u.Used>>10)
}

// settle waits until every dead process of r has been cleared up after.
func settle(t *testing.T, r *shm.Region, p *Heap) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		r.Scan()
		all, err := r.Attachments()
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("dead processes are not cleared up after: %+v", all)
		}
	}
	u, err := p.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if u.Cached != u.Slots[r.LaneSlot()] {
		t.Errorf("after all others ended: %d bytes in magazines, of which %d are ours: %v", u.Cached, u.Slots[r.LaneSlot()], u.Slots)
	}
}
