package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/containers"
	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// Traffic asks how often processes get and put the values of one map between them, keys in no order.
type Traffic struct {
	By     string // Shmkit; or ByGuardedMap or BySyncMap, whose parties are goroutines of one process
	Procs  int    // that get and put
	Keys   int    // of the map, a multiple of Procs; all are there from the beginning
	Writes int    // calls of a hundred that put
	Window time.Duration
}

// Maps that one process has.
const (
	ByGuardedMap = "map+sync.Mutex"
	BySyncMap    = "sync.Map"
)

// A TrafficResult is what came out. CPU and Switches are of Total calls.
type TrafficResult struct {
	Elapsed  time.Duration
	Done     int64
	Shares   []int64
	Total    int64
	Wrote    int64 // of Total
	CPU      time.Duration
	Switches int64
}

// A crossing is where the processes of a Traffic meet.
type crossing struct {
	gate
	stop  atomic.Bool
	_     [124]byte
	lanes [maxTakers]struct {
		count    atomic.Int64 // calls, stored as it goes
		wrote    int64        // stored at the end, as what follows
		cpu      int64
		switches int64
		_        [96]byte
	}
}

// A dict is a map that a Traffic can go through.
type dict interface {
	get(k int64) (int64, bool)
	put(k, v int64) error
}

type sharedDict struct {
	m containers.SharedMap[int64, int64]
}

func (d *sharedDict) get(k int64) (int64, bool) { return d.m.Get(k) }
func (d *sharedDict) put(k, v int64) error      { return d.m.Put(k, v) }

type guardedDict struct {
	mu sync.Mutex
	m  map[int64]int64
}

func (d *guardedDict) get(k int64) (int64, bool) {
	d.mu.Lock()
	v, ok := d.m[k]
	d.mu.Unlock()
	return v, ok
}

func (d *guardedDict) put(k, v int64) error {
	d.mu.Lock()
	d.m[k] = v
	d.mu.Unlock()
	return nil
}

type syncDict struct{ m sync.Map }

func (d *syncDict) get(k int64) (int64, bool) {
	v, ok := d.m.Load(k)
	if !ok {
		return 0, false
	}
	return v.(int64), true
}

func (d *syncDict) put(k, v int64) error { d.m.Store(k, v); return nil }

// value is what the party that owns k has put there the n'th time that it put anything; 0: from the beginning.
func value(k, n int64) int64 { return k<<32 | n&(1<<32-1) }

// fillDict puts all keys.
func fillDict(d dict, keys int) error {
	for k := range int64(keys) {
		if err := d.put(k, value(k, 0)); err != nil {
			return err
		}
	}
	return nil
}

type driver struct {
	Crossing *shm.Region
	Case     Traffic
	Map      containers.SharedMap[int64, int64]
	Parties  []int
}

var drive = proc.Define("bench: get and put", func(_ context.Context, a driver) error {
	x, err := shm.At[crossing](a.Crossing, a.Crossing.Data())
	if err != nil {
		return err
	}
	var d dict = &sharedDict{a.Map}
	switch a.Case.By {
	case ByGuardedMap:
		d = &guardedDict{m: map[int64]int64{}}
	case BySyncMap:
		d = &syncDict{}
	}
	if a.Case.By != Shmkit {
		if err := fillDict(d, a.Case.Keys); err != nil {
			return err
		}
	}
	errs := make([]error, len(a.Parties))
	var wg sync.WaitGroup
	before := used()
	for i, party := range a.Parties {
		wg.Go(func() {
			x.pass(a.Case.Procs)
			errs[i] = a.Case.drive(x, d, party)
		})
	}
	wg.Wait()
	cpu, switches := used().since(before)
	l := &x.lanes[a.Parties[0]]
	l.cpu, l.switches = int64(cpu), switches
	return errors.Join(errs...)
})

// ownKey is where the party puts the n'th time. It comes by all of its keys in turn, far from each other, so that
// it knows at the end, without having kept it, what it has put last at each.
func (c Traffic) ownKey(party int, n int64) int64 {
	own := int64(c.Keys / c.Procs)
	return int64(party) + int64(c.Procs)*(n*48271%own)
}

