package containers

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"sync/atomic"
	"unicode"
	"unicode/utf8"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// The directory: names by hash, each bucket of root a chain of entries. An entry is a block that does not
// change once it is linked, but for next.
//
//	0      8      16       24    32            40
//	| next | hash | object | gen | name length | name ...
//
// One store links an entry, one unlinks it: a name is there or it is not. Everything happens under
// root.mu, and in the operation that makes the object, or destroys it; an object knows its entry.
const (
	entryNext = iota // words of an entry
	entryHash
	entryObject
	entryGen
	entryLength
	entryName // where the name begins

	entrySize = 8 * entryName

	maxName  = 200     // bytes
	maxChain = 1 << 24 // no bucket is longer, unless it is a ring
)

// checkName refuses what is no name of an object.
func checkName(name string) error {
	bad := func(why string) error { return fmt.Errorf("name %q: %s: %w", name, why, fs.ErrInvalid) }
	switch {
	case name == "":
		return bad("it is empty")
	case len(name) > maxName:
		return bad(fmt.Sprintf("it has %d bytes, at most %d are allowed", len(name), maxName))
	case !utf8.ValidString(name):
		return bad("it is not UTF-8")
	}
	for _, c := range name {
		if !unicode.IsPrint(c) {
			return bad(fmt.Sprintf("it contains %U", c))
		}
	}
	return nil
}

// Find returns a handle on the object of that name. It returns an error that is [fs.ErrNotExist] if there
// is none, and [shm.ErrTypeMismatch] if it is of another type; then both are shown.
func Find[H Handle[H]](m *Manager, name string) (H, error) {
	var h H
	k, layout, err := h.about()
	if err != nil {
		return h, err
	}
	s, err := m.space()
	if err != nil {
		return h, err
	}
	b, err := s.find(name, k, layout)
	if err != nil {
		return h, fmt.Errorf("containers: find %q in %v: %w", name, s, err)
	}
	return opened(h, b)
}

func (s *space) find(name string, k kind, layout *shm.Layout) (base, error) {
	if err := checkName(name); err != nil {
		return base{}, err
	}
	if !s.readOnly { // else nothing can be locked, and what is read is checked anyway
		if err := s.lockRoot(); err != nil {
			return base{}, err
		}
		defer s.root.mu.Unlock()
	}
	off, gen, err := s.lookup(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return base{}, fmt.Errorf("nothing has that name; make it with New… and the options Name and OrOpen: %w", err)
	case err != nil:
		return base{}, err
	}
	return s.attach(off, gen, k, layout)
}

// Unlink takes the name away; the object and its handles live on. It returns an error that is
// [fs.ErrNotExist] if there is no such name.
func (m *Manager) Unlink(name string) error {
	s, err := m.space()
	if err == nil {
		err = checkName(name)
	}
	if err == nil {
		err = s.unlink(name)
	}
	if err != nil {
		return fmt.Errorf("containers: unlink %q: %w", name, err)
	}
	return nil
}

func (s *space) unlink(name string) error {
	if err := s.lockRoot(); err != nil {
		return err
	}
	defer s.root.mu.Unlock()
	off, _, err := s.lookup(name)
	if err != nil {
		return err
	}
	o, err := shm.At[object](s.region, off)
	if err != nil {
		return err
	}
	return s.change(func(l *txn.Lane) error {
		if err := s.takeName(l, o); err != nil {
			return err
		}
		return l.Set(&o.words[nameWord], 0)
	})
}

// takeName takes the name of o away, if it has one, in the operation in l. root.mu is held.
func (s *space) takeName(l *txn.Lane, o *object) error {
	off := o.words[nameWord].Load()
	if off == 0 {
		return nil
	}
	entry, _, err := s.entryAt(shm.Offset(off))
	if err != nil {
		return err
	}
	link := &s.root.buckets[word(entry, entryHash).Load()%rootBuckets]
	for range maxChain {
		switch at := link.Load(); at {
		case off:
			if err := l.Later(link, word(entry, entryNext).Load()); err != nil {
				return err
			}
			return s.heap.FreeIn(l, shm.Offset(off))
		case 0:
			return fmt.Errorf("name at offset %d is not in the directory: %w", off, shm.ErrCorrupt)
		default:
			before, _, err := s.entryAt(shm.Offset(at))
			if err != nil {
				return err
			}
			link = word(before, entryNext)
		}
	}
	return fmt.Errorf("names run in a circle: %w", shm.ErrCorrupt)
}

