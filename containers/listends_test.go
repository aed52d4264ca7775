package containers

import (
	"math"
	"sync/atomic"
	"testing"
)

// A writer puts -k in front and then appends k. Whoever sees k must see -k too, and k only where it is: these two changes do not show in the
// sequence word.
func TestAReaderSeesBothEndsOfAListAtOneMoment(t *testing.T) {
	rounds := 20000 // without the second look at the beginning it is seen in half of them
	if testing.Short() || raceEnabled {
		rounds = 1000
	}
	m := newManager(t)
	h := Must(NewSharedList[int64](m))
	if err := h.Append(0); err != nil {
		t.Fatal(err)
	}
	var over atomic.Bool
	done := make(chan bool)
	go func() {
		defer close(done)
		for !over.Load() {
			all := h.Slice(0, math.MaxInt)
			if a, b := all[0], all[len(all)-1]; -a != b && -a != b+1 {
				t.Errorf("it begins with %d and ends with %d", a, b)
				return
			}
			n := len(all) // where the next one is appended if nothing is put in front
			if v, ok := h.Get(n); ok && v > int64(n/2) {
				t.Errorf("element %d is %d", n, v)
				return
			}
		}
	}()
	for range rounds {
		for k := int64(1); k < 100; k++ {
			if err := h.Insert(0, -k); err != nil {
				t.Fatal(err)
			}
			if err := h.Append(k); err != nil {
				t.Fatal(err)
			}
		}
		for k := 1; k < 100; k++ {
			h.Pop()
			h.PopFirst()
		}
	}
	over.Store(true)
	<-done
}

// A word of the directory with more bits of the hash than the directory has words for would be walked for ever.
func TestMapWithASegmentTooDeepForItsDirectoryIsCorrupt(t *testing.T) {
	for _, depth := range []uint64{1, 30, 64, 65, 255} {
		m := briefManager(t)
		h := Must(NewSharedMap[int64, int64](m))
		if err := h.Put(1, 2); err != nil {
			t.Fatal(err)
		}
		dir := h.obj.words[mapDir].Load()
		w := Must(h.table().dirWord(dir, 0))
		w.Store(w.Load()&^(0xff<<entryDepth) | depth<<entryDepth)
		for what, call := range map[string]func(){
			"All": func() {
				for range h.All() {
				}
			},
			"PopItem": func() { h.PopItem() },
			"Get":     func() { h.Get(1) },
		} {
			if p := panicOf(t, call); p == nil {
				t.Errorf("depth %d in a directory of one word: %s says nothing", depth, what)
			}
		}
		if err := h.Put(1, 3); err == nil {
			t.Errorf("depth %d in a directory of one word: Put says nothing", depth)
		}
		m.Close()
	}
}
