package bench

import (
	"context"
	"time"
)

// alone measures calls of one goroutine of this process that nobody disturbs. open makes what they need and
// returns a function that makes n of them, and one that gives up what open made. Where the calls use
// something up, fresh is called between batches, and is not measured.
func alone(open func() (_ batch, err error)) func(context.Context, time.Duration) (*Sample, error) {
	return func(ctx context.Context, window time.Duration) (_ *Sample, err error) {
		b, err := open()
		if err != nil {
			return nil, err
		}
		if b.close != nil {
			defer func() {
				if e := b.close(); err == nil {
					err = e
				}
			}()
		}
		most := b.most
		if most == 0 {
			most = 1 << 30
		}
		s := new(Sample)
		for n, begun := 1, time.Now(); time.Since(begun) < window; {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if b.fresh != nil {
				if err := b.fresh(); err != nil {
					return nil, err
				}
			}
			before, begin := used(), time.Now()
			if err := b.calls(n); err != nil {
				return nil, err
			}
			d := time.Since(begin)
			cpu, switches := used().since(before)
			switch grown := min(most, 4*n); {
			case d < window/20 && grown > n: // too few to tell: they warm up what the others find warm
				n = grown
				continue
			case cpu < 0 || s.CPU < 0:
				s.CPU, s.Switches = -1, -1
			default:
				s.CPU, s.Switches = s.CPU+cpu, s.Switches+switches
			}
			s.Ops += int64(n) * max(b.each, 1)
			s.Elapsed += d
		}
		if s.Ops == 0 { // one call is longer than the window: it has been made, and is made once more
			begin := time.Now()
			if err := b.calls(1); err != nil {
				return nil, err
			}
			s.Ops, s.Elapsed, s.CPU, s.Switches = max(b.each, 1), time.Since(begin), -1, -1
		}
		s.Bytes = b.bytes
		return s, nil
	}
}

// A batch is what alone measures.
type batch struct {
	calls func(n int) error
	fresh func() error // before each batch; may be nil
	close func() error // may be nil
	most  int          // calls in a batch; 0: any number
	each  int64        // operations of a call; 0: one
	bytes int64        // that one operation moves
}

// inRegion gives a batch a T in a region of its own.
func inRegion[T any](calls func(t *T, n int) error) func() (batch, error) {
	return func() (batch, error) {
		r, t, err := newShared[T](1 << 16)
		if err != nil {
			return batch{}, err
		}
		return batch{calls: func(n int) error { return calls(t, n) }, close: r.Close}, nil
	}
}

// inWindow says how far counts went in a window, which begins when a tenth of it has passed: caches and
// schedulers have come to what they do.
func inWindow(ctx context.Context, window time.Duration, counts func() []int64) (elapsed time.Duration, shares []int64, err error) {
	var before []int64
	for _, d := range []time.Duration{window / 10, window} {
		begin := time.Now()
		select {
		case <-ctx.Done():
			return 0, nil, context.Cause(ctx)
		case <-time.After(d):
		}
		before, shares = shares, counts()
		elapsed = time.Since(begin)
	}
	for i := range shares {
		shares[i] -= before[i]
	}
	return elapsed, shares, nil
}

// counted measures what is told how often to do something. It begins with least times, and finds out how
// many fit into a window; that many are done in later rounds too.
func counted(least, most int64, run func(ctx context.Context, n int64) (*Sample, error)) func(context.Context, time.Duration) (*Sample, error) {
	n, fit := least, time.Duration(0)
	return func(ctx context.Context, window time.Duration) (*Sample, error) {
		if fit != window {
			n, fit = least, window
		}
		for {
			begin := time.Now()
			s, err := run(ctx, n)
			d := max(time.Since(begin), 1)
			if err != nil || d >= window/2 || n >= most {
				return s, err
			}
			// The start of processes is in d as well: go on until half of the window is filled.
			n = min(most, max(2*n, min(int64(float64(n)*float64(window)/float64(d)), 20*n)))
		}
	}
}
