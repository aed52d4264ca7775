//go:build !futexpoll && !race

package futex

import (
	"os"
	"runtime/debug"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Memory that is gone is a fault of the caller's own, which Guard and the like know how to catch, and no
// panic of this package. (The atomics of race builds cannot panic on a fault.)
func TestMemoryThatIsGoneFaults(t *testing.T) {
	page := os.Getpagesize()
	mem, err := unix.Mmap(-1, 0, page, unix.PROT_NONE, unix.MAP_SHARED|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	w := Word{(*uint32)(unsafe.Pointer(unsafe.SliceData(mem))), 5}
	good, _ := words()
	for name, sleep := range map[string]func() Result{
		"alone": func() Result { return Sleep(w, Word{}, time.Hour, nil) },
		"beside a bell": func() Result {
			return Sleep(w, Word{good, 5}, time.Hour, nil)
		},
		"as the bell": func() Result { return Sleep(Word{good, 5}, w, time.Hour, nil) },
	} {
		func() {
			defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
			defer func() {
				fault, ok := recover().(interface{ Addr() uintptr })
				if !ok || fault.Addr() != uintptr(unsafe.Pointer(w.Addr)) {
					t.Errorf("%s: %v, want a fault at %p", name, fault, w.Addr)
				}
			}()
			t.Errorf("%s: %d", name, sleep())
		}()
	}
}
