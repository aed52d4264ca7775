package shm

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"structs"
	"sync/atomic"
)

// Memory in a region that nobody uses goes back to the system as holes in the file, which stays as long
// as it is. A hole is not reserved: writing there can find the file system full, which is a signal that
// ends the program. So the region's header says where holes are, and memory is reserved again before it
// is written to.
//
// The record is a superset of the holes, whatever moment a process is killed at, and it is of memory that
// nobody uses:
//
//   - Release records the range, then punches. Killed between the two, the range has memory and is
//     recorded: reserving it again finds nothing to do.
//   - Reserve takes memory, then shortens the record. Killed between the two, it is the same.
//   - Runs that are joined: the joined one is stored first, then the others are cleared. A run that is
//     split: its end is stored as a run of its own, then the run is shortened. In between, two overlap.
//
// Each run is one word, so none is ever half written. Both calls hold the growth byte, which the kernel
// gives free when their process dies. Opening a region fills the holes of its file but those recorded.
//
// The road not taken is a mark in the header of each free block: whoever opens the region does not know
// the blocks, could not tell these holes from those of a copied file, and would fill them all.

const (
	holeUnit  = 4096 // bytes that runs are counted in, whatever the page size
	holeRuns  = 63
	holesBusy = 1 // in holes.state

	holesCount = 0xff &^ holesBusy // mask of twice the number of runs
	holesTurn  = 0x100             // one more change
)

// holes says which parts of a region were given back.
type holes struct {
	_     structs.HostLayout
	state atomic.Uint64           // changes so far<<8 | number of runs<<1 | busy, while the runs change; under the growth byte
	runs  [holeRuns]atomic.Uint64 // first unit<<32 | number of units; 0: none. In no order; they may overlap
}

// A span is a range of bytes.
type span struct{ from, to uint64 }

func (s span) empty() bool { return s.from >= s.to }

func (s span) and(o span) span { return span{max(s.from, o.from), min(s.to, o.to)} }

func (s span) run() uint64 { return s.from/holeUnit<<32 | (s.to-s.from)/holeUnit }

// holeSpan returns what a run stands for, nothing if that does not lie in a data area that ends at end.
func holeSpan(run, end uint64) span {
	s := span{from: run >> 32 * holeUnit}
	s.to = s.from + run&(1<<32-1)*holeUnit
	if s.from < dataStart || s.to > end {
		return span{}
	}
	return s
}

// lack reports whether some of s may have been given back. It takes no lock; it is exact unless the runs
// change meanwhile.
func (h *holes) lack(s span) bool {
	state := h.state.Load()
	if state&(holesBusy|holesCount) == 0 {
		return false
	}
	for i := range h.runs {
		if !s.and(holeSpan(h.runs[i].Load(), 1<<63)).empty() {
			return true
		}
	}
	return state&holesBusy != 0 || h.state.Load() != state
}

// around returns the parts of s, which ends where the data area does, that were not given back, in order.
func (h *holes) around(s span) (parts [][2]uint64) { return h.kept(s, s.to) }

