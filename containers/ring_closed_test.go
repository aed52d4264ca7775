package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"
	"weak"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// fileManager makes a Manager on a region in a file, or opens it again; the test closes it.
func fileManager(t *testing.T, path string) *Manager {
	t.Helper()
	r, err := shm.OpenFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		r, err = shm.CreateFile(path, shm.Size(256<<10), shm.Limit(256<<10))
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := NewManager(r)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Everybody who waits in a ring goes on when its region is closed, and each call from then on answers so.
func TestRingOfAClosedRegion(t *testing.T) {
	bothManagers(t, func(t *testing.T, m *Manager) {
		ctx := deadline(t)
		var full, empty [3]SharedRing[int64]
		var puts [3]*RingProducer[int64]
		var gets [3]*RingConsumer[int64]
		for i := range full {
			full[i], empty[i] = ringForTest[int64](t, m, 2), ringForTest[int64](t, m, 2)
			puts[i], gets[i] = Must(full[i].Producer(ctx)), Must(empty[i].Consumer(ctx))
			Must(puts[i].PutN(ctx, 1, 2))
		}
		waits := map[string]func() error{
			"Put":  func() error { return puts[0].Put(ctx, 3) },
			"PutN": func() error { _, err := puts[1].PutN(ctx, 3, 4); return err },
			"Get":  func() error { _, err := gets[0].Get(ctx); return err },
			"GetN": func() error { _, err := gets[1].GetN(ctx, make([]int64, 2)); return err },
			"All": func() (err error) {
				for _, err = range gets[2].All(ctx) {
				}
				return err
			},
			"Producer": func() error { _, err := full[2].Producer(ctx); return err },
			"Consumer": func() error { _, err := empty[2].Consumer(ctx); return err },
		}
		answers := make(chan error)
		for name, wait := range waits {
			go func() {
				err := wait()
				if !errors.Is(err, shm.ErrClosed) {
					err = fmt.Errorf("%s that waited: %w", name, err)
					t.Error(err)
				}
				answers <- err
			}()
		}
		for _, e := range []*ringEnd{puts[0].e, puts[1].e, gets[0].e, gets[1].e, gets[2].e} {
			until(t, "it sleeps", func() bool { return !e.news.IsSet() })
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		for range waits {
			<-answers
		}
		h, p, c := full[0], puts[0], gets[0]
		wantErrors(t, shm.ErrClosed, waits)
		wantErrors(t, shm.ErrClosed, map[string]func() error{
			"Close":     h.Close,
			"Check":     h.Check,
			"Destroy":   h.Destroy,
			"Len":       func() error { h.Len(); return nil },
			"Cap":       func() error { h.Cap(); return nil },
			"Closed":    func() error { h.Closed(); return nil },
			"encoding":  func() error { _, err := h.MarshalBinary(); return err },
			"TryPut":    func() error { _, err := p.TryPut(3); return err },
			"TryGet":    func() error { _, _, err := c.TryGet(); return err },
			"PutN of 0": func() error { _, err := p.PutN(ctx); return err },
			"GetN of 0": func() error { _, err := c.GetN(ctx, nil); return err },
		})
		// There is nothing to release; it is as good as done.
		for i := range puts {
			wantErrors(t, shm.ErrClosed, map[string]func() error{"Release by a producer": puts[i].Release, "Release by a consumer": gets[i].Release})
		}
		if err := errors.Join(p.Release(), c.Release()); err != nil {
			t.Errorf("released again: %v", err)
		}
		wantErrors(t, fs.ErrClosed, map[string]func() error{
			"Put after Release": func() error { return p.Put(ctx, 3) },
			"Get after Release": func() error { _, err := c.Get(ctx); return err },
		})
	})
}

// The region is closed before each store of a call: the call has happened, or its error says that the region is closed; the ends are
// free when it is opened again, and the messages there.
func TestRingWhoseRegionIsClosedBeforeAnyStore(t *testing.T) {
	ctx := deadline(t)
	for what, op := range map[string]func(h SharedRing[int64], p *RingProducer[int64], c *RingConsumer[int64]) (got, put []int64, err error){
		"take": func(h SharedRing[int64], p *RingProducer[int64], _ *RingConsumer[int64]) (_, _ []int64, err error) {
			if err = p.Release(); err == nil {
				_, err = h.Producer(ctx)
			}
			return nil, nil, err
		},
		"release": func(_ SharedRing[int64], p *RingProducer[int64], _ *RingConsumer[int64]) (_, _ []int64, err error) {
			return nil, nil, p.Release()
		},
		"put": func(_ SharedRing[int64], p *RingProducer[int64], _ *RingConsumer[int64]) (_, _ []int64, err error) {
			return nil, []int64{4}, p.Put(ctx, 4)
		},
		"put many": func(_ SharedRing[int64], p *RingProducer[int64], _ *RingConsumer[int64]) (_, _ []int64, err error) {
			n, err := p.PutN(ctx, 4, 5, 6)
			if n != 3 && err == nil {
				err = fmt.Errorf("put %d", n)
			}
			return nil, []int64{4, 5, 6}, err
		},
		"get": func(_ SharedRing[int64], _ *RingProducer[int64], c *RingConsumer[int64]) (_, _ []int64, err error) {
			v, err := c.Get(ctx)
			return []int64{v}, nil, err
		},
		"get many": func(_ SharedRing[int64], _ *RingProducer[int64], c *RingConsumer[int64]) (_, _ []int64, err error) {
			vs := make([]int64, 9)
			n, err := c.GetN(ctx, vs)
			return vs[:n], nil, err
		},
		"wait": func(_ SharedRing[int64], p *RingProducer[int64], c *RingConsumer[int64]) (got, _ []int64, err error) {
			for range 4 { // one more than there are
				if err == nil {
					var v int64
					v, err = c.Get(ctx)
					got = append(got, v)
				}
			}
			return got[:min(len(got), 3)], nil, err
		},
	} {
		for k, closed := 0, true; closed; k++ {
			path := filepath.Join(t.TempDir(), "region")
			m := fileManager(t, path)
			h := Must(NewSharedRing[int64](m, 8, Name("ring")))
			p, c := Must(h.Producer(ctx)), Must(h.Consumer(ctx))
			Must(p.PutN(ctx, 1, 2, 3))
			n := 0
			closed = false
			closing := func(unsafe.Pointer, uintptr) {
				if n++; n > k {
					txn.OnStore = nil
					closed = true
					m.Close()
				}
			}
			if what == "wait" && k == 4 { // it sleeps
				time.AfterFunc(time.Millisecond, func() { m.Close() })
			}
			txn.OnStore = closing
			got, put, err := op(h, p, c)
			txn.OnStore = nil
			if err != nil && !errors.Is(err, shm.ErrClosed) || err == nil && closed && k == 0 {
				t.Errorf("%s with the region closed before store %d: %v", what, k, err)
			}
			if err == nil && !slices.Equal(got, []int64{1, 2, 3}[:len(got)]) {
				t.Errorf("%s with the region closed before store %d: got %v", what, k, got)
			}
			m.Close()

			m = fileManager(t, path)
			h = Must(Find[SharedRing[int64]](m, "ring"))
			h.mu.TryLock() // a lock that is held when the region is closed stays so
			h.mu.Unlock()
			if err := h.Check(); err != nil {
				t.Errorf("%s with the region closed before store %d: %v", what, k, err)
			}
			again, from := Must(h.Producer(ctx)), Must(h.Consumer(ctx))
			want := append([]int64{1, 2, 3}, put...)
			left := make([]int64, 9)
			left = left[:h.Len()]
			if len(left) > 0 {
				Must(from.GetN(ctx, left))
			}
			switch {
			case err == nil && !slices.Equal(left, want[len(got):]), // it has happened
				len(left) > len(want) || !slices.Equal(left, want[:len(left)]) && !slices.Equal(left, want[len(want)-len(left):]):
				t.Errorf("%s with the region closed before store %d, %v: %v are left", what, k, err, left)
			}
			if err := errors.Join(again.Release(), from.Release(), h.Destroy(), m.Close()); err != nil {
				t.Errorf("%s with the region closed before store %d: %v", what, k, err)
			}
			if !closed && k == 0 {
				t.Errorf("%s stores nothing: the test shows nothing", what)
			}
		}
	}
}

// Both ends are at work when the region is closed: what was got until then is what was put.
func TestRingWhoseRegionIsClosedWhileBothEndsWork(t *testing.T) {
	for round := range 20 {
		m := newManager(t, shm.Size(256<<10), shm.Limit(256<<10))
		p, c := endsOf(t, ringForTest[int64](t, m, 1+round%4))
		failed, far := make(chan error), make(chan bool)
		go func() {
			var err error
			for v := int64(1); err == nil; v++ {
				err = p.Put(context.Background(), v)
			}
			failed <- err
		}()
		go func() {
			for want := int64(1); ; want++ {
				v, err := c.Get(context.Background())
				if err != nil {
					failed <- err
					return
				}
				if v != want {
					t.Errorf("got %d, want %d", v, want)
				}
				if want == 100 {
					close(far)
				}
			}
		}()
		<-far
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := <-failed; !errors.Is(err, shm.ErrClosed) {
				t.Error(err)
			}
		}
	}
}

// A region that is closed with its ends taken leaves nothing in the process.
func TestClosedRegionLeavesNothingOfItsEnds(t *testing.T) {
	m := briefManager(t)
	h := Must(NewSharedRing[int64](m, 4))
	Must(h.Producer(t.Context()))
	Must(h.Consumer(t.Context()))
	space := weak.Make(m.s)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m, h = nil, SharedRing[int64]{}
	until(t, "its memory is given back", func() bool {
		runtime.GC()
		return space.Value() == nil
	})
}
