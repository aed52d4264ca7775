package containers

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// A listPlan is how a list changes in more places than one store reaches: elements move over, others take their
// places, or all get another order. It stands in a block that belongs to the list while it is in mode 3, and says what
// the list then is; the slots become that step by step:
//
//	       words               | what they say of the new list
//	 0, 1  first, last         | its slots
//	 2, 3  to, upto            | slots [to, upto) have what was delta slots before them
//	 4     delta
//	 5, 6  fill, filled        | slots [fill, filled) have what is behind the areas
//	 7     start               | sequence word at the first step
//	 8     step                | log2 of the slots of a stretch: what moves at a time, at most a chunk
//	 9     marks               | if not 0, that many slots have what is behind the areas instead; which ones
//	                           | stands behind that, ascending
//	then   two areas           | each with room for a stretch, if something moves
//	       elements, slot by slot, then the marks
//
// All of it is written before the list enters mode 3, by the operation that commits the change, and nothing of it but the areas
// changes afterwards. The rest is a row of steps, told by the sequence word: start is step 0, each step adds one change. With n stretches
// from upto downwards, or, if delta is negative, from to upwards:
//
//	[block, words[7], mode 3 | commits: before, or after, as readers see it. What the list loses is freed with it]
//	the j'th stretch, as it was, to area j&1; step j; the stretch
//	step n+1; the slots that are filled, or marked
//	[first, last, mode 0, the plan's block]
//
// A kill leaves a step begun. The stretch has its old content in the area then, and the slots that it gets its new content from are as they
// were, for only stretches that come later overlap them: so whoever repairs the list does the step again, and the others. Copying a stretch over
// itself, an overlapping move, could not be done again once it was cut off. Since a step begins with one store, of a word that
// readers compare, they always know where an element is: in its stretch if that is done, in the area if it is being done, else where it was;
// nobody waits for a plan to be carried out, or for a dead process that had one.
type listPlan struct {
	deque
	p                         addr // its block
	first, last               uint64
	to, upto, delta           uint64
	fill, filled              uint64
	start, step, marks, bytes uint64
}

const (
	planFirst = iota
	planLast
	planTo
	planUpto
	planDelta
	planFill
	planFilled
	planStart
	planStep
	planMarks
	planWords
)

// movesUp reports whether slots move to higher indices.
func (pl *listPlan) movesUp() bool { return int64(pl.delta) > 0 }

// area returns where the j'th stretch is put aside.
func (pl *listPlan) area(j uint64) addr { return plus(pl.p, 8*planWords+j&1*(pl.stride()<<pl.step)) }

// given returns how many elements stand in the plan.
func (pl *listPlan) given() uint64 { return pl.filled - pl.fill + pl.marks }

// element returns the address of element i of those that stand in the plan.
func (pl *listPlan) element(i uint64) addr { return plus(pl.p, pl.elements()+i*pl.stride()) }

// elements returns where they begin.
func (pl *listPlan) elements() uint64 {
	if pl.to == pl.upto {
		return 8 * planWords
	}
	return 8*planWords + 2*pl.stride()<<pl.step
}

// mark returns the address of the index of marked slot i.
func (pl *listPlan) mark(i uint64) addr { return plus(pl.element(pl.marks), 8*i) }

// size computes the size of the block, if it is one that the region has room for.
func (pl *listPlan) size() error {
	most := pl.s.region.Limit()
	if n := pl.filled - pl.fill; n > most/pl.stride() || pl.marks > most/pl.stride() {
		return fmt.Errorf("%d elements at once: %w", n+pl.marks, shm.ErrNoSpace)
	}
	pl.bytes = pl.elements() + pl.given()*pl.stride() + 8*pl.marks
	return nil
}

// plan returns the plan of a list in mode 3. A reader's may be one that is over: he finds out when he looks at the sequence word again.
func (d deque) plan() (pl listPlan, err error) {
	off := d.o.words[listPlanAt].Load()
	p, err := addrAt(d.s.region, off, 8*planWords)
	if err != nil {
		return pl, err
	}
	at := func(i int) uint64 { return word(p, i).Load() }
	pl = listPlan{deque: d, p: p, first: at(planFirst), last: at(planLast), to: at(planTo), upto: at(planUpto), delta: at(planDelta),
		fill: at(planFill), filled: at(planFilled), start: at(planStart), step: at(planStep), marks: at(planMarks)}
	if pl.last < pl.first || d.holds(pl.last-pl.first) != nil || pl.step > d.shift() || !pl.has(pl.to, pl.upto) || !pl.has(pl.fill, pl.filled) ||
		pl.filled > pl.fill && pl.marks > 0 || pl.size() != nil {
		return pl, pl.bad()
	}
	_, err = addrAt(d.s.region, off, pl.bytes)
	return pl, err
}

