package containers

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"structs"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/heap"
	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A Manager owns a region's data area: every object lives in one. There is no server behind it; each
// process that has the region open has a Manager on it, and all of them work on the same memory. Wherever
// a function takes a Manager, nil stands for this process' own one, anonymous, made at first use and open
// until the process ends; passing its objects to another process takes the region along.
//
// Opening a region several times in one process gives Managers that share it: handles stay good until the
// last one is closed. A Manager is passed to another process by pointer and arrives open.
type Manager struct {
	s      *space
	r      *shm.Region
	closed atomic.Bool
}

// root is where a region's containers are found from: at the offset in the region's root word, right at
// the start of the data area. The heap's header follows it.
//
//	0       8         16   24        32        40               64              1088
//	| magic | version | mu | pending | layouts | reserved, zero | buckets [128] | heap ...
type root struct {
	_       structs.HostLayout
	magic   uint64                     // rootMagic; immutable
	version uint64                     // rootVersion; immutable
	mu      shmsync.Mutex              // guards all below, and which objects use which locks
	pending atomic.Uint64              // offset of a dead object that has so many blocks that not all are free yet, or 0
	layouts atomic.Uint64              // offset of the newest stored layout; see layouts.go
	_       [24]byte                   // reserved
	buckets [rootBuckets]atomic.Uint64 // names by hash; see directory.go
}

const (
	rootMagic   = 0x7472616e69616d63 // "cmainart" in little-endian order
	rootVersion = 6                  // of root, directory, layouts, objects and heap; a change of any changes it
	rootBuckets = 128
	rootSize    = 64 + 8*rootBuckets
)

var _ [rootSize]byte = [unsafe.Sizeof(root{})]byte{} // the layout is a format: moving it must not compile

// A space is a region's containers as this process has them, shared by its Managers and all handles.
type space struct {
	closed   atomic.Bool // looked at by every call on a handle
	readOnly bool
	region   *shm.Region // a handle of the space's own: the mapping lives as long as any container handle
	heap     *heap.Heap
	root     *root
	known    sync.Map // fingerprints whose layout is stored in the region
	ends     sync.Map // endKeys of rings: what this process has taken by this opening of the region
	refs     int      // Managers, and one for handles that arrived without any; guarded by spaces.mu
}

type spaceKey struct {
	id       shm.ID
	readOnly bool
}

// spaces are the open ones of this process.
var spaces = struct {
	mu   sync.Mutex
	open map[spaceKey]*space
}{open: map[spaceKey]*space{}}

// NewManager makes r's data area a home for containers, if it is not one yet, and returns a Manager on it.
// The Manager owns r from then on: closing the one closes the other. If NewManager fails, r stays the caller's.
// Any number of processes may do this at once; if one dies half-way, the next finishes.
func NewManager(r *shm.Region) (*Manager, error) {
	spaces.mu.Lock()
	defer spaces.mu.Unlock()
	s, err := spaceOf(r)
	if err != nil {
		return nil, fmt.Errorf("containers: %w", err)
	}
	s.refs++
	return &Manager{s: s, r: r}, nil
}

// OpenManager returns a Manager on the named region, which is made if there is none: of that size, limit
// and mode if opts say so.
func OpenManager(name string, opts ...shm.Option) (*Manager, error) {
	r, err := shm.OpenOrCreate(name, opts...)
	if err != nil {
		return nil, fmt.Errorf("containers: %w", err)
	}
	return manage(r)
}

// manage is NewManager that closes r if it fails.
func manage(r *shm.Region) (*Manager, error) {
	m, err := NewManager(r)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return m, nil
}

var standard struct {
	mu sync.Mutex
	m  *Manager
}

// standardManager returns the process' own Manager, which nil stands for.
func standardManager() (*Manager, error) {
	standard.mu.Lock()
	defer standard.mu.Unlock()
	if standard.m != nil {
		return standard.m, nil
	}
	r, err := shm.Anonymous()
	if err != nil {
		return nil, fmt.Errorf("containers: this process' own Manager: %w", err)
	}
	m, err := manage(r)
	standard.m = m
	return m, err
}

