//go:build !futexpoll

package futex

import (
	"fmt"
	"math"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Kernel says whether sleepers sleep in the kernel.
const Kernel = true

const (
	opWait    = 0
	opWake    = 1
	opPrivate = 128
)

// noWaitv is set when the kernel, or a filter in front of it, does not let us wait for several words.
var noWaitv atomic.Bool

// ForbidWaitv has this process wait as if the kernel knew no futex_waitv, or ends that; for tests.
func ForbidWaitv(yes bool) { noWaitv.Store(yes) }

// CanWaitv reports whether the kernel lets one sleep by several words, as far as is known.
func CanWaitv() bool { return !noWaitv.Load() }

// Sleep sleeps as long as w and bell read what they say and nobody cancels, for d at most. bell and cancel
// may be none. It may return early for no reason: callers look again. When the bell has changed, Sleep
// wakes everybody else who sleeps by it: the kernel wakes one. Memory that is gone faults, as an access
// would.
//
// The thread blocks in the kernel and keeps its P until the scheduler notices: a caller that may have left
// something runnable behind yields first.
func Sleep(w, bell Word, d time.Duration, cancel *Cancel) (r Result) {
	switch {
	case d <= 0:
		return Expired
	case cancel.Cancelled():
		return Cancelled
	case bell.Addr == nil && cancel == nil:
		return ended(wait(w, d), w)
	case noWaitv.Load():
		r = stepwise(w, bell, d, cancel)
	default:
		r = sleepByAll(w, bell, d, cancel)
	}
	// Not only if it was the bell that woke us: of two words that did, the kernel tells one.
	if r != Changed && bell.Changed() {
		Wake(bell.Addr, math.MaxInt32)
		return Rung
	}
	return r
}

func sleepByAll(w, bell Word, d time.Duration, cancel *Cancel) Result {
	var s [3]element
	s[0] = shared(w)
	n := 1
	if bell.Addr != nil {
		s[n] = shared(bell)
		n++
	}
	if cancel != nil {
		s[n] = element{addr: address(&cancel.word), flags: sizeU32 | private}
		n++
	}
	index, e := waitv(s[:n], d)
	runtime.KeepAlive(cancel)
	switch {
	case e == 0 && cancel != nil && index == n-1:
		return Cancelled
	case e == syscall.EAGAIN && !w.Changed() && bell.Changed():
		return Rung
	case e == syscall.EAGAIN && !w.Changed() && cancel.Cancelled():
		return Cancelled
	case e == syscall.ENOSYS, e == syscall.EPERM:
		noWaitv.Store(true)
		return stepwise(w, bell, d, cancel)
	}
	return ended(e, w, bell)
}

// ended turns what the kernel says at the end of a wait into a Result.
func ended(e syscall.Errno, words ...Word) Result {
	switch e {
	case 0, syscall.EINTR:
		return Woken
	case syscall.EAGAIN:
		return Changed
	case syscall.ETIMEDOUT:
		return Expired
	case syscall.EFAULT: // the file was cut, perhaps
		for _, w := range words {
			w.Changed()
		}
		return Woken
	}
	panic(fmt.Sprintf("futex: wait at %p: %v", words[0].Addr, e)) // misaligned: the caller's bug
}

// stepwise is Sleep where the kernel lets one sleep by one word only. It looks at the others from time to
// time.
func stepwise(w, bell Word, d time.Duration, cancel *Cancel) Result {
	end := time.Now().Add(d)
	for step := time.Millisecond; ; step = min(2*step, longestNap) {
		left := time.Until(end)
		switch {
		case bell.Changed():
			return Rung
		case cancel.Cancelled():
			return Cancelled
		case left <= 0:
			return Expired
		}
		switch r := ended(wait(w, min(step, left)), w, bell); {
		case r == Expired:
		case r == Changed && step > time.Millisecond:
			return Woken // it slept before
		default:
			return r
		}
	}
}

func wait(w Word, d time.Duration) syscall.Errno {
	ts := syscall.NsecToTimespec(int64(d))
	// No private flag: other processes sleep here too. Not RawSyscall6: a sleeper gives up its P.
	_, _, e := syscall.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(w.Addr)), opWait, uintptr(w.Val), uintptr(unsafe.Pointer(&ts)), 0, 0)
	return e
}

// An element is the kernel's struct futex_waitv, the same for programs of 32 and of 64 bits.
type element struct {
	val, addr uint64
	flags, _  uint32
}

