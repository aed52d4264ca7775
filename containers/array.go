package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"runtime"
	"sync/atomic"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// A SharedArray is a fixed number of Ts that processes share, like a slice that cannot grow. Use
// [NewSharedArray]. A handle is a small value: copy it, pass it to other processes.
//
// Reads take no lock, never wait for a writer's code and see committed elements only. Every write takes the
// array's lock. [SharedArray.With] and [SharedArray.Update] change many elements as one: all of it is seen,
// or nothing, and an error, a panic or a kill in between leaves the elements as they were.
//
// # How it is laid out, and what a kill leaves
//
// The elements lie one behind the other, each on T's own size, in one block that never moves. An element of
// 1, 2, 4 or 8 bytes is read and written by one instruction. What is larger, or is changed by With, is made
// whole by a sequence word that says where the committed state is:
//
//	words  0 sequence: changes so far<<2 | mode
//	       1 offset of the elements   2 their number   3 size of one
//	       4 offset of the snapshot, a block like the elements; 0: none yet
//	       5 offset of the scratch, room for one element; 0: elements that need none
//	       6 index of the element being replaced
//	       7 token of the process whose With is open
//
//	mode 0 stable     the elements are the committed state
//	mode 1 open       With is at work on the elements; the snapshot is the committed state
//	mode 2 replacing  element words[6] is being written; the scratch is its committed state
//
// Each operation is a row of stores. A kill between two of them leaves the state before or after, as the
// next one to take the lock (which finds its owner dead) makes of it:
//
//	Set, ≤ 8 bytes   | the element                               | before or after
//	Set, larger      | scratch, words[6]                         | before
//	                 | mode 2, element                           | before: the scratch is copied back
//	                 | mode 0                                    | after
//	With, Update     | snapshot's block and words[4], at once    | before
//	                 | snapshot, words[7], mode 1, fn at work    | before: the snapshot is copied back
//	                 | mode 0                                    | after
//	CopyIn           | as Set, element by element                | those before it are written, those behind are not
//
// Copying back may be cut off by another kill: the next one does it again.
type SharedArray[T any] struct {
	lockable
	data addr // the elements
	n    int
}

// Words of an array.
const (
	arraySeq      = iota
	arrayData     // immutable
	arrayLength   // immutable
	arrayStride   // immutable
	arraySnapshot // set once
	arrayScratch  // immutable
	arrayIndex    // guarded by the lock; of use in mode 2
	arrayOpener   // guarded by the lock; of use in mode 1

	arrayStable    = 0
	arrayOpen      = 1
	arrayReplacing = 2
	arrayMode      = 3 // mask
	arrayChange    = 4 // one more change, in the sequence word
)

// NewSharedArray makes an array of n zeros in m; nil is this process' own Manager. A negative n is an error
// that is [fs.ErrInvalid]; 0 is allowed. A T that is not plain data is refused with a [*shm.TypeError].
func NewSharedArray[T any](m *Manager, n int, opts ...Option) (SharedArray[T], error) {
	return newArray[T](m, n, nil, opts)
}

// NewSharedArrayOf makes an array that holds a copy of values.
func NewSharedArrayOf[T any](m *Manager, values []T, opts ...Option) (SharedArray[T], error) {
	return newArray(m, len(values), values, opts)
}