// space returns what m's objects live in; nil stands for the process' own Manager.
func (m *Manager) space() (*space, error) {
	if m == nil {
		var err error
		if m, err = standardManager(); err != nil {
			return nil, err
		}
	}
	switch {
	case m.s == nil:
		return nil, fmt.Errorf("containers: zero Manager; make one with NewManager or OpenManager: %w", shm.ErrClosed)
	case m.closed.Load():
		return nil, fmt.Errorf("containers: Manager of %v: %w", m.s, shm.ErrClosed)
	}
	return m.s, nil
}

// Region returns the region; it is the Manager's, which closes it. Of nil it is that of the process' own
// Manager, or nil if that cannot be made.
func (m *Manager) Region() *shm.Region {
	if m == nil {
		if m, _ = standardManager(); m == nil {
			return nil
		}
	}
	return m.r
}

// Close closes the Manager and its region; more calls do nothing. When it was the last one on this region
// in this process, calls on handles answer [shm.ErrClosed] from then on: with it, if they have an error
// result, else in a panic. Nothing in the region changes.
func (m *Manager) Close() error {
	if m == nil || m.s == nil || m.closed.Swap(true) {
		return nil
	}
	return errors.Join(m.s.leave(), m.r.Close())
}

// leave gives one reference up; the last one closes the space.
func (s *space) leave() error {
	spaces.mu.Lock()
	defer spaces.mu.Unlock()
	if s.refs--; s.refs > 0 {
		return nil
	}
	s.closed.Store(true)
	delete(spaces.open, spaceKey{s.region.ID(), s.readOnly})
	return s.region.Close()
}

// Trim gives the memory of what is free in the region back to the system, and returns how many bytes that
// is: the region stays as large as it is, and its file gets holes. When the memory is needed again, it is
// reserved first; on a file system that is full by then making an object returns [shm.ErrNoSpace].
//
// What was 1 MiB or more in one piece goes back by itself when it is freed, except where [shm.Region.ReadableHoles] is false: in a file system in memory that has a size, such as /dev/shm. There a method
// that reads an object without its lock, and finds only then that it was destroyed, would take memory again, and if the
// file system were full by then, the read would end its program. So call Trim there when no process uses
// handles on objects that were destroyed, and none is in the middle of reading what others change.
//
// It returns an error that is [errors.ErrUnsupported] where the system cannot do it: then nothing has changed. It holds
// the heap's lock meanwhile: other processes wait when they make or destroy objects. O(blocks).
func (m *Manager) Trim() (bytes uint64, err error) {
	s, err := m.space()
	if err != nil {
		return 0, err
	}
	if s.readOnly {
		return 0, fmt.Errorf("containers: trim %v: the region is open for reading only: %w", s, fs.ErrPermission)
	}
	if bytes, err = s.heap.Trim(); err != nil {
		err = fmt.Errorf("containers: trim %v: %w", s, err)
	}
	return bytes, err
}

// Check walks the heap, the names and the memory of all objects, and returns an error that names the first broken invariant. It
// holds the locks of heap and names meanwhile: other processes wait when they make or destroy objects. If no operation is
// under way, it also finds out whether each block in use belongs to an object, the names or the layouts, and to one of them only: then no
// memory is lost. Objects without a name are taken to be in somebody's use.
func (m *Manager) Check() error {
	s, err := m.space()
	if err != nil {
		return err
	}
	return s.check()
}

func (s *space) check() error {
	_, err := s.audit()
	return err
}

// audit is check, and reports whether it could compare what is in use with what belongs to somebody.
func (s *space) audit() (exact bool, err error) {
	if !s.readOnly {
		err = s.lockRoot()
		if err == nil {
			defer s.root.mu.Unlock()
		}
	}
	if err == nil {
		err = s.checkNames()
	}
	if err == nil {
		exact, err = s.heap.Audit(s.reach)
	}
	if err != nil {
		err = fmt.Errorf("containers: check %v: %w", s, err)
	}
	return exact, err
}

