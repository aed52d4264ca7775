package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

type byteHolder struct {
	Region *shm.Region
	Path   string
}

var holdByte = proc.Define("bench: hold the lock of a byte until killed", func(_ context.Context, h byteHolder) error {
	held, err := shm.At[atomic.Int64](h.Region, h.Region.Data())
	if err != nil {
		return err
	}
	f, err := os.OpenFile(h.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := lockByte(f); err != nil {
		return err
	}
	held.Add(1)
	<-proc.ParentDone() // nothing else ends it
	return nil
})

// lockByte takes the lock of the first byte for this open file, if it can be had at once.
func lockByte(f *os.File) error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
	return os.NewSyscallError("fcntl(F_OFD_SETLK)", unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l))
}

// KillFloor returns how long the kernel takes, in each of some kills, from the call of kill until the
// byte lock that the process held is free: no lock that believes in byte locks can be faster. One
// thread with nothing else to do tries every 20 µs.
func KillFloor(ctx context.Context, rounds int) (took []time.Duration, err error) {
	f, err := os.CreateTemp("", "byte")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	r, held, err := newShared[atomic.Int64](4096)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil { // of this thread: 50 µs unless told
		return nil, os.NewSyscallError("prctl", err)
	}
	defer unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // back to what it was
	for i := range rounds {
		d, err := killFloor(ctx, f, byteHolder{r, f.Name()}, func() bool { return held.Load() == int64(i)+1 })
		if err != nil {
			return nil, err
		}
		took = append(took, d)
	}
	return took, nil
}

func killFloor(ctx context.Context, f *os.File, h byteHolder, held func() bool) (_ time.Duration, err error) {
	v, err := hire(ctx, holdByte, h)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, v.dismiss()) }()
	if err := v.until("it held the byte", held); err != nil {
		return 0, err
	}
	if err := lockByte(f); !errors.Is(err, unix.EAGAIN) {
		return 0, fmt.Errorf("bench: a byte that another process has locked: %v, want EAGAIN", err)
	}
	begin := time.Now()
	if err := v.ps[0].Kill(); err != nil {
		return 0, err
	}
	for {
		err := lockByte(f)
		took := time.Since(begin)
		if err == nil {
			l := unix.Flock_t{Type: unix.F_UNLCK, Len: 1}
			return took, os.NewSyscallError("fcntl(F_OFD_SETLK)", unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l))
		}
		if !errors.Is(err, unix.EAGAIN) {
			return 0, err
		}
		if took > 30*time.Second {
			return 0, errors.New("bench: a killed process still holds its byte")
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 20_000}, nil) // an early return is no harm
	}
}
