package shm

import (
	"os"
	"runtime"
	stdsync "sync"
	"time"
	"weak"

	"golang.org/x/sys/windows"
)

// Here locks belong to the handle. After a death the system may take a while to release them.

// locked are the bytes that files have locked: elsewhere locking again what is locked through the same
// file succeeds and changes nothing, here the system would refuse it.
var locked struct {
	mu    stdsync.Mutex
	bytes map[weak.Pointer[os.File]]map[int64]bool
}

// lockByte waits by polling: a call that waits holds up all others on the same handle.
func lockByte(f *os.File, pos int64, wait bool) (bool, error) {
	for nap := 100 * time.Microsecond; ; nap = min(2*nap, 10*time.Millisecond) {
		if ok, err := tryByte(f, pos); ok || err != nil || !wait {
			return ok, err
		}
		time.Sleep(nap)
	}
}

func tryByte(f *os.File, pos int64) (bool, error) {
	locked.mu.Lock()
	defer locked.mu.Unlock()
	key := weak.Make(f)
	if locked.bytes[key][pos] {
		return true, nil
	}
	ok, err := lockRange(f, pos, 1)
	if !ok || err != nil {
		return false, err
	}
	if locked.bytes == nil {
		locked.bytes = make(map[weak.Pointer[os.File]]map[int64]bool)
	}
	if locked.bytes[key] == nil {
		locked.bytes[key] = make(map[int64]bool)
		runtime.AddCleanup(f, func(key weak.Pointer[os.File]) {
			locked.mu.Lock()
			defer locked.mu.Unlock()
			delete(locked.bytes, key)
		}, key)
	}
	locked.bytes[key][pos] = true
	return true, nil
}

func unlockByte(f *os.File, pos int64) error {
	locked.mu.Lock()
	defer locked.mu.Unlock()
	if bytes := locked.bytes[weak.Make(f)]; bytes[pos] {
		delete(bytes, pos)
		return unlockRange(f, pos, 1)
	}
	return nil
}

// byteHeld reports whether somebody has one of n bytes locked, by trying; locks of f count too.
func byteHeld(f *os.File, pos, n int64) (bool, error) {
	if n == 0 {
		return false, nil
	}
	ok, err := lockRange(f, pos, n)
	if !ok || err != nil {
		return !ok, err
	}
	return false, unlockRange(f, pos, n)
}

// othersHeld reports whether somebody else than f, which has that of slot i, has a slot's byte locked.
func othersHeld(f *os.File, i int) (bool, error) {
	held, err := byteHeld(f, slotByte(0), int64(i))
	if held || err != nil {
		return held, err
	}
	return byteHeld(f, slotByte(i+1), int64(slotCount-1-i))
}

// stillHeld reports whether a byte is held, by whomever: the system does not tell.
func stillHeld(query, _ *os.File, pos int64) bool {
	held, err := byteHeld(query, pos, 1)
	return held && err == nil
}

func lockRange(f *os.File, pos, n int64) (ok bool, err error) {
	err = control(f, func(h windows.Handle) error {
		const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
		return windows.LockFileEx(h, flags, 0, uint32(n), 0, at(pos))
	})
	if err == windows.ERROR_LOCK_VIOLATION || err == windows.ERROR_IO_PENDING {
		return false, nil
	}
	return err == nil, err
}

func unlockRange(f *os.File, pos, n int64) error {
	return control(f, func(h windows.Handle) error { return windows.UnlockFileEx(h, 0, uint32(n), 0, at(pos)) })
}

func at(pos int64) *windows.Overlapped {
	return &windows.Overlapped{Offset: uint32(pos), OffsetHigh: uint32(pos >> 32)}
}

// control calls fn with the handle of f, which stays open meanwhile. If f is closed it returns
// [os.ErrClosed].
func control(f *os.File, fn func(windows.Handle) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if c.Control(func(h uintptr) { err = fn(windows.Handle(h)) }) != nil {
		return os.ErrClosed // the only reason, and not told by this name
	}
	return err
}
