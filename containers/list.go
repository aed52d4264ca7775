package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"reflect"
	"runtime"
	"slices"
	stdsync "sync"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// A SharedList is a list that processes share, and that grows and shrinks anywhere, fastest at its ends. Its elements are
// plain Ts, strings or []bytes; strings and []bytes of any length are stored outside the list's own memory
// and come back as copies. Use [NewSharedList]. A handle is a small value: copy it, pass it to other
// processes.
//
// Reads take no lock, never wait for a writer and see committed elements only. Every write takes the list's
// lock, and happens at once and whole: a process that dies inside leaves the list as before or as after
// the call, and no memory is lost. [deque] says how it is laid out, and what each kill leaves; [listPlan] how elements change
// places.
//
// Indices run from 0 to Len()-1; negative ones count from the end, -1 being the last element.
type SharedList[T any] struct {
	lockable
	form slotForm
}

// NewSharedList makes an empty list in m; nil is this process' own Manager. A T that is neither plain data
// nor a string nor a []byte is refused with a [*shm.TypeError].
func NewSharedList[T any](m *Manager, opts ...Option) (SharedList[T], error) {
	var l SharedList[T]
	k, layout, err := l.about()
	if err != nil {
		return l, err
	}
	form, stride := formOf[T]()
	b, err := newObject(m, k, layout, opts, func(tx *txn.Lane, s *space, o *object) error {
		return deque{s, o, shapeOf(stride, form)}.make(tx)
	})
	if err != nil {
		return l, err
	}
	return opened(l, b)
}

// formOf returns what a slot for a T holds, and its bytes.
func formOf[T any]() (slotForm, uint64) {
	switch t := reflect.TypeFor[T](); {
	case t.Kind() == reflect.String:
		return formString, textSlot
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		return formBytes, textSlot
	}
	return formPlain, strideOf[T]()
}

var stringLayout, bytesLayout = namedLayout("string"), namedLayout("[]byte")

func (SharedList[T]) about() (kind, *shm.Layout, error) {
	switch form, _ := formOf[T](); form {
	case formString:
		return kindList, stringLayout, nil
	case formBytes:
		return kindList, bytesLayout, nil
	}
	layout, err := layoutOf[T]()
	if err == nil && layout.Size >= 1<<32 {
		err = fmt.Errorf("containers: list of elements of %d bytes: %w", layout.Size, fs.ErrInvalid)
	}
	return kindList, layout, err
}

func (SharedList[T]) from(b base) (l SharedList[T], err error) {
	form, stride := formOf[T]()
	if shape := b.obj.words[listShape].Load(); shape != uint64(shapeOf(stride, form)) {
		return l, b.fail("open", fmt.Errorf("shape %#x, want %#x: %w", shape, uint64(shapeOf(stride, form)), shm.ErrCorrupt))
	}
	return SharedList[T]{lockable{b}, form}, nil
}

// MarshalBinary encodes a reference to the object, for whoever has or gets the region: a process started by
// package proc finds it attached. A zero handle is encoded as nothing.
func (l SharedList[T]) MarshalBinary() ([]byte, error) { return l.base.MarshalBinary() }

// MarshalText is MarshalBinary in base64.
func (l SharedList[T]) MarshalText() ([]byte, error) { return l.base.MarshalText() }

// UnmarshalBinary makes l the handle that MarshalBinary encoded. The region is found by its id, else by its
// name, else the error is [shm.ErrNotAttached].
func (l *SharedList[T]) UnmarshalBinary(data []byte) error { return unmarshal(l, data) }

// UnmarshalText is UnmarshalBinary from base64.
func (l *SharedList[T]) UnmarshalText(text []byte) error { return unmarshalText(l, text) }

