package containers

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io/fs"
	"runtime"

	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

// base is what every handle holds: which object, in which life of it, and its lock. It is embedded by
// every handle type, which adds what it derives once from the object's words, checked: the address of the
// cells, for instance. Handles are copyable values; the zero base is a zero handle.
//
// A method of a handle that reads without the lock looks like this:
//
//	v := n.obj.words[0].Load()
//	n.checkLive("Load")         // after the read: an object that is live now was live then
//
// and one that writes like this:
//
//	n.acquire("Add")            // lock, repair if an owner died, still live; panics with what is wrong
//	defer n.release()           // or without defer where nothing of the caller's runs between
//
// or, where there is a context or an error result, with err := n.lock(ctx, "Update"). A handle type with a
// lock embeds lockable, which is base and the methods Lock, Unlock, TryLock, LockContext and Mutex.
type base struct {
	s   *space
	obj *object
	gen uint64
	mu  *shmsync.Mutex // &obj.mu, or the caller's, which is &o.mu of another object; nil in a read-only region
}

// A Handle is one of this package's types, from [SharedInt] to [Ref]: a small value that names an object
// in a region. Handles are copied freely and are passed to other processes as arguments.
type Handle[H any] interface {
	about() (kind, *shm.Layout, error) // of an H; of any, the zero one too
	handle() base
	from(b base) (H, error) // the handle of b's object, which is of that kind and layout; checks the words
}

// opened returns the handle of b's object, from h's method; h may be zero. Destroyed meanwhile, the words
// make no sense, and that is not damage.
func opened[H Handle[H]](h H, b base) (H, error) {
	got, err := h.from(b)
	if err != nil && !b.live() {
		err = b.useless("open")
	}
	return got, err
}

// Must returns v and panics if err is not nil. For tests and demos.
func Must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// acquire takes the object's lock and makes sure that the object is live and in its committed state. It
// panics if the handle is of no use, with an error for errors.Is: [shm.ErrClosed], [shm.ErrStale],
// [shmsync.ErrInconsistent] (only with a caller's lock), [fs.ErrPermission] (read-only region).
func (b base) acquire(op string) {
	if b.mu == nil || b.mu != &b.obj.mu || !b.mu.TryLockIdle() {
		b.acquireSlow(op)
		return
	}
	if b.obj.gen.Load() != b.gen || b.s.closed.Load() {
		b.mu.Unlock()
		panic(b.useless(op))
	}
}

// quick is lock if that takes one step. It returns false if the lock is not held: lock says why.
func (b *base) quick() bool { return b.free() && (b.good() || b.refuse()) }

// free takes the lock if that takes one step, and is small enough to be inlined, as good is, which says whether it was worth it.
func (b base) free() bool { return b.mu != nil && b.mu == &b.obj.mu && b.mu.TryLockIdle() }

// good is live for a handle that is not zero.
func (b base) good() bool { return b.obj.gen.Load() == b.gen && !b.s.closed.Load() }

// refuse is quick for a handle that is of no use.
//
//go:noinline
func (b *base) refuse() bool {
	b.mu.Unlock()
	return false
}

//go:noinline
func (b base) acquireSlow(op string) {
	if err := b.lockSlow(context.Background(), op); err != nil {
		panic(err)
	}
}

// lock is acquire for calls with an error result. An error means that the lock is not held.
func (b base) lock(ctx context.Context, op string) error {
	if b.mu == nil || b.mu != &b.obj.mu || !b.mu.TryLockIdle() {
		return b.lockSlow(ctx, op)
	}
	if b.obj.gen.Load() != b.gen || b.s.closed.Load() {
		b.mu.Unlock()
		return b.useless(op)
	}
	return nil
}

func (b base) lockSlow(ctx context.Context, op string) (err error) {
	switch {
	case !b.live():
		return b.useless(op)
	case b.mu == nil:
		return b.fail(op, fmt.Errorf("the region is open for reading only: %w", fs.ErrPermission))
	case !b.foreign():
		err = b.mu.LockRepaired(ctx, func(shm.Death) error { return b.settle() })
	case !b.mu.TryLockIdle():
		err = b.mu.LockContext(ctx)
	}
	if err != nil {
		return b.fail(op, err)
	}
	if !b.live() {
		b.mu.Unlock()
		return b.useless(op)
	}
	if b.foreign() {
		// Whoever recovered the caller's lock knows nothing of what the dead owner left open here.
		if err := b.settle(); err != nil {
			b.mu.Unlock()
			return b.fail(op, err)
		}
	}
	return nil
}

