package sync_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

// loseProof closes the descriptor that proves this process' life to those who have an anonymous region open, whose own
// descriptor is own.
func loseProof(own int) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	closed := 0
	for _, e := range entries {
		var fd int
		fmt.Sscan(e.Name(), &fd)
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if strings.HasPrefix(to, "/memfd:shmkit-") && fd != own {
			closed++
			if err := syscall.Close(fd); err != nil {
				return err
			}
		}
	}
	return check(closed == 1, "%d descriptors are closed, want the one that proves life", closed)
}

// waitWithoutProof holds one lock, waits for another one, and loses the descriptor that proves its life. It says what
// came of that.
var waitWithoutProof = proc.Define("wait without proof", func(_ context.Context, o order) error {
	all := openMany(o.Region)
	all[0].Lock()
	own := int(o.Region.File().Fd()) // whoever finds out closes it
	results := make(chan error)
	for range 2 { // one competes, and one is parked
		go func() { results <- all[1].LockContext(context.Background()) }()
	}
	for all[1].Parked() != 1 { // one who came when the region is closed would find a word of zeros
		time.Sleep(time.Millisecond)
	}
	if err := loseProof(own); err != nil {
		return err
	}
	for range 2 {
		if err := <-results; !errors.Is(err, shm.ErrClosed) {
			return fmt.Errorf("the wait ended with %v, want ErrClosed", err)
		}
	}
	return check(o.Region.Closed(), "the region is still open")
})

// Others take it for dead, rightly or not. It finds out while it waits, without anybody's help, and does
// not go on with what it held.
func TestMutexWaiterWithoutProofOfLifeFindsOut(t *testing.T) {
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	all := openMany(r)
	all[1].Lock()
	wait(t, start(t, waitWithoutProof, r, 0, 0))
	all[1].Unlock()
	if err := all[0].LockContext(context.Background()); !errors.Is(err, shmsync.ErrInconsistent) {
		t.Errorf("the lock that it held: %v", err)
	}
}
