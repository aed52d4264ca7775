package heap

import (
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// use does with a heap, of which some byte is not what it was, what there is to do. All may fail, with errors.
func use(w *world) (errs []error) {
	try := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	p, err := open(w.r, w.at, survivor)
	if err != nil {
		return []error{err}
	}
	try(txn.Undo(w.r, deadSlot, p))
	try(w.takeOver(p))
	try(txn.Drain(w.r, deadSlot, p, p.lanes))
	_, err = p.Usage()
	try(err)
	var got []shm.Offset
	for _, n := range []uint64{64, 64, 200, 4096, 40_000, 1000} {
		off, err := p.Alloc(n)
		try(err)
		if err == nil {
			got = append(got, off)
		}
	}
	if o, err := p.AllocObject(); err != nil {
		try(err)
	} else {
		try(p.FreeObject(o))
	}
	for i := range w.th.table {
		if off := w.th.table[i].Load(); off != 0 {
			got = append(got, shm.Offset(off))
		}
	}
	for _, off := range got {
		try(p.Free(off))
	}
	if _, err = p.Trim(); !errors.Is(err, errors.ErrUnsupported) {
		try(err)
	}
	_, err = p.Usage()
	try(err)
	return errs
}

// busy leaves a world with blocks of many kinds, of a process that died in the middle of an operation.
func busy(t *testing.T) (*world, memory) {
	w := newWorld(t, 512<<10, 512<<10)
	p := w.process(deadSlot)
	if err := first(w.fill(p, 0, 20, 64), w.fill(p, 20, 5, 1000), w.fill(p, 30, 3, 5000), w.create(p, 40, 50_000, 64), w.createObject(p, 0), w.empty(p, 5, 9), w.change(p, 0, 300, true)); err != nil {
		t.Fatal(err)
	}
	sc := scenarios["one operation, many blocks"]
	states, err := w.run(p, func() error { return sc.do(w, p) })
	if err != nil {
		t.Fatal(err)
	}
	return w, states[len(states)/2]
}

// Whatever byte of the heap's own is another: an error, or no harm; never a fault, a panic or an endless loop.
func TestAnyByteMayBeWrong(t *testing.T) {
	if raceEnabled {
		t.Skip("one goroutine, and long")
	}
	w, m := busy(t)
	w.restore(m)
	if errs := use(w); len(errs) > 0 {
		t.Fatal(errs)
	}
	w.restore(m)
	p := w.process(survivor)
	from := int(uint64(w.at) - uint64(w.r.Data()))
	var bytes []int
	for i := from; i < from+HeaderSize; i++ {
		bytes = append(bytes, i)
	}
	count := p.count.Load()
	for page := uint64(0); page < count; page++ {
		d, err := p.page(page)
		if err != nil {
			t.Fatal(err)
		}
		kind := d.kind.Load()
		if k := kindOf(kind); k != pageMeta && k != pageLane {
			continue
		}
		n := numberOf(kind) & 0xffff
		for i := uint64(0); i < n*pageSize; i++ {
			bytes = append(bytes, int(p.offsetOf(page)+i-uint64(w.r.Data())))
		}
	}
	stride := 7 // all bytes in turn, in other runs
	if *exhaustive {
		stride = 1
	}
	at := rand.IntN(stride)
	rejected, silent := 0, 0
	for ; at < len(bytes); at += stride {
		i := bytes[at]
		w.restore(m)
		b, err := w.r.Bytes(w.r.Data(), w.r.Size())
		if err != nil {
			t.Fatal(err)
		}
		b[i] ^= byte(1 + rand.IntN(255))
		for _, err := range use(w) {
			if !errors.Is(err, shm.ErrCorrupt) && !errors.Is(err, shm.ErrNoSpace) {
				t.Fatalf("byte %d: %v, want ErrCorrupt", i, err)
			}
			rejected++
		}
		silent++
	}
	t.Logf("%d bytes, %d errors", silent, rejected)
}

// The same while others scribble over it all the time.
func TestAnyWordMayChangeMeanwhile(t *testing.T) {
	if raceEnabled {
		t.Skip("it is full of races")
	}
	w, m := busy(t)
	w.restore(m)
	p := w.process(survivor)
	b, err := w.r.Bytes(w.r.Data(), w.r.Size())
	if err != nil {
		t.Fatal(err)
	}
	locks := map[int]bool{}
	for _, mu := range w.locks(p) { // a lock that names us would be ours for ever
		locks[int(uintptr(unsafe.Pointer(mu))-uintptr(unsafe.Pointer(w.th)))/8] = true
	}
	var stop atomic.Bool
	done := make(chan bool)
	go func() {
		rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
		from := int(uint64(w.at)-uint64(w.r.Data())) / 8
		for !stop.Load() {
			i := from + 16 + rng.IntN(len(b)/8-from-16)
			if locks[i] {
				continue
			}
			word := (*atomic.Uint64)(unsafe.Pointer(&b[i*8]))
			switch rng.IntN(4) {
			case 0:
				word.Store(rng.Uint64())
			case 1:
				word.Add(1 << rng.IntN(64))
			case 2:
				word.Store(rng.Uint64N(1 << (1 + rng.IntN(24))))
			default:
				word.Store(uint64(w.r.Data()) + rng.Uint64N(w.r.Size())&^7)
			}
		}
		done <- true
	}()
	defer func() { // also if the test fails: before its region is closed
		stop.Store(true)
		<-done
	}()
	for k := range 400 {
		if k%20 == 0 {
			w.restore(m)
		}
		use(w)
	}
}
