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

// peer is malloc and free as the C library has them: arguments are which load, and how many pairs. It prints ns for each pair.
const peer = `
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
static unsigned long long s = 88172645463325252ULL;
static unsigned r(void) { s ^= s << 13; s ^= s >> 7; s ^= s << 17; return s >> 32; }
int main(int argc, char **argv) {
	int mixed = argv[1][0] == 'm';
	long n = atol(argv[2]);
	static void *live[10000];
	static unsigned short sizes[65536], at[65536];
	for (int i = 0; i < 65536; i++) { sizes[i] = 16 + r() % 1009; at[i] = r() % 10000; }
	for (int i = 0; i < 10000; i++) live[i] = malloc(sizes[i]);
	struct timespec a, b;
	clock_gettime(CLOCK_MONOTONIC, &a);
	for (long i = 0; i < n; i++) {
		if (mixed) {
			void **p = &live[at[i & 65535]];
			free(*p);
			*p = malloc(sizes[i & 65535]);
			__asm__ volatile("" : : "r"(*p) : "memory");
		} else {
			void *p = malloc(64);
			__asm__ volatile("" : : "r"(p) : "memory");
			free(p);
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &b);
	printf("%f\n", ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / n);
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
	sizes []uint64
	at    []int
	n     int
}

func newMixture(p *Heap) (*mixture, error) {
	m := &mixture{make([]shm.Offset, 10_000), make([]uint64, 1<<16), make([]int, 1<<16), 0}
	s := uint64(88172645463325252)
	r := func() uint64 { s ^= s << 13; s ^= s >> 7; s ^= s << 17; return s >> 32 }
	for i := range m.sizes {
		m.sizes[i], m.at[i] = 16+r()%1009, int(r()%10_000)
	}
	for i := range m.live {
		var err error
		if m.live[i], err = p.Alloc(m.sizes[i]); err != nil {
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
		off, err := p.Alloc(m.sizes[i])
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

// What does an allocation with its free cost, beside the C library? ns-best is the best of the rounds, as is x-best, by that of the peer.
// overhead is what the pages in use have more than what was asked for. A round is 200,000 pairs: -benchtime 21x.
func BenchmarkBesideMalloc(b *testing.B) {
	for _, load := range []string{"64", "mixed"} {
		b.Run("load="+load, func(b *testing.B) {
			const n = 200_000
			c := compilePeer(b)
			p := benchHeap(b)
			m, err := newMixture(p)
			if err != nil {
				b.Fatal(err)
			}
			var ours, theirs []float64
			for b.Loop() {
				began := time.Now()
				if load == "64" {
					err = pairs(p, n)
				} else {
					err = m.pairs(p, n)
				}
				if err != nil {
					b.Fatal(err)
				}
				ours = append(ours, float64(time.Since(began))/n)
				if c == "" {
					continue
				}
				out, err := exec.Command(c, load, strconv.Itoa(n)).Output()
				if err != nil {
					b.Fatal(err)
				}
				ns, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
				if err != nil {
					b.Fatal(err)
				}
				theirs = append(theirs, ns)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(ours), "ns-pair")
			b.ReportMetric(slices.Min(ours), "ns-best")
			if len(theirs) > 0 {
				b.ReportMetric(median(theirs), "ns-malloc")
				b.ReportMetric(median(ours)/median(theirs), "x-malloc")
				b.ReportMetric(slices.Min(ours)/slices.Min(theirs), "x-best")
			}
			if load == "mixed" {
				u, err := p.Usage()
				if err != nil {
					b.Fatal(err)
				}
				asked := uint64(0)
				for i, k := range m.owners() {
					if k >= 0 {
						asked += m.sizes[k]
					} else {
						asked += m.sizes[i]
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
	ready, gate, stop atomic.Uint64
	_                 [104]byte
	done              [4]struct {
		n atomic.Uint64
		_ [120]byte
	}
}

type runArgs struct {
	Region, Course *shm.Region
	Number         int
	Loop           bool // independent loops in place of the heap
}

var sink atomic.Uint64

var runner = proc.Define("heap runner", func(_ context.Context, a runArgs) error {
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
	c.ready.Add(1)
	for c.gate.Load() == 0 {
		runtime.Gosched()
	}
	n, s := uint64(0), uint64(1)
	for c.stop.Load() == 0 {
		if a.Loop {
			for range 10_000 {
				s = s*6364136223846793005 + 1
			}
		} else if err := pairs(p, 200); err != nil {
			return err
		}
		n++
	}
	sink.Store(s)
	c.done[a.Number].n.Store(n)
	return nil
})

// Do two processes that allocate at once get on as two independent loops do? scaling is what two do by what one does; of-loops by that of
// the loops. Medians of rounds that measure all four: -benchtime 11x.
func BenchmarkTwoProcesses(b *testing.B) {
	r, err := shm.Anonymous(shm.Size(4<<20), shm.Limit(64<<20))
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	if err := Format(r, r.Data()+thingsSize); err != nil {
		b.Fatal(err)
	}
	run := func(procs int, loop bool) float64 {
		cr, err := shm.Anonymous(shm.Size(4096), shm.Limit(4096))
		if err != nil {
			b.Fatal(err)
		}
		defer cr.Close()
		c, err := shm.At[course](cr, cr.Data())
		if err != nil {
			b.Fatal(err)
		}
		var all []*proc.Process
		for i := range procs {
			child, err := runner.Start(b.Context(), runArgs{r, cr, i, loop})
			if err != nil {
				b.Fatal(err)
			}
			all = append(all, child)
		}
		for end := time.Now().Add(time.Minute); c.ready.Load() < uint64(procs); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				b.Fatal("the processes do not come to the gate")
			}
		}
		began := time.Now()
		c.gate.Store(1)
		time.Sleep(50 * time.Millisecond)
		c.stop.Store(1)
		took := time.Since(began)
		sum := uint64(0)
		for i, child := range all {
			if err := child.Wait(); err != nil {
				b.Fatal(err)
			}
			child.Close()
			sum += c.done[i].n.Load()
		}
		return float64(sum) / took.Seconds()
	}
	var ours, loops []float64
	for b.Loop() {
		one, two := run(1, false), run(2, false)
		oneLoop, twoLoops := run(1, true), run(2, true)
		ours, loops = append(ours, two/one), append(loops, twoLoops/oneLoop)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(ours), "scaling")
	b.ReportMetric(median(loops), "scaling-loops")
	b.ReportMetric(median(ours)/median(loops), "of-loops")
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
