package sync

import (
	"runtime"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/sync/internal/futex"
)

// A holder killed in its first moments has no bell yet, and the first look at it comes too early, perhaps.
func TestMutexWaiterOfAHolderWithoutABellLooksOftenAtFirst(t *testing.T) {
	const holder = 1 << 20
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	a := attempt{region: r}
	a.rest(firstSleep)
	for i, want := range []time.Duration{2, 4, 8, 16, 32, 64, 100, 100} {
		a.look = time.Now()
		if want *= time.Millisecond; !a.time(holder) || a.nap != want {
			t.Fatalf("after look %d it naps for %v, want %v", i, a.nap, want)
		}
		if bell := a.bell(holder); bell.Addr != nil || a.nap != want {
			t.Fatalf("it naps for %v, by the bell %v, want %v by none", a.nap, bell, want)
		}
	}
}

func TestMutexWaiterWithABellLooksSeldom(t *testing.T) {
	if !futex.Kernel || runtime.GOOS != "linux" {
		t.Skip("there are no bells")
	}
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		if word, _, _ := r.Bell(shm.Token(token)); word != nil { // our own: it is hung by a goroutine
			break
		}
		if time.Now().After(end) {
			t.Skip("this kernel rings no bells")
		}
	}
	a := attempt{region: r}
	a.rest(firstSleep)
	if bell := a.bell(token); bell.Addr != nil {
		t.Error("it sleeps by a bell before its first look")
	}
	for i, want := range []time.Duration{10, 20, 40, 80, 100, 100} {
		a.look = time.Now()
		want *= time.Millisecond
		if !a.time(token) || a.bell(token).Addr == nil || a.nap != want {
			t.Fatalf("after look %d it naps for %v, want %v, by a bell", i, a.nap, want)
		}
	}
}
