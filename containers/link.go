package containers

import (
	"fmt"
	"io/fs"

	"github.com/shmkit/shmkit/shm"
)

// A Link names an object from within another one of the same region: plain data, where a handle is not, so
// it can be a field of a T. Its zero value names nothing. A Link does not keep its object alive; what it
// names may have been destroyed, which In then tells.
type Link[H Handle[H]] struct {
	off uint64
	gen uint64
}

// LinkTo returns a Link to the object of h; of a zero handle, the zero Link.
func LinkTo[H Handle[H]](h H) Link[H] {
	b := h.handle()
	if b.obj == nil {
		return Link[H]{}
	}
	if b.live() {
		b.passOn()
	}
	return Link[H]{uint64(b.s.offsetOf(b.obj)), b.gen}
}

// IsZero reports whether l names nothing.
func (l Link[H]) IsZero() bool { return l == Link[H]{} }

// In returns a handle on the object in m, which must be a Manager of the region that the Link lies in. It
// returns an error that is [fs.ErrNotExist] for the zero Link, [shm.ErrStale] if the object was destroyed.
func (l Link[H]) In(m *Manager) (H, error) {
	var h H
	if l.IsZero() {
		return h, fmt.Errorf("containers: zero Link: %w", fs.ErrNotExist)
	}
	k, layout, err := h.about()
	if err != nil {
		return h, err
	}
	s, err := m.space()
	if err != nil {
		return h, err
	}
	b, err := s.attach(shm.Offset(l.off), l.gen, k, layout)
	if err != nil {
		return h, fmt.Errorf("containers: follow Link: %w", err)
	}
	return opened(h, b)
}