// MarshalBinary encodes a reference to the region. A process started by package proc finds it attached.
func (m *Manager) MarshalBinary() ([]byte, error) {
	if m == nil {
		return nil, nil
	}
	if _, err := m.space(); err != nil {
		return nil, err
	}
	return m.r.MarshalBinary()
}

// UnmarshalBinary makes the zero Manager m one on the region that data refers to.
func (m *Manager) UnmarshalBinary(data []byte) error {
	if m.s != nil {
		return fmt.Errorf("containers: decode into a Manager in use: %w", fs.ErrInvalid)
	}
	if len(data) == 0 {
		return nil
	}
	r := new(shm.Region)
	if err := r.UnmarshalBinary(data); err != nil {
		return fmt.Errorf("containers: decode Manager: %w", err)
	}
	got, err := manage(r)
	if err != nil {
		return err
	}
	m.s, m.r = got.s, got.r
	return nil
}

// MarshalText is MarshalBinary in base64.
func (m *Manager) MarshalText() ([]byte, error) {
	data, err := m.MarshalBinary()
	return base64.RawURLEncoding.AppendEncode(nil, data), err
}

// UnmarshalText is UnmarshalBinary from base64.
func (m *Manager) UnmarshalText(text []byte) error {
	data, err := base64.RawURLEncoding.AppendDecode(nil, text)
	if err != nil {
		return fmt.Errorf("containers: decode Manager: %w: %w", err, shm.ErrCorrupt)
	}
	return m.UnmarshalBinary(data)
}

// arrive returns the space of the region that data refers to, for a handle that is being decoded. If this
// process has no Manager on it, the region stays open for the handle's sake until the process ends.
func arrive(data []byte) (*space, error) {
	r := new(shm.Region)
	if err := r.UnmarshalBinary(data); err != nil {
		return nil, err
	}
	if len(data) == 0 {
		return nil, fmt.Errorf("no region: %w", shm.ErrCorrupt)
	}
	defer r.Close() // the space has its own
	spaces.mu.Lock()
	defer spaces.mu.Unlock()
	s, err := spaceOf(r)
	if err == nil && s.refs == 0 {
		s.refs = 1
	}
	return s, err
}

// spaceOf returns the space of r, and sets r up if it has none. spaces.mu is held; the caller counts itself
// in refs.
func spaceOf(r *shm.Region) (*space, error) {
	key := spaceKey{id: r.ID()}
	err := r.Exclusive(func() error { return setUp(r) })
	if errors.Is(err, fs.ErrPermission) {
		key.readOnly, err = true, nil
	}
	if err != nil {
		return nil, err
	}
	if s := spaces.open[key]; s != nil {
		return s, nil
	}
	s, err := newSpace(r)
	if err != nil {
		return nil, err
	}
	if s.region, err = r.Dup(); err != nil {
		return nil, err
	}
	s.readOnly = key.readOnly
	spaces.open[key] = s
	return s, nil
}

// newSpace returns the space of a region that holds containers, on r itself.
func newSpace(r *shm.Region) (*space, error) {
	off := shm.Offset(r.Root().Load())
	if off == 0 {
		return nil, fmt.Errorf("region %s holds no containers yet, and is open for reading only: %w", describe(r), fs.ErrNotExist)
	}
	s := &space{region: r}
	var err error
	if s.root, err = shm.At[root](r, off); err != nil {
		return nil, err
	}
	switch {
	case s.root.magic != rootMagic:
		return nil, fmt.Errorf("region %s: no containers at offset %d: %w", describe(r), off, shm.ErrCorrupt)
	case s.root.version != rootVersion:
		return nil, fmt.Errorf("region %s: containers of version %d, this program knows %d: %w", describe(r), s.root.version, rootVersion, shm.ErrVersion)
	}
	s.heap, err = heap.Open(r, off+rootSize)
	return s, err
}

func init() {
	shm.SetCheck(checkRegion)
	shm.SetRecoverer(heap.Recoverer{Heap: heapOf})
}