// settle brings the object to its committed state. The lock is held, and this process has nothing open on
// the object. Views that act under a caller's lock call it first.
func (b base) settle() error {
	if b.obj.gen.Load()&1 == 0 {
		return nil // dead, or being made by somebody else: nothing is open on it
	}
	return kind(b.obj.kind.Load()).repair(b.s, b.obj)
}

// release gives the lock back. The region cannot vanish under the caller before this.
func (b base) release() {
	b.mu.Unlock()
	runtime.KeepAlive(b.s)
}

// do runs fn with the lock held, for calls with an error result: it returns lock's error or fn's, or one that is [shm.ErrClosed] if
// the region was closed meanwhile.
func (b base) do(ctx context.Context, op string, fn func() error) (err error) {
	if err := b.lock(ctx, op); err != nil {
		return err
	}
	defer func() {
		if !unlockOpen(b.s.region, b.mu) {
			err = b.fail(op, shm.ErrClosed)
		}
	}()
	return fn()
}

// unlockOpen gives a lock back, and reports whether that was possible: not if the region was closed and the lock is gone with it.
func unlockOpen(r *shm.Region, mu *shmsync.Mutex) (open bool) {
	defer func() {
		if !open && r.Closed() {
			recover()
		}
	}()
	mu.Unlock()
	return true
}

func (b base) handle() base { return b }

// foreign reports whether the lock is the caller's (WithMutex).
func (b base) foreign() bool { return b.mu != &b.obj.mu }

// live reports whether the handle is good: its region open, its object not destroyed. It panics for a
// zero handle.
func (b base) live() bool {
	if b.obj == nil {
		panic("containers: use of a zero handle; make one with New… or Find")
	}
	return b.obj.gen.Load() == b.gen && !b.s.closed.Load()
}

// checkLive panics if the handle is not good.
func (b base) checkLive(op string) {
	if b.obj == nil || b.obj.gen.Load() != b.gen || b.s.closed.Load() {
		b.notLive(op)
	}
}

//go:noinline
func (b base) notLive(op string) {
	if !b.live() { // panics itself for a zero handle
		panic(b.useless(op))
	}
}

// check is checkLive for calls with an error result.
func (b base) check(op string) error {
	if !b.live() {
		return b.useless(op)
	}
	return nil
}

// useless says why the handle is not live.
//
//go:noinline
func (b base) useless(op string) error {
	if b.s.closed.Load() || b.s.region.Closed() {
		return b.fail(op, shm.ErrClosed)
	}
	return b.fail(op, shm.ErrStale)
}

// fail wraps err with the operation and the object.
func (b base) fail(op string, err error) error {
	return fmt.Errorf("containers: %s: %v: %w", op, b, err)
}

// String names the object for messages: its kind, offset and region.
func (b base) String() string {
	if b.obj == nil {
		return "zero handle"
	}
	what := "object"
	if b.live() {
		what = kind(b.obj.kind.Load()).String()
	}
	return fmt.Sprintf("%s at offset %d of %s", what, b.s.offsetOf(b.obj), b.s)
}

// Destroy frees the object. From then on every handle on it answers [shm.ErrStale], in every process, and
// its name, if it has one, is free. Destroy waits for the object's lock. A process that dies inside leaves
// the object as it was or destroyed, and none of its memory is lost: what could not be freed in the same step, of a list with
// hundreds of blocks, is freed by whoever makes or destroys a named object next.
func (b base) Destroy() error {
	return b.do(context.Background(), "Destroy", func() error { // the lock outlives the object
		if err := b.s.destroy(b.obj, b.gen); err != nil {
			return b.fail("Destroy", err)
		}
		return nil
	})
}