// Append adds v at the end. It returns [shm.ErrNoSpace], the list unchanged, if there is no room for it,
// [shm.ErrClosed] or [shm.ErrStale] if the region is closed or the list destroyed. O(1), without allocation
// in the region but once in a chunk of elements, or for a long string.
//
// An int64 takes 12 ns on an AMD EPYC, if the lock is free. Of these 5.4 are what Lock and Unlock alone take, the others are looks at offsets in the
// region, the checks of the handle, and the hooks of the tests. A string of 32 bytes takes 57: those 12, and 16 that are a sixteenth of filling the
// lane's magazine; the others are the lane, the block's log, and the wait of Unlock for the block's line. One of up to 15 bytes takes 20.
func (l SharedList[T]) Append(v T) error {
	if l.form == formPlain && quickAppend(l.base, &v) || l.form != formPlain && quickAppendText(l.base, *as[string](addr(&v))) {
		return nil
	}
	if err := l.lock(context.Background(), "Append"); err != nil {
		return err
	}
	err := l.push(&v)
	l.release()
	if err != nil {
		return l.fail("Append", err)
	}
	return nil
}

// AppendN adds all of vs at the end, in one step: others see all of them or, also if the process dies or
// there is no room, none.
func (l SharedList[T]) AppendN(vs ...T) error {
	if err := l.lock(context.Background(), "AppendN"); err != nil {
		return err
	}
	err := l.pushAll(vs)
	l.release()
	if err != nil {
		return l.fail("AppendN", err)
	}
	return nil
}

// Extend is AppendN of all that seq yields. It collects them first: seq may read this very list.
func (l SharedList[T]) Extend(seq iter.Seq[T]) error {
	if err := l.check("Extend"); err != nil {
		return err
	}
	return l.AppendN(slices.Collect(seq)...)
}

// Len returns the number of elements. Without the lock others may change it at any time.
func (l SharedList[T]) Len() int {
	first, last := l.bounds("Len")
	return int(last - first)
}

// At returns element i, without waiting. It panics if there is none, and with an error that is
// [shm.ErrClosed] or [shm.ErrStale] if the region is closed or the list destroyed, as every method without
// an error result does. Where others may shrink the list, Get answers better.
func (l SharedList[T]) At(i int) T {
	if v, ok := l.quick("At", i); ok {
		return v
	}
	v, n, ok := l.get("At", i)
	if !ok {
		badListIndex("At", i, n)
	}
	return v
}

// quick is the common case of get without its detours. It returns false if that is not the case, or there is no such element. (A pointer saves a copy of l:
// see segment.)
func (l *SharedList[T]) quick(op string, i int) (v T, ok bool) {
	if l.obj == nil || l.form != formPlain {
		return v, false
	}
	d := l.deque()
	seq := d.seq().Load()
	first, last := d.o.words[listFirst].Load(), d.o.words[listLast].Load()
	k := uint64(i)
	if i < 0 {
		k += last - first
	}
	if seq&listMode != listStable || k >= last-first || last-first > 1<<62 || d.o.words[listFirst].Load() != first { // see ends
		return v, false
	}
	p, err := d.slot(first + k)
	if err != nil {
		return v, false
	}
	v = load[T](p)
	if d.seq().Load() != seq {
		return v, false
	}
	l.checkLive(op)
	return v, true
}

// Get returns element i and true, or false if there is none.
func (l SharedList[T]) Get(i int) (T, bool) {
	if v, ok := l.quick("Get", i); ok {
		return v, true
	}
	v, _, ok := l.get("Get", i)
	return v, ok
}

// Set replaces element i: in one step, for readers too. It panics if there is none. It returns
// [shm.ErrNoSpace], the element unchanged, if there is no room for a long string.
func (l SharedList[T]) Set(i int, v T) error {
	if err := l.lock(context.Background(), "Set"); err != nil {
		return err
	}
	n, ok, err := l.put(i, &v)
	l.release()
	if !ok {
		badListIndex("Set", i, n)
	}
	if err != nil {
		return l.fail("Set", err)
	}
	return nil
}

// Pop takes the last element off and returns it, or false if the list is empty. If the process dies
// inside, the element may be gone; a queue with leases is for those who cannot afford that.
func (l SharedList[T]) Pop() (T, bool) {
	l.acquire("Pop")
	v, ok, err := l.pop(true)
	l.release()
	if err != nil {
		panic(l.fail("Pop", err))
	}
	return v, ok
}

// PopFirst is Pop at the other end, and as fast.
func (l SharedList[T]) PopFirst() (T, bool) {
	l.acquire("PopFirst")
	v, ok, err := l.pop(false)
	l.release()
	if err != nil {
		panic(l.fail("PopFirst", err))
	}
	return v, ok
}

