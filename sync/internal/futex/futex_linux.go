//go:build linux && !futexpoll

package futex

import (
	"fmt"
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

	sizeU32    = 2 // flags of a futex_waitv element
	private    = 128
	sysWaitv   = 449 // futex_waitv, Linux 5.16; not its number on MIPS, where the call fails and we poll
	monotonic  = 1
	pollCancel = 20 * time.Millisecond
)

// noWaitv is set when the kernel, or a filter in front of it, does not let us wait for two words.
var noWaitv atomic.Bool

// A Cancel ends the wait that it is given to.
type Cancel struct{ word atomic.Uint32 }

// Cancel ends the wait, now or as soon as it begins.
func (c *Cancel) Cancel() {
	c.word.Store(1)
	syscall.RawSyscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&c.word)), opWake|opPrivate, 1)
}

// Cancelled reports whether Cancel was called.
func (c *Cancel) Cancelled() bool { return c.word.Load() != 0 }

// Wait sleeps while *w == val, for d at most. It may return early for no reason: callers look again.
// cancel may be nil. The thread blocks in the kernel and keeps its P until the scheduler notices: a
// caller that may have left something runnable behind yields first.
func Wait(w *uint32, val uint32, d time.Duration, cancel *Cancel) Result {
	if d <= 0 {
		return Expired
	}
	var e syscall.Errno
	switch {
	case cancel == nil:
		e = wait(w, val, d)
	case cancel.Cancelled():
		return Woken
	case noWaitv.Load():
		e = wait(w, val, min(d, pollCancel))
	default:
		e = waitTwo(w, val, d, cancel)
		if e == syscall.ENOSYS || e == syscall.EPERM {
			noWaitv.Store(true)
			e = wait(w, val, min(d, pollCancel))
		}
	}
	switch e {
	case 0, syscall.EINTR:
		return Woken
	case syscall.EAGAIN:
		return Changed
	case syscall.ETIMEDOUT:
		return Expired
	}
	panic(fmt.Sprintf("futex: wait at %p: %v", w, e)) // unmapped or misaligned: the caller's bug
}

func wait(w *uint32, val uint32, d time.Duration) syscall.Errno {
	ts := syscall.NsecToTimespec(int64(d))
	// No private flag: other processes sleep here too. Not RawSyscall6: a sleeper gives up its P.
	_, _, e := syscall.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(w)), opWait, uintptr(val), uintptr(unsafe.Pointer(&ts)), 0, 0)
	return e
}

// waitTwo sleeps while *w == val and nobody cancels.
func waitTwo(w *uint32, val uint32, d time.Duration, cancel *Cancel) syscall.Errno {
	type element struct {
		val, addr uint64
		flags, _  uint32
	}
	words := [2]element{
		{val: uint64(val), addr: uint64(uintptr(unsafe.Pointer(w))), flags: sizeU32},
		{val: 0, addr: uint64(uintptr(unsafe.Pointer(&cancel.word))), flags: sizeU32 | private},
	}
	var now unix.Timespec
	if err := unix.ClockGettime(monotonic, &now); err != nil {
		return syscall.ENOSYS
	}
	end := now.Nano() + int64(d)
	ts := struct{ sec, nsec int64 }{end / 1e9, end % 1e9} // 64 bits also where other calls take 32
	_, _, e := syscall.Syscall6(sysWaitv, uintptr(unsafe.Pointer(&words)), 2, 0, uintptr(unsafe.Pointer(&ts)), monotonic, 0)
	runtime.KeepAlive(w)
	runtime.KeepAlive(cancel)
	return e
}

// Wake wakes up to n sleepers. It touches nothing at w but asks the kernel for its sleepers: w may be
// free or unmapped by now.
func Wake(w *uint32, n int) {
	syscall.RawSyscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(w)), opWake, uintptr(n))
}
