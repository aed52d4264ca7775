package heap

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
)

// processTime returns the processor time that this process has used.
func processTime() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}

// Who waits for a lane, all of which are in use, sleeps: those who have them may be waiting for memory themselves.
func TestWaitForALaneTakesNoProcessor(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector takes a processor of its own")
	}
	p := newHeap(t, false, shm.Size(1<<20), shm.Limit(1<<20))
	lanes := openLanes(t, p, max(8, 4*runtime.GOMAXPROCS(0)))
	got := make(chan *txn.Lane)
	began, cpu := time.Now(), processTime()
	go func() {
		l, err := p.Enter()
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	select {
	case <-got:
		t.Fatal("there are more lanes than are in use: nothing is tested")
	case <-time.After(200 * time.Millisecond):
	}
	waited, used := time.Since(began), processTime()-cpu
	if err := lanes[0].Leave(); err != nil {
		t.Error(err)
	}
	if l := <-got; l != lanes[0] {
		t.Error("another lane was free")
	}
	if used > waited/4 {
		t.Errorf("a wait of %v took %v of a processor", waited, used)
	}
}