// Clear takes all elements off, in one step, and frees their memory.
func (l SharedList[T]) Clear() {
	l.acquire("Clear")
	err := l.deque().clear()
	l.release()
	if err != nil {
		panic(l.fail("Clear", err))
	}
}

// All returns an iterator over indices and elements, copies. It visits the positions that the list has when
// the loop begins; each is read when the loop gets there, some at a time, and those that are gone by then
// are left out; where others insert, remove or sort meanwhile, an element may have gone to a position that the loop has passed, or
// not reached. [SharedList.Slice] has all at one moment. All holds no lock while the loop's body runs, which may do anything, to this list too, and
// it always ends.
func (l SharedList[T]) All() iter.Seq2[int, T] {
	return func(yield func(int, T) bool) {
		first, last := l.bounds("All")
		l.visit(first, first, last, yield)
	}
}

// visit yields the elements of slots [v, end) that are there when it gets to them, with their indices, counted from slot first.
func (l SharedList[T]) visit(first, v, end uint64, yield func(int, T) bool) {
	l.blocks(v, end, func(v uint64, block []T) bool {
		for k, e := range block {
			if !yield(int(v-first)+k, e) {
				return false
			}
		}
		return true
	})
}

// blocks yields copies of the elements of slots [v, end) that are there when it gets to them, some at a time, with the slot of the first of
// them. They are yield's until it returns.
func (l SharedList[T]) blocks(v, end uint64, yield func(v uint64, block []T) bool) {
	if v >= end {
		return
	}
	var block []T
	if l.form == formPlain && strideOf[T]() <= iterationBytes {
		s := scratches.Get().(*scratch)
		defer scratches.Put(s)
		block = viewOf[T](addr(&s[0]), int(l.perBlock()))
	} else {
		block = make([]T, min(end-v, l.perBlock()))
	}
	for v < end {
		var n int
		v, n, end = l.readBlock(block, v, end)
		if !yield(v, block[:n]) {
			return
		}
		v += uint64(n)
	}
}

// A scratch is where an iterator copies plain elements to: clearing a new one for each walk took as long as the copying.
type scratch [iterationBytes / 8]uint64

var scratches = stdsync.Pool{New: func() any { return new(scratch) }}

// Values returns an iterator over the elements, as All does.
func (l SharedList[T]) Values() iter.Seq[T] {
	return func(yield func(T) bool) {
		first, last := l.bounds("Values")
		l.blocks(first, last, func(_ uint64, block []T) bool {
			for _, e := range block {
				if !yield(e) {
					return false
				}
			}
			return true
		})
	}
}

// deque returns the list's memory.
func (l *SharedList[T]) deque() deque {
	if l.form != formPlain {
		return deque{l.s, l.obj, shapeOf(textSlot, l.form)}
	}
	return deque{l.s, l.obj, shapeOf(strideOf[T](), formPlain)}
}

// look calls fn until no writer has changed the list meanwhile. fn gets the sequence word; what it reads is
// the committed state if look returns. It returns fn's error if nothing moved while fn failed.
func (l SharedList[T]) look(op string, fn func(d deque, seq uint64) error) {
	if l.obj == nil {
		l.notLive(op)
	}
	d := l.deque()
	for try := 1; ; try++ {
		s := d.seq().Load()
		err := fn(d, s)
		if d.seq().Load() == s {
			l.checkLive(op)
			if err != nil {
				panic(l.fail(op, err))
			}
			return
		}
		// As in SharedArray.read: an overtaking writer is progress, and one that sleeps does not overtake.
		if try >= maxTries && l.mu != nil && l.mu.TryLock() {
			err := fn(d, d.seq().Load())
			l.mu.Unlock()
			l.checkLive(op)
			if err != nil {
				panic(l.fail(op, err))
			}
			return
		}
		if try >= maxTries {
			runtime.Gosched()
		}
	}
}

