package sync_test

import (
	"bytes"
	"context"
	"runtime"
	"slices"
	"sort"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A pool is a lock and much memory behind it, which the lock guards.
type pool struct {
	mu   shmsync.Mutex
	held atomic.Int64 // the victim holds the lock
	over atomic.Int64 // the victim's read is over
	bell robustWord
}

// A robustWord is a word that the kernel changes when the thread dies that has it in its robust list.
type robustWord struct {
	next  uintptr // the list: from here to its head
	owner atomic.Uint32
}

const (
	ownerDied = 1 << 30 // in a robust word
	poolData  = 1 << 16 // offset of the memory
	poolSize  = 128 << 20
	page      = 4096
	untouched = 0xff
)

func openPool(r *shm.Region) (*pool, []byte) {
	p, err := shm.At[pool](r, r.Data())
	if err != nil {
		panic(err)
	}
	data, err := r.Bytes(r.Data()+poolData, poolSize)
	if err != nil {
		panic(err)
	}
	return p, data
}

// robustHead is where a robust list begins.
var robustHead struct{ next, offset, pending uintptr }

// listRobustly makes w the robust list of this thread, which from now on lives as long as its process.
func listRobustly(w *robustWord, listed chan<- struct{}) {
	runtime.LockOSThread()
	w.next = uintptr(unsafe.Pointer(&robustHead))
	w.owner.Store(uint32(unix.Gettid()))
	robustHead.next, robustHead.offset = uintptr(unsafe.Pointer(&w.next)), unsafe.Offsetof(w.owner)
	if _, _, e := unix.RawSyscall(unix.SYS_SET_ROBUST_LIST, uintptr(unsafe.Pointer(&robustHead)), unsafe.Sizeof(robustHead), 0); e != 0 {
		w.owner.Store(0) // forbidden here: nothing will be told
	}
	close(listed)
	select {}
}

// readLong holds the lock and has the kernel fill the memory, in one read.
var readLong = proc.Define("read long", func(_ context.Context, o order) error {
	p, data := openPool(o.Region)
	p.mu.Lock()
	listed := make(chan struct{})
	go listRobustly(&p.bell, listed)
	<-listed
	fd, err := unix.MemfdCreate("zeros", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	if err := unix.Ftruncate(fd, poolSize); err != nil {
		return err
	}
	p.held.Store(1)
	if _, err := unix.Pread(fd, data, 0); err != nil {
		return err
	}
	p.over.Store(1)
	select {}
})

// written returns how many pages the read has filled. It begins with the first.
func written(data []byte) int {
	return sort.Search(len(data)/page, func(i int) bool {
		return atomic.LoadUint32((*uint32)(unsafe.Pointer(&data[(i+1)*page-4]))) != 0
	})
}

// A process that is killed in a system call stops when the call is over, or later, and until then the
// kernel writes to its memory for it. The robust list of a thread tells of the death before that: who
// went by it would share the data with a process that still writes. Who takes the lock must not.
func TestMutexOfAKilledProcessIsNotTakenBeforeItsLastWrite(t *testing.T) {
	r, err := shm.Anonymous(shm.Size(poolData+poolSize), shm.Limit(160<<20))
	if err != nil {
		t.Skip("needs 128 MiB of memory: ", err)
	}
	defer r.Close()
	p, data := openPool(r)
	fresh := bytes.Repeat([]byte{untouched}, 1<<20)
	const attempts = 12
	caught := 0
	for range attempts {
		for chunk := range slices.Chunk(data, len(fresh)) {
			copy(chunk, fresh)
		}
		p.held.Store(0)
		p.over.Store(0)
		victim, err := readLong.Start(context.Background(), order{Region: r})
		if err != nil {
			t.Fatal(err)
		}
		end := func() {
			victim.Kill()
			<-victim.Done()
		}
		t.Cleanup(end)
		until(t, "the victim holds the lock", func() bool { return p.held.Load() == 1 })
		type count struct{ entry, later int }
		counted := make(chan count, 1)
		go func() {
			p.mu.Recover(context.Background(), func(shm.Death) error {
				c := count{entry: written(data)}
				time.Sleep(60 * time.Millisecond)
				c.later = written(data)
				counted <- c
				return nil
			})
		}()
		until(t, "the read is on its way", func() bool { return written(data) > 0 })
		if err := unix.Kill(victim.PID(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed, bell := written(data), -1
		var c count
		for over := false; !over; {
			if bell < 0 && p.bell.owner.Load()&ownerDied != 0 {
				bell = written(data)
			}
			select {
			case c = <-counted:
				over = true
			default:
			}
		}
		<-victim.Done()
		if p.over.Load() == 1 {
			continue // killed too late
		}
		if c.entry != c.later {
			t.Fatalf("%d pages were written when the lock was taken, %d later", c.entry, c.later)
		}
		t.Logf("pages written: %d at the kill, %d when a robust list told of it, %d when the lock was taken, %d later", killed, bell, c.entry, c.later)
		if killed < c.later {
			caught++
		}
		if caught == 3 {
			return
		}
	}
	t.Skipf("%d of %d victims went on writing after their death: this test shows nothing here", caught, attempts)
}
