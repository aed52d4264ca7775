package containers

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"

	"github.com/shmkit/shmkit/shm"
)

// A NamedObject is a name of a Manager's directory, and what it names.
type NamedObject struct {
	Name string
	Kind string // as errors name it: "number", "value", "array", "list", "map", "queue", "ring", "atomic number" or "reference"
	Type string // as stored: of the value or the elements, with their fields; of a map, of keys and values
}

// Names returns the names that objects have, in ascending order, all as they are at one moment: [Find] opens what they name. Errors are [shm.ErrClosed] and
// [shm.ErrCorrupt]. It holds the lock of the names meanwhile, so others wait when they make or destroy named objects; in a
// region that is open for reading only it takes no lock, and of names that are given or taken away meanwhile it may see some and not others. O(names).
func (m *Manager) Names() ([]NamedObject, error) {
	s, err := m.space()
	if err != nil {
		return nil, err
	}
	all, err := s.names()
	if err != nil {
		return nil, fmt.Errorf("containers: names of %v: %w", s, err)
	}
	slices.SortFunc(all, func(a, b NamedObject) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

func (s *space) names() (all []NamedObject, err error) {
	if !s.readOnly {
		if err := s.lockRoot(); err != nil {
			return nil, err
		}
		defer s.root.mu.Unlock()
	}
	for i := range s.root.buckets {
		before := len(all)
		for try := 1; ; try++ {
			if all, err = s.bucketNames(i, all[:before]); err == nil {
				break
			}
			if !s.readOnly || try == maxTries { // else a block may have been freed, and be anything, while it was read
				return nil, fmt.Errorf("bucket %d: %w", i, err)
			}
			runtime.Gosched()
		}
	}
	return all, nil
}

// bucketNames appends the names in bucket i, each checked: without the lock they may be of different moments.
func (s *space) bucketNames(i int, all []NamedObject) ([]NamedObject, error) {
	mark := uint64(0) // an entry passed, of which a ring comes round again (Brent)
	link := &s.root.buckets[i]
	for n := 1; ; n++ {
		at := link.Load()
		if at == 0 {
			return all, nil
		}
		if at == mark {
			return all, fmt.Errorf("names run in a circle: %w", shm.ErrCorrupt)
		}
		if n&(n-1) == 0 {
			mark = at
		}
		entry, text, err := s.entryAt(shm.Offset(at))
		if err != nil {
			return all, err
		}
		name := string(text)
		hash := s.hash(name)
		if word(entry, entryHash).Load() != hash || hash%rootBuckets != uint64(i) {
			return all, fmt.Errorf("name %q does not belong there: %w", name, shm.ErrCorrupt)
		}
		o, err := shm.At[object](s.region, shm.Offset(word(entry, entryObject).Load()))
		if err != nil {
			return all, fmt.Errorf("name %q: %w", name, err)
		}
		found := NamedObject{name, kind(o.kind.Load()).String(), s.layoutText(o.fingerprint.Load())}
		switch {
		case o.gen.Load() == word(entry, entryGen).Load(): // last: what was read above is of this generation
			all = append(all, found)
		case !s.readOnly:
			return all, fmt.Errorf("name %q is not that of its object: %w", name, shm.ErrCorrupt)
		}
		link = word(entry, entryNext)
	}
}
