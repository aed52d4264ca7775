package containers

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

// unharmed fails the test if calls, which are refused as want says, change anything: what look sees, or the memory in use.
func unharmed(t *testing.T, m *Manager, want error, look func() []string, calls map[string]func() error) {
	t.Helper()
	before, blocks := look(), liveBlocks(t, m)
	for what, call := range calls {
		wantErrors(t, want, map[string]func() error{what: call})
		if now := look(); !slices.Equal(now, before) {
			t.Fatalf("%s has changed something: %d values, before %d", what, len(now), len(before))
		}
		if now := liveBlocks(t, m); now != blocks {
			t.Errorf("%s: %d blocks are in use, before %d", what, now, blocks)
		}
		nothingLost(t, m)
	}
}

// A string that is greater than the region is refused wherever one can be put, and nothing changes.
func TestStringsGreaterThanTheRegionAreRefused(t *testing.T) {
	m := newManager(t, shm.Size(256<<10), shm.Limit(256<<10))
	ctx := t.Context()
	huge := strings.Repeat("x", 1<<20)
	long := strings.Repeat("long ", 10)
	l, h, q := Must(NewSharedList[string](m)), Must(NewSharedMap[string, string](m)), queueForTest[string](t, m, 4)
	err := errors.Join(l.AppendN(long, "short", long), h.Put(long, long), h.Put("short", "short"), q.Put(ctx, long))
	if err != nil {
		t.Fatal(err)
	}
	look := func() (all []string) {
		all = l.Slice(0, math.MaxInt)
		for _, k := range []string{long, "short"} {
			v, _ := h.Get(k)
			all = append(all, v)
		}
		if h.Len() != 2 || q.Len() != 1 {
			t.Errorf("%d keys, want 2; %d messages, want 1", h.Len(), q.Len())
		}
		return all
	}
	update := func(fn func(tx *Tx) error) func() error {
		return func() error { return m.Update(ctx, fn) }
	}
	unharmed(t, m, shm.ErrNoSpace, look, map[string]func() error{
		"Append":              func() error { return l.Append(huge) },
		"AppendN":             func() error { return l.AppendN("more", huge, long) },
		"Extend":              func() error { return l.Extend(slices.Values([]string{long, huge})) },
		"Insert in front":     func() error { return l.Insert(0, long, huge) },
		"Insert":              func() error { return l.Insert(1, huge, "more") },
		"Set, long":           func() error { return l.Set(0, huge) },
		"Set, short":          func() error { return l.Set(1, huge) },
		"Put, new":            func() error { return h.Put("new", huge) },
		"Put, there":          func() error { return h.Put(long, huge) },
		"Put, key":            func() error { return h.Put(huge, "v") },
		"GetOrPut":            func() error { _, _, err := h.GetOrPut("new", huge); return err },
		"GetOrPut, key":       func() error { _, _, err := h.GetOrPut(huge, ""); return err },
		"Update":              func() error { return h.Update(ctx, "short", func(v *string, _ bool) error { *v = huge; return nil }) },
		"CompareAndSwap":      func() error { _, err := CompareAndSwap(h, "short", "short", huge); return err },
		"queue's Put":         func() error { return q.Put(ctx, huge) },
		"queue's TryPut":      func() error { _, err := q.TryPut(huge); return err },
		"queue's PutN":        func() error { _, err := q.PutN(ctx, huge, "more"); return err },
		"list's transaction":  update(func(tx *Tx) error { l.In(tx).Set(1, "other"); l.In(tx).Append(huge); return nil }),
		"map's transaction":   update(func(tx *Tx) error { h.In(tx).Delete(long); h.In(tx).Put("new", huge); return nil }),
		"queue's transaction": update(func(tx *Tx) error { l.In(tx).Pop(); return q.In(tx).Put(huge) }),
	})
	if v, err := q.Get(ctx); v != long || err != nil {
		t.Errorf("got %q, %v", v, err)
	}
}