// The encoding of a handle: a reference, not the object.
//
//	0         1      2        10    18            26
//	| version | kind | offset | gen | fingerprint | reference to the region ...
const (
	handleVersion = 1
	handleSize    = 26
)

// MarshalBinary is what the handle types' own methods of that name call. They need one of their own: package
// proc suspects a promoted one of losing the type's other fields.
func (b base) MarshalBinary() ([]byte, error) {
	if b.obj == nil {
		return nil, nil
	}
	if err := b.check("encode"); err != nil {
		return nil, err
	}
	region, err := b.s.region.MarshalBinary()
	if err != nil {
		return nil, b.fail("encode", err)
	}
	b.passOn()
	data := append(make([]byte, 0, handleSize+len(region)), handleVersion, byte(b.obj.kind.Load()))
	data = binary.LittleEndian.AppendUint64(data, uint64(b.s.offsetOf(b.obj)))
	data = binary.LittleEndian.AppendUint64(data, b.gen)
	data = binary.LittleEndian.AppendUint64(data, b.obj.fingerprint.Load())
	return append(data, region...), nil
}

// MarshalText is MarshalBinary in base64.
func (b base) MarshalText() ([]byte, error) {
	data, err := b.MarshalBinary()
	return base64.RawURLEncoding.AppendEncode(nil, data), err
}

// unmarshal is the UnmarshalBinary of every handle type.
func unmarshal[H Handle[H]](h *H, data []byte) error {
	var zero H
	if len(data) == 0 {
		*h = zero
		return nil
	}
	k, layout, err := zero.about()
	if err != nil {
		return err
	}
	if len(data) < handleSize || data[0] != handleVersion {
		return fmt.Errorf("containers: decode handle: %d bytes of version %d, want at least %d of version %d: %w", len(data), data[0], handleSize, handleVersion, shm.ErrCorrupt)
	}
	off := shm.Offset(binary.LittleEndian.Uint64(data[2:]))
	gen := binary.LittleEndian.Uint64(data[10:])
	s, err := arrive(data[handleSize:])
	if err != nil {
		return fmt.Errorf("containers: decode handle: %w", err)
	}
	b, err := s.attach(off, gen, k, layout)
	if err != nil {
		return fmt.Errorf("containers: decode handle: %w", err)
	}
	got, err := opened(zero, b)
	if err == nil {
		*h = got
	}
	return err
}

// unmarshalText is the UnmarshalText of every handle type.
func unmarshalText[H Handle[H]](h *H, text []byte) error {
	data, err := base64.RawURLEncoding.AppendDecode(nil, text)
	if err != nil {
		return fmt.Errorf("containers: decode handle: %w: %w", err, shm.ErrCorrupt)
	}
	return unmarshal(h, data)
}

// lockable is base for the types that offer their lock.
type lockable struct{ base }

// Lock locks the object, in all processes, until Unlock: others that write wait, those that read do not.
// Between the two use [Shared.Locked] and its like: a write through the handle itself would wait for ever.
// If a lock's owner died the object is brought to its last committed state first. Lock panics if the
// handle is of no use any more, with an error that is [shm.ErrClosed] or [shm.ErrStale].
func (b lockable) Lock() { b.acquire("Lock") }

// LockContext is Lock until the context ends. A free lock is taken under an ended context too. An error
// means that the lock is not held.
func (b lockable) LockContext(ctx context.Context) error { return b.lock(ctx, "LockContext") }

// TryLock takes the lock if it is free, and reports whether it did. It does not find out whether the owner
// is dead. It panics as Lock does.
func (b lockable) TryLock() bool {
	b.checkLive("TryLock")
	if b.mu == nil || !b.mu.TryLock() {
		return false
	}
	if !b.live() {
		b.mu.Unlock()
		panic(b.useless("TryLock"))
	}
	return true
}

// Unlock gives the lock back; it panics if it is not held.
func (b lockable) Unlock() { b.mu.Unlock() }

// Mutex returns the object's lock: with [WithMutex] the very one that was given, else the embedded one. It
// is valid until the region is closed.
func (b lockable) Mutex() *shmsync.Mutex {
	b.checkLive("Mutex")
	return b.mu
}
