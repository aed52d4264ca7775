package shm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// Create makes a region of that name; it returns an error that is [fs.ErrExist] if there is one. The
// region appears under its name complete or, if the process dies, not at all. It lives until [Remove].
func Create(name string, opts ...Option) (*Region, error) {
	o := collect(opts)
	path, err := o.pathOf(name, true)
	if err != nil {
		return nil, err
	}
	return create(o, name, path)
}

// Open attaches to the region of that name; it returns an error that is [fs.ErrNotExist] if there is
// none, [ErrCorrupt] if the file is none, [ErrVersion] if this program cannot read it.
func Open(name string, opts ...Option) (*Region, error) {
	o := collect(opts)
	path, err := o.pathOf(name, false)
	if err != nil {
		return nil, err
	}
	return open(o, name, path)
}

// OpenOrCreate attaches to the region of that name and makes it first if there is none. Of several
// processes that do so at once, one makes it and all get it.
func OpenOrCreate(name string, opts ...Option) (*Region, error) {
	for {
		r, err := Open(name, opts...)
		if !errors.Is(err, fs.ErrNotExist) {
			return r, err
		}
		r, err = Create(name, opts...)
		if !errors.Is(err, fs.ErrExist) {
			return r, err
		} // made and perhaps removed by others meanwhile: each turn of the loop is progress of somebody
	}
}

// WaitFor attaches to the region of that name as soon as there is one. It looks every few
// milliseconds, and returns an error that wraps the context's when that ends.
func WaitFor(ctx context.Context, name string, opts ...Option) (*Region, error) {
	for nap := time.Millisecond; ; nap = min(2*nap, 50*time.Millisecond) {
		r, err := Open(name, opts...)
		if !errors.Is(err, fs.ErrNotExist) {
			return r, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("shm: region %s did not appear: %w", name, context.Cause(ctx))
		case <-time.After(nap):
		}
	}
}

// CreateFile is Create for a file of any name.
func CreateFile(path string, opts ...Option) (*Region, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("shm: %w", err)
	}
	return create(collect(opts), "", path)
}

// OpenFile is Open for a file of any name.
func OpenFile(path string, opts ...Option) (*Region, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("shm: %w", err)
	}
	return open(collect(opts), "", path)
}

// FromFile attaches to the region in f, a descriptor inherited or received from another process. f
// stays the caller's, who may close it afterwards. The process needs the permission to open the file
// once more.
func FromFile(f *os.File, opts ...Option) (*Region, error) {
	o := collect(opts)
	where := "region in descriptor " + f.Name()
	info, err := statRegular(f, where)
	if err != nil {
		return nil, err
	}
	if r, err := openHere(info, o.readOnly); r != nil || err != nil {
		return ready(r, err)
	}
	own, err := reopenMode(f, "", o.readOnly)
	if err != nil {
		return nil, fmt.Errorf("shm: %s: %w", where, err)
	}
	return ready(attachFile(o, own, "", "", where))
}

// Anonymous makes a region without a name. Other processes get it as an argument, or through
// [Region.File]. It ends with the last process that has it.
func Anonymous(opts ...Option) (*Region, error) {
	o := collect(opts)
	if err := o.checkSizes(); err != nil {
		return nil, err
	}
	if err := checkShareable(); err != nil {
		return nil, err
	}
	f, path, err := anonymousFile(o)
	if err != nil {
		return nil, fmt.Errorf("shm: anonymous region: %w", err)
	}
	return build(o, f, "", path, func() error { return nil })
}

// create makes a complete region in a file without a name, and then gives it one.
func create(o *options, name, path string) (*Region, error) {
	if err := o.checkSizes(); err != nil {
		return nil, err
	}
	if err := checkShareable(); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(path); err == nil { // cheap; the final link is what decides
		return nil, exists(path)
	}
	f, temporary, err := unnamedFile(filepath.Dir(path), o.mode)
	if err != nil {
		return nil, fmt.Errorf("shm: create %s: %w", path, err)
	}
	if temporary != "" {
		defer os.Remove(temporary) // gone already if it became the region
	}
	return build(o, f, name, path, func() error {
		switch err := nameFile(f, temporary, path); {
		case errors.Is(err, fs.ErrExist):
			return exists(path)
		case err != nil:
			return fmt.Errorf("shm: create %s: %w", path, err)
		}
		return nil
	})
}

