package containers

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"
)

// A brokenMap is a map in a region of its own: an operation that is cut off may take its lane with it, as a kill does.
type brokenMap[K, V comparable] struct {
	SharedMap[K, V]
	m *Manager
}

// A mapEdit is a change of a map that has the keys key(0), key(1), ...: n of them, or, if full is not nil, as many as it takes until it says that the map is as
// the change needs it.
type mapEdit[K, V comparable] struct {
	name string
	n    int
	full func(t table, dir uint64, g segment) bool // no slot is vacant for the next key, in segment g
	do   func(h brokenMap[K, V], key func(i int) K, value func(i int) V) error
	some bool // what it takes out is not known before
}

func anyFull(table, uint64, segment) bool { return true }

// largestFull says that a segment is to be split, and the directory doubles.
func largestFull(t table, dir uint64, g segment) bool {
	return g.log2() == t.largest() && uint64(g.depth()) == dir&dirLog2Mask
}

// smallerFull says that one is to be split of which the directory has two words.
func smallerFull(t table, dir uint64, g segment) bool {
	return g.log2() == t.largest() && uint64(g.depth()) < dir&dirLog2Mask
}

func mapEditsOf[K, V comparable]() []mapEdit[K, V] {
	type (
		broken = brokenMap[K, V]
		keys   = func(i int) K
		values = func(i int) V
	)
	putNext := func(h broken, key keys, value values) error { return h.Put(key(h.Len()), value(7)) }
	replace := func(h broken, key keys, value values) error { return h.Put(key(2), value(102)) }
	take := func(h broken, key keys, value values) error { h.Delete(key(min(h.Len()-1, 1))); return nil }
	empty := func(h broken, key keys, value values) error { h.Clear(); return nil }
	return []mapEdit[K, V]{
		{name: "put the first", do: putNext},
		{name: "put another", n: 5, do: putNext},
		{name: "put where the segment grows", full: anyFull, do: putNext},
		{name: "put where the directory doubles", full: largestFull, do: putNext},
		{name: "put where a segment is split", full: smallerFull, do: putNext},
		{name: "replace", n: 5, do: replace},
		{name: "replace where all slots are in use", full: anyFull, do: replace},
		{name: "replace beside full groups", n: 60, do: replace},
		{name: "delete", n: 5, do: take},
		{name: "delete the last", n: 1, do: take},
		{name: "delete from a full group", full: anyFull, do: take},
		{name: "get or put", n: 5, do: func(h broken, key keys, value values) error {
			_, _, err := h.GetOrPut(key(100), value(1))
			return err
		}},
		{name: "compare and swap", n: 5, do: func(h broken, key keys, value values) error {
			_, err := CompareAndSwap(h.SharedMap, key(4), value(4), value(104))
			return err
		}},
		{name: "update", n: 5, do: func(h broken, key keys, value values) error {
			return h.Update(context.Background(), key(1), func(v *V, ok bool) error { *v = value(101); return nil })
		}},
		{name: "update of a new one", n: 5, do: func(h broken, key keys, value values) error {
			return h.Update(context.Background(), key(50), func(v *V, ok bool) error { *v = value(50); return nil })
		}},
		{name: "pop an item", n: 5, some: true, do: func(h broken, key keys, value values) error { h.PopItem(); return nil }},
		{name: "clear", n: 12, do: empty},
		{name: "clear many segments", full: smallerFull, do: empty},
	}
}

// furnishMap makes the map that e is for.
func furnishMap[K, V comparable](t *testing.T, e mapEdit[K, V], key func(i int) K, value func(i int) V) brokenMap[K, V] {
	m := briefManager(t)
	h := Must(NewSharedMap[K, V](m))
	for i := 0; e.full != nil || i < e.n; i++ {
		k := key(i)
		if e.full != nil && i > 0 {
			t := h.table()
			next := keyOf(t, &k)
			g, _, _, _, err := t.lookup(&next)
			if _, room := g.room(next.hash); err == nil && !room && e.full(t, h.obj.words[mapDir].Load(), g) {
				break
			}
		}
		if err := h.Put(k, value(i)); err != nil {
			t.Fatal(err)
		}
	}
	return brokenMap[K, V]{h, m}
}

