package containers

import (
	"context"
	"fmt"
	"io/fs"
	"iter"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// A Namespace has attributes: values of any of the kinds that an [Item] may be, under names. It is a SharedMap[string, Item] with methods that
// take and give the values themselves. Use [NewNamespace]; a handle is a small value: copy it, pass it to other processes.
//
// Get and Names take no lock and never wait. Each write happens at once and whole, also if the process dies inside. To change an attribute by its
// old value use Update.
type Namespace struct {
	lockable
	shape mapShape
}

// NewNamespace makes a Namespace without attributes in m; nil is this process' own Manager.
func NewNamespace(m *Manager, opts ...Option) (Namespace, error) {
	var n Namespace
	k, layout, err := n.about()
	if err != nil {
		return n, err
	}
	b, err := newObject(m, k, layout, opts, func(_ *txn.Lane, _ *space, o *object) error {
		o.words[mapShapeWord].Store(uint64(shapeOfMap[string, Item]()))
		return nil
	})
	if err != nil {
		return n, err
	}
	return opened(n, b)
}

var namespaceLayout = namedLayout("namespace")

func (Namespace) about() (kind, *shm.Layout, error) { return kindMap, namespaceLayout, nil }

func (Namespace) from(b base) (Namespace, error) {
	m, err := SharedMap[string, Item]{}.from(b)
	return Namespace(m), err
}

// MarshalBinary encodes a reference to the object, for whoever has or gets the region: a process started by
// package proc finds it attached. A zero handle is encoded as nothing.
func (n Namespace) MarshalBinary() ([]byte, error) { return n.base.MarshalBinary() }

// MarshalText is MarshalBinary in base64.
func (n Namespace) MarshalText() ([]byte, error) { return n.base.MarshalText() }

// UnmarshalBinary makes n the handle that MarshalBinary encoded. The region is found by its id, else by its
// name, else the error is [shm.ErrNotAttached].
func (n *Namespace) UnmarshalBinary(data []byte) error { return unmarshal(n, data) }

// UnmarshalText is UnmarshalBinary from base64.
func (n *Namespace) UnmarshalText(text []byte) error { return unmarshalText(n, text) }

// Map returns the attributes as a map, for what Namespace has no method for: to take part in a transaction, for instance.
func (n Namespace) Map() SharedMap[string, Item] { return SharedMap[string, Item](n) }

// Set gives the attribute that value, which is one that [ItemOf] takes. Errors are those of ItemOf and [SharedMap.Put].
func (n Namespace) Set(name string, v any) error {
	it, err := ItemOf(v)
	if err != nil {
		return err
	}
	return n.Map().Put(name, it)
}

// Get returns the value of the attribute, as [Item.Value] does. The error is [fs.ErrNotExist] if there is no such attribute. It panics with an error that is
// [shm.ErrClosed] or [shm.ErrStale] if the region is closed or the namespace destroyed.
func (n Namespace) Get(name string) (any, error) {
	it, err := n.item("Get", name)
	if err != nil {
		return nil, err
	}
	return it.Value()
}

// Attribute returns the value of the attribute, which is a T; errors are those of [Namespace.Get] and [ItemAs].
func Attribute[T any](n Namespace, name string) (v T, err error) {
	it, err := n.item("Attribute", name)
	if err != nil {
		return v, err
	}
	return ItemAs[T](it)
}

func (n Namespace) item(op, name string) (Item, error) {
	it, ok := n.Map().Get(name)
	if !ok {
		return nil, n.missing(op, name)
	}
	return it, nil
}

func (n Namespace) missing(op, name string) error {
	return n.fail(op, fmt.Errorf("there is no attribute %q: %w", name, fs.ErrNotExist))
}

// Delete takes the attribute out. The error is [fs.ErrNotExist] if there is none of that name.
func (n Namespace) Delete(name string) error {
	if !n.Map().Delete(name) {
		return n.missing("Delete", name)
	}
	return nil
}

// Update gives the attribute the value that fn makes of its old one, nil and false if there is none. fn runs with the lock held: no other writer comes between. An
// error of fn is returned as it is, and nothing changes; so it is if fn panics, or the process dies. It waits for the lock until ctx ends.
func (n Namespace) Update(ctx context.Context, name string, fn func(old any, ok bool) (any, error)) error {
	return n.Map().Update(ctx, name, func(it *Item, ok bool) error {
		var old any
		if ok {
			var err error
			if old, err = it.Value(); err != nil {
				return err
			}
		}
		v, err := fn(old, ok)
		if err == nil {
			*it, err = ItemOf(v)
		}
		return err
	})
}

// Names returns an iterator over the attributes' names, in no order, as [SharedMap.All] does.
func (n Namespace) Names() iter.Seq[string] { return n.Map().Keys() }

// Len returns the number of attributes.
func (n Namespace) Len() int { return n.Map().Len() }
