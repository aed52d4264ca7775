package containers

import (
	"slices"

	"github.com/shmkit/shmkit/containers/internal/txn"
)

// Another order of all elements is a plan that has all slots as they are to be, so there is twice the memory until it is carried out, and no
// moment at which an element is missing. Slots are copied as they are; long strings stay where they are.

// reverse turns the order of the slots round.
func (d deque) reverse() error {
	_, last, err := d.ends()
	if err != nil {
		return err
	}
	return d.arrange(func(i uint64) (addr, error) { return d.slot(last - 1 - i) })
}

// arrange makes slot i, counted from the first, what is at from(i).
func (d deque) arrange(from func(i uint64) (addr, error)) error {
	first, last, err := d.ends()
	if err != nil || last-first < 2 {
		return err
	}
	pl := listPlan{deque: d, first: first, last: last, fill: first, filled: last}
	return pl.carryOut(func(*txn.Lane) error {
		for i := range last - first {
			src, err := from(i)
			if err != nil {
				return err
			}
			copyBlock(pl.element(i), src, d.stride())
		}
		return nil
	})
}

// sort is SortFunc. The lock is held.
func (l SharedList[T]) sort(compare func(a, b T) int) error {
	d := l.deque()
	first, last, err := d.ends()
	if err == nil {
		err = d.holds(last - first)
	}
	if err != nil {
		return err
	}
	type element struct {
		v T
		i uint64
	}
	all := make([]element, 0, last-first)
	seq := d.seq().Load()
	for i := range last - first {
		p, err := d.slot(first + i)
		if err != nil {
			return err
		}
		v, err := l.load(d, p, d.seq().Load())
		if err != nil {
			return err
		}
		all = append(all, element{v, i})
	}
	slices.SortStableFunc(all, func(a, b element) int { return compare(a.v, b.v) })
	// Through a view compare can write all the same. What it took off may be anything by now.
	if d.seq().Load() != seq || d.o.words[listFirst].Load() != first || d.o.words[listLast].Load() != last {
		panic("containers: SharedList.SortFunc: compare has changed the list")
	}
	return d.arrange(func(i uint64) (addr, error) { return d.slot(first + all[i].i) })
}
