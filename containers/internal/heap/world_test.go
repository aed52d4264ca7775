package heap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"structs"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A world is a region on the Go heap with a few objects that use all of the storage, and processes in it that
// are none: each has a slot, lanes and a heap of its own, and one dies by its memory being looked at, and put back, as it was before
// any one of its stores.

const rootWords = 96

// things are the objects: a table of blocks, and pairs of words that must be equal, with a block each that says the same.
type things struct {
	_     structs.HostLayout
	mu    shmsync.Mutex
	_     [56]byte
	table [rootWords]atomic.Uint64 // offset of a block; its first word is its size
	pairs [4]pair
	heads [16]atomic.Uint64 // object headers

	placed atomic.Uint64    // how many of texts there are
	texts  [8]atomic.Uint64 // offsets of blocks with what textOf makes
}

// textOf makes the n'th text.
func textOf(n uint64, size int) string { return strings.Repeat(string(rune('a'+n)), size) }

type pair struct {
	mu      shmsync.Mutex
	a, b    atomic.Uint64
	block   atomic.Uint64 // its first word is a
	version atomic.Uint64
}

type world struct {
	t  testing.TB
	r  *shm.Region
	at shm.Offset // of the heap
	th *things
	// loose is a block that was allocated in an operation of its own, and that nobody in the region speaks of.
	loose shm.Offset
}

const thingsSize = 4096

func newWorld(t testing.TB, size, limit uint64) *world {
	t.Helper()
	r, err := shm.Heap(shm.Size(size), shm.Limit(limit))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	w := &world{t: t, r: r, at: r.Data() + thingsSize}
	if w.th, err = shm.At[things](r, r.Data()); err != nil {
		t.Fatal(err)
	}
	if unsafe.Sizeof(things{}) > thingsSize {
		t.Fatal("things are too many")
	}
	if err := Format(r, w.at); err != nil {
		t.Fatal(err)
	}
	return w
}

// process returns the heap as a process in that slot has it.
func (w *world) process(slot int) *Heap {
	p, err := open(w.r, w.at, slot)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// A memory is all that survives a process.
type memory struct {
	data  []byte
	lanes [16]uint64
}

func (w *world) save() (m memory) {
	b, err := w.r.Bytes(w.r.Data(), w.r.Size())
	if err != nil {
		w.t.Fatal(err)
	}
	m.data = bytes.Clone(b)
	for i := range m.lanes {
		m.lanes[i] = w.r.Lanes(i).Load()
	}
	return m
}

func (w *world) restore(m memory) {
	b, err := w.r.Bytes(w.r.Data(), w.r.Size())
	if err != nil {
		w.t.Fatal(err)
	}
	n := copy(b, m.data)
	clear(b[n:])
	for i := range m.lanes {
		w.r.Lanes(i).Store(m.lanes[i])
	}
}

// locks are the words of all locks there are.
func (w *world) locks(p *Heap) map[string]*shmsync.Mutex {
	all := map[string]*shmsync.Mutex{"table": &w.th.mu, "pages": &p.h.pages.mu}
	for i := range w.th.pairs {
		all[fmt.Sprint("pair ", i)] = &w.th.pairs[i].mu
	}
	for c := range p.h.classes {
		all[fmt.Sprint("class ", c)] = &p.h.classes[c].mu
	}
	return all
}

// takeOver does with the locks that dead processes hold what those who wait for them do.
func (w *world) takeOver(p *Heap) (failed error) {
	for name, mu := range w.locks(p) {
		word := (*atomic.Uint64)(unsafe.Pointer(mu))
		if word.Load() == 0 {
			continue
		}
		if name == "pages" {
			if err := p.repairBoot(); err != nil {
				failed = err
				word.Store(1 << 1) // inconsistent, and nobody's
				continue
			}
		}
		word.Store(0)
	}
	return failed
}

// recover is what survivors do about dead processes, in their slots. undone says that the first of them was undone before: then its
// recoverer is dead, and comes second.
func (w *world) recover(p *Heap, undone bool, dead ...int) error {
	for i, slot := range dead {
		if i == 0 && undone {
			continue
		}
		if err := txn.Undo(w.r, slot, p); err != nil {
			return fmt.Errorf("undo of slot %d: %w", slot, err)
		}
	}
	if undoneMark != nil {
		undoneMark()
	}
	if err := w.takeOver(p); err != nil {
		return err
	}
	for _, slot := range dead {
		if err := txn.Drain(w.r, slot, p, p.lanes); err != nil {
			return fmt.Errorf("drain of slot %d: %w", slot, err)
		}
	}
	return nil
}

// undoneMark is called between the first and the third phase.
var undoneMark func()

// state says what the objects are, for people and for comparison, or which of them is torn.
func (w *world) state(p *Heap) (string, error) {
	var s strings.Builder
	reachable := map[shm.Offset]bool{}
	reach := func(off uint64) (*atomic.Uint64, error) {
		if reachable[shm.Offset(off)] {
			return nil, fmt.Errorf("block at %d is in two places", off)
		}
		reachable[shm.Offset(off)] = true
		return shm.At[atomic.Uint64](w.r, shm.Offset(off))
	}
	for i := range w.th.table {
		if off := w.th.table[i].Load(); off != 0 {
			first, err := reach(off)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&s, "table %d: %d bytes\n", i, first.Load())
			if b, err := w.r.Bytes(shm.Offset(off), first.Load()); err != nil || len(b) > 8 && !zeroed(b[8:]) {
				return "", fmt.Errorf("table %d: block of %d bytes was written by others (%v)", i, first.Load(), err)
			}
		}
	}
	for i := range w.th.pairs {
		q := &w.th.pairs[i]
		a, b := q.a.Load(), q.b.Load()
		fmt.Fprintf(&s, "pair %d: %d", i, a)
		if a != b {
			return "", fmt.Errorf("pair %d is %d and %d", i, a, b)
		}
		if off := q.block.Load(); off != 0 {
			first, err := reach(off)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&s, " with a block")
			if first.Load() != a {
				return "", fmt.Errorf("pair %d is %d, its block %d", i, a, first.Load())
			}
		}
		s.WriteByte('\n')
	}
	for i := range w.th.heads {
		if off := w.th.heads[i].Load(); off != 0 {
			if _, err := reach(off); err != nil {
				return "", err
			}
			fmt.Fprintf(&s, "object %d\n", i)
		}
	}
	for i := range w.th.placed.Load() {
		off := w.th.texts[i].Load()
		if _, err := reach(off); err != nil {
			return "", err
		}
		b, err := w.r.Bytes(shm.Offset(off), 64)
		if err != nil {
			return "", err
		}
		size := len(b) - len(bytes.TrimLeft(b, textOf(i, 1)))
		fmt.Fprintf(&s, "text %d: %d bytes\n", i, size)
		if behind := b[size:]; !zeroed(behind[:-size&7]) {
			return "", fmt.Errorf("text %d of %d bytes has %q behind it", i, size, behind)
		}
	}
	var failed error
	err := p.Each(func(off shm.Offset, size uint64, _ bool) {
		if off == w.loose {
			s.WriteString("loose block\n")
		} else if !reachable[off] && failed == nil {
			failed = fmt.Errorf("block at %d, of %d bytes, is live, and nobody has it", off, size)
		}
		delete(reachable, off)
	})
	for off := range reachable {
		return "", fmt.Errorf("block at %d is used, and not live (%v)", off, err)
	}
	return s.String(), errors.Join(err, failed)
}