func newArray[T any](m *Manager, n int, values []T, opts []Option) (a SharedArray[T], err error) {
	k, layout, err := a.about()
	if err != nil {
		return a, err
	}
	size := sizeOf[T]()
	switch {
	case n < 0:
		return a, fmt.Errorf("containers: new array of %d elements: %w", n, fs.ErrInvalid)
	case size > 0 && uint64(n) > math.MaxInt64/size-8:
		return a, fmt.Errorf("containers: new array of %d elements of %d bytes: %w", n, size, shm.ErrNoSpace)
	}
	b, err := newObject(m, k, layout, opts, func(tx *txn.Lane, s *space, o *object) error {
		o.words[arrayLength].Store(uint64(n))
		o.words[arrayStride].Store(size)
		if err := s.allocIn(tx, &o.words[arrayData], blockSize(uint64(n)*size)); err != nil {
			return err
		}
		if !atomicSize[T]() {
			if err := s.allocIn(tx, &o.words[arrayScratch], blockSize(size)); err != nil {
				return err
			}
		}
		if len(values) > 0 {
			data, err := addrOf(s.region, shm.Offset(o.words[arrayData].Load()), blockSize(uint64(n)*size))
			if err != nil {
				return err
			}
			writeElements(data, 0, values)
		}
		return nil
	})
	if err != nil {
		return a, err
	}
	return opened(a, b)
}

// allocWord stores the offset of a new block of n bytes, zeros, in w, which the object's lock guards.
func (s *space) allocWord(w *atomic.Uint64, n uint64) error {
	return s.change(func(l *txn.Lane) error {
		off, err := s.heap.AllocIn(l, n, 8)
		if err != nil {
			return err
		}
		return l.Later(w, uint64(off))
	})
}

// blockSize returns n rounded up to whole words, at least one.
func blockSize(n uint64) uint64 { return max(8, (n+7)&^7) }

func (SharedArray[T]) about() (kind, *shm.Layout, error) {
	layout, err := layoutOf[T]()
	return kindArray, layout, err
}

func (SharedArray[T]) from(b base) (a SharedArray[T], err error) {
	n, stride := b.obj.words[arrayLength].Load(), b.obj.words[arrayStride].Load()
	if stride != sizeOf[T]() || n > math.MaxInt || stride > 0 && n > math.MaxInt64/stride-8 {
		return a, b.fail("open", fmt.Errorf("%d elements of %d bytes, want %d bytes: %w", n, stride, sizeOf[T](), shm.ErrCorrupt))
	}
	data, err := addrOf(b.s.region, shm.Offset(b.obj.words[arrayData].Load()), blockSize(n*stride))
	if err != nil {
		return a, b.fail("open", err)
	}
	return SharedArray[T]{lockable{b}, data, int(n)}, nil
}

// MarshalBinary encodes a reference to the object, for whoever has or gets the region: a process started by
// package proc finds it attached. A zero handle is encoded as nothing.
func (a SharedArray[T]) MarshalBinary() ([]byte, error) { return a.base.MarshalBinary() }

// MarshalText is MarshalBinary in base64.
func (a SharedArray[T]) MarshalText() ([]byte, error) { return a.base.MarshalText() }

// UnmarshalBinary makes a the handle that MarshalBinary encoded. The region is found by its id, else by its
// name, else the error is [shm.ErrNotAttached].
func (a *SharedArray[T]) UnmarshalBinary(data []byte) error { return unmarshal(a, data) }

// UnmarshalText is UnmarshalBinary from base64.
func (a *SharedArray[T]) UnmarshalText(text []byte) error { return unmarshalText(a, text) }

// Len returns the number of elements, which never changes.
func (a SharedArray[T]) Len() int {
	a.checkLive("Len")
	return a.n
}

// At returns element i, as last committed, without waiting. Like a slice's index, i runs from 0 to Len()-1;
// At panics for any other, the negative ones too. It panics with an error that is [shm.ErrClosed] or
// [shm.ErrStale] if the region is closed or the array destroyed, as every method without an error does.
func (a SharedArray[T]) At(i int) T {
	if uint(i) >= uint(a.n) {
		a.badIndex("At", i)
	}
	seq := &a.obj.words[arraySeq]
	if s := seq.Load(); s&arrayMode == arrayStable {
		v := readElement[T](a.data, i)
		if seq.Load() == s { // nobody has written a part of it meanwhile
			a.checkLive("At")
			return v
		}
	}
	var v [1]T
	a.read("At", v[:], i)
	return v[0]
}