// build formats the file f as a region, attaches to it and makes it appear. It owns f.
func build(o *options, f *os.File, name, path string, appear func() error) (*Region, error) {
	m := newMapping(o, newID(), dataStart+o.limit)
	m.name, m.path, m.file = name, path, f
	m.forgive, m.seed = o.continueAfterDeath, rand.Uint64()
	fail := func(err error) (*Region, error) {
		if m.seat != nil {
			m.seat.lock.Close()
		}
		if m.mem != nil {
			unmap(m.mem)
		}
		f.Close()
		return nil, err
	}
	// The first page of holdings too: whoever looks at any of them reads there, since Go checks the pointer.
	if err := reserve(f, 0, holdingStart+holdingSize); err != nil {
		return fail(m.fail("create", noSpace("header and slots", holdingStart+holdingSize, err)))
	}
	if err := reserve(f, dataStart, o.size); err != nil {
		return fail(m.fail("create", noSpace("data area", o.size, err)))
	}
	if err := m.mapFile(); err != nil {
		return fail(err)
	}
	if err := m.guard(func() error { m.format(o); return nil }); err != nil {
		return fail(err)
	}
	info, err := f.Stat()
	if err != nil {
		return fail(m.fail("create", err))
	}
	m.info = info
	regions.mu.Lock()
	defer regions.mu.Unlock()
	if err := m.guard(m.attach); err != nil {
		return fail(err)
	}
	if err := appear(); err != nil {
		return fail(err)
	}
	m.file = afresh(f, path, info)
	register(m)
	return m.handle(), nil
}

func newID() (id ID) {
	binary.NativeEndian.PutUint64(id[:], rand.Uint64())
	binary.NativeEndian.PutUint64(id[8:], rand.Uint64())
	return id
}

// format writes the header of a new region. Nobody else sees it yet.
func (m *mapping) format(o *options) {
	h := m.header
	h.magic, h.version, h.byteOrder = regionMagic, layoutVersion, byteOrderMark
	h.wordSize, h.pageSize = wordSize, uint32(os.Getpagesize())
	if m.forgive {
		h.flags |= flagContinueAfterDeath
	}
	h.incompatible = knownFeatures()
	m.logged = h.incompatible&featureLanes != 0
	h.id, h.limit, h.hashSeed = m.id, m.limit, m.seed
	h.created, h.creator = time.Now().UnixNano(), uint64(self)
	h.slotCount, h.slotSize, h.holdingSize = slotCount, slotSize, holdingSize
	h.nameLen = uint32(copy(h.name[:], m.name))
	h.checksum = h.sum()
	h.size.Store(dataStart + o.size)
	m.end.Store(dataStart + o.size)
	for i, w := range identity().boot {
		h.boot[i].Store(w)
	}
	h.state.Store(stateReady)
}

// open attaches to the region in the file of that path.
func open(o *options, name, path string) (*Region, error) {
	if info, err := os.Lstat(path); err == nil { // without a descriptor: where locks belong to processes, closing one drops them
		if r, err := openHere(info, o.readOnly); r != nil || err != nil {
			return ready(r, err)
		}
	}
	f, err := openPath(path, o.readOnly)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("shm: no region %s; make it with Create or OpenOrCreate, or wait for it with WaitFor: %w", path, fs.ErrNotExist)
		}
		return nil, fmt.Errorf("shm: open %s: %w", path, err)
	}
	return ready(attachFile(o, f, name, path, path))
}

func exists(path string) error {
	return fmt.Errorf("shm: create %s: there is one already; attach to it with Open, or take its name away with Remove: %w", path, fs.ErrExist)
}

// openHere returns a handle on the region of a file if this process has it open, or nil.
func openHere(info os.FileInfo, readOnly bool) (*Region, error) {
	regions.mu.Lock()
	defer regions.mu.Unlock()
	m := find(info, readOnly)
	if m == nil {
		return nil, nil
	}
	if err := m.intact("open"); err != nil {
		return nil, err
	}
	return m.handle(), nil
}

