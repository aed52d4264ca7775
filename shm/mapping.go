package shm

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	stdsync "sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// A mapping is a region as this process has it: one range of addresses and one slot, however many
// handles there are. The whole limit is mapped at once, so growth moves nothing; addresses behind the
// end of the file are never touched.
type mapping struct {
	mem      []byte // the whole reserved range
	header   *header
	slots    *[slotCount]slot
	holdings *[slotCount]holdings
	spares   *spareTable
	id       ID
	name     string
	path     string
	limit    uint64 // this and seed are copied from the header when it was checked: the shared ones are never trusted
	seed     uint64
	readOnly bool
	forgive  bool // ContinueAfterDeath
	logged   bool // featureLanes
	log      *slog.Logger

	file *os.File    // mapped; asked about the slots of others; handed out by File
	info os.FileInfo // names the file
	seat *seat       // nil on the heap and read-only

	uncounted Region // what Locate returns

	// end is how far offsets become pointers here: an end of the data area that the file's own length
	// has confirmed. It only grows, and is 0 once the region is closed or its file was found cut.
	end      atomic.Uint64
	cutEnd   atomic.Uint64 // what end was when the file was found cut, else 0
	closed   atomic.Bool
	unseated atomic.Bool     // closed since the proof of our life is gone
	solid    atomic.Bool     // its file can have no holes
	pins     atomic.Int64    // steps that Close waits for
	done     chan struct{}   // closed with it
	handles  int             // guarded by regions.mu
	draining [slotCount]bool // by a goroutine of ours; guarded by seat.undoing
}

// regions are the mappings of this process.
var regions struct {
	mu     stdsync.Mutex
	open   []*mapping
	seats  []*seat                    // of closed mappings
	barred []ID                       // regions that this process must not open again
	table  atomic.Pointer[[]*mapping] // open, for those who look without mu; never changed in place

	closedMu stdsync.Mutex // taken after mu
	closed   []closedRange // closed mappings whose addresses are not given back yet
}

// A closedRange is where a closed region was.
type closedRange struct {
	base, len uintptr
	name      string
}

// newMapping returns a mapping of a region that is not mapped yet.
func newMapping(o *options, id ID, limit uint64) *mapping {
	m := &mapping{id: id, limit: limit, log: o.log, done: make(chan struct{})}
	m.uncounted = Region{m, new(stdsync.Once)}
	m.uncounted.once.Do(func() {}) // closing it does nothing
	return m
}

// find returns the open mapping of a file; a read-only one serves only readers. regions.mu is held.
func find(info os.FileInfo, readOnly bool) *mapping {
	for _, m := range regions.open {
		if m.info != nil && (readOnly || !m.readOnly) && os.SameFile(m.info, info) {
			return m
		}
	}
	return nil
}

// register makes a new mapping findable. regions.mu is held.
func register(m *mapping) {
	regions.open = append(regions.open, m)
	publish()
	m.hangBell()
	// The addresses are given back when nothing refers to the mapping any more: closed handles
	// still point there.
	if m.file != nil {
		runtime.AddCleanup(m, giveBack, m.mem)
	}
}

// giveBack unmaps a closed range that nothing refers to.
func giveBack(mem []byte) {
	regions.closedMu.Lock()
	defer regions.closedMu.Unlock()
	base := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
	regions.closed = slices.DeleteFunc(regions.closed, func(c closedRange) bool { return c.base == base })
	if forget := forgetter.Load(); forget != nil {
		(*forget)(base, uintptr(len(mem)))
	}
	unmap(mem)
}

var forgetter atomic.Pointer[func(base, size uintptr)]

// SetForgetter installs what is told of a range of addresses where a region was that nothing refers to any more,
// before another one may come to lie there: for those who remember something by address. It is called once, at
// start.
func SetForgetter(forget func(base, size uintptr)) { forgetter.Store(&forget) }

func publish() {
	table := make([]*mapping, len(regions.open))
	copy(table, regions.open)
	regions.table.Store(&table)
}

// locate returns the open mapping that holds the address p, or nil.
func locate(p unsafe.Pointer) *mapping {
	table := regions.table.Load()
	if table == nil {
		return nil
	}
	for _, m := range *table {
		if uintptr(p)-uintptr(unsafe.Pointer(m.header)) < uintptr(len(m.mem)) {
			return m
		}
	}
	return nil
}

// distance returns how far behind the beginning of m an address lies.
func (m *mapping) distance(addr uintptr) uint64 {
	return uint64(addr - uintptr(unsafe.Pointer(m.header)))
}

// where names the region in errors.
func (m *mapping) where() string {
	switch {
	case m.name != "":
		return "region " + m.name
	case m.path != "":
		return "region " + m.path
	}
	return "region " + m.id.String()[:8]
}

// fail wraps err with the region's name. What goes wrong since the region was closed meanwhile is
// ErrClosed.
func (m *mapping) fail(op string, err error) error {
	if m.closed.Load() && tellsClosed(err) {
		err = ErrClosed
	}
	if m.unseated.Load() && errors.Is(err, ErrClosed) {
		err = errUnseated
	}
	return fmt.Errorf("shm: %s: %s: %w", m.where(), op, err)
}

// place lays the parts of a region over the mapped bytes.
func (m *mapping) place(mem []byte) {
	m.mem = mem
	base := unsafe.Pointer(unsafe.SliceData(mem))
	m.header = (*header)(base)
	m.slots = (*[slotCount]slot)(unsafe.Add(base, slotsStart))
	m.holdings = (*[slotCount]holdings)(unsafe.Add(base, holdingStart))
	m.spares = (*spareTable)(unsafe.Add(base, ownersStart))
}

