package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

const (
	batches = 5
	marker  = unix.SYS_GETPPID // a call that nobody else makes: it begins and ends a batch
)

func oneSyscall() { unix.RawSyscall(unix.SYS_GETUID, 0, 0, 0) }

// A stage is where the traced process and the one that traces it meet.
type stage struct {
	mu    shmsync.Mutex
	tid   atomic.Int64 // of the thread that makes the calls
	begin atomic.Bool  // it is traced
}

type traced struct {
	Region *shm.Region
	Rounds int
}

var beTraced = proc.Define("bench: make uncontended calls", func(_ context.Context, a traced) error {
	t, err := shm.At[stage](a.Region, a.Region.Data())
	if err != nil {
		return err
	}
	debug.SetGCPercent(-1) // the collector would stop the thread now and then
	notFirstThread(func() {
		t.tid.Store(int64(unix.Gettid()))
		for !t.begin.Load() {
			time.Sleep(100 * time.Microsecond)
		}
		for _, u := range uncontended {
			u.call(&t.mu) // the first call of anything may be dearer
			for range batches {
				unix.RawSyscall(marker, 0, 0, 0)
				for range a.Rounds {
					u.call(&t.mu)
				}
				unix.RawSyscall(marker, 0, 0, 0)
			}
		}
	})
	return nil
})

// notFirstThread runs fn locked to a thread that is not the first of the process, and waits for it. The
// stops of that thread are told to whoever waits for the process' end, and the tracer would miss them.
func notFirstThread(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if unix.Gettid() == unix.Getpid() {
			notFirstThread(fn) // this thread is occupied meanwhile
			return
		}
		fn()
	}()
	<-done
}

// Run runs the case. It returns ErrNotTraced where that is so.
func (c Syscalls) Run(ctx context.Context) (_ []SyscallsResult, err error) {
	if c.Rounds < 1 {
		return nil, fmt.Errorf("bench: %d rounds: nothing to do", c.Rounds)
	}
	r, t, err := newShared[stage](4096)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	crew, err := hire(ctx, beTraced, traced{r, c.Rounds})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, crew.dismiss()) }()
	if err := crew.until("it was ready", func() bool { return t.tid.Load() != 0 }); err != nil {
		return nil, err
	}

	runtime.LockOSThread() // only the thread that attached may trace
	defer runtime.UnlockOSThread()
	tid := int(t.tid.Load())
	if err := unix.PtraceSeize(tid); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotTraced, err)
	}
	counts, err := countSyscalls(tid, 2*batches*len(uncontended), func() { t.begin.Store(true) })
	if err != nil {
		return nil, err
	}
	if err := crew.wait(); err != nil {
		return nil, err
	}
	res := make([]SyscallsResult, len(uncontended))
	for i, u := range uncontended {
		best := math.MaxInt
		for b := range batches {
			best = min(best, counts[2*(i*batches+b)+1]) // [even]: between two batches
		}
		res[i] = SyscallsResult{u.name, float64(best) / float64(c.Rounds)}
	}
	return res, nil
}

// countSyscalls traces the thread until it has made the marker call so many times, and then lets it
// go. It returns how many other calls came before each of the markers, since the one before it. begin
// is called when nothing can be missed any more.
func countSyscalls(tid, markers int, begin func()) (counts []int, err error) {
	if err := unix.PtraceInterrupt(tid); err != nil {
		return nil, os.NewSyscallError("ptrace(INTERRUPT)", err)
	}
	defer func() {
		if err != nil { // a traced thread that nobody waits for would keep its process from ending
			unix.PtraceDetach(tid)
		}
	}()
	begun, n := false, 0
	for {
		var status unix.WaitStatus
		if _, err := unix.Wait4(tid, &status, unix.WALL, nil); err == unix.EINTR {
			continue
		} else if err != nil {
			return nil, os.NewSyscallError("wait4", err)
		}
		if !status.Stopped() {
			return nil, fmt.Errorf("bench: the traced thread ended: %#x", uint32(status))
		}
		signal := 0
		switch {
		case status.StopSignal() == unix.SIGTRAP|0x80: // into or out of a system call
			var regs unix.PtraceRegs
			if err := unix.PtraceGetRegs(tid, &regs); err != nil {
				return nil, os.NewSyscallError("ptrace(GETREGS)", err)
			}
			if int64(regs.Rax) != -int64(unix.ENOSYS) {
				break // out of it
			}
			n++
			if regs.Orig_rax == marker {
				counts, n = append(counts, n-1), 0
			}
		case int(status)>>16 == unix.PTRACE_EVENT_STOP: // our interruption
			if !begun {
				if err := unix.PtraceSetOptions(tid, unix.PTRACE_O_TRACESYSGOOD); err != nil {
					return nil, os.NewSyscallError("ptrace(SETOPTIONS)", err)
				}
				begun = true
				begin()
			}
		default:
			signal = int(status.StopSignal()) // it is the thread's own: it shall have it
		}
		if len(counts) == markers {
			return counts, os.NewSyscallError("ptrace(DETACH)", unix.PtraceDetach(tid))
		}
		if err := unix.PtraceSyscall(tid, signal); err != nil {
			return nil, os.NewSyscallError("ptrace(SYSCALL)", err)
		}
	}
}
