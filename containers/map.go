package containers

import (
	"context"
	"fmt"
	"iter"
	"runtime"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// A SharedMap is a map that processes share. Keys are strings, or plain data of which equal values have equal bytes: integers, bools,
// arrays of them, and structs without padding, without floats (NaN could never be found again) and without blank fields. Values are plain Vs, strings or []bytes; strings
// and []bytes of any length come back as copies. Use [NewSharedMap]. A handle is a small value: copy it, pass it to other processes.
//
// Reads take no lock, never wait for a writer, and see committed values only. Every write takes the map's lock, and happens at once and whole: a process
// that dies inside leaves the map as before or as after the call, the lock free, and no memory lost. Reads and writes of plain
// values allocate nothing in the program. [table] says how a map is laid out, and what each kill leaves.
type SharedMap[K comparable, V any] struct {
	lockable
	shape mapShape
}

// NewSharedMap makes an empty map in m; nil is this process' own Manager. A K or V that cannot be one is refused with a [*shm.TypeError]
// that names the field.
func NewSharedMap[K comparable, V any](m *Manager, opts ...Option) (SharedMap[K, V], error) {
	var h SharedMap[K, V]
	k, layout, err := h.about()
	if err != nil {
		return h, err
	}
	b, err := newObject(m, k, layout, opts, func(_ *txn.Lane, _ *space, o *object) error {
		o.words[mapShapeWord].Store(uint64(shapeOfMap[K, V]()))
		return nil
	})
	if err != nil {
		return h, err
	}
	return opened(h, b)
}

func (SharedMap[K, V]) about() (kind, *shm.Layout, error) {
	_, _, key, err := keyForm[K]()
	if err != nil {
		return kindMap, nil, err
	}
	_, _, value, err := mapPart[V]()
	if err != nil {
		return kindMap, nil, err
	}
	return kindMap, namedLayout("map of " + key.Text + " to " + value.Text), nil
}

func shapeOfMap[K comparable, V any]() mapShape {
	keys, keyBytes := formOf[K]()
	values, valueBytes := formOf[V]()
	return mapShapeOf(keys, values, keyBytes/8, valueBytes/8)
}

func (SharedMap[K, V]) from(b base) (m SharedMap[K, V], err error) {
	shape := shapeOfMap[K, V]()
	if got := b.obj.words[mapShapeWord].Load(); got != uint64(shape) {
		return m, b.fail("open", fmt.Errorf("shape %#x, want %#x: %w", got, uint64(shape), shm.ErrCorrupt))
	}
	return SharedMap[K, V]{lockable{b}, shape}, nil
}

// MarshalBinary encodes a reference to the object, for whoever has or gets the region: a process started by
// package proc finds it attached. A zero handle is encoded as nothing.
func (m SharedMap[K, V]) MarshalBinary() ([]byte, error) { return m.base.MarshalBinary() }

// MarshalText is MarshalBinary in base64.
func (m SharedMap[K, V]) MarshalText() ([]byte, error) { return m.base.MarshalText() }

// UnmarshalBinary makes m the handle that MarshalBinary encoded. The region is found by its id, else by its
// name, else the error is [shm.ErrNotAttached].
func (m *SharedMap[K, V]) UnmarshalBinary(data []byte) error { return unmarshal(m, data) }

// UnmarshalText is UnmarshalBinary from base64.
func (m *SharedMap[K, V]) UnmarshalText(text []byte) error { return unmarshalText(m, text) }

// Get returns the value of k and true, or false if there is none. It does not wait. It panics with an error that is
// [shm.ErrClosed] or [shm.ErrStale] if the region is closed or the map destroyed, as every method without an error result does. O(1).
func (m SharedMap[K, V]) Get(k K) (v V, ok bool) {
	if m.obj == nil {
		m.notLive("Get")
	}
	if m.shape.inWords() {
		if v, ok, done := m.getWord(&k); done {
			return v, ok
		}
	}
	t := m.table()
	key := keyOf(t, &k)
	for try := 1; ; try++ {
		v, ok, epoch, g, err := m.look(t, &key)
		if (g.p == nil || g.seq().Load() == g.seen) && t.o.words[mapEpoch].Load() == epoch {
			m.checkLive("Get")
			if err != nil {
				panic(m.fail("Get", err))
			}
			return v, ok
		}
		if m.overtaken(try) {
			v, ok, _, _, err := m.look(t, &key)
			m.mu.Unlock()
			m.checkLive("Get")
			if err != nil {
				panic(m.fail("Get", err))
			}
			return v, ok
		}
	}
}

// overtaken is called when a read has to be tried again. It reports whether it took the lock, with which the next
// try succeeds.
func (m SharedMap[K, V]) overtaken(try int) bool {
	// As in SharedArray.read: an overtaking writer is progress, and one that sleeps does not overtake.
	if try >= maxTries && m.mu != nil && m.mu.TryLock() {
		return true
	}
	if try >= maxTries {
		runtime.Gosched()
	}
	return false
}

// seenSegment is a segment with its sequence as it was before anything was read there.
type seenSegment struct {
	segment
	seen uint64
}

// look reads the value of a key. What it returns holds if epoch and sequence have not changed afterwards; so does an error.
func (m SharedMap[K, V]) look(t table, k *mapKey) (v V, ok bool, epoch uint64, g seenSegment, err error) {
	epoch = t.o.words[mapEpoch].Load()
	dir := t.o.words[mapDir].Load()
	if dir == 0 {
		return v, false, epoch, g, nil
	}
	if g.segment, err = t.segment(dir, k.hash); err != nil {
		return v, false, epoch, seenSegment{}, err
	}
	g.seen = g.seq().Load()
	at, ok, err := t.find(g.segment, k)
	if ok {
		p := plus(g.slot(at.slot()), 8*t.keyWords())
		if t.valueForm() == formPlain {
			return load[V](p), true, epoch, g, nil
		}
		v, err = loadSlot[V](t, t.valueForm(), p, g.still(t, epoch))
	}
	return v, ok, epoch, g, err
}

// still returns a function that reports whether what was read in g holds so far.
func (g seenSegment) still(t table, epoch uint64) func() bool {
	return func() bool { return g.seq().Load() == g.seen && t.o.words[mapEpoch].Load() == epoch }
}

// table returns the map's memory. (A pointer saves a copy of m: see segment.)
func (m *SharedMap[K, V]) table() table { return table{m.s, m.obj, m.shape} }

// Contains reports whether there is a value for k. It does not wait.
func (m SharedMap[K, V]) Contains(k K) bool {
	_, ok := m.Get(k)
	return ok
}

// Len returns the number of keys. Without the lock others may change it at any time. O(1).
func (m SharedMap[K, V]) Len() int {
	if m.obj == nil {
		m.notLive("Len")
	}
	n := m.obj.words[mapCount].Load()
	m.checkLive("Len")
	return int(n)
}

// Put makes v the value of k, in one step, for readers too. It returns [shm.ErrNoSpace], the map unchanged, if there is no room,
// [shm.ErrClosed] or [shm.ErrStale] if the region is closed or the map destroyed. O(1) on average; now and then it moves up to 1024 slots.
func (m SharedMap[K, V]) Put(k K, v V) error {
	if err := m.lock(context.Background(), "Put"); err != nil {
		return err
	}
	t := m.table()
	key, value := keyOf(t, &k), valueOf(t, &v)
	err := t.put(&key, value)
	m.release()
	if err != nil {
		return m.fail("Put", err)
	}
	return nil
}

// GetOrPut returns the value of k and true if there is one. Else it puts v and returns it. Errors are those of Put.
func (m SharedMap[K, V]) GetOrPut(k K, v V) (actual V, loaded bool, err error) {
	if err := m.lock(context.Background(), "GetOrPut"); err != nil {
		return v, false, err
	}
	defer m.release()
	return MapView[K, V]{m}.GetOrPut(k, v)
}

// CompareAndSwap makes v the value of k in m if it is old, and reports whether it was. Errors are those of [SharedMap.Put].
func CompareAndSwap[K, V comparable](m SharedMap[K, V], k K, old, v V) (swapped bool, err error) {
	if err := m.lock(context.Background(), "CompareAndSwap"); err != nil {
		return false, err
	}
	defer m.release()
	if now, ok := m.Get(k); !ok || now != old {
		return false, nil
	}
	return true, MapView[K, V]{m}.Put(k, v)
}

// Update calls fn with a copy of the value of k, or the zero V and false, and the lock held. If fn returns nil the copy becomes the value; if it returns an
// error, which Update returns as it is, or panics, or the process dies, nothing changes. Others see the old value until then. It waits for the lock until ctx ends.
// Calling m's own writing methods inside fn would wait for ever.
func (m SharedMap[K, V]) Update(ctx context.Context, k K, fn func(v *V, ok bool) error) error {
	if err := m.lock(ctx, "Update"); err != nil {
		return err
	}
	defer m.release()
	return MapView[K, V]{m}.Update(k, fn)
}

// Delete takes k and its value out, and reports whether there was one.
func (m SharedMap[K, V]) Delete(k K) bool {
	m.acquire("Delete")
	ok, err := m.deleteLocked(&k)
	m.release()
	if err != nil {
		panic(m.fail("Delete", err))
	}
	return ok
}

func (m SharedMap[K, V]) deleteLocked(k *K) (bool, error) {
	t := m.table()
	key := keyOf(t, k)
	g, at, found, _, err := t.lookup(&key)
	if err != nil || !found {
		return false, err
	}
	return true, t.remove(g, at)
}

// PopItem takes some key and its value out, or returns false if the map is empty. If the process dies inside, they may be gone.
func (m SharedMap[K, V]) PopItem() (k K, v V, ok bool) {
	m.acquire("PopItem")
	k, v, ok, err := m.popLocked()
	m.release()
	if err != nil {
		panic(m.fail("PopItem", err))
	}
	return k, v, ok
}

func (m SharedMap[K, V]) popLocked() (k K, v V, ok bool, err error) {
	t := m.table()
	dir := t.o.words[mapDir].Load()
	if t.o.words[mapCount].Load() == 0 || dir == 0 {
		return k, v, false, nil
	}
	hint := &t.o.words[mapHint]
	for range 2<<(dir&dirLog2Mask) + 1 { // the segments are no more than that
		g, err := t.segment(dir, hint.Load())
		if err != nil {
			return k, v, false, err
		}
		for group := range g.groups() {
			ctl := g.control(group).Load()
			if used(ctl) == 0 {
				continue
			}
			at := mapPlace{group, firstUsed(ctl)}
			k, v, err = m.item(t, g.slot(at.slot()), func() bool { return true })
			return k, v, err == nil, first(err, t.remove(g, at))
		}
		_, end := g.bounds(hint.Load())
		txn.Put(hint, end) // 0 behind the last
	}
	return k, v, false, fmt.Errorf("%d keys, but none is there: %w", t.o.words[mapCount].Load(), shm.ErrCorrupt)
}

// item returns the key and the value in a slot.
func (m SharedMap[K, V]) item(t table, p addr, still func() bool) (k K, v V, err error) {
	if k, err = loadSlot[K](t, t.keyForm(), p, still); err == nil {
		v, err = loadSlot[V](t, t.valueForm(), plus(p, 8*t.keyWords()), still)
	}
	return k, v, err
}

// Clear takes all keys out, in one step, and frees their memory.
func (m SharedMap[K, V]) Clear() {
	m.acquire("Clear")
	err := m.table().clear()
	m.release()
	if err != nil {
		panic(m.fail("Clear", err))
	}
}

// All returns an iterator over keys and values, copies, in no order. A key that is there from the beginning of the loop to its end is visited once, others once or
// not at all. Some are read at a time, each such set at one moment. It holds no lock while the loop's body runs, which may do anything, to this map too.
func (m SharedMap[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		var items []mapItem[K, V]
		for from, more := uint64(0), true; more; {
			items, from, more = m.readFrom(items[:0], from)
			for i := range items {
				if !yield(items[i].k, items[i].v) {
					return
				}
			}
		}
	}
}

// Keys returns an iterator over the keys, as All does.
func (m SharedMap[K, V]) Keys() iter.Seq[K] {
	return func(yield func(K) bool) {
		for k := range m.All() {
			if !yield(k) {
				return
			}
		}
	}
}

// Values returns an iterator over the values, as All does.
func (m SharedMap[K, V]) Values() iter.Seq[V] { return values(m.All()) }

// Check waits for the lock, walks the map and returns an error that is [shm.ErrCorrupt] and names the
// first broken invariant, if there is one.
func (m SharedMap[K, V]) Check() error {
	if err := m.lock(context.Background(), "Check"); err != nil {
		return err
	}
	defer m.release()
	if err := m.table().check(); err != nil {
		return m.fail("Check", err)
	}
	return nil
}
