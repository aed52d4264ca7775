//go:build !futexpoll

package shm

import (
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	stdsync "sync"
	"sync/atomic"
	"unsafe"
	"weak"

	"golang.org/x/sys/unix"
)

// How the kernel comes to ring. A thread can leave it the head of a list, and when the thread ends, by
// whatever cause, exec included, the kernel walks the list, and in the futex word that lies at one fixed
// distance behind each node it replaces the id of the thread; see set_robust_list(2). The list belongs to
// the thread, so one goroutine, the guardian, is locked to its thread for ever and does nothing else.
//
// The nodes are memory of this process alone. In the region, beside the word, others could write them, and
// lead the kernel anywhere in this process: to words of regions that they cannot write themselves, in
// which it would mark what happens to look like the thread's id; or round in circles, so that the bells of
// other regions never ring. So the page of the slot is mapped a second time, behind a page for the node:
//
//	| node, private | slots, shared |     the word is one page behind its node
//
// The second mapping belongs to the seat, as the byte lock does: the bell of a region that was closed
// still rings, since locks there may still be held. What others can write is the word.
//
// The kernel may walk at any moment. A node is complete before the head leads to it, and leads on to the
// rest of the list after it was taken out; and the pair of pages stays mapped for ever, and is used again.
// A walk that meets a pair being used again may leave some bells out, or come by twice, which changes
// nothing the second time. The kernel follows 2048 nodes, and stops at a word that cannot be read, as in a
// file that was cut: bells behind that do not ring.

// A robustHead is the kernel's struct robust_list_head, also that of 32-bit programs on a 64-bit kernel.
type robustHead struct {
	next    uintptr // the first node, or this head itself; nodes lead on in the same way
	offset  uintptr // from a node to its word
	pending uintptr // not used
}

var guardian struct {
	start  stdsync.Once
	head   robustHead // in memory that never moves
	thread uint32     // its id; 0 if the kernel rings no bells here. Written by start
	hung   []*bell    // the list, its first node last; guarded by regions.mu
	spare  [][]byte   // pairs of pages that hang nowhere; guarded by regions.mu
}

// A bell is a node and a word that hang in the guardian's list.
type bell struct {
	pages []byte
	node  *uintptr
	word  *atomic.Uint32
}

// startGuardian starts the guardian and waits until it is in place.
func startGuardian() {
	up := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		h := &guardian.head
		h.next, h.offset = uintptr(unsafe.Pointer(h)), uintptr(os.Getpagesize())
		_, _, e := unix.RawSyscall(unix.SYS_SET_ROBUST_LIST, uintptr(unsafe.Pointer(h)), unsafe.Sizeof(*h), 0)
		if e != 0 { // a filter, or a kernel that has no such thing
			runtime.UnlockOSThread()
			close(up)
			return
		}
		guardian.thread = uint32(unix.Gettid())
		close(up)
		select {}
	}()
	<-up
}

// hangBell gives the slot of this process a bell, some time from now: nobody waits for that, and a process
// that ends soon may end without one.
func (m *mapping) hangBell() {
	if m.seat == nil || m.file == nil {
		return
	}
	// Who opens a region waits under regions.mu for the addresses of closed ones, which nothing may refer to.
	go hangBellNow(weak.Make(m))
}

func hangBellNow(of weak.Pointer[mapping]) {
	guardian.start.Do(startGuardian)
	if guardian.thread == 0 {
		return
	}
	regions.mu.Lock()
	defer regions.mu.Unlock()
	m := of.Value()
	if m == nil || m.closed.Load() { // a bell that hangs stays; if none does, the region has none until it is opened again
		return
	}
	s := m.seat
	if s.bell == nil {
		// Not &m.slots[…]: that reads the memory, to see whether it is there.
		s.bell = hang(unsafe.Add(unsafe.Pointer(m.header), slotsStart+uintptr(s.slot)*slotSize+unsafe.Offsetof(slot{}.bell)))
	}
	if s.bell != nil {
		m.guard(func() error { // nobody waits by a file that was cut
			m.slots[s.slot].bell.Store(guardian.thread | bellWaiters)
			return nil
		})
	}
}

// hang puts a bell into the list whose word is the one at p, which must be memory of a shared mapping. It
// returns nil if the system refuses. regions.mu is held.
func hang(p unsafe.Pointer) *bell {
	page := uintptr(os.Getpagesize())
	in := uintptr(p) % page
	var pages []byte
	if n := len(guardian.spare); n > 0 {
		pages, guardian.spare = guardian.spare[n-1], guardian.spare[:n-1]
	} else {
		var err error
		pages, err = unix.Mmap(-1, 0, int(2*page), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return nil
		}
	}
	// A length of 0 maps the same memory once more, and whatever file that is, no descriptor is asked.
	// If it fails the second page may be gone, and with it the right to put anything there.
	second := unsafe.Pointer(&pages[page])
	if _, err := unix.MremapPtr(unsafe.Add(p, -int(in)), 0, second, page, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED); err != nil {
		return nil
	}
	b := &bell{pages, (*uintptr)(unsafe.Pointer(&pages[in])), (*atomic.Uint32)(unsafe.Pointer(&pages[page+in]))}
	atomic.StoreUintptr(b.node, guardian.head.next)
	atomic.StoreUintptr(&guardian.head.next, uintptr(unsafe.Pointer(b.node))) // from here on it rings
	guardian.hung = append(guardian.hung, b)
	return b
}

// takeBellDown rings the bell of a seat that this process gives up, and takes it from the list, so that
// the region's memory can be freed. regions.mu is held.
func (s *seat) takeBellDown() {
	b := s.bell
	if b == nil {
		return
	}
	s.bell = nil
	i := slices.Index(guardian.hung, b)
	before := &guardian.head.next
	if i+1 < len(guardian.hung) {
		before = guardian.hung[i+1].node
	}
	atomic.StoreUintptr(before, atomic.LoadUintptr(b.node)) // b's own node leads on: the kernel may be there
	guardian.hung = slices.Delete(guardian.hung, i, i+1)
	b.ring()
	page := uintptr(os.Getpagesize())
	_, err := unix.MmapPtr(-1, 0, unsafe.Pointer(&b.pages[page]), page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_FIXED)
	if err == nil { // else the address may be somebody else's by now
		guardian.spare = append(guardian.spare, b.pages)
	}
}

// ring does what the kernel does at the end of the thread, and wakes every sleeper.
func (b *bell) ring() {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { recover() }()                                                  // the file was cut: nobody waits there
	if b.word.CompareAndSwap(guardian.thread|bellWaiters, bellWaiters|bellRung) { // else it is another process' by now
		const wake, all = 1, 1<<31 - 1
		unix.RawSyscall(unix.SYS_FUTEX, uintptr(unsafe.Pointer(b.word)), wake, all)
	}
}