// heapOf returns the heap of a region in whose lanes a dead process has left something.
func heapOf(r *shm.Region) (*heap.Heap, error) {
	off := shm.Offset(r.Root().Load())
	if t, err := shm.At[root](r, off); err != nil || t.magic != rootMagic || t.version != rootVersion {
		return nil, fmt.Errorf("containers: recovery: no containers at offset %d: %w", off, shm.ErrCorrupt)
	}
	return heap.Open(r, off+rootSize)
}

// checkRegion is Check for a region that nobody has a Manager on yet. One that holds something else than
// containers is not for it to judge.
func checkRegion(r *shm.Region) error {
	off := shm.Offset(r.Root().Load())
	if t, err := shm.At[root](r, off); err != nil || t.magic != rootMagic {
		return nil
	}
	s, err := newSpace(r)
	if err != nil {
		return err
	}
	return s.check()
}

// setUp lays out root and heap in a region that has none. It runs under Exclusive; whatever a process that
// died in here left is not published and is written anew.
func setUp(r *shm.Region) error {
	if r.Root().Load() != 0 {
		return nil
	}
	off := (r.Data() + 63) &^ 63
	need := uint64(off-r.Data()) + rootSize + heap.HeaderSize
	if r.Size() < need {
		if err := r.Grow(need); err != nil {
			return fmt.Errorf("containers need %d bytes to begin with: %w", need, err)
		}
	}
	b, err := r.Bytes(off, rootSize)
	if err != nil {
		return err
	}
	clear(b)
	t, err := shm.At[root](r, off)
	if err != nil {
		return err
	}
	if err := heap.Format(r, off+rootSize); err != nil {
		return err
	}
	t.magic, t.version = rootMagic, rootVersion
	r.Root().Store(uint64(off)) // publishes
	return nil
}

// lockRoot takes the lock of names, layouts and destruction.
func (s *space) lockRoot() error {
	switch {
	case s.closed.Load():
		return shm.ErrClosed
	case s.readOnly:
		return fmt.Errorf("the region is open for reading only: %w", fs.ErrPermission)
	case s.root.mu.TryLockIdle():
	default:
		if err := s.root.mu.LockRepaired(context.Background(), func(shm.Death) error { return s.finishDestroy() }); err != nil {
			return err
		}
	}
	if s.closed.Load() {
		s.root.mu.Unlock()
		return shm.ErrClosed
	}
	return nil
}

// A filler gives a new object its contents: see newObject.
type filler func(l *txn.Lane, s *space, o *object) error

// newObject makes an object of that kind and layout in m's region and returns its base; the caller makes
// its handle from it, and from the words, by its from method. Under a name that exists, OrOpen makes it
// return the existing object's.
//
// fill sets the words of the new object, all zero before, and takes its blocks, in the operation in l. Nobody else sees the
// object yet, so it stores the words as they are, and if it fails there is nothing to undo.
func newObject(m *Manager, k kind, layout *shm.Layout, opts []Option, fill filler) (base, error) {
	s, err := m.space()
	if err != nil {
		return base{}, err
	}
	o := collect(opts)
	b, err := s.newObject(k, layout, &o, fill)
	switch {
	case err == nil:
		return b, nil
	case o.named:
		return base{}, fmt.Errorf("containers: new %v %q in %v: %w", k, o.name, s, err)
	}
	return base{}, fmt.Errorf("containers: new %v in %v: %w", k, s, err)
}

func (s *space) newObject(k kind, layout *shm.Layout, o *options, fill filler) (base, error) {
	switch {
	case o.aligned && k != kindRaw:
		return base{}, fmt.Errorf("only New takes the option Align: %w", fs.ErrInvalid)
	case o.init != nil && k != kindRaw:
		return base{}, fmt.Errorf("only New takes the option Init: %w", fs.ErrInvalid)
	}
	if o.named {
		if err := checkName(o.name); err != nil {
			return base{}, err
		}
	}
	if err := s.keepLayout(layout); err != nil {
		return base{}, err
	}
	if o.named || o.locked {
		if err := s.lockRoot(); err != nil {
			return base{}, err
		}
		defer s.root.mu.Unlock()
	}
	if o.named {
		switch off, gen, err := s.lookup(o.name); {
		case err == nil && o.orOpen:
			return s.attach(off, gen, k, layout)
		case err == nil:
			return base{}, fmt.Errorf("there is one already; open it with Find or the option OrOpen, or take its name away with Unlink: %w", fs.ErrExist)
		case !errors.Is(err, fs.ErrNotExist):
			return base{}, err
		}
	}
	return s.make(k, layout, o, fill)
}

