package heap

import (
	"bytes"
	"context"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// A baton goes between the process that is stepped and the one that steps it, in a region of its own.
type baton struct {
	tid  atomic.Uint64 // thread that does the work; it waits for from
	from atomic.Uint64 // 1: work
	done atomic.Uint64 // 1: it is over; 2: it failed
	slot atomic.Uint64
}

type stepArgs struct {
	Region, Baton *shm.Region
}

// stepped allocates and frees a block in the hot paths, then changes an object, in one thread that nothing interrupts.
var stepped = proc.Define("heap stepped", func(_ context.Context, a stepArgs) error {
	debug.SetGCPercent(-1)
	failed := make(chan error)
	// Not in the first thread: who waits for the process would be told of each of its stops.
	var elsewhere func()
	elsewhere = func() {
		runtime.LockOSThread()
		if syscall.Gettid() == syscall.Getpid() {
			go elsewhere()
			select {}
		}
		failed <- beStepped(a)
	}
	go elsewhere()
	return <-failed
})

func beStepped(a stepArgs) error {
	w := &world{t: fatal{}, r: a.Region, at: a.Region.Data() + thingsSize}
	var err error
	if w.th, err = shm.At[things](w.r, w.r.Data()); err != nil {
		return err
	}
	p, err := Open(w.r, w.at)
	if err != nil {
		return err
	}
	b, err := shm.At[baton](a.Baton, a.Baton.Data())
	if err != nil {
		return err
	}
	if err := first(w.create(p, 0, 64, 64), w.change(p, 0, 64, true), w.create(p, 1, 640, 64)); err != nil {
		return err
	}
	off, err := p.Alloc(64)
	if err != nil {
		return err
	}
	b.slot.Store(uint64(a.Region.LaneSlot()))
	b.tid.Store(uint64(syscall.Gettid()))
	for b.from.Load() == 0 {
	}
	err = p.Free(off)
	if err == nil {
		off, err = p.Alloc(64)
	}
	if err == nil {
		err = first(w.change(p, 0, 64, true), w.create(p, 2, 640, 64), w.destroy(p, 1), p.Free(off))
	}
	if err != nil {
		b.done.Store(2)
		return err
	}
	b.done.Store(1)
	select {} // until killed
}

// Whatever instruction a process is killed at in the hot operations, what a survivor makes of it is in order. The process is not killed: it is
// stepped, and the memory as it is then is recovered in a region of its own.
func TestKillAtEveryInstructionLeavesOrder(t *testing.T) {
	if raceEnabled {
		t.Skip("a race build does other instructions")
	}
	const size = 256 << 10
	r, err := shm.Anonymous(shm.Size(size), shm.Limit(size))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w := &world{t: t, r: r, at: r.Data() + thingsSize}
	if w.th, err = shm.At[things](r, r.Data()); err != nil {
		t.Fatal(err)
	}
	if err := Format(r, w.at); err != nil {
		t.Fatal(err)
	}
	br, err := shm.Anonymous(shm.Size(4096), shm.Limit(4096))
	if err != nil {
		t.Fatal(err)
	}
	defer br.Close()
	b, err := shm.At[baton](br, br.Data())
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	child, err := stepped.Start(t.Context(), stepArgs{r, br}, proc.Env("GODEBUG=asyncpreemptoff=1"))
	if err != nil {
		t.Fatal(err)
	}
	defer child.Close()
	defer child.Wait()
	defer child.Kill()
	for end := time.Now().Add(30 * time.Second); b.tid.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the process does not come to the point")
		}
	}
	tid := int(b.tid.Load())
	if err := syscall.PtraceAttach(tid); err != nil {
		t.Skipf("this process may not trace another: %v", err)
	}
	defer syscall.PtraceDetach(tid) // before it is waited for: a thread that is traced is not reaped by its process' end
	var status syscall.WaitStatus
	wait := func() {
		if _, err := syscall.Wait4(tid, &status, syscall.WALL, nil); err != nil || !status.Stopped() {
			t.Fatalf("stepping: %v, status %#x", err, status)
		}
	}
	wait()
	b.from.Store(1)
	now, err := r.Bytes(r.Data(), size)
	if err != nil {
		t.Fatal(err)
	}
	copied := newWorld(t, size, size) // where the dead are recovered
	if copied.r.Data() != r.Data() {
		t.Fatal("regions begin their data elsewhere")
	}
	slot := int(b.slot.Load())
	mine := survivor
	if slot == mine {
		mine = survivor2
	}
	last := bytes.Clone(now)
	steps, states := 0, 0
	seen := map[string]int{}
	var calls []uint64 // numbers of system calls
	for ; b.done.Load() == 0; steps++ {
		if steps > 1_000_000 {
			t.Fatal("it does not end")
		}
		var regs syscall.PtraceRegs
		var code [2]byte
		if err := syscall.PtraceGetRegs(tid, &regs); err != nil {
			t.Fatal(err)
		}
		if _, err := syscall.PtracePeekText(tid, uintptr(regs.Rip), code[:]); err != nil {
			t.Fatal(err)
		}
		if code == [2]byte{0x0f, 0x05} { // SYSCALL; the scheduler, which finds the thread slow, makes some of its own
			if fn := runtime.FuncForPC(uintptr(regs.Rip)); fn == nil || !strings.HasPrefix(fn.Name(), "runtime.") {
				calls = append(calls, regs.Rax)
			}
		}
		if err := syscall.PtraceSingleStep(tid); err != nil {
			t.Fatal(err)
		}
		wait()
		if sig := status.StopSignal(); sig != syscall.SIGTRAP && sig != syscall.SIGURG && sig != syscall.SIGSTOP {
			t.Fatalf("stopped by %v after %d steps", sig, steps)
		}
		if bytes.Equal(now, last) {
			continue
		}
		copy(last, now)
		states++
		copied.restore(memory{data: last})
		for i := range shm.Slots {
			copied.r.Lanes(i).Store(r.Lanes(i).Load())
		}
		p := copied.process(mine)
		if err := copied.recover(p, false, slot); err != nil {
			t.Fatalf("after %d instructions: %v", steps, err)
		}
		if err := p.Check(); err != nil {
			t.Fatalf("after %d instructions: %v", steps, err)
		}
		// The block that is allocated alone belongs to nobody when its process is dead.
		copied.loose = 0
		err := p.Each(func(off shm.Offset, n uint64, _ bool) {
			if n == 64 && uint64(off) != copied.th.table[0].Load() && uint64(off) != copied.th.pairs[0].block.Load() {
				copied.loose = off
			}
		})
		s, err2 := copied.state(p)
		if err != nil || err2 != nil {
			t.Fatalf("after %d instructions: %v, %v", steps, err, err2)
		}
		seen[s]++
	}
	if b.done.Load() != 1 {
		t.Error("the process failed")
	}
	if len(calls) != 0 {
		t.Errorf("operations for which the heap did not grow made system calls: %v", calls)
	}
	t.Logf("%d instructions, %d states of the memory, %d of the objects", steps, states, len(seen))
	if len(seen) < 6 || states < 60 {
		t.Errorf("%d states of the memory, and %d of the objects: too few for six operations", states, len(seen))
	}
}
