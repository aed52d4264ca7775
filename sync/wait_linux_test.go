//go:build linux && !futexpoll

package sync

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/sync/internal/futex"
)

// asleep counts the threads of this process that the kernel lets sleep on the word of m, alone.
func asleep(t *testing.T, m *Mutex) (n int) {
	t.Helper()
	return inCall(t, fmt.Sprintf("%d %#x ", unix.SYS_FUTEX, uintptr(unsafe.Pointer(m.half()))))
}

// inCall counts the threads of this process that are in a system call, given as the kernel tells it. It skips
// the test where the kernel does not, and under an emulator, where it tells the emulator's calls.
func inCall(t *testing.T, call string) (n int) {
	t.Helper()
	runtime.LockOSThread()
	own, err := os.ReadFile("/proc/thread-self/syscall")
	runtime.UnlockOSThread()
	switch {
	case err != nil:
		t.Skip("the kernel does not tell in what calls threads are: ", err)
	case !strings.HasPrefix(string(own), fmt.Sprintf("%d ", unix.SYS_READ)):
		t.Skipf("an emulator hides in what calls threads are: a read is %q", own)
	}
	files, _ := filepath.Glob("/proc/self/task/*/syscall")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), call) {
			n++
		}
	}
	return n
}

// sleeper sleeps on the word of m as another process would, and says what ended its sleep.
func sleeper(t *testing.T, m *Mutex, word uint64) <-chan futex.Result {
	t.Helper()
	before := asleep(t, m)
	result := make(chan futex.Result, 1)
	sleep := func() { result <- futex.Wait(m.half(), uint32(word), time.Hour, nil) }
	go sleep()
	eventually(t, "a sleeper sleeps", func() bool {
		select {
		case <-result: // a signal of the scheduler met it on its way into the kernel
			go sleep()
		default:
		}
		return asleep(t, m) == before+1
	})
	return result
}

func woken(t *testing.T, result <-chan futex.Result) {
	t.Helper()
	select {
	case r := <-result:
		if r != futex.Woken {
			t.Errorf("the sleep ended as %d", r)
		}
	case <-time.After(10 * time.Second):
		t.Error("sleeps on")
	}
}

func TestReleaseWakesOneSleeper(t *testing.T) {
	for _, f := range []uint64{flagWaiters, flagStarving, flagLocal | flagWaiters, flagLocal | flagStarving, flagInconsistent | flagWaiters} {
		m := new(Mutex)
		m.word.Store(token | f)
		s1, s2 := sleeper(t, m, token|f), sleeper(t, m, token|f)
		m.Unlock()
		eventually(t, "one is awake", func() bool { return len(s1)+len(s2) > 0 })
		if len(s1)+len(s2) != 1 || asleep(t, m) != 1 {
			t.Errorf("flags %x: woke %d", f, len(s1)+len(s2))
		}
		futex.Wake(m.half(), 2)
		woken(t, s1)
		woken(t, s2)
	}
}

func TestWaiterThatGivesUpWakesTheNextSleeper(t *testing.T) {
	for _, word := range []uint64{0, flagInconsistent, flagStarving, flagStarving | flagWaiters} {
		m := new(Mutex)
		m.word.Store(word)
		s := sleeper(t, m, word)
		a := attempt{m: m, gate: enter(m), slept: true}
		a.gate.leader = true
		a.giveUp(errTimeout)
		woken(t, s)
		leave(m, a.gate)
	}
}

