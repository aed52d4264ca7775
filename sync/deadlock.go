package sync

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shmkit/shmkit/shm"
)

// A Cycle is a number of processes, each of which waits for a lock that the next one holds, and the last for
// one of the first.
type Cycle []CycleWait

// A CycleWait says that a process waits for a lock, and since when.
type CycleWait struct {
	shm.Attachment            // of the process that waits
	Lock           shm.Offset // that the next of the cycle holds
	Since          time.Time
}

// String says who waits for whom.
func (c Cycle) String() string {
	var b strings.Builder
	for i, w := range c {
		next := c[(i+1)%len(c)]
		fmt.Fprintf(&b, "process %d (%v) has waited for %v for the lock at offset %d, which process %d (%v) holds\n", w.PID, w.Token,
			time.Since(w.Since).Round(time.Millisecond), w.Lock, next.PID, next.Token)
	}
	return b.String()
}

// looks is how often Suspects looks in the time that a cycle has to last.
const looks = 10

// Suspects looks for deadlocks among the processes of r: for cycles of processes that wait for locks of each
// other, the same waits for the same locks of the same holders whenever it looks, for as long as stable. It
// returns then, or sooner if none is left. An error is the context's, or [shm.ErrClosed]. It changes nothing
// and takes no lock.
//
// A cycle is a hint, no proof: a process has many goroutines, and its one that waits need not be the one that
// holds what the others wait for. Nor is every deadlock found: goroutines of one process that wait for each
// other make no cycle of processes; a process shows four of its waits, once they last longer than a
// millisecond; and only a [Mutex], also inside of other types, says who holds it. What processes write about
// themselves is believed. A stable of a second or more leaves few false hints.
func Suspects(ctx context.Context, r *shm.Region, stable time.Duration) ([]Cycle, error) {
	edges, err := waitsFor(r)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(max(stable/looks, time.Millisecond))
	defer tick.Stop()
	for end := time.Now().Add(stable); len(edges) > 0 && time.Now().Before(end); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, (&limit{what: "look for deadlocks", ctx: ctx}).over()
		}
		now, err := waitsFor(r)
		if err != nil {
			return nil, err
		}
		edges = slices.DeleteFunc(edges, func(e waitEdge) bool { return !slices.ContainsFunc(now, e.same) })
	}
	return cycles(edges), nil
}

// A waitEdge says that one process waits for a lock of another one.
type waitEdge struct {
	wait   CycleWait
	holder shm.Token
	took   time.Time // when the holder last got that lock after a wait
}

// same reports whether e and o are of one wait, for one turn of the holder as far as that is told.
func (e waitEdge) same(o waitEdge) bool {
	return e.wait.Token == o.wait.Token && e.wait.Lock == o.wait.Lock && e.wait.Since.Equal(o.wait.Since) &&
		e.holder == o.holder && e.took.Equal(o.took)
}

// waitsFor returns who waits for whom now.
func waitsFor(r *shm.Region) (edges []waitEdge, err error) {
	all, err := r.Attachments()
	if err != nil {
		return nil, err
	}
	for _, a := range all {
		if a.Token == 0 || a.Life == shm.Dead {
			continue
		}
		for _, w := range a.Waiting {
			holder, ok := holderAt(r, w.Lock)
			i := slices.IndexFunc(all, func(h shm.Attachment) bool { return h.Token == holder && h.Life != shm.Dead })
			if !ok || i < 0 || holder == a.Token {
				continue // free, or of the dead, whom whoever waits finds out
			}
			e := waitEdge{wait: CycleWait{a, w.Lock, w.Since}, holder: holder}
			for _, t := range all[i].Tallies {
				if t.Lock == w.Lock {
					e.took = t.Took
				}
			}
			edges = append(edges, e)
		}
	}
	return edges, nil
}

// holderAt returns which token stands in the lock at off, which some process has written down.
func holderAt(r *shm.Region, off shm.Offset) (t shm.Token, ok bool) {
	m, err := shm.At[Mutex](r, off)
	if err != nil {
		return 0, false
	}
	t = shm.Token(m.word.Load() &^ flags)
	return t, t != 0
}

// cycles returns the cycles of a graph: of each part of it in which everybody waits, at last, for everybody
// else, a shortest one.
func cycles(edges []waitEdge) (found []Cycle) {
	from := map[shm.Token][]waitEdge{}
	var processes []shm.Token
	for _, e := range edges {
		if from[e.wait.Token] == nil {
			processes = append(processes, e.wait.Token)
		}
		from[e.wait.Token] = append(from[e.wait.Token], e)
	}
	slices.Sort(processes)
	told := map[shm.Token]bool{}
	for _, p := range processes {
		if told[p] {
			continue
		}
		c := shortest(from, p)
		if slices.ContainsFunc(c, func(w CycleWait) bool { return told[w.Token] }) {
			continue
		}
		for _, w := range c {
			told[w.Token] = true
		}
		if c != nil {
			found = append(found, c)
		}
	}
	slices.SortStableFunc(found, func(x, y Cycle) int { return cmp.Compare(len(x), len(y)) })
	return found
}

// shortest returns a shortest cycle through p, or nil.
func shortest(from map[shm.Token][]waitEdge, p shm.Token) Cycle {
	type step struct {
		edge waitEdge
		prev int
	}
	var steps []step
	seen := map[shm.Token]bool{}
	add := func(t shm.Token, prev int) {
		for _, e := range from[t] {
			steps = append(steps, step{e, prev})
		}
	}
	add(p, -1)
	for k := 0; k < len(steps); k++ {
		s := steps[k]
		if s.edge.holder == p {
			var c Cycle
			for i := k; i >= 0; i = steps[i].prev {
				c = append(c, steps[i].edge.wait)
			}
			slices.Reverse(c)
			return c
		}
		if !seen[s.edge.holder] {
			seen[s.edge.holder] = true
			add(s.edge.holder, k)
		}
	}
	return nil
}