// spare returns the n'th spare page; only one that somebody owns has memory.
func (m *mapping) spare(n int) *sparePage {
	return (*sparePage)(unsafe.Add(unsafe.Pointer(m.header), spareStart+n*spareSize))
}

// spareNumber returns which one a spare page is.
func (m *mapping) spareNumber(p *sparePage) int {
	return int(uintptr(unsafe.Pointer(p))-uintptr(unsafe.Pointer(m.header))-spareStart) / spareSize
}

// placeNumber returns the number of the first holding of a page: those of a slot's own come first.
func (m *mapping) placeNumber(page []Holding) uint32 {
	d := uintptr(unsafe.Pointer(unsafe.SliceData(page))) - uintptr(unsafe.Pointer(m.header))
	if d < spareStart {
		return 0
	}
	return slotPlaces + uint32((d-spareStart)/spareSize)*pagePlaces
}

// size returns the end of the data area. The shared word is believed as far as the file's length bears
// it out, so that no word that somebody wrote there makes a pointer that faults. It is 0 when the
// region is closed or its file was found cut.
func (m *mapping) size() uint64 {
	end := m.end.Load()
	if end == 0 {
		return 0
	}
	var said uint64
	if m.guard(func() error { said = m.header.size.Load(); return nil }) != nil {
		return 0
	}
	if said <= end || said > m.limit {
		return end
	}
	if m.file != nil {
		if info, err := m.file.Stat(); err != nil || !os.SameFile(info, m.info) || uint64(info.Size()) < said {
			return end
		}
	}
	for !m.end.CompareAndSwap(end, said) { // ends: it grows, or becomes 0
		if end = m.end.Load(); end == 0 || end >= said {
			return end
		}
	}
	return said
}

// mapFile maps the whole limit of a region's file.
func (m *mapping) mapFile() error {
	mem, err := mapShared(m.file, m.limit, m.readOnly)
	for try := 0; err != nil && try < 9; try++ {
		runtime.GC() // the addresses of closed regions come back when it finds that no handle is left
		time.Sleep(time.Millisecond << try)
		mem, err = mapShared(m.file, m.limit, m.readOnly)
	}
	if err != nil {
		return m.fail(fmt.Sprintf("map %d bytes of addresses (a smaller Limit needs fewer)", m.limit), err)
	}
	m.place(mem)
	return nil
}

// closeLast ends the use of the region in this process. regions.mu is held.
func (m *mapping) closeLast() error {
	m.closed.Store(true)
	end := m.end.Swap(0)
	if end == 0 {
		end = m.cutEnd.Load()
	}
	close(m.done)
	regions.open = slices.DeleteFunc(regions.open, func(o *mapping) bool { return o == m })
	publish()
	if m.file == nil {
		return nil
	}
	for end := time.Now().Add(time.Second); m.pins.Load() != 0 && time.Now().Before(end); { // no more come, and each is short
		time.Sleep(10 * time.Microsecond)
	}
	regions.closedMu.Lock()
	regions.closed = append(regions.closed, closedRange{uintptr(unsafe.Pointer(m.header)), uintptr(len(m.mem)), m.name})
	regions.closedMu.Unlock()
	if m.seat == nil {
		return errors.Join(m.overlay(end), discard(m.file, m.info, dropFile))
	}
	// A recovery that is cut off half-way could not be finished by others, while this process lives.
	m.seat.undoing.Lock()
	m.guard(func() error { // where the file was cut nobody reads it
		if !m.unseated.Load() { // else it may be another process' slot by now
			m.slots[m.seat.slot].flags.Or(slotClosed)
		}
		return nil
	})
	err := m.overlay(end)
	m.seat.undoing.Unlock()
	regions.seats = append(regions.seats, m.seat)
	return errors.Join(err, leave(), discard(m.file, m.info, dropFile))
}

// grow makes the data area end at end at least.
func (m *mapping) grow(end uint64) error {
	if err := m.usable("grow"); err != nil {
		return err
	}
	m.seat.growing.Lock()
	defer m.seat.growing.Unlock()
	if m.file != nil {
		if _, err := m.seat.take(growthByte, true); err != nil {
			return m.fail("grow", err)
		}
		defer m.seat.give(growthByte)
		if err := m.usable("grow"); err != nil {
			return err
		}
	}
	if err := m.intact("grow"); err != nil { // before a cut file is made longer, with zeros for what is lost
		return err
	}
	size := m.size()
	switch {
	case size == 0: // closed while we waited, or cut this moment
		if err := m.intact("grow"); err != nil {
			return err
		}
		return m.fail("grow", ErrClosed)
	case end <= size:
		return nil
	case m.file != nil: // Go gives zeroed memory when it is touched
		if err := reserve(m.file, size, end-size); err != nil {
			return m.fail("grow", noSpace(fmt.Sprintf("from %d to %d bytes", size-dataStart, end-dataStart), end-size, err))
		}
	}
	// crash here: the file is longer than the region says, and the next growth finds it reserved
	if err := m.guard(func() error { m.header.size.Store(end); return nil }); err != nil {
		return err
	}
	m.log.Debug("shm: region grown", "region", m.where(), "bytes", end-dataStart)
	return nil
}

// noSpace turns what the system says of a full disk into ErrNoSpace, with the number of bytes asked.
func noSpace(what string, n uint64, err error) error {
	if isFull(err) {
		return fmt.Errorf("%s: the file system has no room for %d more bytes, make space or choose another directory (%v): %w", what, n, err, ErrNoSpace)
	}
	return fmt.Errorf("%s: %w", what, err)
}