func (c Traffic) drive(x *crossing, d dict, party int) error {
	l, m := &x.lanes[party], mix{uint32(c.Writes), uint32(party+1) * 2654435761}
	at := uint64(party)
	count, wrote := int64(0), int64(0)
	for count == 0 || !x.stop.Load() { // once even if it comes to run too late
		for range 64 {
			if m.write() {
				wrote++
				k := c.ownKey(party, wrote)
				if err := d.put(k, value(k, wrote)); err != nil {
					return err
				}
				continue
			}
			at = at*6364136223846793005 + 1442695040888963407
			k := int64(at >> 32 * uint64(c.Keys) >> 32)
			if v, ok := d.get(k); !ok || v>>32 != k {
				return fmt.Errorf("bench: a map of %s: key %d has %#x, %t", c.By, k, v, ok)
			}
		}
		count += 64
		l.count.Store(count)
	}
	l.wrote = wrote
	// Nobody else puts at these keys.
	for n := wrote; n > max(0, wrote-int64(c.Keys/c.Procs)); n-- {
		k := c.ownKey(party, n)
		if v, ok := d.get(k); !ok || v != value(k, n) {
			return fmt.Errorf("bench: a map of %s: key %d has %#x, %t, not %#x, which was put last", c.By, k, v, ok, value(k, n))
		}
	}
	return nil
}

// maxKeys is how many keys there can be: a value has 31 bits of its key.
const maxKeys = 1<<31 - 1

// Run runs the case.
func (c Traffic) Run(ctx context.Context) (_ *TrafficResult, err error) {
	if c.Procs < 1 || c.Procs > maxTakers || c.Keys < c.Procs || c.Keys > maxKeys || c.Keys%c.Procs != 0 || c.Writes < 0 || c.Writes > 100 || c.Window <= 0 ||
		c.By != Shmkit && c.By != ByGuardedMap && c.By != BySyncMap {
		return nil, fmt.Errorf("bench: %d processes at %d keys, %d %% of writes, by %s for %v: nothing to do", c.Procs, c.Keys, c.Writes, c.By, c.Window)
	}
	r, x, err := newShared[crossing](1 << 16)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	mr, err := shm.Anonymous(shm.Limit(1 << 30))
	if err != nil {
		return nil, err
	}
	m, err := containers.NewManager(mr)
	if err != nil {
		return nil, errors.Join(err, mr.Close())
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	shared, err := containers.NewSharedMap[int64, int64](m)
	if err != nil {
		return nil, err
	}
	all := []driver{{Crossing: r, Case: c, Map: shared}}
	if c.By == Shmkit {
		if err := fillDict(&sharedDict{shared}, c.Keys); err != nil {
			return nil, err
		}
		all = nil
	}
	for party := range c.Procs {
		if c.By == Shmkit {
			all = append(all, driver{r, c, shared, []int{party}})
		} else {
			all[0].Parties = append(all[0].Parties, party)
		}
	}
	crew, err := hire(ctx, drive, all...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, crew.dismiss()) }()
	if err := crew.until("the gate opened", func() bool { return x.ready.Load() == int64(c.Procs) }); err != nil {
		return nil, err
	}
	x.open.Store(1)
	res := &TrafficResult{}
	res.Elapsed, res.Shares, err = inWindow(ctx, c.Window, func() (counts []int64) {
		for j := range c.Procs {
			counts = append(counts, x.lanes[j].count.Load())
		}
		return counts
	})
	if err != nil {
		return nil, err
	}
	x.stop.Store(true)
	if err := crew.wait(); err != nil {
		return nil, err
	}
	res.Done = total(res.Shares)
	for i := range c.Procs {
		l := &x.lanes[i]
		res.Total, res.Wrote = res.Total+l.count.Load(), res.Wrote+l.wrote
		if l.cpu < 0 || res.CPU < 0 {
			res.CPU, res.Switches = -1, -1
			continue
		}
		res.CPU, res.Switches = res.CPU+time.Duration(l.cpu), res.Switches+l.switches
	}
	return res, nil
}

func (c Traffic) subject(role Role) Subject {
	return Subject{By: c.By, Role: role, Run: func(ctx context.Context, window time.Duration) (*Sample, error) {
		c := c
		c.Window = window
		res, err := c.Run(ctx)
		if err != nil {
			return nil, err
		}
		return &Sample{
			Ops: res.Done, Elapsed: res.Elapsed, Shares: res.Shares, Total: res.Total, CPU: res.CPU, Switches: res.Switches,
		}, nil
	}}
}