// A wake before the release would find the sleeper looking at a lock that is held, and the release
// would have forgotten it. The word cannot be written here: the release fails, and nobody is woken.
func TestReleaseComesBeforeTheWake(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's atomics cannot panic on a fault")
	}
	needFaultAddress(t)
	for _, f := range []uint64{flagWaiters, flagLocal | flagWaiters, flagLocal | flagStarving} {
		page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANON)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(page)
		m := (*Mutex)(unsafe.Pointer(&page[0]))
		m.word.Store(token | f)
		s := sleeper(t, m, token|f)
		if err := unix.Mprotect(page, unix.PROT_READ); err != nil {
			t.Fatal(err)
		}
		func() {
			defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
			defer func() {
				if recover() == nil {
					t.Error("released")
				}
			}()
			m.unlockSlow()
		}()
		if len(s) != 0 || asleep(t, m) != 1 {
			t.Errorf("flags %x: woken before the release", f)
		}
		futex.Wake(m.half(), 1)
		woken(t, s)
	}
}

func TestCancelledWaiterLeavesTheKernel(t *testing.T) {
	c := new(futex.Cancel)
	m := new(Mutex)
	result := make(chan futex.Result, 1)
	go func() { result <- futex.Wait(m.half(), 0, time.Hour, c) }()
	time.Sleep(5 * time.Millisecond) // asleep by now, most of the time; it must end in any case
	c.Cancel()
	woken(t, result)
}

// A signal ends a sleep, and its end must not be put off by that.
func TestWaiterUnderSignalsFindsTheDeadHolder(t *testing.T) {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h, err := shm.At[house](r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	p, err := liveOn.Start(context.Background(), where{r})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		p.Kill()
		<-p.Done()
	}()
	eventually(t, "the child holds the lock", func() bool { return h.came.Load() == 1 })
	thread := make(chan int, 1)
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		result <- h.mu.LockContext(context.Background())
	}()
	tid := <-thread
	time.Sleep(400 * time.Millisecond) // the waiter looks after the holder every 100 ms by now
	p.Kill()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		select {
		case err := <-result:
			if !errors.Is(err, ErrInconsistent) {
				t.Error(err)
			}
			return
		default:
		}
		if time.Now().After(end) {
			h.mu.word.Store(0)
			<-result
			t.Fatal("not found in 10 s of signals")
		}
		unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
	}
}

// The memory is gone, and the one who leads stops with the fault: the others come to know it too.
func TestGateOfALeaderThatFaultsGoesOnWithTheNext(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's atomics cannot panic on a fault")
	}
	needFaultAddress(t)
	path := filepath.Join(t.TempDir(), "r")
	r, err := shm.CreateFile(path, shm.Limit(1<<24), shm.Size(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	off := r.Data() + 1<<19
	m, err := shm.At[Mutex](r, off)
	if err != nil {
		t.Fatal(err)
	}
	m.word.Store(stranger)
	defer func(first, long time.Duration) { firstSleep, longSleep = first, long }(firstSleep, longSleep)
	SleepForEver() // nobody finds out that there is no such stranger
	ended := make(chan error, 3)
	lock := func(ctx context.Context) {
		ended <- r.Guard(func() error { return m.LockContext(ctx) })
	}
	ctx, cancel := context.WithCancel(t.Context())
	go lock(ctx)
	eventually(t, "one leads", func() bool { return m.has(flagWaiters) })
	for range 2 {
		go lock(context.Background())
	}
	g := enter(m)
	defer leave(m, g)
	eventually(t, "two are parked", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.head != g.tail
	})
	if err := os.Truncate(path, int64(off)&^int64(os.Getpagesize()-1)); err != nil {
		t.Fatal(err)
	}
	cancel() // it looks at the word
	for n := range 3 {
		select {
		case err := <-ended:
			if !errors.Is(err, shm.ErrCorrupt) {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%d of 3 waits ended", n)
		}
	}
}

// needFaultAddress skips a test where the system does not tell at what address a file was found cut, as under
// an emulator.
func needFaultAddress(t *testing.T) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "empty"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if f, ok := recover().(interface{ Addr() uintptr }); !ok || f.Addr() != uintptr(unsafe.Pointer(&mem[0])) {
			t.Skip("the system does not tell the address of a fault in a cut file")
		}
	}()
	sink = mem[0]
}

var sink byte
