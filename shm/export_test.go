package shm

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"sync/atomic"
	"unsafe"
)

// What the tests of package shm_test see of the inside: they live apart since package proc, which
// starts their processes, imports this one.

const (
	DataStart        = dataStart
	SlotCount        = slotCount
	SlotsStart       = slotsStart
	ImmutableEnd     = int64(unsafe.Offsetof(header{}.checksum) + 8)
	MutableStart     = int64(unsafe.Offsetof(header{}.state))
	SlotFree         = slotFree
	SlotAttached     = slotAttached
	SlotUndoing      = slotUndoing
	SlotUndone       = slotUndone
	SlotDraining     = slotDraining
	VersionOffset    = int64(unsafe.Offsetof(header{}.version))
	WordSizeOffset   = int64(unsafe.Offsetof(header{}.wordSize))
	MagicOffset      = int64(unsafe.Offsetof(header{}.magic))
	SizeOffset       = int64(unsafe.Offsetof(header{}.size))
	LimitOffset      = int64(unsafe.Offsetof(header{}.limit))
	FeaturesOffset   = int64(unsafe.Offsetof(header{}.incompatible))
	PageSizeOffset   = int64(unsafe.Offsetof(header{}.pageSize))
	GrowthByte       = growthByte
	BootOffset       = int64(unsafe.Offsetof(header{}.boot))
	LargestDataLimit = 1<<44 - dataStart
)

// CheckPrivate is the check of the default directory.
var CheckPrivate = checkPrivate

// Seal makes the checksum of a header right.
func Seal(head []byte) {
	h := new(header)
	b := unsafe.Slice((*byte)(unsafe.Pointer(h)), headerSize)
	copy(b, head)
	h.checksum = h.sum()
	copy(head, b)
}

// SizeWord returns the header's word for the end of the data area.
func SizeWord(r *Region) *atomic.Uint64 { return &r.m.header.size }

// Words returns the words of the header and of the slots that change while the region is in use.
func Words(r *Region) []atomic.Uint64 {
	first := unsafe.Pointer(&r.m.header.state)
	return unsafe.Slice((*atomic.Uint64)(first), (holdingStart-MutableStart)/8)
}

// SlotWords returns the words of the slots, 16 each.
func SlotWords(r *Region) []atomic.Uint64 {
	return unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(r.m.slots)), slotCount*slotSize/8)
}

// SlotOf returns the slot of this process.
func SlotOf(r *Region) int { return r.m.seat.slot }

// Slot returns what stands in slot i.
func Slot(r *Region, i int) (token Token, state int, by Token) {
	s := &r.m.slots[i]
	st, by := slotState(s.state.Load())
	return Token(s.token.Load()), int(st), by
}

// SlotsOf returns how many slots a token stands in.
func SlotsOf(r *Region, t Token) (n int) {
	for i := range r.m.slots {
		if r.m.slots[i].token.Load() == uint64(t) {
			n++
		}
	}
	return n
}

// Strangers makes every free slot one of a process of its own that lives until end is called.
func Strangers(r *Region) (tokens []Token, end func() error, err error) {
	f, err := reopen(r.m.file, r.m.path)
	if err != nil {
		return nil, nil, err
	}
	for i := range r.m.slots {
		s := &r.m.slots[i]
		if !s.is(slotFree) {
			continue
		}
		if ok, err := lockByte(f, slotByte(i), false); !ok || err != nil {
			f.Close()
			return nil, nil, err
		}
		t := newToken()
		s.state.Store(uint64(t) | slotAttached)
		s.token.Store(uint64(t))
		tokens = append(tokens, t)
	}
	return tokens, f.Close, nil
}

// HoldGrowth takes the growth byte, as another process does that is in the middle of Grow.
func HoldGrowth(r *Region) (done func() error, err error) {
	f, err := reopen(r.m.file, r.m.path)
	if err != nil {
		return nil, err
	}
	_, err = lockByte(f, growthByte, true)
	return f.Close, err
}

// StrangerIn makes slot i, which is free, what a dead process left there. A token of 0 is that of a
// process that died while it attached.
func StrangerIn(r *Region, i int, token Token, state uint64, by Token) {
	r.m.slots[i].state.Store(uint64(by) | state)
	r.m.slots[i].token.Store(uint64(token))
}

// NewToken returns a token that no process has.
func NewToken() Token { return newToken() }

// Sweep is Scan without regard to earlier ones.
func Sweep(r *Region) { r.m.sweep() }

// Seats returns how many seats this process keeps in regions that it has closed.
func Seats() int {
	regions.mu.Lock()
	defer regions.mu.Unlock()
	return len(regions.seats)
}

// ClosedRanges returns how many closed regions still have addresses.
func ClosedRanges() int {
	regions.closedMu.Lock()
	defer regions.closedMu.Unlock()
	return len(regions.closed)
}

// Reopen opens the file of a region once more.
func Reopen(r *Region) (*os.File, error) { return reopen(r.m.file, r.m.path) }

// LivenessFile returns the descriptor that holds this process' bytes.
func LivenessFile(r *Region) *os.File { return r.m.seat.lock }

// A Field is a part of a structure in shared memory.
type Field struct {
	Name         string
	Offset, Size uintptr
}

// Fields describes the structures of a region. Padding is left out.
func Fields() (all []Field) {
	for _, t := range []reflect.Type{reflect.TypeFor[header](), reflect.TypeFor[slot](), reflect.TypeFor[holdings](), reflect.TypeFor[spareTable](), reflect.TypeFor[sparePage]()} {
		all = append(all, Field{t.Name(), 0, t.Size()})
		all = append(all, fieldsOf(t.Name(), t, 0)...)
	}
	return all
}

