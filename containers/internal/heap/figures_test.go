package heap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// Figures beside peers: each round measures both, one after the other, so that what else the machine does meets both. They are here and
// not in bench, which cannot import an internal package.

// peer is malloc and free as the C library has them: arguments are which load, and how many pairs in each of how many rounds. It prints
// ns of processor time for each pair of each round. A load with z takes blocks by calloc, since ours are zero too.
const peer = `
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
static unsigned long long s = 88172645463325252ULL;
static unsigned r(void) { s ^= s << 13; s ^= s >> 7; s ^= s << 17; return s >> 32; }
static double now(void) { struct timespec t; clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); return t.tv_sec * 1e9 + t.tv_nsec; }
int main(int argc, char **argv) {
	int mixed = argv[1][0] == 'm', zero = strchr(argv[1], 'z') != 0;
	long n = atol(argv[2]), k = 0;
	static void *live[10000];
	static unsigned short sizes[65536], at[65536];
	for (int i = 0; i < 65536; i++) { sizes[i] = 16 + r() % 1009; at[i] = r() % 10000; }
	for (int i = 0; i < 10000; i++) live[i] = malloc(sizes[i]);
	for (int round = atoi(argv[3]); round > 0; round--) {
		double began = now();
		for (long i = 0; i < n; i++, k++) {
			if (mixed) {
				void **p = &live[at[k & 65535]];
				size_t size = sizes[k & 65535];
				free(*p);
				*p = zero ? calloc(1, size) : malloc(size);
				__asm__ volatile("" : : "r"(*p) : "memory");
			} else {
				void *p = zero ? calloc(1, 64) : malloc(64);
				__asm__ volatile("" : : "r"(p) : "memory");
				free(p);
			}
		}
		printf("%f\n", (now() - began) / n);
	}
}`

func compilePeer(b *testing.B) (path string) {
	b.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		return ""
	}
	dir := b.TempDir()
	source := filepath.Join(dir, "peer.c")
	if err := os.WriteFile(source, []byte(peer), 0o600); err != nil {
		b.Fatal(err)
	}
	path = filepath.Join(dir, "peer")
	if out, err := exec.Command(cc, "-O2", "-o", path, source).CombinedOutput(); err != nil {
		b.Logf("cc: %v\n%s", err, out)
		return ""
	}
	return path
}

func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

// mixture is a load of blocks of 16 to 1024 bytes, of which 10,000 are live.
type mixture struct {
	live  []shm.Offset
	sizes []uint16 // as few bytes as the peer's: what the load reads of its own counts too
	at    []uint16
	n     int
}