// make makes an object in one operation: header, blocks, name, and that it uses a caller's lock. If it has one of the last two, root.mu
// is held. A kill leaves all of it or nothing.
func (s *space) make(k kind, layout *shm.Layout, opts *options, fill filler) (b base, err error) {
	err = s.change(func(l *txn.Lane) error {
		off, err := s.heap.AllocObjectIn(l)
		if err != nil {
			return err
		}
		o, err := shm.At[object](s.region, off)
		if err != nil {
			return err
		}
		// Nobody looks at the header before its generation is odd: if it does not come to that, what stands here means nothing.
		o.kind.Store(uint32(k))
		o.format.Store(objectFormat)
		o.fingerprint.Store(layout.Fingerprint)
		o.lock.Store(0)
		for i := range o.words {
			o.words[i].Store(0)
		}
		b = base{s, o, o.gen.Load() + 1, &o.mu}
		if err := fill(l, s, o); err != nil {
			return err
		}
		if opts.locked {
			if b.mu, err = s.useLock(l, o, opts.lock.base); err != nil {
				return err
			}
		}
		if err := l.Later(&o.gen, b.gen); err != nil || !opts.named {
			return err
		}
		return s.giveName(l, b, opts.name)
	})
	if err != nil {
		return base{}, err
	}
	return b, nil
}

// useLock makes the object o, which is being made, use the Mutex of ref. root.mu is held.
func (s *space) useLock(l *txn.Lane, o *object, ref base) (*shmsync.Mutex, error) {
	switch {
	case !ref.live():
		return nil, ref.useless("WithMutex")
	case ref.s != s:
		return nil, fmt.Errorf("the lock is in %v, the object in %v: %w", ref.s, s, fs.ErrInvalid)
	}
	o.lock.Store(uint64(s.mutexOf(ref.obj)))
	users := &ref.obj.words[rawUsers]
	return &ref.obj.mu, l.Set(users, users.Load()+1)
}

// lockHome returns the object whose embedded lock is at off.
func (s *space) lockHome(off shm.Offset) (*object, error) {
	off -= muOffset
	if off%objectSize != 0 {
		return nil, fmt.Errorf("lock of an object at offset %d of %v: not aligned: %w", off, s, shm.ErrCorrupt)
	}
	return shm.At[object](s.region, off)
}

// attach returns the base of the object at off, which must be live, of that generation, kind and layout.
func (s *space) attach(off shm.Offset, gen uint64, k kind, layout *shm.Layout) (base, error) {
	if s.closed.Load() {
		return base{}, shm.ErrClosed
	}
	if off%objectSize != 0 {
		return base{}, fmt.Errorf("object at offset %d of %v: not aligned: %w", off, s, shm.ErrCorrupt)
	}
	o, err := shm.At[object](s.region, off)
	if err != nil {
		return base{}, err
	}
	stored, format, fingerprint := kind(o.kind.Load()), o.format.Load(), o.fingerprint.Load()
	lock, creator := shm.Offset(o.lock.Load()), o.creator.Load()
	if gen&1 == 0 || o.gen.Load() != gen { // last: what was read above is of this generation
		return base{}, fmt.Errorf("object at offset %d of %v: destroyed: %w", off, s, shm.ErrStale)
	}
	switch {
	case format != objectFormat:
		return base{}, fmt.Errorf("object at offset %d of %v: format %d, this program knows %d: %w", off, s, format, objectFormat, shm.ErrVersion)
	case stored != k || fingerprint != layout.Fingerprint:
		return base{}, &shm.TypeError{
			Path: fmt.Sprintf("object at offset %d of %v", off, s),
			Got:  fmt.Sprintf("opened as %v of %s", k, layout.Text),
			Want: fmt.Sprintf("it is stored as %v of %s", stored, s.layoutText(fingerprint)),
			Err:  shm.ErrTypeMismatch,
		}
	}
	b, err := s.baseOf(o, gen, lock)
	if err == nil && creator != uint64(shm.Self()) {
		b.passOn()
	}
	return b, err
}

