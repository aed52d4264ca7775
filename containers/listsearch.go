package containers

import (
	"cmp"
	"fmt"
	"iter"

	"github.com/shmkit/shmkit/shm"
)

// A List is a [SharedList], or a [ListView] of one, for the functions that need more of T than the types ask for: [Index], [Count], [Remove], [Sort].
type List[T any] interface {
	Len() int
	Slice(from, to int) []T
	IndexFunc(match func(T) bool, bounds ...int) int
	CountFunc(match func(T) bool, bounds ...int) int
	RemoveFunc(match func(T) bool) bool
	SortFunc(compare func(a, b T) int) error
}

// Index returns the index of the first element that is v, or -1. bounds are those of [SharedList.IndexFunc].
func Index[T comparable](l List[T], v T, bounds ...int) int {
	return l.IndexFunc(func(e T) bool { return e == v }, bounds...)
}

// Count returns how many elements are v. bounds are those of [SharedList.IndexFunc].
func Count[T comparable](l List[T], v T, bounds ...int) int {
	return l.CountFunc(func(e T) bool { return e == v }, bounds...)
}

// Remove takes the first element out that is v, and reports whether there was one. It panics as [SharedList.PopAt] does.
func Remove[T comparable](l List[T], v T) bool {
	return l.RemoveFunc(func(e T) bool { return e == v })
}

// Sort sorts the elements in ascending order, as [SharedList.SortFunc] does.
func Sort[T cmp.Ordered](l List[T]) error { return l.SortFunc(cmp.Compare[T]) }

// IndexFunc returns the index of the first element for which match is true, or -1. Up to two bounds say where to look: from the first, to before the second one, as
// in Python, where negative ones count from the end and what is outside is the nearest end. It reads as All does, and holds no lock while match runs.
func (l SharedList[T]) IndexFunc(match func(T) bool, bounds ...int) int {
	for i, v := range l.between("IndexFunc", bounds) {
		if match(v) {
			return i
		}
	}
	return -1
}

// CountFunc returns for how many elements match is true. bounds are those of IndexFunc, and it reads as that does.
func (l SharedList[T]) CountFunc(match func(T) bool, bounds ...int) (n int) {
	for _, v := range l.between("CountFunc", bounds) {
		if match(v) {
			n++
		}
	}
	return n
}

// between returns an iterator over the elements within bounds.
func (l SharedList[T]) between(op string, bounds []int) iter.Seq2[int, T] {
	return func(yield func(int, T) bool) {
		first, last := l.bounds(op)
		from, to := 0, int(last-first)
		switch len(bounds) {
		case 0:
		case 1:
			from, _ = clampSlice(to, bounds[0], to, 1)
		case 2:
			var n int
			from, n = clampSlice(to, bounds[0], bounds[1], 1)
			to = from + n
		default:
			panic(fmt.Sprintf("containers: SharedList.%s: %d bounds, at most 2 are allowed", op, len(bounds)))
		}
		l.visit(first, first+uint64(from), first+uint64(to), yield)
	}
}

// Slice returns copies of elements from up to before to, by Python's rules: negative indices count from the end, what is outside is the nearest
// end, and if to is not behind from there are none. It is the list at one moment; like all reads it takes no lock, unless writers never let it finish.
func (l SharedList[T]) Slice(from, to int) []T {
	var all []T
	l.look("Slice", func(d deque, seq uint64) error {
		first, last, err := d.endsAt(seq)
		if err != nil {
			return err
		}
		if d.seq().Load() != seq {
			return errOvertaken
		}
		i, n := clampSlice(int(last-first), from, to, 1)
		if uint64(n) > d.s.region.Limit()/d.stride() {
			return fmt.Errorf("%d elements: %w", n, shm.ErrCorrupt)
		}
		if cap(all) < n {
			all = make([]T, 0, n)
		}
		all = all[:n]
		for done := 0; done < n; {
			k, err := l.readSlots(d, seq, first+uint64(i+done), all[done:])
			if err != nil {
				return err
			}
			done += k
		}
		return nil
	})
	return all
}