// Set stores v in element i: in one step, for readers too. It takes the lock. Indices are as for At.
func (a SharedArray[T]) Set(i int, v T) {
	if uint(i) >= uint(a.n) {
		a.badIndex("Set", i)
	}
	a.acquire("Set")
	err := a.set(i, &v)
	a.release()
	if err != nil {
		panic(a.fail("Set", err))
	}
}

// CopyIn copies src over the elements from index i on; it panics if they do not fit. It takes the lock
// once; each element is replaced in one step, but not all of them together: for that there is Update.
func (a SharedArray[T]) CopyIn(i int, src []T) {
	a.checkRange("CopyIn", i, len(src))
	a.acquire("CopyIn")
	err := a.copyIn(i, src)
	a.release()
	if err != nil {
		panic(a.fail("CopyIn", err))
	}
}

// CopyOut copies elements into dst, from index i on until dst is full or the array ends, and returns how
// many. It does not wait for writers unless they overtake it again and again. It sees all or nothing of
// each With and Update, and each element whole; a Set or CopyIn elsewhere it may see or not.
func (a SharedArray[T]) CopyOut(dst []T, i int) int {
	a.checkRange("CopyOut", i, 0)
	n := min(len(dst), a.n-i)
	a.read("CopyOut", dst[:n], i)
	return n
}

// Slice returns a copy of the elements that Python's a[start:stop:step] selects. Negative start and stop
// count from the end, and what lies outside the array is clamped to it: nothing panics. A negative step
// goes backwards, down to but without stop; to include element 0 let stop be [math.MinInt]:
// Slice(math.MaxInt, math.MinInt, -1) is the whole array reversed. A step of 0 is an error that is
// [fs.ErrInvalid]. It reads as CopyOut does.
func (a SharedArray[T]) Slice(start, stop, step int) ([]T, error) {
	if err := a.check("Slice"); err != nil {
		return nil, err
	}
	if step == 0 {
		return nil, a.fail("Slice", fmt.Errorf("step 0: %w", fs.ErrInvalid))
	}
	start, n := clampSlice(a.n, start, stop, step)
	picked := make([]T, n)
	if n == 0 {
		return picked, nil
	}
	end := start + (n-1)*step // of the last one picked
	if step == 1 {
		a.read("Slice", picked, start)
		return picked, nil
	}
	low := min(start, end)
	all := make([]T, max(start, end)-low+1) // read in one piece
	a.read("Slice", all, low)
	for i := range picked {
		picked[i] = all[start+i*step-low]
	}
	return picked, nil
}

// All returns an iterator over indices and elements, copies, from first to last. It holds no lock while the
// loop's body runs, which may do anything; it reads as CopyOut does, a few elements at a time.
func (a SharedArray[T]) All() iter.Seq2[int, T] {
	return func(yield func(int, T) bool) {
		a.checkLive("All")
		block := make([]T, min(uint64(a.n), iterationBytes/max(1, sizeOf[T]())+1))
		for i := 0; i < a.n; i += len(block) {
			part := block[:min(len(block), a.n-i)]
			a.read("All", part, i)
			for k, v := range part {
				if !yield(i+k, v) {
					return
				}
			}
		}
	}
}

// Values returns an iterator over the elements, as All does.
func (a SharedArray[T]) Values() iter.Seq[T] { return values(a.All()) }

// With calls fn with the elements, the lock held. What fn changes in them becomes visible all at once when
// fn returns; until then readers see the elements as they were. If fn panics or the process dies inside,
// nothing has changed. v is of use only until fn returns. Calling the array's own writing methods inside fn
// would wait for ever; reading ones see what was before.
//
// With first copies all elements aside, into memory that it allocates the first time and keeps: it costs
// two copies of the array. It panics with an error that is [shm.ErrNoSpace] if there is no room for that.
func (a SharedArray[T]) With(fn func(v []T)) {
	a.acquire("With")
	defer a.release()
	if err := a.edit(func(v []T) error { fn(v); return nil }); err != nil {
		panic(a.fail("With", err))
	}
}

