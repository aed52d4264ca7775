package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// How a region is attached.
const (
	ByName = "Open"     // of a name
	ByFile = "FromFile" // of a descriptor that the process has already
)

// Attaches asks what it costs to attach to a region that exists, for a process that has not had it,
// and to close it, beside the bare system calls on the same file: open, fstat, mmap, munmap, close.
// Every process opens some regions, one after the other, each of them once; the very first one, which
// pays for cold code as well, is told apart. What the collector does later (giving the addresses back)
// and the process' end (giving the slot back) are not in it.
type Attaches struct {
	How    string
	Rounds int
}

// An AttachesResult holds medians.
type AttachesResult struct {
	Open, Close, Both time.Duration
	First             time.Duration // the first open of each process
	Bare              time.Duration // the system calls; 0 where they are not known
}

// attachBatch is how many regions one process opens: each takes about 1 MiB of memory as long as a
// case lasts.
const attachBatch = 25

type attacher struct {
	How     string
	Paths   []string
	Results *shm.Region
}

// Attached is what a process found, in shared memory: ns.
type attached [attachBatch]struct{ open, close, bare int64 }

var attach = proc.Define("bench: attach regions", func(_ context.Context, a attacher) (err error) {
	t, err := shm.At[attached](a.Results, a.Results.Data())
	if err != nil {
		return err
	}
	for i, path := range a.Paths {
		var f *os.File
		if a.How == ByFile {
			if f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
				return err
			}
		}
		begin := time.Now()
		var r *shm.Region
		if a.How == ByFile {
			r, err = shm.FromFile(f)
		} else {
			r, err = shm.OpenFile(path)
		}
		opened := time.Now()
		if err != nil {
			return err
		}
		if err := r.Close(); err != nil {
			return err
		}
		closed := time.Now()
		t[i].open, t[i].close = int64(opened.Sub(begin)), int64(closed.Sub(opened))
		if f != nil {
			if err := f.Close(); err != nil {
				return err
			}
		}
		bare, err := bareAttach(path)
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
		t[i].bare = int64(bare)
	}
	return nil
})

// Run runs the case.
func (c Attaches) Run(ctx context.Context) (_ *AttachesResult, err error) {
	if c.Rounds < 1 || c.How != ByName && c.How != ByFile {
		return nil, fmt.Errorf("bench: %d rounds of %q: nothing to do", c.Rounds, c.How)
	}
	results, t, err := newShared[attached](1 << 16)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, results.Close()) }()
	var open, shut, both, first, bare []time.Duration
	for len(open) < c.Rounds {
		batch := min(attachBatch, c.Rounds-len(open))
		if err := c.batch(ctx, results, batch); err != nil {
			return nil, err
		}
		for i, a := range t[:batch] {
			open = append(open, time.Duration(a.open))
			shut = append(shut, time.Duration(a.close))
			both = append(both, time.Duration(a.open+a.close))
			bare = append(bare, time.Duration(a.bare))
			if i == 0 {
				first = append(first, time.Duration(a.open))
			}
		}
	}
	return &AttachesResult{median(open), median(shut), median(both), median(first), median(bare)}, nil
}

// batch makes n regions and lets one process attach them.
func (c Attaches) batch(ctx context.Context, results *shm.Region, n int) (err error) {
	a := attacher{How: c.How, Results: results}
	for i := range n {
		name := fmt.Sprintf("bench-attach-%d-%d", os.Getpid(), i)
		r, err := shm.Create(name, shm.Size(4096), shm.Limit(1<<20))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, shm.Remove(name), r.Close()) }()
		a.Paths = append(a.Paths, r.Path())
	}
	return attach.Run(ctx, a)
}