// Lengths that no region has, and those with which sums and products overflow, are refused, and nothing changes. Elements of no size are the ones of which a
// slice can have so many.
func TestLengthsThatNoRegionHasAreRefused(t *testing.T) {
	m := newManager(t, shm.Size(256<<10), shm.Limit(256<<10))
	type none = struct{}
	l := Must(NewSharedList[none](m))
	if err := l.AppendN(make([]none, 100)...); err != nil {
		t.Fatal(err)
	}
	a := Must(NewSharedArrayOf(m, []int64{1, 2, 3}))
	look := func() []string {
		if l.Len() != 100 || !slices.Equal(slices.Collect(a.Values()), []int64{1, 2, 3}) {
			t.Errorf("%d elements, want 100; %v", l.Len(), slices.Collect(a.Values()))
		}
		return nil
	}
	try := func(_ any, err error) error { return err }
	Must(NewSharedArray[int64](m, 0)).Destroy() // so that their layouts are stored
	Must(NewSharedQueue[int64](m, 1)).Destroy()
	Must(NewSharedRing[int64](m, 1)).Destroy()
	refused, tooMuch := map[string]func() error{}, map[string]func() error{}
	for name, n := range map[string]int{"MaxInt": math.MaxInt, "most by 8": math.MaxInt / 8, "1<<28": 1 << 28} {
		many := make([]none, n)
		tooMuch["array "+name] = func() error { return try(NewSharedArray[int64](m, n)) }
		tooMuch["AppendN "+name] = func() error { return l.AppendN(many...) }
		tooMuch["Insert in front "+name] = func() error { return l.Insert(0, many...) }
		tooMuch["Insert near the front "+name] = func() error { return l.Insert(10, many...) }
		tooMuch["Insert near the end "+name] = func() error { return l.Insert(-10, many...) }
		tooMuch["Insert at the end "+name] = func() error { return l.Insert(math.MaxInt, many...) }
	}
	for name, n := range map[string]int{"MaxInt": math.MaxInt, "0": 0, "-1": -1, "MinInt": math.MinInt, "MinInt by 8": math.MinInt / 8} {
		if n < 0 {
			refused["array "+name] = func() error { return try(NewSharedArray[int64](m, n)) }
		}
		refused["queue "+name] = func() error { return try(NewSharedQueue[int64](m, n)) }
		refused["ring "+name] = func() error { return try(NewSharedRing[int64](m, n)) }
		refused["Align "+name] = func() error { return try(New[int64](m, Align(n))) }
	}
	unharmed(t, m, shm.ErrNoSpace, look, tooMuch)
	unharmed(t, m, fs.ErrInvalid, look, refused)
	if err := m.Update(context.Background(), func(tx *Tx) error { l.In(tx).Append(none{}); return nil }); err != nil || l.Len() != 101 {
		t.Errorf("%v, %d elements", err, l.Len())
	}
	if text, _ := panics(t, func() { l.Truncate(math.MinInt) }); text == "" || l.Len() != 101 {
		t.Errorf("Truncate of MinInt: %q, %d elements", text, l.Len())
	}
	l.Truncate(math.MaxInt)
	for what, call := range map[string]func(){
		"At": func() { a.At(math.MaxInt) }, "At, negative": func() { a.At(math.MinInt) },
		"Set": func() { a.Set(math.MaxInt, 9) }, "Set, negative": func() { a.Set(math.MinInt, 9) },
		"CopyIn": func() { a.CopyIn(math.MaxInt, []int64{9}) }, "CopyIn, negative": func() { a.CopyIn(math.MinInt, []int64{9}) },
		"CopyOut": func() { a.CopyOut(make([]int64, 1), math.MaxInt) }, "CopyOut, negative": func() { a.CopyOut(make([]int64, 1), math.MinInt) },
	} {
		if text, _ := panics(t, call); !strings.Contains(text, "length 3") {
			t.Errorf("%s: panic %q", what, text)
		}
	}
	if l.Len() != 101 || !slices.Equal(slices.Collect(a.Values()), []int64{1, 2, 3}) {
		t.Errorf("%d elements; %v", l.Len(), slices.Collect(a.Values()))
	}
}
