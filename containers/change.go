package containers

import (
	"errors"

	"github.com/shmkit/shmkit/containers/internal/txn"
)

// change runs fn as one operation of the storage: the words that it stores by l.Set and l.Later, the blocks that it takes by
// heap.AllocIn and those that it frees by heap.FreeIn change together when fn returns nil, or, if it fails or panics or the process is
// killed, not at all. Words that readers without the lock look at are stored by l.Later, since a word stored by l.Set can still be
// undone; fn itself reads them as they were.
//
// The caller holds the locks of all that fn changes, from before until change returns; they come before the heap's. fn runs nothing of the user's, and
// takes no lock of an object: there are few lanes.
func (s *space) change(fn func(l *txn.Lane) error) (err error) {
	l, err := s.heap.Enter()
	if err != nil {
		return err
	}
	defer func() {
		if failed := l.Leave(); failed != nil {
			err = errors.Join(err, failed)
		}
	}()
	if err = fn(l); err == nil {
		l.Commit()
	}
	return err
}
