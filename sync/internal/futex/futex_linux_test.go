//go:build !futexpoll

package futex

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Where the kernel or a filter knows no futex_waitv everything ends the same way.
func TestASleepEndsByWhatComesFirstWithoutWaitv(t *testing.T) {
	ForbidWaitv(true)
	defer ForbidWaitv(false)
	TestASleepEndsByWhatComesFirst(t)
	TestAWakeIsNeverReportedAsAChange(t)
	if CanWaitv() {
		t.Error("waitv is used")
	}
}

// sleeping counts the threads of this process in a system call that begins so.
func sleeping(t *testing.T, call string) (n int) {
	t.Helper()
	files, _ := filepath.Glob("/proc/self/task/*/syscall")
	if len(files) == 0 {
		t.Skip("the kernel does not tell in what calls threads are")
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), call) {
			n++
		}
	}
	return n
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s for: %s", what)
		}
	}
}

// The kernel wakes one by the bell, who wakes the others: those in a thread of their own, and those who can
// sleep by one word only, and find out by themselves.
func TestWhoeverHearsTheBellWakesTheOthers(t *testing.T) {
	bell := new(uint32)
	*bell = 7
	var ends []<-chan Result
	for range 4 {
		w, _ := words()
		ends = append(ends, sleep(w, bell, time.Hour, nil))
	}
	await(t, "four to sleep", func() bool { return sleeping(t, fmt.Sprint(unix.SYS_FUTEX_WAITV, " ")) == 4 })
	atomic.StoreUint32(bell, 8)
	Wake(bell, 1)
	for _, end := range ends {
		expect(t, end, Rung)
	}
}

// Of two words that are woken at once the kernel tells one. The bell must not be the one that is forgotten.
func TestTheBellIsHeardBesideAWake(t *testing.T) {
	for range 50 {
		bell := new(uint32)
		*bell = 7
		w, _ := words()
		c := new(Cancel)
		first, second := sleep(w, bell, time.Hour, c), sleep(new5(), bell, time.Hour, nil)
		await(t, "two to sleep", func() bool { return sleeping(t, fmt.Sprint(unix.SYS_FUTEX_WAITV, " ")) == 2 })
		atomic.StoreUint32(bell, 8)
		Wake(bell, 1) // whoever came first
		Wake(w, 1)
		c.Cancel()
		expect(t, first, Rung)
		expect(t, second, Rung)
	}
}

func new5() *uint32 {
	w := new(uint32)
	*w = 5
	return w
}

func TestASetIsSleptByTogether(t *testing.T) {
	var s Set
	all := make([]uint32, SetSize)
	for round := range 3 { // a set is used again
		s.Clear()
		for i := range all {
			all[i] = uint32(i)
			s.Add(Word{&all[i], uint32(i)}, i%2 == 0)
		}
		if i, r := s.Wait(5 * time.Millisecond); r != Expired || i != -1 {
			t.Errorf("nothing happens: %d, result %d", i, r)
		}
		for _, i := range []int{0, 1, 64, SetSize - 1} {
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					if index, r := s.Wait(time.Hour); r != Changed { // else a signal
						if index != i || r != Woken {
							t.Errorf("word %d is woken: %d, result %d", i, index, r)
						}
						return
					}
				}
			}()
			for asleep := true; asleep; { // the first wake may come while it is on its way
				if i%2 == 0 {
					wakePrivate((*atomic.Uint32)(unsafe.Pointer(&all[i])))
				} else {
					Wake(&all[i], 1)
				}
				select {
				case <-done:
					asleep = false
				case <-time.After(100 * time.Microsecond):
				}
			}
			all[i]++
			if index, r := s.Wait(time.Hour); index != -1 || r != Changed {
				t.Errorf("round %d, word %d reads something else: %d, result %d", round, i, index, r)
			}
			all[i]--
		}
	}
	s.Clear()
	s.Add(Word{Addr: (*uint32)(unsafe.Pointer(&all[0]))}, false)
	ForbidWaitv(true)
	defer ForbidWaitv(false)
	if i, r := s.Wait(time.Hour); r != Refused || i != -1 {
		t.Errorf("without waitv: %d, result %d", i, r)
	}
}