// statRegular describes a file that should hold a region. where names it in errors.
func statRegular(f *os.File, where string) (os.FileInfo, error) {
	info, err := f.Stat()
	if tellsClosed(err) && !errors.Is(err, os.ErrClosed) {
		err = os.ErrClosed
	}
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("is no regular file (%v): %w", info.Mode(), ErrCorrupt)
	}
	if err != nil {
		return nil, fmt.Errorf("shm: %s: %w", where, err)
	}
	return info, nil
}

// attachFile attaches to the region in f, which it owns. where names it in errors.
func attachFile(o *options, f *os.File, name, path, where string) (*Region, error) {
	regions.mu.Lock()
	defer regions.mu.Unlock()
	info, err := statRegular(f, where)
	if err == nil {
		err = checkShareable()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	fail := func(err error) (*Region, error) {
		if seated(info) {
			dropFile(f)
		} else {
			f.Close()
		}
		return nil, err
	}
	if m := find(info, o.readOnly); m != nil {
		dropFile(f)
		if err := m.intact("open"); err != nil {
			return nil, err
		}
		return m.handle(), nil
	}
	h, err := readHeader(f, where)
	if err != nil {
		return fail(err)
	}
	if o.want != nil && *o.want != h.id {
		return fail(fmt.Errorf("shm: %s: is region %v now: %w", where, h.id, ErrNotAttached))
	}
	if !o.readOnly && barred(h.id) {
		return fail(fmt.Errorf("shm: open %s: %w", where, errUnseated))
	}
	if name == "" {
		name = string(h.name[:h.nameLen])
	}
	m := newMapping(o, h.id, h.limit)
	m.name, m.path, m.file, m.info = name, path, f, info
	m.forgive, m.seed, m.readOnly = h.flags&flagContinueAfterDeath != 0, h.hashSeed, o.readOnly
	m.logged = h.incompatible&featureLanes != 0
	m.end.Store(h.size.Load())
	if err := m.fillHoles(h, where); err != nil {
		return fail(err)
	}
	if err := m.mapFile(); err != nil {
		return fail(err)
	}
	if !m.readOnly {
		if err := m.guard(m.attach); err != nil {
			unmap(m.mem)
			return fail(err)
		}
	}
	register(m)
	return m.handle(), nil
}

// fillHoles reserves memory for a file that has not enough, such as a copy: where there is none, a
// mapped file answers with a signal that ends the program. Only the holdings of slots that nobody uses
// and the spare pages are holes in a region, and what was given back, which h notes. On a full file system others may give
// memory back, or reserve it, between the note that was read and a look at the file: then there is no
// room for what is no hole, and the note is read again.
func (m *mapping) fillHoles(h *header, where string) error {
	if m.readOnly {
		return nil
	}
	for try := 1; ; try++ {
		err := m.fillAround(&h.holes)
		if err == nil {
			return nil
		}
		now, errRead := readHeader(m.file, where)
		if errRead != nil {
			return errRead
		}
		was, is := h.holes.state.Load(), now.holes.state.Load()
		if was == is && is&holesBusy == 0 || try == 1000 { // 1000: somebody died over it, or writes over it
			return err
		}
		h = now
	}
}

// fillAround is fillHoles, going by one reading of the notes.
func (m *mapping) fillAround(given *holes) error {
	end := m.end.Load()
	info, err := m.stat() // after the header was read: what others reserve comes before its record changes
	if err != nil {
		return m.fail("open", err)
	}
	slots, err := readSlots(m.file)
	if err != nil {
		return m.fail("open", err)
	}
	used, err := readSpares(m.file)
	if err != nil {
		return m.fail("open", err)
	}
	parts := given.around(span{dataStart, end})
	elsewhere := end - dataStart + max(uint64(info.Size()), end) - end
	for _, p := range parts {
		elsewhere -= p[1] - p[0]
	}
	for i := range slots[1:] {
		if s := &slots[1+i]; s.gen.Load() != 0 || !s.is(slotFree) {
			elsewhere += holdingSize
		}
	}
	elsewhere += used * spareSize
	if err := fill(m.file, info, elsewhere, append(parts, [2]uint64{0, holdingStart + holdingSize})...); err != nil {
		return m.fail("open", noSpace("its file has holes", end, err))
	}
	return nil
}