// Update is With that waits for the lock until the context ends, and that leaves everything as it was if fn
// returns an error, which Update returns as it is.
func (a SharedArray[T]) Update(ctx context.Context, fn func(v []T) error) error {
	if err := a.lock(ctx, "Update"); err != nil {
		return err
	}
	defer a.release()
	return a.update(fn)
}

// View returns the elements themselves: live memory, outside all promises of this type. Nothing orders
// reads and writes through it but what the caller does, readers see half-done changes, an open With may
// take back what was written, and nothing is repaired after a kill. It is valid until the region is closed
// or the array is destroyed; from then on it must not be touched.
func (a SharedArray[T]) View() []T {
	a.checkLive("View")
	return viewOf[T](a.data, a.n)
}

// values drops the keys of a sequence.
func values[K, V any](seq iter.Seq2[K, V]) iter.Seq[V] {
	return func(yield func(V) bool) {
		for _, v := range seq {
			if !yield(v) {
				return
			}
		}
	}
}

// read copies elements from index i on into dst, as committed, in one piece as far as With and replaced
// elements go.
func (a SharedArray[T]) read(op string, dst []T, i int) {
	seq := &a.obj.words[arraySeq]
	for try := 1; ; try++ {
		s := seq.Load()
		ok := a.copyOut(s, dst, i)
		finishLoads()
		if seq.Load() == s {
			a.checkLive(op)
			if !ok {
				panic(a.fail(op, fmt.Errorf("sequence %#x: %w", s, shm.ErrCorrupt)))
			}
			return
		}
		// Somebody committed a change meanwhile, so the system as a whole moves on. If changes never pause,
		// the lock is free in between; if its holder sleeps there are none, and the next try succeeds.
		if try >= maxTries && a.mu != nil && a.mu.TryLock() {
			ok = a.copyOut(seq.Load(), dst, i)
			a.mu.Unlock()
			a.checkLive(op)
			if ok {
				return
			}
		}
		if try >= maxTries {
			runtime.Gosched()
		}
	}
}

// copyOut copies what sequence word s says is committed, and reports whether the words made sense; whether
// s still held at the end is the caller's question.
func (a SharedArray[T]) copyOut(s uint64, dst []T, i int) bool {
	switch s & arrayMode {
	case arrayStable:
		readElements(dst, a.data, i)
	case arrayOpen:
		snapshot, err := a.block(arraySnapshot, uint64(a.n)*sizeOf[T]())
		if err != nil {
			return false
		}
		readElements(dst, snapshot, i)
	case arrayReplacing:
		scratch, err := a.block(arrayScratch, sizeOf[T]())
		if err != nil {
			return false
		}
		readElements(dst, a.data, i)
		if k := a.obj.words[arrayIndex].Load() - uint64(i); k < uint64(len(dst)) {
			readElements(dst[k:k+1], scratch, 0)
		}
	default:
		return false
	}
	return true
}

// block returns the address of the block of n bytes whose offset is in word w.
func (a SharedArray[T]) block(w int, n uint64) (addr, error) {
	return addrOf(a.s.region, shm.Offset(a.obj.words[w].Load()), blockSize(n))
}

var errWithOpen = errors.New("inside With: use the elements that it gives")

// stable returns the sequence word, which has mode 0 while nobody but the caller, who has the lock, could
// have changed it.
func (a SharedArray[T]) stable() (uint64, error) {
	s := a.obj.words[arraySeq].Load()
	switch s & arrayMode {
	case arrayStable:
		return s, nil
	case arrayOpen:
		return s, errWithOpen
	}
	return s, fmt.Errorf("sequence %#x: %w", s, shm.ErrCorrupt)
}

// set replaces element i. The lock is held.
func (a SharedArray[T]) set(i int, v *T) error {
	s, err := a.stable()
	if err != nil {
		return err
	}
	if atomicSize[T]() {
		writeElement(a.data, i, v)
		return nil
	}
	scratch, err := a.block(arrayScratch, sizeOf[T]())
	if err != nil {
		return err
	}
	a.replace(s, scratch, i, func() { writeElements(a.data, i, []T{*v}) })
	return nil
}

