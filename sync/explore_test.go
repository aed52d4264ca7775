package sync

import (
	"hash/maphash"
	"strings"
)

// A world is what a model says of itself; S is all there is in a moment, and two equal ones have the same future.
type world[S comparable] struct {
	first S
	steps func(S, func(next S, what string)) // calls next with every state that one step of somebody leads to
	// check is asked after the steps of a state, which may have found a fault; ended says that nobody is to do anything
	// any more.
	check func(*S) (ended bool, fault string)
	same  func(a, b *S) bool // a step from one to the other was nobody's luck; nil: none is
	// rest says what is wrong with a state in which nothing happens but luck, and that is no end; nil: that.
	rest  func(*S) string
	tells *bool // set while the names of steps are wanted
}

// explore looks at all states that steps lead to. It returns their number, and what is wrong with one of them, with the
// steps that lead there, or "". From every state an end must be within reach.
func (w world[S]) explore() (states int, fault string) {
	f := finder[S]{seed: maphash.MakeSeed(), slots: make([]int32, 1<<10)}
	f.number(w.first)
	from := []int32{-1}
	var edges [][2]int32
	var ends []int32
	for k := int32(0); int(k) < len(f.all); k++ {
		s := f.all[k]
		progress := false
		w.steps(s, func(n S, _ string) {
			progress = progress || w.same == nil || w.same(&n, &s)
			id := f.number(n)
			if int(id) == len(from) {
				from = append(from, k)
			}
			edges = append(edges, [2]int32{id, k})
		})
		ended, wrong := w.check(&s)
		if wrong == "" && !ended && !progress {
			if ended = true; w.rest == nil {
				wrong = "stuck"
			} else {
				wrong = w.rest(&s)
			}
		}
		if wrong != "" {
			return len(f.all), wrong + w.trace(f.all, from, k)
		}
		if ended {
			ends = append(ends, k)
		}
	}
	if k := unfinished(len(f.all), edges, ends); k >= 0 {
		return len(f.all), "cannot finish" + w.trace(f.all, from, int32(k))
	}
	return len(f.all), ""
}

// trace tells the steps that lead to state k.
func (w world[S]) trace(all []S, from []int32, k int32) string {
	*w.tells = true
	defer func() { *w.tells = false }()
	var lines []string
	for ; from[k] >= 0; k = from[k] {
		found := false
		w.steps(all[from[k]], func(n S, what string) {
			if n == all[k] && !found {
				lines, found = append(lines, what), true
			}
		})
	}
	var b strings.Builder
	for i := len(lines) - 1; i >= 0; i-- {
		b.WriteString("\n\t" + lines[i])
	}
	return b.String()
}

// A finder numbers states in the order of their coming. It keeps each once: a map from them would keep them twice.
type finder[S comparable] struct {
	seed  maphash.Seed
	all   []S
	slots []int32 // numbers plus one, 0 none
}

func (f *finder[S]) number(s S) int32 {
	mask := uint64(len(f.slots) - 1)
	at := maphash.Comparable(f.seed, s) & mask
	for ; f.slots[at] != 0; at = (at + 1) & mask {
		if k := f.slots[at] - 1; f.all[k] == s {
			return k
		}
	}
	f.all = append(f.all, s)
	f.slots[at] = int32(len(f.all))
	if 2*len(f.all) > len(f.slots) {
		f.grow()
	}
	return int32(len(f.all) - 1)
}

func (f *finder[S]) grow() {
	f.slots = make([]int32, 4*len(f.slots))
	mask := uint64(len(f.slots) - 1)
	for k, s := range f.all {
		at := maphash.Comparable(f.seed, s) & mask
		for f.slots[at] != 0 {
			at = (at + 1) & mask
		}
		f.slots[at] = int32(k + 1)
	}
}

// unfinished returns a state from which no end can be reached, or -1.
func unfinished(n int, edges [][2]int32, ends []int32) int {
	start := make([]int32, n+1) // edges by their target, in one array
	for _, e := range edges {
		start[e[0]+1]++
	}
	for i := range n {
		start[i+1] += start[i]
	}
	into, at := make([]int32, len(edges)), append([]int32(nil), start...)
	for _, e := range edges {
		into[at[e[0]]] = e[1]
		at[e[0]]++
	}
	good := make([]bool, n)
	for _, k := range ends {
		good[k] = true
	}
	for len(ends) > 0 {
		k := ends[len(ends)-1]
		ends = ends[:len(ends)-1]
		for _, j := range into[start[k]:start[k+1]] {
			if !good[j] {
				good[j] = true
				ends = append(ends, j)
			}
		}
	}
	for k, ok := range good {
		if !ok {
			return k
		}
	}
	return -1
}