const (
	sizeU32   = 2 // flags of an element
	private   = 128
	monotonic = 1 // clock of the end
)

func shared(w Word) element {
	return element{val: uint64(w.Val), addr: address(w.Addr), flags: sizeU32}
}

// address returns where p points, and keeps what is there off the stack of its goroutine, which may move
// before the kernel looks.
func address[T any](p *T) uint64 {
	if off.stack {
		off.p = unsafe.Pointer(p)
	}
	return uint64(uintptr(unsafe.Pointer(p)))
}

var off struct {
	stack bool // never
	p     unsafe.Pointer
}

// waitv sleeps until one of the words changes or is woken, and returns the index of one that was. It
// returns EAGAIN only if no wake-up was used up. (Linux 5.16.)
func waitv(words []element, d time.Duration) (index int, e syscall.Errno) {
	var now unix.Timespec
	if err := unix.ClockGettime(monotonic, &now); err != nil {
		return 0, syscall.ENOSYS
	}
	end := now.Nano() + int64(d)
	ts := struct{ sec, nsec int64 }{end / 1e9, end % 1e9} // 64 bits also where other calls take 32
	r, _, e := syscall.Syscall6(unix.SYS_FUTEX_WAITV, uintptr(unsafe.Pointer(unsafe.SliceData(words))), uintptr(len(words)), 0,
		uintptr(unsafe.Pointer(&ts)), monotonic, 0)
	return int(r), e
}

// SetSize is how many words the kernel lets one sleep by.
const SetSize = 128

// A Set is words by which one goroutine sleeps. Whoever fills it sees to it that the memory stays.
type Set struct {
	words [SetSize]element
	n     int
}

// Clear empties the set.
func (s *Set) Clear() { s.n = 0 }

// Add adds a word; private says that only this process changes and wakes it. It panics if the set is full.
func (s *Set) Add(w Word, only bool) {
	s.words[s.n] = shared(w)
	if only {
		s.words[s.n].flags |= private
	}
	s.n++
}

// Wait sleeps as long as all words read what they say, for d at most. If one was woken it returns its
// index, and Woken; others may have been woken as well, and it does not tell. It returns Changed if some
// word reads something else and none was woken, and Refused if the kernel cannot wait for them together,
// or some memory is gone.
func (s *Set) Wait(d time.Duration) (index int, r Result) {
	if noWaitv.Load() {
		return -1, Refused
	}
	index, e := waitv(s.words[:s.n], d)
	switch e {
	case 0:
		return index, Woken
	case syscall.EAGAIN, syscall.EINTR:
		return -1, Changed
	case syscall.ETIMEDOUT:
		return -1, Expired
	case syscall.ENOSYS, syscall.EPERM:
		noWaitv.Store(true)
	}
	return -1, Refused
}

// SleepAny sleeps as long as all words read what they say and nobody cancels, for d at most; cancel may be none.
// [Changed] says that some word reads something else and no wake-up was used up; after any other Result one may have
// been, of each word. More words than the kernel takes together are polled, as all are where it takes one only.
func SleepAny(words []Word, d time.Duration, cancel *Cancel) Result {
	switch {
	case d <= 0:
		return Expired
	case cancel.Cancelled():
		return Cancelled
	case noWaitv.Load() || len(words) >= SetSize:
		return NapAny(words, d, cancel)
	}
	var s Set
	for _, w := range words {
		s.Add(w, false)
	}
	if cancel != nil {
		s.Add(Word{Addr: (*uint32)(unsafe.Pointer(&cancel.word))}, true)
	}
	_, r := s.Wait(d)
	runtime.KeepAlive(cancel)
	switch {
	case r == Refused: // a fault, if it is for that
		return NapAny(words, d, cancel)
	case r != Expired && cancel.Cancelled():
		return Cancelled
	}
	return r
}

// Wake wakes up to n sleepers. It touches nothing at w but asks the kernel for its sleepers: w may be
// free or unmapped by now.
func Wake(w *uint32, n int) {
	syscall.RawSyscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(w)), opWake, uintptr(n))
}

// WakePrivate wakes all who sleep by a word that only this process changes, as a private one of a [Set]. To
// the kernel that is another word than the one that Wake wakes.
func WakePrivate(w *uint32) {
	syscall.RawSyscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(w)), opWake|opPrivate, math.MaxInt32)
}

func wakePrivate(w *atomic.Uint32) { WakePrivate((*uint32)(unsafe.Pointer(w))) }