// has reports whether slots [from, upto), if they are any, are in the new list.
func (pl *listPlan) has(from, upto uint64) bool {
	return from == upto || pl.first <= from && from < upto && upto <= pl.last
}

//go:noinline
func (pl *listPlan) bad() error {
	return fmt.Errorf("plan for slots [%d, %d): [%d, %d) moved by %d, [%d, %d) filled, %d marked, stretch 1<<%d, started at %#x: %w",
		pl.first, pl.last, pl.to, pl.upto, int64(pl.delta), pl.fill, pl.filled, pl.marks, pl.step, pl.start, shm.ErrCorrupt)
}

// stretches returns how many stretches move.
func (pl *listPlan) stretches() uint64 {
	if pl.to == pl.upto {
		return 0
	}
	return (pl.upto-1)>>pl.step - pl.to>>pl.step + 1
}

// turn returns in which step slot v moves, counted from 1.
func (pl *listPlan) turn(v uint64) uint64 {
	if pl.movesUp() {
		return (pl.upto-1)>>pl.step - v>>pl.step + 1
	}
	return v>>pl.step - pl.to>>pl.step + 1
}

// stretch returns the slots of the j'th stretch that are there.
func (pl *listPlan) stretch(j uint64) (from, upto uint64) {
	c := pl.to>>pl.step + j - 1
	if pl.movesUp() {
		c = (pl.upto-1)>>pl.step - j + 1
	}
	return c << pl.step, (c + 1) << pl.step
}

// find returns the address of what slot v of the new list has, in the step that seq says.
func (pl *listPlan) find(v, seq uint64) (addr, error) {
	if i, ok := pl.stands(v); ok {
		return pl.element(i), nil
	}
	if v < pl.to || v >= pl.upto {
		return pl.slot(v)
	}
	step, turn, old := (seq-pl.start)/listChange, pl.turn(v), v-pl.delta
	switch {
	case turn < step:
		return pl.slot(v)
	case turn == step && old>>pl.step == v>>pl.step:
		return plus(pl.area(step), old&(1<<pl.step-1)*pl.stride()), nil
	}
	return pl.slot(old)
}

// stands reports whether what slot v has stands in the plan, and as which element.
func (pl *listPlan) stands(v uint64) (uint64, bool) {
	if pl.marks == 0 {
		return v - pl.fill, v-pl.fill < pl.filled-pl.fill
	}
	low, high := uint64(0), pl.marks
	for low < high {
		i := low + (high-low)/2
		switch at := word(pl.mark(i), 0).Load(); {
		case at == v:
			return i, true
		case at < v:
			low = i + 1
		default:
			high = i
		}
	}
	return 0, false
}

// begin takes the plan's block, in the operation in l, and says in it what is to be. The list is in mode 0.
func (pl *listPlan) begin(l *txn.Lane) (off uint64, err error) {
	if err := pl.size(); err != nil {
		return 0, err
	}
	pl.start = pl.seq().Load() + listChange | listSettling
	o, err := pl.s.heap.AllocIn(l, pl.bytes, 8)
	if err != nil {
		return 0, err
	}
	if pl.p, err = addrAt(pl.s.region, uint64(o), pl.bytes); err != nil {
		return 0, err
	}
	txn.Announce(pl.p, uintptr(8*planWords))
	for i, v := range [planWords]uint64{pl.first, pl.last, pl.to, pl.upto, pl.delta, pl.fill, pl.filled, pl.start, pl.step, pl.marks} {
		word(pl.p, i).Store(v)
	}
	return uint64(o), nil
}

// commit has the operation in l end with the list in mode 3.
func (pl *listPlan) commit(l *txn.Lane, off uint64) error {
	if err := l.Later(&pl.o.words[listPlanAt], off); err != nil {
		return err
	}
	return l.Later(pl.seq(), pl.start)
}