// baseOf returns the base of an object that has, if lock is not 0, the caller's lock there.
func (s *space) baseOf(o *object, gen uint64, lock shm.Offset) (base, error) {
	b := base{s, o, gen, &o.mu}
	if lock != 0 {
		l, err := s.lockHome(lock)
		if err != nil {
			return base{}, err
		}
		b.mu = &l.mu
	}
	if s.readOnly {
		b.mu = nil
	}
	return b, nil
}

// destroy makes the object, whose lock is held, dead and frees what it has: in one operation, with its name, if the log has room for
// all blocks. If not, the object is dead and pending after the first, and the others follow; who takes root.mu from a dead destroyer goes on
// with them.
func (s *space) destroy(o *object, gen uint64) error {
	if err := s.lockRoot(); err != nil {
		return err
	}
	defer s.root.mu.Unlock()
	return s.destroyLocked(o, gen)
}

// destroyLocked is destroy with root.mu held.
func (s *space) destroyLocked(o *object, gen uint64) error {
	if n := o.words[rawUsers].Load(); kind(o.kind.Load()) == kindRaw && n != 0 {
		return fmt.Errorf("it is the lock of %d objects; destroy them first: %w", n, fs.ErrInvalid)
	}
	if err := kind(o.kind.Load()).dismiss(s, o); err != nil {
		return err
	}
	if err := s.finishDestroy(); err != nil { // one that failed half-way
		return err
	}
	var at uint64
	err := s.change(func(l *txn.Lane) error {
		if err := l.Later(&o.gen, gen+1); err != nil {
			return err
		}
		if err := s.takeName(l, o); err != nil {
			return err
		}
		if lock := shm.Offset(o.lock.Load()); lock != 0 {
			home, err := s.lockHome(lock)
			if err != nil {
				return err
			}
			users := &home.words[rawUsers]
			if err := l.Set(users, users.Load()-1); err != nil {
				return err
			}
		}
		return s.dropIn(l, o, &at)
	})
	if err != nil {
		return err
	}
	return s.finishPending(&at)
}

// dropIn frees what o has, as far as there is room in the operation in l: if that is all, its header too, and else o is pending. root.mu is held.
func (s *space) dropIn(l *txn.Lane, o *object, at *uint64) error {
	off := s.offsetOf(o)
	all, err := kind(o.kind.Load()).drop(l, s, o, at)
	pending := uint64(off)
	if all && err == nil {
		pending, err = 0, s.heap.FreeObjectIn(l, off)
	}
	if err == nil && s.root.pending.Load() != pending {
		err = l.Set(&s.root.pending, pending)
	}
	return err
}

// finishDestroy frees what the pending object still has, if there is one. root.mu is held: by a destroyer, or by the survivor who took
// it from a dead one.
func (s *space) finishDestroy() error { return s.finishPending(new(uint64)) }

func (s *space) finishPending(at *uint64) error {
	for s.root.pending.Load() != 0 {
		off := shm.Offset(s.root.pending.Load())
		o, err := shm.At[object](s.region, off)
		if err == nil && (off%objectSize != 0 || o.gen.Load()&1 == 1) {
			err = fmt.Errorf("object at offset %d is being freed, and not destroyed: %w", off, shm.ErrCorrupt)
		}
		if err == nil {
			err = s.change(func(l *txn.Lane) error { return s.dropIn(l, o, at) })
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// String names the region for messages.
func (s *space) String() string { return "region " + describe(s.region) }

func describe(r *shm.Region) string {
	switch {
	case r.Name() != "":
		return r.Name()
	case r.Path() != "":
		return r.Path()
	}
	return r.ID().String()[:8]
}