func newMixture(p *Heap) (*mixture, error) {
	m := &mixture{make([]shm.Offset, 10_000), make([]uint16, 1<<16), make([]uint16, 1<<16), 0}
	s := uint64(88172645463325252)
	r := func() uint64 { s ^= s << 13; s ^= s >> 7; s ^= s << 17; return s >> 32 }
	for i := range m.sizes {
		m.sizes[i], m.at[i] = uint16(16+r()%1009), uint16(r()%10_000)
	}
	for i := range m.live {
		var err error
		if m.live[i], err = p.Alloc(uint64(m.sizes[i])); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *mixture) pairs(p *Heap, n int) error {
	for range n {
		m.n++
		i := m.n & (1<<16 - 1)
		at := &m.live[m.at[i]]
		if err := p.Free(*at); err != nil {
			return err
		}
		off, err := p.Alloc(uint64(m.sizes[i]))
		if err != nil {
			return err
		}
		*at = off
	}
	return nil
}

func pairs(p *Heap, n int) error {
	for range n {
		off, err := p.Alloc(64)
		if err == nil {
			err = p.Free(off)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// runPeer returns what each of a peer's rounds took.
func runPeer(b *testing.B, path, load string, n, rounds int) (ns []float64) {
	b.Helper()
	out, err := exec.Command(path, load, strconv.Itoa(n), strconv.Itoa(rounds)).Output()
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		one, err := strconv.ParseFloat(strings.TrimSpace(line), 64)
		if err != nil {
			b.Fatal(err)
		}
		ns = append(ns, one)
	}
	return ns
}

// What does an allocation with its free cost, beside the C library? All is processor time, so that who else uses the machine counts only by
// what that does to the caches. Each b.Loop is ten rounds of 20,000 pairs of ours, of malloc's, and of calloc's, which clears its blocks as
// we do, after one of each to warm up: -benchtime 21x. ns-pair is the median of the rounds, ns-best the best one; x- is by that of a peer.
// overhead is what the pages in use have more than what was asked for.
func BenchmarkBesideMalloc(b *testing.B) {
	for _, load := range []string{"64", "mixed"} {
		b.Run("load="+load, func(b *testing.B) {
			const n, rounds = 20_000, 11
			c := compilePeer(b)
			p := benchHeap(b)
			m, err := newMixture(p)
			if err != nil {
				b.Fatal(err)
			}
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var ours, plain, zeroed []float64
			for b.Loop() {
				for k := range rounds {
					began := cpuTime()
					if load == "64" {
						err = pairs(p, n)
					} else {
						err = m.pairs(p, n)
					}
					if err != nil {
						b.Fatal(err)
					}
					if k > 0 {
						ours = append(ours, float64(cpuTime()-began)/n)
					}
				}
				if c != "" {
					plain = append(plain, runPeer(b, c, load, n, rounds)[1:]...)
					zeroed = append(zeroed, runPeer(b, c, load+"z", n, rounds)[1:]...)
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(ours), "ns-pair")
			b.ReportMetric(slices.Min(ours), "ns-best")
			if c != "" {
				b.ReportMetric(median(plain), "ns-malloc")
				b.ReportMetric(median(zeroed), "ns-calloc")
				b.ReportMetric(median(ours)/median(plain), "x-malloc")
				b.ReportMetric(slices.Min(ours)/slices.Min(plain), "x-best-malloc")
				b.ReportMetric(slices.Min(ours)/slices.Min(zeroed), "x-best-calloc")
			}
			if load == "mixed" {
				u, err := p.Usage()
				if err != nil {
					b.Fatal(err)
				}
				asked := uint64(0)
				for i, k := range m.owners() {
					if k >= 0 {
						asked += uint64(m.sizes[k])
					} else {
						asked += uint64(m.sizes[i])
					}
				}
				b.ReportMetric(100*float64(u.Used)/float64(asked)-100, "%overhead")
			}
		})
	}
}

// owners returns which step allocated each live block last, or -1 if that was the first one.
func (m *mixture) owners() []int {
	last := make([]int, len(m.live))
	for i := range last {
		last[i] = -1
	}
	for k := max(1, m.n-1<<16+1); k <= m.n; k++ {
		i := k & (1<<16 - 1)
		last[m.at[i]] = i
	}
	return last
}

// A course is what processes share that run side by side.
type course struct {
	lap  atomic.Uint64 // what is to be done now: a number, counted up, * lapKinds + kind
	_    [120]byte
	done [2]runnerLine
}

type runnerLine struct {
	lap   atomic.Uint64 // that this runner has begun
	n     atomic.Uint64 // how often it went round in the last one that was no rest
	ns    atomic.Uint64 // how long that took
	cpuNs atomic.Uint64
	_     [96]byte
}

// What there is to do in a lap.
const (
	lapRest = iota
	lapHeap
	lapHeapAlone // number 0 only
	lapLoop      // independent loops in place of the heap
	lapLoopAlone
	lapOver
	lapKinds
)

type runArgs struct {
	Region, Course *shm.Region
	Number         int
}

var sink atomic.Uint64

var runner = proc.Define("heap runner", func(_ context.Context, a runArgs) error {
	runtime.LockOSThread()
	c, err := shm.At[course](a.Course, a.Course.Data())
	if err != nil {
		return err
	}
	p, err := Open(a.Region, a.Region.Data()+thingsSize)
	if err == nil {
		err = pairs(p, 1000)
	}
	if err != nil {
		return err
	}
	me := &c.done[a.Number]
	for {
		lap := c.lap.Load()
		if lap == me.lap.Load() {
			time.Sleep(50 * time.Microsecond)
			continue
		}
		me.lap.Store(lap)
		kind := lap % lapKinds
		switch {
		case kind == lapOver:
			return nil
		case kind == lapRest || a.Number != 0 && (kind == lapHeapAlone || kind == lapLoopAlone):
			continue
		}
		n, s := uint64(0), uint64(1)
		began, cpu := time.Now(), cpuTime()
		for ; c.lap.Load() == lap; n++ {
			if kind == lapLoop || kind == lapLoopAlone {
				for range 2_000 {
					s = s*6364136223846793005 + 1
				}
			} else if err := pairs(p, 50); err != nil {
				return err
			}
		}
		me.ns.Store(uint64(time.Since(began)))
		me.cpuNs.Store(uint64(cpuTime() - cpu))
		me.n.Store(n)
		sink.Store(s)
	}
})

// Do two processes that allocate at once get on as two independent loops do? The same two go through many short laps: one alone with the
// heap, both, one alone with a loop, both; so what else the machine does meets all four alike. scaling is what two do by what one does;
// of-loops by that of the loops, and cpu-of-loops the same by processor time, which is what sharing a line would cost and waiting
// for a processor does not. Medians: -benchtime 100x.
func BenchmarkTwoProcesses(b *testing.B) {
	r, err := shm.Anonymous(shm.Size(4<<20), shm.Limit(64<<20))
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	if err := Format(r, r.Data()+thingsSize); err != nil {
		b.Fatal(err)
	}
	cr, err := shm.Anonymous(shm.Size(4096), shm.Limit(4096))
	if err != nil {
		b.Fatal(err)
	}
	defer cr.Close()
	c, err := shm.At[course](cr, cr.Data())
	if err != nil {
		b.Fatal(err)
	}
	var all [len(c.done)]*proc.Process
	for i := range all {
		if all[i], err = runner.Start(b.Context(), runArgs{r, cr, i}); err != nil {
			b.Fatal(err)
		}
		defer all[i].Close()
	}
	lap := uint64(0)
	to := func(kind uint64) { // a lap of that kind, when all have begun it
		lap += lapKinds
		c.lap.Store(lap + kind)
		for i := range c.done {
			for end := time.Now().Add(time.Minute); c.done[i].lap.Load() != lap+kind; time.Sleep(50 * time.Microsecond) {
				if time.Now().After(end) {
					b.Fatalf("runner %d does not begin lap %d", i, lap/lapKinds)
				}
			}
		}
	}
	run := func(kind uint64, procs int) (wall, cpu float64) { // rounds in a ns
		to(kind)
		time.Sleep(5 * time.Millisecond)
		to(lapRest)
		for i := range procs {
			d := &c.done[i]
			wall += float64(d.n.Load()) / float64(d.ns.Load())
			cpu += float64(d.n.Load()) / float64(d.cpuNs.Load())
		}
		return wall, cpu
	}
	var ours, loops, by, byCPU []float64
	for b.Loop() {
		var wall, cpu [4]float64
		wall[0], cpu[0] = run(lapHeapAlone, 1)
		wall[1], cpu[1] = run(lapHeap, 2)
		wall[2], cpu[2] = run(lapLoopAlone, 1)
		wall[3], cpu[3] = run(lapLoop, 2)
		ours, loops = append(ours, wall[1]/wall[0]), append(loops, wall[3]/wall[2])
		by, byCPU = append(by, wall[1]/wall[0]/(wall[3]/wall[2])), append(byCPU, cpu[1]/cpu[0]/(cpu[3]/cpu[2]))
	}
	to(lapOver)
	for i := range all {
		if err := all[i].Wait(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(ours), "scaling")
	b.ReportMetric(median(loops), "scaling-loops")
	b.ReportMetric(median(by), "of-loops")
	b.ReportMetric(median(byCPU), "cpu-of-loops")
}

// How long does a survivor work, once a process is known to be dead, until its open operations are undone, and its locks may be taken; and
// until all is given back that it kept?
func BenchmarkRecovery(b *testing.B) {
	for _, n := range []int{1, txn.MaxLanes} {
		b.Run(fmt.Sprintf("lanes=%d", n), func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(txn.MaxLanes / 4)) // as many lanes as there can be
			w := newWorld(b, 4<<20, 4<<20)
			p := w.process(survivor)
			off, err := p.Alloc(64)
			if err != nil {
				b.Fatal(err)
			}
			var undo, drain []float64
			for b.Loop() {
				dead := w.process(deadSlot)
				for i := range n {
					l, err := dead.Enter()
					if err != nil {
						b.Fatal(err)
					}
					for k := range 4 {
						if err := l.Set(&w.th.table[i], uint64(k+1)); err != nil {
							b.Fatal(err)
						}
					}
					if _, err := dead.AllocIn(l, 64, 64); err != nil {
						b.Fatal(err)
					}
				}
				began := time.Now()
				if err := txn.Undo(w.r, deadSlot, p); err != nil {
					b.Fatal(err)
				}
				undone := time.Now()
				if err := txn.Drain(w.r, deadSlot, p, p.lanes); err != nil {
					b.Fatal(err)
				}
				drained := time.Now()
				undo, drain = append(undo, float64(undone.Sub(began))), append(drain, float64(drained.Sub(undone)))
				for i := range w.th.table {
					if w.th.table[i].Load() != 0 {
						b.Fatal("a word was not undone")
					}
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(undo)/1e3, "µs-undone")
			b.ReportMetric(median(drain)/1e3, "µs-drained")
			if err := errors.Join(p.Free(off), p.Check()); err != nil {
				b.Error(err)
			}
		})
	}
}