// ends returns first and last, which belong together if the sequence word does not change.
func (d deque) ends() (first, last uint64, err error) {
	w := &d.o.words
	for try := 1; ; try++ {
		first, last = w[listFirst].Load(), w[listLast].Load()
		// One who puts in front and then appends moves both, and not the sequence. Where only first came back it has changed.
		if w[listFirst].Load() == first {
			break
		}
		if try >= maxTries {
			runtime.Gosched()
		}
	}
	if last < first || last-first > 1<<62 {
		return first, first, fmt.Errorf("slots [%d, %d): %w", first, last, shm.ErrCorrupt)
	}
	return first, last, nil
}

// holds returns an error if the region has no room for n slots: who counts them would count for ever.
func (d deque) holds(n uint64) error {
	if n > d.s.region.Size()/d.stride() {
		return d.tooMany(n)
	}
	return nil
}

//go:noinline
func (d deque) tooMany(n uint64) error {
	return fmt.Errorf("%d slots of %d bytes: %w", n, d.stride(), shm.ErrCorrupt)
}

// fits returns an error if no region of that limit has room for n slots more: who looked for it would take memory for a directory
// of them first.
func (d deque) fits(n int) error {
	if uint64(n) > d.s.region.Limit()/d.stride() {
		return fmt.Errorf("%d slots of %d bytes are more than the region's limit, %d bytes: %w", n, d.stride(), d.s.region.Limit(), shm.ErrNoSpace)
	}
	return nil
}

// endsAt is ends in mode and step seq.
func (d deque) endsAt(seq uint64) (first, last uint64, err error) {
	if seq&listMode != listSettling {
		return d.ends()
	}
	pl, err := d.plan()
	return pl.first, pl.last, err
}

func (l SharedList[T]) bounds(op string) (first, last uint64) {
	l.look(op, func(d deque, seq uint64) (err error) {
		if first, last, err = d.endsAt(seq); err == nil {
			err = d.holds(last - first)
		}
		return err
	})
	return first, last
}

// position turns an index, from the end if negative, into one from the beginning.
func position(i, n int) (int, bool) {
	if i < 0 {
		i += n
	}
	return i, uint(i) < uint(n)
}

//go:noinline
func badListIndex(op string, i, n int) {
	if n == 0 {
		panic(fmt.Sprintf("containers: SharedList.%s: index %d of an empty list", op, i))
	}
	panic(fmt.Sprintf("containers: SharedList.%s: index %d out of range [%d, %d]", op, i, -n, n-1))
}

// get returns element i, the length, and whether there is such an element.
func (l SharedList[T]) get(op string, i int) (v T, n int, ok bool) {
	l.look(op, func(d deque, seq uint64) error {
		first, last, err := d.endsAt(seq)
		if n = int(last - first); err != nil {
			return err
		}
		var k int
		if k, ok = position(i, n); !ok {
			return nil
		}
		p, err := d.committed(first+uint64(k), seq)
		if err == nil {
			v, err = l.load(d, p, seq)
		}
		return err
	})
	return v, n, ok
}

// committed returns the address of the committed state of slot v, in mode and step seq: the slot, unless it is being replaced or is moving.
func (d deque) committed(v, seq uint64) (addr, error) {
	switch seq & listMode {
	case listReplacing:
		if d.o.words[listIndex].Load() == v {
			return d.scratch()
		}
	case listSettling:
		pl, err := d.plan()
		if err != nil {
			return nil, err
		}
		return pl.find(v, seq)
	}
	return d.slot(v)
}

// load returns the element in the slot at p, read under sequence word seq.
func (l SharedList[T]) load(d deque, p addr, seq uint64) (v T, err error) {
	if l.form == formPlain {
		return load[T](p), nil
	}
	b, err := d.text(p, func() bool { return d.seq().Load() == seq })
	if err == nil {
		v = *as[T](addr(&b)) // a string's header is the beginning of a slice's
	}
	return v, err
}

// perBlock returns how many elements an iterator copies at a time.
func (l SharedList[T]) perBlock() uint64 {
	if l.form != formPlain {
		return 16
	}
	return max(1, iterationBytes/strideOf[T]())
}

// readBlock copies elements from slot v on into block, as many as lie in one chunk before end. It returns
// the slot it began with, which is behind v if that is gone, their number, and end or what is left of it.
func (l SharedList[T]) readBlock(block []T, v, end uint64) (from uint64, n int, left uint64) {
	l.look("All", func(d deque, seq uint64) error {
		first, last, err := d.endsAt(seq)
		if err != nil {
			return err
		}
		from, left = max(v, first), min(end, last)
		if n = 0; from >= left {
			return nil
		}
		n, err = l.readSlots(d, seq, from, block[:min(left-from, uint64(len(block)))])
		return err
	})
	return from, n, left
}