// changed returns what e makes of a map that has all of before.
func changed[K, V comparable](t *testing.T, e mapEdit[K, V], before map[K]V, key func(i int) K, value func(i int) V) map[K]V {
	m := briefManager(t)
	defer m.Close()
	h := brokenMap[K, V]{Must(NewSharedMap[K, V](m)), m}
	for k, v := range before {
		if err := h.Put(k, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.do(h, key, value); err != nil {
		t.Fatal(err)
	}
	return maps.Collect(h.All())
}

// mapCutEverywhere cuts do off before each of its stores, and at some store of the repair that follows, or at each of them: the map is as before or as
// after, at once for those who read without the lock, it stays so, and no memory is lost.
func mapCutEverywhere[K, V comparable](t *testing.T, e mapEdit[K, V], key func(i int) K, value func(i int) V) {
	t.Helper()
	r := random(t)
	look := func(h brokenMap[K, V]) map[K]V {
		all := maps.Collect(h.All())
		for k, want := range all { // in the other way of reading
			if v, ok := h.Get(k); !ok || v != want {
				t.Fatalf("key %v has %v, %v, and All says %v", k, v, ok, want)
			}
		}
		return all
	}
	end := func(h brokenMap[K, V]) {
		if err := h.Check(); err != nil {
			t.Fatal(err)
		}
		nothingLost(t, h.m)
		if err := h.m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	h := furnishMap(t, e, key, value)
	before := look(h)
	if err := e.do(h, key, value); err != nil {
		t.Fatal(err)
	}
	after := look(h)
	end(h)
	if maps.Equal(before, after) {
		t.Fatal("it does nothing: the test shows nothing")
	}
	happened, not, most := 0, 0, 0
	large := len(before) > 100
	for k, cut := 0, true; cut; k++ {
		j := 0
		if !*exhaustive {
			j = r.IntN(most + 2)
			if testing.Short() || raceEnabled || large {
				k += r.IntN(1 + max(0, k-8)) // the first ones count most
			}
		}
		for again := true; again && cut; j++ {
			h := furnishMap(t, e, key, value)
			was := look(h)
			cut = cutTorn(k, func() { e.do(h, key, value) })
			then := look(h) // before anybody repairs
			again = cut && cutTorn(j, func() {
				if err := h.settle(); err != nil {
					t.Error(err)
				}
			})
			meanwhile := look(h)
			takeOver(h.base)
			h.Lock() // this process is not dead, so nobody repairs it
			if err := h.settle(); err != nil {
				t.Fatalf("cut off at store %d, and at store %d of the repair: %v", k, j, err)
			}
			h.Unlock()
			finally := look(h)
			switch {
			case maps.Equal(then, was):
				not++
			case e.some && len(then) == len(was)-1, !e.some && maps.Equal(then, changed(t, e, was, key, value)):
				happened++
			default:
				t.Fatalf("cut off at store %d it is\n%v, before it was\n%v", k, then, was)
			}
			if !maps.Equal(meanwhile, then) || !maps.Equal(finally, then) {
				t.Fatalf("cut off at store %d it was\n%v, after that at store %d of the repair\n%v, and in the end\n%v", k, then, j, meanwhile, finally)
			}
			end(h)
			if again {
				most = max(most, j+1)
			}
			if !*exhaustive {
				break
			}
		}
	}
	if happened == 0 || not == 0 {
		t.Errorf("%d times it had happened, %d times not: the test shows nothing", happened, not)
	}
}

func testMapEditsCutEverywhere[K, V comparable](t *testing.T, key func(i int) K, value func(i int) V) {
	for _, e := range mapEditsOf[K, V]() {
		t.Run(fmt.Sprintf("%T,%T/%s", *new(K), *new(V), strings.ReplaceAll(e.name, " ", "-")), func(t *testing.T) {
			mapCutEverywhere(t, e, key, value)
		})
	}
}

// Words are replaced in place, wide values by another slot, long strings by operations of the storage.
func TestMapEditsHappenWholeOrNotAtAll(t *testing.T) {
	testMapEditsCutEverywhere(t, func(i int) int64 { return int64(i) }, func(i int) int64 { return int64(i) * 3 })
	testMapEditsCutEverywhere(t, func(i int) int64 { return int64(i) }, wide32)
	text := func(i int) string { return someText(5*i + 11) } // the first is short, those next to it are long
	testMapEditsCutEverywhere(t, text, text)
}
