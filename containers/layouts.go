package containers

import (
	"fmt"
	"hash/fnv"
	"reflect"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// The layouts that a region's objects have, each stored once as text, so that a program whose T differs can
// be told how. They are a list from root.layouts on that only grows; a block of it never changes:
//
//	0      8             16       24
//	| next | fingerprint | length | text ...
const (
	layoutNext = iota // words of a stored layout
	layoutFingerprint
	layoutLength
	layoutText // where the text begins

	layoutSize = 8 * layoutText

	maxLayouts    = 1 << 16 // the list is no longer, unless it is a ring
	maxLayoutText = 4096    // bytes; a longer text is cut off
)

// layoutOf returns the layout of T, which must be plain data without locks and atomics: the containers that
// copy their T use it.
func layoutOf[T any]() (*shm.Layout, error) {
	return plainLayout(reflect.TypeFor[T]())
}

// plainLayout is layoutOf for a type known when the program runs.
func plainLayout(t reflect.Type) (*shm.Layout, error) {
	l, err := shm.LayoutOf(t)
	if err != nil {
		return nil, fmt.Errorf("containers: %w", err)
	}
	if l.HasLock {
		return nil, fmt.Errorf("containers: %w", &shm.TypeError{
			Path: t.String(),
			Got:  "a type with a lock or an atomic in it, which must not be copied",
			Want: "keep it in place in a Ref (containers.New)",
			Err:  shm.ErrNotPlain,
		})
	}
	return l, nil
}

// namedLayout returns a layout for what is not the layout of a type: lists of strings, for instance.
func namedLayout(text string) *shm.Layout {
	h := fnv.New64a()
	h.Write([]byte(text))
	return &shm.Layout{Fingerprint: h.Sum64(), Text: text}
}

// keepLayout stores l in the region if it is not there.
func (s *space) keepLayout(l *shm.Layout) error {
	if _, known := s.known.Load(l.Fingerprint); known {
		return nil
	}
	if err := s.storeLayout(l); err != nil {
		return err
	}
	s.known.Store(l.Fingerprint, nil)
	return nil
}

func (s *space) storeLayout(l *shm.Layout) error {
	if err := s.lockRoot(); err != nil {
		return err
	}
	defer s.root.mu.Unlock()
	if text, err := s.storedLayout(l.Fingerprint); text != nil || err != nil {
		return err
	}
	text := l.Text[:min(len(l.Text), maxLayoutText)]
	return s.change(func(tx *txn.Lane) error {
		off, err := s.heap.AllocIn(tx, layoutSize+uint64(len(text)), 8)
		if err != nil {
			return err
		}
		b, err := s.region.Bytes(off+layoutSize, uint64(len(text)))
		if err != nil {
			return err
		}
		copy(b, text)
		p, err := addrOf(s.region, off, layoutSize)
		if err != nil {
			return err
		}
		word(p, layoutFingerprint).Store(l.Fingerprint)
		word(p, layoutLength).Store(uint64(len(text)))
		word(p, layoutNext).Store(s.root.layouts.Load())
		return tx.Later(&s.root.layouts, uint64(off)) // publishes
	})
}

// storedLayout returns the stored text, nil if there is none. It needs no lock.
func (s *space) storedLayout(fingerprint uint64) ([]byte, error) {
	off := shm.Offset(s.root.layouts.Load())
	for range maxLayouts {
		if off == 0 {
			return nil, nil
		}
		p, err := addrOf(s.region, off, layoutSize)
		if err != nil {
			return nil, err
		}
		if word(p, layoutFingerprint).Load() == fingerprint {
			return s.region.Bytes(off+layoutSize, min(word(p, layoutLength).Load(), maxLayoutText))
		}
		off = shm.Offset(word(p, layoutNext).Load())
	}
	return nil, fmt.Errorf("layouts run in a circle: %w", shm.ErrCorrupt)
}

// layoutText describes a stored layout for messages.
func (s *space) layoutText(fingerprint uint64) string {
	text, err := s.storedLayout(fingerprint)
	if text == nil || err != nil {
		return fmt.Sprintf("a type with fingerprint %016x", fingerprint)
	}
	return string(text)
}