// readSlots copies elements from slot v on into block, as many as lie in one chunk, and returns their number.
func (l SharedList[T]) readSlots(d deque, seq, v uint64, block []T) (int, error) {
	n := int(min(uint64(len(block)), 1<<d.shift()-v&d.mask()))
	if l.form == formPlain && sizeOf[T]() == d.stride() && seq&listMode == listStable {
		p, err := d.slots(v, uint64(n))
		if err == nil {
			readElements(block[:n], p, 0)
			finishLoads()
		}
		return n, err
	}
	for k := range n {
		p, err := d.committed(v+uint64(k), seq)
		if err == nil {
			block[k], err = l.load(d, p, seq)
		}
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}

// quickAppend is Append if that takes nothing but a copy: v is plain data, nobody has the lock, and there is room in the chunk that is in use.
// It returns false, having done nothing, if not.
func quickAppend[T any](b base, v *T) bool {
	if !b.free() {
		return false
	}
	d := deque{b.s, b.obj, shapeOf(strideOf[T](), formPlain)}
	last := d.o.words[listLast].Load()
	if b.good() && last&d.mask() != 0 {
		if w := d.s.region.Pointer(chunkWord(d.o.words[listDir].Load(), last>>d.shift()), 8); w != nil {
			off := word(w, 0).Load() + last&d.mask()*d.stride()
			if p := d.s.region.Pointer(shm.Offset(off), d.stride()); p != nil && off&7 == 0 {
				txn.Announce(p, uintptr(d.stride()))
				store(p, v)
				txn.Put(&d.o.words[listLast], last+1) // commits
				b.release()
				return true
			}
		}
	}
	b.mu.Unlock()
	return false
}

// push adds v at the end. The lock is held.
func (l SharedList[T]) push(v *T) error {
	d := l.deque()
	last := d.o.words[listLast].Load()
	if last&d.mask() == 0 {
		if err := d.room(last); err != nil {
			return err
		}
	}
	p, err := d.slot(last)
	if err != nil {
		return err
	}
	if l.form == formPlain {
		txn.Announce(p, uintptr(d.stride()))
		store(p, v)
	} else if l.isLong(v) {
		return d.s.change(func(tx *txn.Lane) error {
			if err := l.fill(tx, d, p, v); err != nil {
				return err
			}
			return tx.Later(&d.o.words[listLast], last+1)
		})
	} else if err := l.fill(nil, d, p, v); err != nil {
		return err
	}
	txn.Put(&d.o.words[listLast], last+1) // commits
	return nil
}

// fill writes v, a string or bytes, to the slot at p, which nobody can see. If it is long, its block is taken in the operation in tx.
func (l SharedList[T]) fill(tx *txn.Lane, d deque, p addr, v *T) error {
	slot, err := l.pack(tx, d, v)
	if err == nil {
		store(p, &slot)
	}
	return err
}

// isLong reports whether v, a string or bytes, has a block.
func (l SharedList[T]) isLong(v *T) bool { return len(*as[string](addr(v))) > textInline } // of a slice too: its header begins alike

// pack makes the slot for v, a string or bytes.
func (l SharedList[T]) pack(tx *txn.Lane, d deque, v *T) ([2]uint64, error) {
	if l.form == formString {
		return packText(tx, d, *as[string](addr(v)))
	}
	return packText(tx, d, *as[[]byte](addr(v)))
}

// pushAll adds vs at the end. The lock is held.
func (l SharedList[T]) pushAll(vs []T) (err error) {
	d := l.deque()
	if err := d.fits(len(vs)); err != nil {
		return err
	}
	last := d.o.words[listLast].Load()
	end := last + uint64(len(vs))
	defer func() {
		if err != nil {
			err = errors.Join(err, d.drain(), d.trim(d.next()+1, 1<<maxDirLog2))
		}
	}()
	for v := last; v < end; v = (v>>d.shift() + 1) << d.shift() {
		if err := d.room(v); err != nil {
			return err
		}
	}
	if l.form != formPlain {
		return l.pushTexts(d, last, end, vs)
	}
	for v := last; v < end; {
		p, err := d.slot(v)
		if err != nil {
			return err
		}
		n := min(end-v, 1<<d.shift()-v&d.mask())
		txn.Announce(p, uintptr(n*d.stride()))
		for k := range vs[v-last:][:n] {
			store(plus(p, uint64(k)*strideOf[T]()), &vs[v-last+uint64(k)])
		}
		v += n
	}
	txn.Put(&d.o.words[listLast], end) // commits
	return nil
}

// pushTexts stores vs, strings or bytes, in the slots [last, end), whose chunks are there, and publishes them.
func (l SharedList[T]) pushTexts(d deque, last, end uint64, vs []T) error {
	limbo := &d.o.words[listLimbo]
	for v := last; v < end; {
		if err := d.s.change(func(tx *txn.Lane) error {
			for ; v < end && tx.Left() > 2; v++ {
				p, err := d.slot(v)
				if err == nil {
					err = l.fill(tx, d, p, &vs[v-last])
				}
				if err != nil {
					return err
				}
			}
			if v < end {
				return tx.Set(limbo, v)
			}
			if err := tx.Set(limbo, 0); err != nil {
				return err
			}
			return tx.Later(&d.o.words[listLast], end) // publishes all
		}); err != nil {
			return err
		}
	}
	return nil
}

// put replaces element i. It returns the length, and whether there is such an element. The lock is held.
func (l SharedList[T]) put(i int, v *T) (n int, ok bool, err error) {
	d := l.deque()
	first, last, err := d.ends()
	if err != nil {
		return 0, true, err
	}
	n = int(last - first)
	k, ok := position(i, n)
	if !ok {
		return n, false, nil
	}
	at := first + uint64(k)
	p, err := d.slot(at)
	switch {
	case err != nil:
		return n, true, err
	case l.form != formPlain:
		return n, true, l.putText(d, at, p, v)
	case d.stride() == 8:
		storeWords(p, bytesOf(v)) // one store
		return n, true, nil
	}
	return n, true, d.replace(at, p, func(p addr) { store(p, v) })
}

// putText replaces slot at, at p, by v, a string or bytes.
func (l SharedList[T]) putText(d deque, at uint64, p addr, v *T) error {
	old := blockOf(loadText(p))
	if old == 0 && !l.isLong(v) {
		slot, err := l.pack(nil, d, v)
		if err != nil {
			return err
		}
		return d.replace(at, p, func(p addr) { store(p, &slot) })
	}
	scratch, err := d.scratch()
	if err != nil {
		return err
	}
	return d.s.change(func(tx *txn.Lane) error {
		slot, err := l.pack(tx, d, v)
		if err != nil {
			return err
		}
		if old != 0 {
			if err := d.s.heap.FreeIn(tx, shm.Offset(old)); err != nil {
				return err
			}
		}
		next := d.seq().Load() + 2*listChange
		if err := tx.Later(d.seq(), next); err != nil {
			return err
		}
		d.replacing(at, p, scratch, next, func(p addr) { store(p, &slot) }) // nothing fails from here to the commit
		return nil
	})
}

// pop takes an element off, the last or the first. The lock is held.
func (l SharedList[T]) pop(last bool) (v T, ok bool, err error) {
	d := l.deque()
	first, end, err := d.ends()
	if err != nil || first == end {
		return v, false, err
	}
	at := first
	if last {
		at = end - 1
	}
	p, err := d.slot(at)
	if err == nil {
		v, err = l.load(d, p, d.seq().Load())
	}
	switch {
	case err != nil:
		return v, false, err
	case last:
		err = d.dropLast()
	default:
		err = d.dropFirst()
	}
	return v, err == nil, err
}

// Check waits for the lock, walks the list and returns an error that is [shm.ErrCorrupt] and names the
// first broken invariant, if there is one.
func (l SharedList[T]) Check() error {
	if err := l.lock(context.Background(), "Check"); err != nil {
		return err
	}
	defer l.release()
	if err := l.deque().check(); err != nil {
		return l.fail("Check", err)
	}
	return nil
}
