package containers

import (
	"encoding/binary"
	"fmt"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// mapKey is a key outside the region, or, for those who hold the lock, in it. (It and mapValue stay in registers: see segment.)
type mapKey struct {
	hash uint64
	a, b uint64 // what the slot of a plain key of one word, or of a short string, has; of others a is how many bytes there are
	p    addr   // the bytes of others; nil for those
}

// word reports whether k is plain and of one word, which is k.a.
func (k *mapKey) word(t table) bool { return k.p == nil && t.keyWords() == 1 }

// long reports whether k has a block of its own.
func (k *mapKey) long(t table) bool { return k.p != nil && t.keyForm() != formPlain }

// mapValue is a value outside the region.
type mapValue struct {
	p addr
	n int // bytes of it
}

// whole reports whether v is plain, and one word.
func (v mapValue) whole(t table) bool { return v.n <= 8 && t.valueForm() == formPlain }

// long reports whether v has a block of its own.
func (v mapValue) long(t table) bool { return v.n > textInline && t.valueForm() != formPlain }

// keyOf returns *k, which stays there.
func keyOf[K comparable](t table, k *K) (key mapKey) {
	p, n := addr(k), int(sizeOf[K]())
	if t.keyForm() == formString {
		p, n = textAt(p, true)
		return t.textKey(p, n)
	}
	return t.plainKey(p, n)
}

func (t table) plainKey(p addr, n int) mapKey {
	seed := t.s.region.HashSeed()
	if n > 8 {
		return mapKey{hash: hashBytes(seed, viewOf[byte](p, n)), a: uint64(n), p: p}
	}
	w := wordOf(p, n)
	return mapKey{hash: hash64(seed, w), a: w}
}

func (t table) textKey(p addr, n int) mapKey {
	b := viewOf[byte](p, n)
	hash := hashBytes(textSeed(t.s.region.HashSeed(), n), b)
	if n > textInline {
		return mapKey{hash: hash, a: uint64(n), p: p}
	}
	w := packShort(b)
	return mapKey{hash: hash, a: w[0], b: w[1]}
}

// keyIn returns the key in a slot. The lock is held.
func (t table) keyIn(p addr) (k mapKey, err error) {
	if t.keyForm() == formPlain {
		return t.plainKey(p, int(8*t.keyWords())), nil
	}
	b, err := t.text(p, func() bool { return true })
	if err != nil || len(b) == 0 {
		return t.textKey(nil, 0), err
	}
	return t.textKey(addr(&b[0]), len(b)), nil
}

// textAt returns the bytes of the string, or []byte, at p.
func textAt(p addr, isString bool) (addr, int) {
	if isString {
		return *as[addr](p), len(*as[string](p)) // a string's header begins with the address
	}
	return *as[addr](p), len(*as[[]byte](p))
}

// wordOf returns n bytes, up to 8, as a word with zeros behind them.
func wordOf(p addr, n int) uint64 {
	if n == 8 {
		return *as[uint64](p)
	}
	var w uint64
	copy(viewOf[byte](addr(&w), 8), viewOf[byte](p, n))
	return w
}

// shortWord returns up to 8 bytes as a word, the first one lowest, and zeros above the last. It loads some of them twice rather than one
// by one.
func shortWord(b []byte) uint64 {
	switch n := len(b); {
	case n >= 8:
		return binary.LittleEndian.Uint64(b)
	case n >= 4:
		return uint64(binary.LittleEndian.Uint32(b)) | uint64(binary.LittleEndian.Uint32(b[n-4:]))<<(8*(n-4)&63)
	case n > 0:
		return uint64(b[0]) | uint64(b[n/2])<<(8*(n/2)&63) | uint64(b[n-1])<<(8*(n-1)&63)
	}
	return 0
}

// is reports whether k is the key in the slot at p. Without the lock, what it says holds only if the sequences have not changed; so
// does an error.
func (k *mapKey) is(t table, p addr) (bool, error) {
	switch n := int(k.a); {
	case k.p == nil:
		return word(p, 0).Load() == k.a && (t.keyWords() == 1 || word(p, 1).Load() == k.b), nil
	case t.keyForm() == formPlain:
		i := 0
		for ; i+8 <= n; i += 8 {
			if word(p, i/8).Load() != *as[uint64](plus(k.p, uint64(i))) {
				return false, nil
			}
		}
		return i == n || word(p, i/8).Load() == wordOf(plus(k.p, uint64(i)), n-i), nil
	}
	if word(p, 1).Load() != k.a|outOfLine<<56 {
		return false, nil
	}
	block, err := addrAt(t.s.region, word(p, 0).Load(), blockSize(k.a))
	if err != nil {
		return false, err
	}
	if raceEnabled {
		b := make([]byte, k.a)
		loadWords(b, block)
		return string(b) == string(viewOf[byte](k.p, int(k.a))), nil
	}
	same := string(viewOf[byte](block, int(k.a))) == string(viewOf[byte](k.p, int(k.a)))
	finishLoads()
	return same, nil
}

// store writes k, which is not long, to a slot that nobody looks at.
func (k *mapKey) store(t table, p addr) {
	if k.p != nil {
		putBytes(p, k.p, int(k.a))
		return
	}
	txn.Put(word(p, 0), k.a)
	if t.keyWords() > 1 {
		txn.Put(word(p, 1), k.b)
	}
}

// storeIn is store in an operation, for a long key too.
func (k *mapKey) storeIn(t table, l *txn.Lane, p addr) error {
	if k.long(t) {
		return t.storeText(l, p, k.p, int(k.a))
	}
	k.store(t, p)
	return nil
}

// putBytes writes n bytes to p, and zeros behind them up to a whole word.
func putBytes(p, from addr, n int) {
	if raceEnabled || n&7 != 0 {
		storeWords(p, viewOf[byte](from, n))
		return
	}
	copy(viewOf[byte](p, n), viewOf[byte](from, n))
}

// valueOf returns *v, which stays there.
func valueOf[V any](t table, v *V) mapValue {
	if t.valueForm() == formPlain {
		return mapValue{addr(v), int(sizeOf[V]())}
	}
	p, n := textAt(addr(v), t.valueForm() == formString)
	return mapValue{p, n}
}

// store writes v, which is not long, to a slot that nobody looks at.
func (v mapValue) store(t table, p addr) {
	switch {
	case v.whole(t):
		txn.Put(word(p, 0), wordOf(v.p, v.n))
	case t.valueForm() != formPlain:
		w := packShort(viewOf[byte](v.p, v.n))
		txn.Put(word(p, 0), w[0])
		txn.Put(word(p, 1), w[1])
	default:
		putBytes(p, v.p, v.n)
	}
}

// storeIn is store in an operation, for a long value too.
func (v mapValue) storeIn(t table, l *txn.Lane, p addr) error {
	if v.long(t) {
		return t.storeText(l, p, v.p, v.n)
	}
	v.store(t, p)
	return nil
}

// storeText writes n bytes to a block, and where they are to the slot at p.
func (t table) storeText(l *txn.Lane, p, from addr, n int) error {
	size := blockSize(uint64(n))
	off, err := t.s.heap.AllocIn(l, size, 8)
	if err != nil {
		return err
	}
	block, err := addrAt(t.s.region, uint64(off), size)
	if err != nil {
		return err
	}
	txn.Announce(block, uintptr(size))
	if raceEnabled {
		storeWords(block, viewOf[byte](from, n))
	} else {
		copy(viewOf[byte](block, n), viewOf[byte](from, n))
	}
	txn.Put(word(p, 0), uint64(off))
	txn.Put(word(p, 1), uint64(n)|outOfLine<<56)
	return nil
}

// keyText and valueText return what the slot at p has for a key, or value, that is a string or bytes, else zeros.
func (t table) keyText(p addr) (w [2]uint64) {
	if t.keyForm() != formPlain {
		w = loadText(p)
	}
	return w
}

func (t table) valueText(p addr) (w [2]uint64) {
	if t.valueForm() != formPlain {
		w = loadText(plus(p, 8*t.keyWords()))
	}
	return w
}

// text returns a copy of the bytes of the string slot at p: see deque.text.
func (t table) text(p addr, still func() bool) ([]byte, error) {
	return deque{s: t.s}.text(p, still)
}

// loadSlot returns the T, plain or text, at p.
func loadSlot[T any](t table, form slotForm, p addr, still func() bool) (v T, err error) {
	if form == formPlain {
		return load[T](p), nil
	}
	b, err := t.text(p, still)
	if err == nil {
		v = *as[T](addr(&b)) // a string's header is the beginning of a slice's
	}
	return v, err
}

// check names the first broken invariant. The lock is held, nothing is at work.
func (t table) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, shm.ErrCorrupt)...)
	}
	dir, count := t.o.words[mapDir].Load(), t.o.words[mapCount].Load()
	if pending, limbo := t.o.words[mapPending].Load(), t.o.words[mapLimbo].Load(); pending != 0 || limbo != 0 {
		return bad("pending %#x, limbo %#x while nothing is at work", pending, limbo)
	}
	log2 := uint(dir & dirLog2Mask)
	if log2 > maxMapDepth || dir == 0 && count != 0 {
		return bad("directory word %#x of %d keys", dir, count)
	}
	if dir == 0 {
		return nil
	}
	seen := map[uint64]uint64{}
	blocks := map[uint64]bool{dir &^ dirLog2Mask: true}
	population := uint64(0)
	for i := uint64(0); i < 1<<log2; {
		w, err := t.dirWord(dir, i)
		if err != nil {
			return err
		}
		entry := w.Load()
		g, err := t.open(entry)
		if err != nil {
			return fmt.Errorf("segment at word %d: %w", i, err)
		}
		span := uint64(1) << (log2 - min(g.depth(), log2))
		if g.depth() > log2 || i%span != 0 || g.log2() > t.largest() || entry != g.entry {
			return bad("word %d of 1<<%d is %#x", i, log2, entry)
		}
		if other, twice := seen[g.off()]; twice || blocks[g.off()] {
			return bad("words %d and %d both have the segment at %d", other, i, g.off())
		}
		seen[g.off()], blocks[g.off()] = i, true
		for j := range span {
			w, err := t.dirWord(dir, i+j)
			if err != nil {
				return err
			}
			if w.Load() != entry {
				return bad("words %d and %d of the directory should be the same", i, i+j)
			}
		}
		n, err := t.checkSegment(g, i/span, blocks)
		if err != nil {
			return fmt.Errorf("segment at %d: %w", g.off(), err)
		}
		population += n
		i += span
	}
	if population != count {
		return bad("%d keys, counted as %d", population, count)
	}
	return nil
}