var noBytes [4096]byte

// zeroed reports whether b has nothing but zeros.
func zeroed(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(noBytes))
		if !bytes.Equal(b[:n], noBytes[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

// What processes do.

// create allocates a block for entry i of the table.
func (w *world) create(p *Heap, i int, n, align uint64) (err error) {
	w.lock(&w.th.mu)
	defer w.unlock(&w.th.mu)
	l, err := p.Enter()
	if err != nil {
		return err
	}
	defer leave(l, &err)
	if err := w.createIn(p, l, i, n, align); err != nil {
		return err
	}
	l.Commit()
	return nil
}

func (w *world) createIn(p *Heap, l *txn.Lane, i int, n, align uint64) error {
	off, err := p.AllocIn(l, n, align)
	if err != nil {
		return err
	}
	if uint64(off)%align != 0 {
		return fmt.Errorf("%d bytes aligned to %d are at %d", n, align, off)
	}
	first, err := shm.At[atomic.Uint64](w.r, off)
	if err != nil {
		return err
	}
	if b, err := w.r.Bytes(off, n); err != nil || !zeroed(b) {
		return fmt.Errorf("block of %d bytes at %d is not clear (%v)", n, off, err)
	}
	txn.Put(first, n)
	return l.Set(&w.th.table[i], uint64(off))
}

// place adds a text.
func (w *world) place(p *Heap, size int) error {
	w.lock(&w.th.mu)
	defer w.unlock(&w.th.mu)
	n := w.th.placed.Load()
	if p.Place(textOf(n, size), &w.th.texts[n], &w.th.placed, n+1) {
		return nil
	}
	off, err := p.Alloc(uint64(size)) // says why
	if err == nil {
		err = errors.Join(p.Free(off), fmt.Errorf("a text of %d bytes was not placed", size))
	}
	return err
}

// destroy frees the block of entry i.
func (w *world) destroy(p *Heap, is ...int) (err error) {
	w.lock(&w.th.mu)
	l, err := p.Enter()
	if err != nil {
		w.unlock(&w.th.mu)
		return err
	}
	defer leave(l, &err)
	defer w.unlock(&w.th.mu)
	for _, i := range is {
		if err := w.destroyIn(p, l, i); err != nil {
			return err
		}
	}
	l.Commit()
	return nil
}

func (w *world) destroyIn(p *Heap, l *txn.Lane, i int) error {
	if err := p.FreeIn(l, shm.Offset(w.th.table[i].Load())); err != nil {
		return err
	}
	return l.Set(&w.th.table[i], 0)
}

// change gives a pair new words, and a new block.
func (w *world) change(p *Heap, i int, n uint64, commit bool) (err error) {
	q := &w.th.pairs[i]
	w.lock(&q.mu)
	l, err := p.Enter()
	if err != nil {
		w.unlock(&q.mu)
		return err
	}
	defer leave(l, &err)
	defer func() {
		if l.Idle() || !commit || err != nil { // undone under the lock
			err = errors.Join(err, l.Rollback())
		}
		w.unlock(&q.mu)
	}()
	v := q.a.Load() + 1
	if err := l.Set(&q.a, v); err != nil {
		return err
	}
	off, err := p.AllocIn(l, n, 64)
	if err != nil {
		return err
	}
	first, err := shm.At[atomic.Uint64](w.r, off)
	if err != nil {
		return err
	}
	txn.Put(first, v)
	if err := l.Later(&q.block, uint64(off)); err != nil {
		return err
	}
	if old := q.block.Load(); old != 0 {
		if err := p.FreeIn(l, shm.Offset(old)); err != nil {
			return err
		}
	}
	if err := l.Set(&q.b, v); err != nil {
		return err
	}
	if commit {
		l.Commit()
	}
	return nil
}

func (w *world) createObject(p *Heap, i int) (err error) {
	w.lock(&w.th.mu)
	l, err := p.Enter()
	if err != nil {
		w.unlock(&w.th.mu)
		return err
	}
	defer leave(l, &err)
	defer w.unlock(&w.th.mu)
	off, err := p.AllocObjectIn(l)
	if err != nil {
		return err
	}
	if err := l.Set(&w.th.heads[i], uint64(off)); err != nil {
		return err
	}
	l.Commit()
	return nil
}

func (w *world) destroyObject(p *Heap, i int) (err error) {
	w.lock(&w.th.mu)
	l, err := p.Enter()
	if err != nil {
		w.unlock(&w.th.mu)
		return err
	}
	defer leave(l, &err)
	defer w.unlock(&w.th.mu)
	if err := p.FreeObjectIn(l, shm.Offset(w.th.heads[i].Load())); err != nil {
		return err
	}
	if err := l.Set(&w.th.heads[i], 0); err != nil {
		return err
	}
	l.Commit()
	return nil
}

// lock takes a lock as containers do: what its dead holder was doing has been undone.
func (w *world) lock(mu *shmsync.Mutex) {
	if !mu.TryLockIdle() {
		if err := mu.LockRepaired(context.Background(), func(shm.Death) error { return nil }); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) unlock(mu *shmsync.Mutex) { mu.Unlock() }

// A watch looks at each store of a process: it keeps the memory as it was before, and sees to it that nothing else was written.
type watch struct {
	w        *world
	locks    map[int]bool // words of locks, by index of the word in the data: others write them
	all      []memory
	kinds    []string
	from, to int // bytes of the data that the last store may have changed
	lane     bool
	failed   error
}

func (w *world) watch(p *Heap) *watch {
	v := &watch{w: w, locks: map[int]bool{}}
	base := uintptr(unsafe.Pointer(w.th))
	for _, mu := range w.locks(p) {
		v.locks[int(uintptr(unsafe.Pointer(mu))-base)/8] = true
	}
	v.step(nil, 0)
	return v
}

// step is called before each store.
func (v *watch) step(at unsafe.Pointer, n uintptr) {
	now := v.w.save()
	if len(v.all) > 0 && v.failed == nil {
		v.failed = v.compare(v.all[len(v.all)-1], now)
	}
	v.all = append(v.all, now)
	v.from = int(uintptr(at) - uintptr(unsafe.Pointer(v.w.th)))
	v.to = v.from + int(n)
}

func (v *watch) compare(old, now memory) error {
	for i := 0; i < len(now.data); i += 8 {
		if i+4096 <= len(old.data) && bytes.Equal(old.data[i:i+4096], now.data[i:i+4096]) {
			i += 4096 - 8
			continue
		}
		for k := i; k < i+8; k++ {
			o := byte(0)
			if k < len(old.data) {
				o = old.data[k]
			}
			if o != now.data[k] && (k < v.from || k >= v.to) && !v.locks[i/8] {
				return fmt.Errorf("byte %d of the data was written without being announced, after a store to [%d, %d)", k, v.from, v.to)
			}
		}
	}
	return nil
}

// run calls do with every store watched, and returns the memory before each of them and after the last.
func (w *world) run(p *Heap, do func() error) ([]memory, error) {
	v := w.watch(p)
	txn.OnStore = v.step
	defer func() { txn.OnStore = nil }()
	err := do()
	v.step(nil, 0)
	return v.all[1:], errors.Join(err, v.failed)
}

func sortedKeys[V any](m map[string]V) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func txnOnStore(fn func(unsafe.Pointer, uintptr)) { txn.OnStore = fn }