// lookup returns the object of that name and its generation.
func (s *space) lookup(name string) (shm.Offset, uint64, error) {
	_, entry, err := s.search(name)
	switch {
	case err != nil:
		return 0, 0, err
	case entry == nil:
		return 0, 0, fs.ErrNotExist
	}
	off, gen := shm.Offset(word(entry, entryObject).Load()), word(entry, entryGen).Load()
	o, err := shm.At[object](s.region, off)
	switch {
	case err != nil:
		return 0, 0, err
	case o.gen.Load() == gen:
		return off, gen, nil
	case s.readOnly: // without the lock: it is being destroyed
		return 0, 0, fs.ErrNotExist
	}
	return 0, 0, fmt.Errorf("the object at offset %d has generation %d, not %d: %w", off, o.gen.Load(), gen, shm.ErrCorrupt)
}

// search returns the entry of that name, nil if there is none, and the word that points to it.
func (s *space) search(name string) (*atomic.Uint64, addr, error) {
	hash := s.hash(name)
	link := &s.root.buckets[hash%rootBuckets]
	for range maxChain {
		off := link.Load()
		if off == 0 {
			return link, nil, nil
		}
		entry, text, err := s.entryAt(shm.Offset(off))
		if err != nil {
			return nil, nil, err
		}
		if word(entry, entryHash).Load() == hash && string(text) == name {
			return link, entry, nil
		}
		link = word(entry, entryNext)
	}
	return nil, nil, fmt.Errorf("names run in a circle: %w", shm.ErrCorrupt)
}

// entryAt returns the entry at off and its name, checked.
func (s *space) entryAt(off shm.Offset) (addr, []byte, error) {
	entry, err := addrOf(s.region, off, entrySize)
	if err != nil {
		return nil, nil, err
	}
	n := word(entry, entryLength).Load()
	if n > maxName {
		return nil, nil, fmt.Errorf("name of %d bytes at offset %d: %w", n, off, shm.ErrCorrupt)
	}
	text, err := s.region.Bytes(off+entrySize, n)
	return entry, text, err
}

// giveName gives the object of b a name that nothing has, in the operation in l that makes it. root.mu is held.
func (s *space) giveName(l *txn.Lane, b base, name string) error {
	off, err := s.heap.AllocIn(l, entrySize+uint64(len(name)), 8)
	if err != nil {
		return err
	}
	entry, err := addrOf(s.region, off, entrySize)
	if err != nil {
		return err
	}
	text, err := s.region.Bytes(off+entrySize, uint64(len(name)))
	if err != nil {
		return err
	}
	copy(text, name)
	hash := s.hash(name)
	bucket := &s.root.buckets[hash%rootBuckets]
	word(entry, entryHash).Store(hash)
	word(entry, entryLength).Store(uint64(len(name)))
	word(entry, entryObject).Store(uint64(s.offsetOf(b.obj)))
	word(entry, entryGen).Store(b.gen)
	word(entry, entryNext).Store(bucket.Load())
	b.obj.words[nameWord].Store(uint64(off))
	return l.Later(bucket, uint64(off))
}

// hash spreads names over buckets, in every process alike: FNV-1a from the region's seed, mixed.
func (s *space) hash(name string) uint64 {
	h := s.region.HashSeed() ^ 14695981039346656037
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	hi, lo := bits.Mul64(h, 0x9e3779b97f4a7c15)
	return hi ^ lo
}

// checkNames walks all chains. root.mu is held, unless the region is open for reading only.
func (s *space) checkNames() error {
	for i := range s.root.buckets {
		link := &s.root.buckets[i]
		for n := 0; link.Load() != 0; n++ {
			entry, text, err := s.entryAt(shm.Offset(link.Load()))
			switch {
			case err != nil:
				return fmt.Errorf("bucket %d: %w", i, err)
			case n > maxChain:
				return fmt.Errorf("bucket %d runs in a circle: %w", i, shm.ErrCorrupt)
			case word(entry, entryHash).Load() != s.hash(string(text)) || s.hash(string(text))%rootBuckets != uint64(i):
				return fmt.Errorf("bucket %d: name %q does not belong there: %w", i, text, shm.ErrCorrupt)
			}
			o, err := shm.At[object](s.region, shm.Offset(word(entry, entryObject).Load()))
			if err != nil {
				return fmt.Errorf("name %q: %w", text, err)
			}
			if !s.readOnly && (o.gen.Load() != word(entry, entryGen).Load() || o.words[nameWord].Load() != link.Load()) {
				return fmt.Errorf("name %q is not that of its object: %w", text, shm.ErrCorrupt)
			}
			link = word(entry, entryNext)
		}
	}
	return nil
}
