package containers

import (
	"fmt"

	"github.com/shmkit/shmkit/shm"
)

// reach finds all blocks that belong to somebody, and what they are: those of the names, of the layouts, of the objects, and of one that is being
// freed. root.mu is held.
func (s *space) reach(objects []shm.Offset) (map[shm.Offset]string, error) {
	reached := map[shm.Offset]string{}
	add := func(what string, off uint64) error {
		if off == 0 {
			return nil
		}
		if other, twice := reached[shm.Offset(off)]; twice {
			return fmt.Errorf("%s and %s are both the block at offset %d: %w", other, what, off, shm.ErrCorrupt)
		}
		reached[shm.Offset(off)] = what
		return nil
	}
	for i := range s.root.buckets {
		for at := s.root.buckets[i].Load(); at != 0; {
			if err := add("name", at); err != nil { // a ring too
				return nil, err
			}
			entry, _, err := s.entryAt(shm.Offset(at))
			if err != nil {
				return nil, err
			}
			at = word(entry, entryNext).Load()
		}
	}
	for at := s.root.layouts.Load(); at != 0; {
		if err := add("layout", at); err != nil {
			return nil, err
		}
		p, err := addrOf(s.region, shm.Offset(at), layoutSize)
		if err != nil {
			return nil, err
		}
		at = word(p, layoutNext).Load()
	}
	for _, off := range objects {
		o, err := shm.At[object](s.region, off)
		if err != nil {
			return nil, err
		}
		if o.gen.Load()&1 == 0 && s.root.pending.Load() != uint64(off) {
			continue // and it will be missed
		}
		k := kind(o.kind.Load())
		if err := add(k.String(), uint64(off)); err != nil {
			return nil, err
		}
		err = k.blocks(s, o, func(what string, block uint64) error {
			return add(fmt.Sprintf("%s of the %v at offset %d", what, k, off), block)
		})
		if err != nil {
			return nil, fmt.Errorf("%v at offset %d: %w", k, off, err)
		}
	}
	return reached, nil
}