// replace calls write, which replaces element i in several stores, and returns the new sequence word. The
// lock is held, s is the sequence word.
func (a SharedArray[T]) replace(s uint64, scratch addr, i int, write func()) uint64 {
	o := a.obj
	old := readElement[T](a.data, i)
	writeElements(scratch, 0, []T{old})
	o.words[arrayIndex].Store(uint64(i))
	publish(&o.words[arraySeq], s+arrayChange|arrayReplacing) // readers of this element turn to the scratch
	write()                                                   // crash here: the scratch is copied back
	s += 2 * arrayChange
	publish(&o.words[arraySeq], s)
	return s
}

// copyIn replaces the elements from i on. The lock is held.
func (a SharedArray[T]) copyIn(i int, src []T) error {
	s, err := a.stable()
	if err != nil {
		return err
	}
	if atomicSize[T]() {
		writeElements(a.data, i, src)
		return nil
	}
	scratch, err := a.block(arrayScratch, sizeOf[T]())
	if err != nil {
		return err
	}
	for k := range src {
		s = a.replace(s, scratch, i+k, func() { writeElements(a.data, i+k, src[k:k+1]) })
	}
	return nil
}

// update is edit whose own errors name the operation; fn's error is returned as it is.
func (a SharedArray[T]) update(fn func(v []T) error) (err error) {
	called := false
	err = a.edit(func(v []T) error { called = true; return fn(v) })
	if err != nil && !called {
		return a.fail("Update", err)
	}
	return err
}

// edit runs fn on the elements, which readers do not look at meanwhile, and commits what it did unless it
// fails. The lock is held.
func (a SharedArray[T]) edit(fn func(v []T) error) error {
	s, err := a.stable()
	if err != nil {
		return err
	}
	o, size := a.obj, uint64(a.n)*sizeOf[T]()
	if o.words[arraySnapshot].Load() == 0 {
		if err := a.s.allocWord(&o.words[arraySnapshot], blockSize(size)); err != nil {
			return err
		}
	}
	snapshot, err := a.block(arraySnapshot, size)
	if err != nil {
		return err
	}
	copyBlock(snapshot, a.data, blockSize(size))
	o.words[arrayOpener].Store(uint64(shm.Self()))
	publish(&o.words[arraySeq], s+arrayChange|arrayOpen) // readers turn to the snapshot
	done := false
	defer func() {
		if !done { // an error, a panic, or the goroutine's end
			copyBlock(a.data, snapshot, blockSize(size))
		}
		o.words[arraySeq].Store(s + 2*arrayChange) // commits, or shows the old elements again
	}()
	if raceEnabled {
		// Readers that began before the change of mode may still be looking at the elements.
		private := make([]T, a.n)
		readElements(private, a.data, 0)
		if err := fn(private); err != nil {
			return err
		}
		writeElements(a.data, 0, private)
	} else if err := fn(viewOf[T](a.data, a.n)); err != nil {
		return err
	}
	done = true
	return nil
}

// clampSlice returns the first index that [start:stop:step] selects of length elements, and how many it
// selects, by Python's rules.
func clampSlice(length, start, stop, step int) (first, n int) {
	low, high := 0, length // what start and stop are clamped to
	if step < 0 {
		low, high = -1, length-1
	}
	clamp := func(i int) int {
		if i < 0 {
			i += length
		}
		return min(max(i, low), high)
	}
	start, stop = clamp(start), clamp(stop)
	switch {
	case step > 0 && start < stop:
		return start, (stop-start-1)/step + 1
	case step < 0 && start > stop:
		return start, int(uint(start-stop-1)/-uint(step)) + 1 // unsigned: -math.MinInt is no int
	}
	return start, 0
}

// iterationBytes is how much an iterator copies at a time: enough for the check of the sequence word not to
// show in the time per element, little enough to stay in the first-level cache.
const iterationBytes = 4096