// checkSegment checks one whose keys' hashes begin with prefix, and returns how many there are.
func (t table) checkSegment(g segment, prefix uint64, blocks map[uint64]bool) (n uint64, err error) {
	for i := range groupSlots * g.groups() {
		b := byte(g.control(i/groupSlots).Load() >> (8 * (i % groupSlots)))
		if b&0x80 == 0 {
			if b > ctlDeleted {
				return 0, fmt.Errorf("control byte %d is %#x: %w", i, b, shm.ErrCorrupt)
			}
			continue
		}
		n++
		p := g.slot(i)
		k, err := t.keyIn(p)
		if err != nil {
			return 0, fmt.Errorf("slot %d: %w", i, err)
		}
		at, found, err := t.find(g, &k)
		if err != nil || !found || at.slot() != i || full(k.hash) != b || k.hash>>(64-g.depth()) != prefix {
			return 0, fmt.Errorf("slot %d with control byte %#x and hash %#x: found %v, at %d: %w", i, b, k.hash, found, at.slot(), first(err, shm.ErrCorrupt))
		}
		if t.valueForm() != formPlain {
			if _, err := t.text(plus(p, 8*t.keyWords()), func() bool { return true }); err != nil {
				return 0, fmt.Errorf("value of slot %d: %w", i, err)
			}
		}
		for _, w := range [][2]uint64{t.keyText(p), t.valueText(p)} {
			if off := blockOf(w); off != 0 && blocks[off] {
				return 0, fmt.Errorf("slot %d has the block at %d, which something else has too: %w", i, off, shm.ErrCorrupt)
			} else if off != 0 {
				blocks[off] = true
			}
		}
	}
	return n, nil
}