func fieldsOf(path string, t reflect.Type, base uintptr) (all []Field) {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Name == "_" {
			continue
		}
		name := path + "." + f.Name
		all = append(all, Field{name, base + f.Offset, f.Type.Size()})
		if f.Type.Kind() == reflect.Array && f.Type.Elem().Kind() == reflect.Struct && !strings.HasPrefix(f.Type.Elem().PkgPath(), "sync") {
			all = append(all, Field{name + "[1]", base + f.Offset + f.Type.Elem().Size(), f.Type.Elem().Size()})
			all = append(all, fieldsOf(name+"[0]", f.Type.Elem(), base+f.Offset)...)
		}
	}
	return all
}

// Constants of the format beside the fields.
func Constants() map[string]uint64 {
	return map[string]uint64{
		"magic": regionMagic, "version": layoutVersion, "slots": slotsStart, "slot count": slotCount,
		"owners of spares": ownersStart, "holdings": holdingStart, "spares": spareStart, "data": dataStart, "first slot byte": slotBytes, "growth byte": growthByte,
		"exclusive byte": exclusiveByte, "restart byte": restartByte, "checksum of 1..9": crcOf("123456789"),
		"ATTACHED": slotAttached, "UNDOING": slotUndoing, "UNDONE": slotUndone, "DRAINING": slotDraining,
	}
}

func crcOf(s string) uint64 { return checksum([]byte(s)) }

// CloseAll closes every handle of the region.
func CloseAll(r *Region) error {
	regions.mu.Lock()
	defer regions.mu.Unlock()
	r.m.handles = 0
	return r.m.closeLast()
}

// Soil fills what a slot holds beside its token and its state, and its holdings.
func Soil(r *Region, i int) {
	s := &r.m.slots[i]
	s.flags.Store(slotClosed)
	s.bell.Store(bellWaiters | bellRung)
	s.busy.Store(1)
	s.overflow.Store(64)
	for j := range r.m.holdings[i].waiting {
		r.m.holdings[i].waiting[j].lock.Store(8)
	}
	for j := range r.m.holdings[i].held {
		r.m.holdings[i].held[j].Word.Store(HoldingKey(8) | 1)
	}
}

// Clean reports what Soil left in slot i.
func Clean(r *Region, i int) error {
	s, h := &r.m.slots[i], &r.m.holdings[i]
	if s.flags.Load() != 0 || s.busy.Load() != 0 || s.overflow.Load() != 0 || s.pid.Load() == 0 || s.gen.Load() == 0 {
		return fmt.Errorf("slot %d: flags %d, busy %d, overflow %d, pid %d, attachments %d",
			i, s.flags.Load(), s.busy.Load(), s.overflow.Load(), s.pid.Load(), s.gen.Load())
	}
	if b := unsafe.Slice((*byte)(unsafe.Pointer(h)), holdingSize); string(b) != string(make([]byte, holdingSize)) {
		return fmt.Errorf("slot %d has holdings", i)
	}
	return nil
}

// HoleWords returns the words of the header that note what was given back: their state, then the runs.
func HoleWords(r *Region) []atomic.Uint64 {
	return unsafe.Slice(&r.m.header.holes.state, 1+holeRuns)
}

// BootWords returns the words that say in which run of the machine the region was last opened.
func BootWords(r *Region) []atomic.Uint64 { return r.m.header.boot[:] }

// AtEachStep makes this process call fn between any two steps of giving memory back.
func AtEachStep(fn func(done string)) { crashPoint = fn }

// ClearSlot has a stranger find a dead process in a free slot, and clear up after it, again and again until end
// is called.
func ClearSlot(r *Region) (end func() error, err error) {
	f, err := reopen(r.m.file, r.m.path)
	if err != nil {
		return nil, err
	}
	i, t := (r.m.seat.slot+1)%slotCount, newToken()
	clear := func() error {
		if ok, err := lockByte(f, slotByte(i), true); !ok || err != nil {
			return err
		}
		s := &r.m.slots[i]
		s.state.Store(uint64(t) | slotUndoing)
		if _, err := lockByte(f, slotByte(i), false); err != nil { // takes a moment
			return err
		}
		s.state.Store(slotFree)
		return unlockByte(f, slotByte(i))
	}
	var stop atomic.Bool
	stopped := make(chan error)
	go func() {
		defer f.Close()
		var err error
		for err == nil && !stop.Load() {
			err = clear()
		}
		stopped <- err
	}()
	return func() error { stop.Store(true); return <-stopped }, nil
}

// SparePages returns how many spare pages belong to somebody.
func SparePages(r *Region) (n int) {
	for i := range r.m.spares.owners {
		if r.m.spares.owners[i].Load() != 0 {
			n++
		}
	}
	return n
}

// SetChain writes the word that leads to the spare pages of a slot.
func SetChain(r *Region, slot int, v uint64) { r.m.slots[slot].overflow.Store(v) }

// LoopChain makes the spare pages of a slot a ring.
func LoopChain(r *Region, slot int) {
	for i := range r.m.spares.owners {
		if r.m.spares.owners[i].Load() != 0 {
			r.m.slots[slot].overflow.Store(uint64(i) + 1)
			r.m.spare(i).next.Store(uint64(i) + 1)
			return
		}
	}
}