// badIndex says that index i is outside the array.
//
//go:noinline
func (a SharedArray[T]) badIndex(op string, i int) {
	a.checkLive(op) // a zero handle has no elements at all
	panic(fmt.Sprintf("containers: SharedArray.%s: index %d out of range, length %d", op, i, a.n))
}

// checkRange panics unless elements i to i+n-1 exist.
func (a SharedArray[T]) checkRange(op string, i, n int) {
	if a.obj == nil || uint(i) > uint(a.n) || n > a.n-i {
		a.checkLive(op)
		panic(fmt.Sprintf("containers: SharedArray.%s: %d elements from index %d on, length %d", op, n, i, a.n))
	}
}

// repairArray brings an array to its committed state, whatever its T.
func repairArray(s *space, o *object) error {
	seq := o.words[arraySeq].Load()
	if seq&arrayMode == arrayStable {
		return nil
	}
	n, stride := o.words[arrayLength].Load(), o.words[arrayStride].Load()
	if stride == 0 || n > s.region.Limit()/stride {
		return fmt.Errorf("%d elements of %d bytes: %w", n, stride, shm.ErrCorrupt)
	}
	data, err := addrOf(s.region, shm.Offset(o.words[arrayData].Load()), blockSize(n*stride))
	if err != nil {
		return err
	}
	switch seq & arrayMode {
	case arrayOpen:
		snapshot, err := addrOf(s.region, shm.Offset(o.words[arraySnapshot].Load()), blockSize(n*stride))
		if err != nil {
			return err
		}
		copyBlock(data, snapshot, blockSize(n*stride)) // crash here: done again
	case arrayReplacing:
		scratch, err := addrOf(s.region, shm.Offset(o.words[arrayScratch].Load()), blockSize(stride))
		if err != nil {
			return err
		}
		i := o.words[arrayIndex].Load()
		if i >= n {
			return fmt.Errorf("element %d of %d being replaced: %w", i, n, shm.ErrCorrupt)
		}
		storeBytes(data, i*stride, viewOf[byte](scratch, int(stride))) // crash here: done again
	default:
		return fmt.Errorf("sequence %#x: %w", seq, shm.ErrCorrupt)
	}
	o.words[arraySeq].Store(seq&^arrayMode + arrayChange)
	return nil
}

// dropArray frees what an array has.
func dropArray(l *txn.Lane, s *space, o *object) error {
	return errors.Join(s.freeIn(l, &o.words[arrayData]), s.freeIn(l, &o.words[arraySnapshot]), s.freeIn(l, &o.words[arrayScratch]))
}

// Check waits for the lock and returns an error that is [shm.ErrCorrupt] and names the first broken
// invariant, if there is one.
func (a SharedArray[T]) Check() error {
	if err := a.lock(context.Background(), "Check"); err != nil {
		return err
	}
	defer a.release()
	w := &a.obj.words
	s, n, stride := w[arraySeq].Load(), w[arrayLength].Load(), w[arrayStride].Load()
	switch {
	case s&arrayMode != arrayStable:
		return a.fail("Check", fmt.Errorf("sequence %#x while nothing is at work: %w", s, shm.ErrCorrupt))
	case n != uint64(a.n) || stride != sizeOf[T]():
		return a.fail("Check", fmt.Errorf("%d elements of %d bytes, were %d of %d: %w", n, stride, a.n, sizeOf[T](), shm.ErrCorrupt))
	case !atomicSize[T]() && w[arrayScratch].Load() == 0:
		return a.fail("Check", fmt.Errorf("no scratch: %w", shm.ErrCorrupt))
	}
	for word, size := range map[int]uint64{arrayData: n * stride, arraySnapshot: n * stride, arrayScratch: stride} {
		if w[word].Load() != 0 || word == arrayData {
			if _, err := a.block(word, size); err != nil {
				return a.fail("Check", fmt.Errorf("word %d: %w", word, err))
			}
		}
	}
	return nil
}