// carryOut makes a plan, in an operation that fn adds to: what it gives, and frees. Then it carries it out. The lock is held. Without the memory to
// move long stretches it moves shorter ones.
func (pl *listPlan) carryOut(fn func(l *txn.Lane) error) error {
	if !pl.s.region.Pin() { // Close waits: nobody would end what was begun while this process lives
		return shm.ErrClosed
	}
	defer pl.s.region.Unpin()
	if err := pl.holds(max(pl.upto-pl.to, pl.filled-pl.fill)); err != nil {
		return err
	}
	if n := pl.upto - pl.to; n > 0 {
		pl.step = min(uint64(bits.Len64(n-1)), pl.shift())
	}
	make := func(l *txn.Lane) error {
		off, err := pl.begin(l)
		if err == nil {
			err = fn(l)
		}
		if err != nil {
			return err
		}
		return pl.commit(l, off)
	}
	err := pl.s.change(make)
	for err != nil && errors.Is(err, shm.ErrNoSpace) && pl.step > 0 {
		pl.step /= 2
		err = pl.s.change(make)
	}
	switch {
	case errors.Is(err, txn.ErrLogFull):
		return fmt.Errorf("%w: %w", err, shm.ErrNoSpace)
	case err != nil:
		return err
	}
	return pl.settle()
}

// settle brings a list in mode 3 to what its plan says.
func (d deque) settle() error {
	pl, err := d.plan()
	if err != nil {
		return err
	}
	n := pl.stretches()
	seq := d.seq().Load()
	j := (seq - pl.start) / listChange
	if j > n+1 || seq != pl.start+j*listChange {
		return fmt.Errorf("sequence %#x: %w", seq, pl.bad())
	}
	if 1 <= j && j <= n {
		err = pl.move(j)
	}
	for ; j < n && err == nil; err = pl.move(j) {
		if err := pl.keep(j + 1); err != nil {
			return err
		}
		j++
		publish(d.seq(), pl.start+j*listChange)
	}
	if err != nil {
		return err
	}
	publish(d.seq(), pl.start+(n+1)*listChange)
	if err := pl.place(); err != nil {
		return err
	}
	return d.s.change(func(l *txn.Lane) error {
		w := &d.o.words
		if err := errors.Join(l.Later(&w[listFirst], pl.first), l.Later(&w[listLast], pl.last)); err != nil {
			return err
		}
		if err := l.Later(d.seq(), (pl.start+(n+2)*listChange)&^listMode); err != nil {
			return err
		}
		return d.s.heap.FreeIn(l, shm.Offset(w[listPlanAt].Load()))
	})
}

// keep puts aside what the j'th stretch has that is to move.
func (pl *listPlan) keep(j uint64) error {
	from, upto := pl.stretch(j)
	v, end := max(from, pl.to-pl.delta), min(upto, pl.upto-pl.delta)
	if v >= end {
		return nil
	}
	src, err := pl.slots(v, end-v)
	if err != nil {
		return err
	}
	dst := plus(pl.area(j), (v-from)*pl.stride())
	txn.Announce(dst, uintptr((end-v)*pl.stride()))
	copyBlock(dst, src, (end-v)*pl.stride())
	return nil
}

// move gives the j'th stretch what it is to have. To do it again does the same.
func (pl *listPlan) move(j uint64) error {
	from, upto := pl.stretch(j)
	end := min(upto, pl.upto)
	for v := max(from, pl.to); v < end; {
		old := v - pl.delta
		var n uint64
		var src addr
		var err error
		if from <= old && old < upto {
			n = min(end-v, upto-old)
			src = plus(pl.area(j), (old-from)*pl.stride())
		} else {
			n = min(end-v, 1<<pl.shift()-old&pl.mask())
			if old < from {
				n = min(n, from-old)
			}
			src, err = pl.slots(old, n)
		}
		if err != nil {
			return err
		}
		dst, err := pl.slots(v, n)
		if err != nil {
			return err
		}
		txn.Announce(dst, uintptr(n*pl.stride()))
		copyBlock(dst, src, n*pl.stride())
		v += n
	}
	return nil
}

// place puts the elements that stand in the plan into their slots.
func (pl *listPlan) place() error {
	for i := range pl.marks {
		if err := pl.placeAt(word(pl.mark(i), 0).Load(), i, 1); err != nil {
			return err
		}
	}
	for v := pl.fill; v < pl.filled; {
		n := min(pl.filled-v, 1<<pl.shift()-v&pl.mask())
		if err := pl.placeAt(v, v-pl.fill, n); err != nil {
			return err
		}
		v += n
	}
	return nil
}

func (pl *listPlan) placeAt(v, i, n uint64) error {
	p, err := pl.slots(v, n)
	if err != nil {
		return err
	}
	txn.Announce(p, uintptr(n*pl.stride()))
	copyBlock(p, pl.element(i), n*pl.stride())
	return nil
}
