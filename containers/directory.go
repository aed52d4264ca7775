package containers

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"sync/atomic"
	"unicode"
	"unicode/utf8"

	"github.com/shmkit/shmkit/shm"
)

// The directory: names by hash, each bucket of root a chain of entries. An entry is a block that does not
// change once it is linked, but for next.
//
//	0      8      16       24    32            40
//	| next | hash | object | gen | name length | name ...
//
// One store links an entry, one unlinks it: a name is there or it is not. Everything happens under
// root.mu. An entry whose object was destroyed counts as none and is taken out by whoever meets it.
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
	link, entry, err := s.search(name)
	switch {
	case err != nil:
		return err
	case entry == nil:
		return fs.ErrNotExist
	}
	return s.takeOut(link, entry)
}

// takeOut unlinks the entry that link points to and frees it.
func (s *space) takeOut(link *atomic.Uint64, entry addr) error {
	off := link.Load()
	link.Store(word(entry, entryNext).Load())
	// crash here: the entry leaks
	return s.heap.Free(shm.Offset(off))
}

// lookup returns the object of that name and its generation. It takes out an entry whose object is gone.
func (s *space) lookup(name string) (shm.Offset, uint64, error) {
	link, entry, err := s.search(name)
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
	case s.readOnly:
		return 0, 0, fs.ErrNotExist
	}
	return 0, 0, errors.Join(s.takeOut(link, entry), fs.ErrNotExist)
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

// newEntry makes an entry that is not linked yet.
func (s *space) newEntry(name string) (shm.Offset, error) {
	off, err := s.heap.Alloc(entrySize + uint64(len(name)))
	if err != nil {
		return 0, err
	}
	entry, err := addrOf(s.region, off, entrySize)
	if err != nil {
		return 0, err
	}
	text, err := s.region.Bytes(off+entrySize, uint64(len(name)))
	if err != nil {
		return 0, err
	}
	copy(text, name)
	word(entry, entryHash).Store(s.hash(name))
	word(entry, entryLength).Store(uint64(len(name)))
	return off, nil
}

// publish gives the object at off the name of the entry.
func (s *space) publish(at, object shm.Offset, gen uint64) error {
	entry, err := addrOf(s.region, at, entrySize)
	if err != nil {
		return err
	}
	bucket := &s.root.buckets[word(entry, entryHash).Load()%rootBuckets]
	word(entry, entryObject).Store(uint64(object))
	word(entry, entryGen).Store(gen)
	word(entry, entryNext).Store(bucket.Load())
	bucket.Store(uint64(at)) // publishes
	return nil
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

// checkNames walks all chains.
func (s *space) checkNames() error {
	if !s.readOnly {
		if err := s.lockRoot(); err != nil {
			return err
		}
		defer s.root.mu.Unlock()
	}
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
			if _, err := shm.At[object](s.region, shm.Offset(word(entry, entryObject).Load())); err != nil {
				return fmt.Errorf("name %q: %w", text, err)
			}
			link = word(entry, entryNext)
		}
	}
	return nil
}