// kept is around for a part of a data area that ends at end.
func (h *holes) kept(s span, end uint64) (parts [][2]uint64) {
	var all []span
	for i := range h.runs {
		if hole := holeSpan(h.runs[i].Load(), end).and(s); !hole.empty() {
			all = append(all, hole)
		}
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	for _, hole := range all {
		if s.from < hole.from {
			parts = append(parts, [2]uint64{s.from, hole.from})
		}
		s.from = max(s.from, hole.to)
	}
	if !s.empty() {
		parts = append(parts, [2]uint64{s.from, s.to})
	}
	return parts
}

// change runs fn, which changes runs, and leaves state right. The growth byte is held.
func (h *holes) change(fn func()) {
	state := h.state.Load()
	h.state.Store(state | holesBusy)
	step("runs are about to change")
	fn()
	n := uint64(0)
	for i := range h.runs {
		if h.runs[i].Load() != 0 {
			n++
		}
	}
	h.state.Store(state&^(holesTurn-1) + holesTurn + n<<1)
}

// tidy joins the runs that overlap since a process died while it changed them. The growth byte is held.
func (h *holes) tidy(end uint64) {
	if h.state.Load()&holesBusy == 0 {
		return
	}
	for i := range h.runs {
		if s := holeSpan(h.runs[i].Load(), end); !s.empty() {
			h.add(s, end)
		}
	}
	h.change(func() {})
}

// vacant returns an unused run, nil if there is none. Runs that stand for nothing count as unused.
func (h *holes) vacant(end uint64) *atomic.Uint64 {
	for i := range h.runs {
		if holeSpan(h.runs[i].Load(), end).empty() {
			return &h.runs[i]
		}
	}
	return nil
}

// add records s, joined with what it touches, and reports whether there was room for it.
func (h *holes) add(s span, end uint64) bool {
	var joined []*atomic.Uint64
	for again := true; again; {
		again = false
		for i := range h.runs {
			o := holeSpan(h.runs[i].Load(), end)
			if o.empty() || o.from > s.to || s.from > o.to || slices.Contains(joined, &h.runs[i]) {
				continue
			}
			joined = append(joined, &h.runs[i])
			s, again = span{min(s.from, o.from), max(s.to, o.to)}, true
		}
	}
	var home *atomic.Uint64
	if len(joined) > 0 {
		home, joined = joined[0], joined[1:]
	} else if home = h.vacant(end); home == nil {
		return false
	}
	h.change(func() {
		home.Store(s.run())
		step("range recorded")
		for _, w := range joined {
			w.Store(0)
			step("joined run cleared")
		}
	})
	return true
}

// remove takes s out of the record. Where that splits a run there has to be room for the second piece: see
// cover.
func (h *holes) remove(s span, end uint64) {
	h.change(func() {
		for i := range h.runs {
			o := holeSpan(h.runs[i].Load(), end)
			if o.and(s).empty() {
				continue
			}
			left, right := span{o.from, s.from}, span{s.to, o.to}
			switch {
			case left.empty() && right.empty():
				h.runs[i].Store(0)
			case left.empty():
				h.runs[i].Store(right.run())
			case right.empty():
				h.runs[i].Store(left.run())
			default:
				w := h.vacant(end)
				if w == nil { // runs overlap that nobody of ours has written: rather too much than too little
					continue
				}
				w.Store(right.run())
				step("end of a run recorded apart")
				h.runs[i].Store(left.run())
			}
			step("run shortened")
		}
	})
}

// cover returns the recorded parts of s, each made longer where it could not be taken out of the record
// otherwise.
func (h *holes) cover(s span, end uint64) (parts []span) {
	room := 0
	for i := range h.runs {
		if holeSpan(h.runs[i].Load(), end).empty() {
			room++
		}
	}
	for i := range h.runs {
		o := holeSpan(h.runs[i].Load(), end)
		part := o.and(s)
		if part.empty() {
			continue
		}
		if part.from > o.from && part.to < o.to {
			if room == 0 {
				part.to = o.to
			} else {
				room--
			}
		}
		parts = append(parts, part)
	}
	return parts
}

// Release gives the memory of the whole pages among n bytes at off back to the system, and returns how
// many bytes that is. The region stays as long as it is. What was there is lost, and nobody may use
// these bytes until [Region.Reserve] has returned for them: a write may end the program, and so may a read
// where [Region.ReadableHoles] is false; else it yields zeros. To give bytes back that are given back
// already does no harm; they do not count.
//
// It returns an error that is [errors.ErrUnsupported] where the system or the file system cannot do it, and one
// that is [ErrNoSpace] if 63 ranges that do not touch are given back already; then nothing has changed. Any other
// error, and a process that dies inside, leave the bytes given back or not, and in need of Reserve. It waits for
// growth in other processes. Some 20 µs, and 1 µs for each page.
func (r *Region) Release(off Offset, n uint64) (bytes uint64, err error) {
	m := r.m
	unit := uint64(max(holeUnit, os.Getpagesize()))
	s := span{(uint64(off) + unit - 1) &^ (unit - 1), (uint64(off) + n) &^ (unit - 1)}
	err = m.changeHoles("release", off, n, func(end uint64) error {
		if s.empty() {
			return nil
		}
		if m.file == nil || m.solid.Load() {
			return errors.ErrUnsupported
		}
		h := &m.header.holes
		kept := h.kept(s, end)
		if !h.add(s, end) {
			return fmt.Errorf("%d ranges are given back, and there is no room to note one more: %w", holeRuns, ErrNoSpace)
		}
		step("recorded, not punched")
		if m.closed.Load() { // what was recorded may have gone to private memory
			return ErrClosed
		}
		switch err := punch(m.file, s.from, s.to-s.from); {
		case errors.Is(err, errors.ErrUnsupported):
			m.solid.Store(true)
			for _, p := range kept {
				h.remove(span{p[0], p[1]}, end)
			}
			return err
		case err != nil: // recorded, perhaps with memory: Reserve does not mind
			return err
		}
		step("punched")
		for _, p := range kept {
			bytes += p[1] - p[0]
		}
		return nil
	})
	return bytes, err
}

// Reserve makes sure that there is memory for n bytes at off, of which some may have been given back by
// [Region.Release]. Those read as zeros then. On a full file system it returns an error that is [ErrNoSpace], and
// nothing has changed. A process that dies inside leaves the bytes given back or not, and in need of
// Reserve. Some 20 ns where nothing is given back in the region, 90 ns where
// it is elsewhere, else 20 µs, and 2 µs for each page.
func (r *Region) Reserve(off Offset, n uint64) error {
	m := r.m
	if n == 0 || m.file == nil {
		return nil
	}
	unit := uint64(max(holeUnit, os.Getpagesize()))
	s := span{uint64(off) &^ (unit - 1), (uint64(off) + n + unit - 1) &^ (unit - 1)}
	if !m.closed.Load() && !m.readOnly && inside(m.end.Load(), off, n) {
		lack := true
		if err := m.guard(func() error { lack = m.header.holes.lack(s); return nil }); err != nil {
			return err
		}
		if !lack {
			return nil
		}
	}
	return m.changeHoles("reserve", off, n, func(end uint64) error {
		h := &m.header.holes
		parts := h.cover(s, end)
		for i, p := range parts {
			if err := reserve(m.file, p.from, p.to-p.from); err != nil {
				for _, done := range parts[:i] {
					punch(m.file, done.from, done.to-done.from)
				}
				return noSpace("memory that was given back", p.to-p.from, err)
			}
			step("reserved, still recorded")
		}
		for _, p := range parts {
			h.remove(p, end)
		}
		return nil
	})
}

// changeHoles runs fn with the growth byte held and the end of the data area, in which the n bytes at
// off must lie.
func (m *mapping) changeHoles(op string, off Offset, n uint64, fn func(end uint64) error) error {
	if err := m.usable(op); err != nil {
		return err
	}
	m.seat.growing.Lock()
	defer m.seat.growing.Unlock()
	if m.file != nil {
		if _, err := m.seat.take(growthByte, true); err != nil {
			return m.fail(op, err)
		}
		defer m.seat.give(growthByte)
		if err := m.usable(op); err != nil { // while we waited
			return err
		}
	}
	if err := m.intact(op); err != nil { // no memory for a file that was cut
		return err
	}
	end := m.size()
	if !inside(end, off, n) {
		return m.badOffset(off, n, 1)
	}
	var failed error
	if err := m.guard(func() error { m.header.holes.tidy(end); failed = fn(end); return nil }); err != nil {
		return err
	}
	if failed != nil {
		return m.fail(op, failed)
	}
	return nil
}

// Released returns how many of the n bytes at off are given back, and have not been reserved since.
func (r *Region) Released(off Offset, n uint64) (bytes uint64) {
	m := r.m
	end := m.size()
	if m.closed.Load() || !inside(end, off, n) {
		return 0
	}
	m.guard(func() error {
		s := span{uint64(off), uint64(off) + n}
		if !m.header.holes.lack(s) {
			return nil
		}
		bytes = n
		for _, p := range m.header.holes.kept(s, end) {
			bytes -= p[1] - p[0]
		}
		return nil
	})
	return bytes
}

// ReadableHoles reports whether a read of memory that was given back is harmless, so that a reader who comes too
// late, and finds out afterwards, may do it. It is false where a read takes memory that can be refused: where
// files are memory, and the file system's size or the system's overcommit rules limit it.
func (r *Region) ReadableHoles() bool {
	return r.m.file != nil && !r.m.closed.Load() && holesReadable(r.m.file)
}

// inHole reports whether the byte at off was given back.
func (m *mapping) inHole(off uint64) bool {
	h := &m.header.holes
	return off >= dataStart && h.lack(span{off, off + 1})
}

// errReleased is what an access to memory answers that was given back and cannot be had again now.
var errReleased = fmt.Errorf("its memory was given back, and there is none for it now: %w", ErrNoSpace)

// crashPoint is called between any two steps, with what has been done; tests end the process there.
var crashPoint func(done string)

func step(done string) {
	if crashPoint != nil {
		crashPoint(done)
	}
}
