//go:build !futexpoll

package sync

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	stdsync "sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	"github.com/shmkit/shmkit/sync/internal/futex"
)

// Nothing that these tests wait for comes by itself.
func init() { tidyAfter = time.Hour }

// needWaitv skips a test where nobody can sleep by several words: before Linux 5.16, and under an emulator.
func needWaitv(t *testing.T) {
	t.Helper()
	if _, _, e := unix.Syscall6(unix.SYS_FUTEX_WAITV, 0, 0, 0, 0, 0, 0); e == unix.ENOSYS {
		t.Skip("the system has no futex_waitv")
	}
}

// crowded has everybody sleep without a thread of their own until the test ends.
func crowded(t *testing.T) {
	t.Helper()
	needWaitv(t)
	ownSleepers.Add(ownThreads)
	t.Cleanup(func() { ownSleepers.Add(-ownThreads) })
}

// idle waits until no poller is left; it has them tidy up now.
func idle(t *testing.T) {
	t.Helper()
	eventually(t, "the pollers are gone", func() bool {
		pollers.mu.Lock()
		defer pollers.mu.Unlock()
		for _, p := range pollers.all {
			p.control.Add(1)
			futex.WakePrivate(plain(&p.control))
		}
		return len(pollers.all) == 0
	})
}

// covered waits until the poller sleeps for all its entries, n of which are active.
func covered(t *testing.T, n int) {
	t.Helper()
	eventually(t, fmt.Sprint(n, " entries are slept for"), func() bool {
		pollers.mu.Lock()
		defer pollers.mu.Unlock()
		active := 0
		for _, p := range pollers.all {
			if p.covered != len(p.entries) || !p.asleep {
				return false
			}
			for _, e := range p.entries {
				if e.active {
					active++
				}
			}
		}
		return active == n
	})
}

type pair struct{ w, bell uint32 }

func (p *pair) words(bell bool) (w, b futex.Word) {
	w = futex.Word{Addr: &p.w, Val: p.w}
	if bell {
		b = futex.Word{Addr: &p.bell, Val: p.bell}
	}
	return w, b
}

// asleep sleeps by the words of p without a thread.
func (b *bed) asleep(p *pair, bell bool, d time.Duration, c *futex.Cancel) <-chan futex.Result {
	end := make(chan futex.Result, 1)
	w, r := p.words(bell)
	go func() { end <- b.on(w, r, d, c) }()
	return end
}

func ends(t *testing.T, end <-chan futex.Result, want ...futex.Result) {
	t.Helper()
	select {
	case r := <-end:
		if !slices.Contains(want, r) {
			t.Errorf("the sleep ended as %d, want %d", r, want)
		}
	case <-time.After(20 * time.Second):
		t.Error("sleeps on")
	}
}

func TestASleepWithoutAThreadEndsAsOneWith(t *testing.T) {
	for _, waitv := range []bool{true, false} {
		t.Run(fmt.Sprintf("waitv=%v", waitv), func(t *testing.T) {
			crowded(t)
			futex.ForbidWaitv(!waitv)
			defer futex.ForbidWaitv(false)
			for name, c := range map[string]struct {
				do   func(p *pair, c *futex.Cancel)
				d    time.Duration
				want futex.Result
			}{
				"change": {func(p *pair, _ *futex.Cancel) { atomic.AddUint32(&p.w, 1); futex.Wake(&p.w, 1) }, time.Hour, futex.Woken},
				"bell":   {func(p *pair, _ *futex.Cancel) { atomic.AddUint32(&p.bell, 1); futex.Wake(&p.bell, 1) }, time.Hour, futex.Rung},
				"cancel": {func(_ *pair, c *futex.Cancel) { c.Cancel() }, time.Hour, futex.Cancelled},
				"time":   {func(*pair, *futex.Cancel) {}, 10 * time.Millisecond, futex.Expired},
			} {
				p, cancel, b := new(pair), new(futex.Cancel), new(bed)
				begin := time.Now()
				end := b.asleep(p, true, c.d, cancel)
				if waitv && name != "time" {
					covered(t, 1)
				} else {
					time.Sleep(time.Millisecond)
				}
				c.do(p, cancel)
				ends(t, end, c.want)
				if name == "time" && time.Since(begin) < c.d {
					t.Errorf("expired too early")
				}
			}
			p, cancel := new(pair), new(futex.Cancel)
			w, bell := p.words(true)
			b := new(bed)
			if r := b.on(futex.Word{Addr: &p.w, Val: 1}, bell, time.Hour, nil); r != futex.Changed {
				t.Errorf("another value before: %d", r)
			}
			if r := b.on(w, futex.Word{Addr: &p.bell, Val: 1}, time.Hour, nil); r != futex.Rung {
				t.Errorf("the bell before: %d", r)
			}
			cancel.Cancel()
			if r := b.on(w, bell, time.Hour, cancel); r != futex.Cancelled {
				t.Errorf("cancelled before: %d", r)
			}
			if r := b.on(w, bell, 0, nil); r != futex.Expired {
				t.Errorf("no time: %d", r)
			}
		})
	}
	idle(t)
}

// A wake-up that changes nothing is one all the same.
func TestAWakeWithoutAChangeIsToldToTheOneItWasFor(t *testing.T) {
	crowded(t)
	p, q := new(pair), new(pair)
	first, second := new(bed).asleep(p, true, time.Hour, nil), new(bed).asleep(q, true, time.Hour, nil)
	covered(t, 2)
	for told := false; !told; time.Sleep(100 * time.Microsecond) { // the poller may be on its way still
		futex.Wake(&q.w, 1)
		told = len(second) > 0
	}
	ends(t, second, futex.Woken)
	if len(first) > 0 {
		t.Error("the other one was woken too")
	}
	atomic.StoreUint32(&p.w, 1)
	futex.Wake(&p.w, 1)
	ends(t, first, futex.Woken)
	idle(t)
}

// The poller is the kernel's first sleeper of a word whose goroutine has gone. What wakes it then was for
// the next.
func TestAWakeForOneWhoHasGoneIsPassedOn(t *testing.T) {
	needWaitv(t)
	for _, change := range []bool{true, false} {
		for _, bell := range []bool{true, false} {
			for _, cancelled := range []bool{true, false} {
				crowd := func() { ownSleepers.Add(ownThreads) }
				crowd()
				p, keep := new(pair), new(pair)
				kept := new(bed).asleep(keep, false, time.Hour, nil) // so that the poller does not end
				b, c := new(bed), new(futex.Cancel)
				end := b.asleep(p, true, time.Hour, c)
				covered(t, 2)
				if cancelled {
					c.Cancel()
					ends(t, end, futex.Cancelled)
				} else {
					pollers.mu.Lock()
					b.e.active = false
					pollers.mu.Unlock()
				}
				addr := &p.w
				if bell {
					addr = &p.bell
				}
				ownSleepers.Add(-ownThreads) // the next has a thread
				next := make(chan futex.Result, 1)
				w, val := (*atomic.Uint32)(unsafe.Pointer(addr)), atomic.LoadUint32(addr)
				sleep := func() { next <- futex.Sleep(futex.Word{Addr: addr, Val: val}, futex.Word{}, time.Hour, nil) }
				go sleep()
				call := fmt.Sprintf("%d %#x ", unix.SYS_FUTEX, uintptr(unsafe.Pointer(w)))
				eventually(t, "the next sleeps", func() bool {
					select {
					case <-next: // a signal of the scheduler met it on its way into the kernel
						go sleep()
					default:
					}
					return inCall(t, call) == 1
				})
				time.Sleep(time.Millisecond)
				if change {
					w.Add(1)
				}
				futex.Wake(addr, 1)
				ends(t, next, futex.Woken)
				atomic.AddUint32(&keep.w, 1)
				futex.Wake(&keep.w, 1)
				ends(t, kept, futex.Woken)
				if !cancelled {
					b.e.told <- futex.Expired
					<-end
				}
			}
		}
	}
	idle(t)
}

// An entry that is added when the poller has its list, but does not sleep yet, ends the sleep at once.
func TestOneWhoComesWhileThePollerGoesToSleepIsSleptFor(t *testing.T) {
	needWaitv(t)
	entryOf := func(p *pair) *entry {
		w, bell := p.words(true)
		return &entry{w: w, bell: bell, active: true, told: make(chan futex.Result, 1)}
	}
	p, late := &poller{words: 1}, entryOf(new(pair))
	pollers.mu.Lock()
	p.append(entryOf(new(pair)))
	pollers.mu.Unlock()
	if !p.gather() {
		t.Fatal("nobody to sleep for")
	}
	pollers.mu.Lock()
	p.append(late)
	pollers.mu.Unlock()
	if _, r := p.set.Wait(5 * time.Second); r != futex.Changed {
		t.Errorf("the sleep ended as %d, want %d", r, futex.Changed)
	}
	if told, wakes := p.settle(-1, futex.Changed); told || len(wakes) > 0 {
		t.Errorf("told somebody: %v; wakes %v", told, wakes)
	}
	if p.gather(); p.covered != 2 {
		t.Errorf("the next sleep is for %d, want 2", p.covered)
	}
}

func TestOneWhoComesBackFindsItsPlaceKept(t *testing.T) {
	crowded(t)
	p, b := new(pair), new(bed)
	w, bell := p.words(true)
	// It has no place if its time was over before the poller began.
	var first *entry
	var p0 *poller
	for d := time.Millisecond; p0 == nil; d *= 2 {
		if r := b.on(w, bell, d, nil); r != futex.Expired {
			t.Fatal(r)
		}
		pollers.mu.Lock()
		first, p0 = b.e, b.e.poller
		pollers.mu.Unlock()
	}
	covered(t, 0)
	// A poller that was not run for longer than the millisecond looks by itself, and the place is gone: then once more.
	kept := false
	for range 1000 {
		before, now := p0.control.Load(), b.e
		for range 5 {
			if r := b.on(w, bell, time.Millisecond, nil); r != futex.Expired {
				t.Error(r)
			}
		}
		if kept = now == first && b.e == first && p0.control.Load() == before; kept {
			break
		}
		pollers.mu.Lock()
		if b.e != nil && b.e.poller != nil {
			first, p0 = b.e, b.e.poller
		}
		pollers.mu.Unlock()
	}
	if !kept {
		t.Fatal("it always got another place")
	}
	p.w++
	w, bell = p.words(true)
	end := b.asleep(p, true, time.Hour, nil)
	covered(t, 1)
	if b.e == first {
		t.Error("it sleeps by what the word was before")
	}
	atomic.AddUint32(&p.w, 1)
	futex.Wake(&p.w, 1)
	ends(t, end, futex.Woken)
	idle(t)
}

// Of a thousand who wait for a thousand words a few hundred have threads; all are woken.
func TestAThousandSleepersHaveFewThreads(t *testing.T) {
	for _, waitv := range []bool{true, false} {
		t.Run(fmt.Sprintf("waitv=%v", waitv), func(t *testing.T) {
			if waitv {
				needWaitv(t)
			}
			futex.ForbidWaitv(!waitv)
			defer futex.ForbidWaitv(false)
			threads := func() int {
				tasks, err := os.ReadDir("/proc/self/task")
				if err != nil {
					t.Skip("counts the threads in /proc/self/task: ", err)
				}
				return len(tasks)
			}
			before := threads()
			const n = 1000
			all, bells := make([]pair, n), make([]pair, 10)
			var ended [n]<-chan futex.Result
			for i := range all {
				w, _ := all[i].words(false)
				_, bell := bells[i%len(bells)].words(i%3 == 0)
				end := make(chan futex.Result, 1)
				ended[i] = end
				go func() {
					var b bed
					for r := futex.Woken; ; { // by signals
						if r = b.on(w, bell, time.Hour, nil); w.Changed() {
							end <- r
							return
						}
					}
				}()
			}
			eventually(t, "as many as may have a thread", func() bool { return ownSleepers.Load() == ownThreads })
			if waitv {
				covered(t, n-ownThreads)
			}
			if now := threads(); now > before+ownThreads+n/100+2*runtime.GOMAXPROCS(0)+10 {
				t.Errorf("%d threads, %d before", now, before)
			}
			for _, i := range rand.Perm(n) {
				atomic.AddUint32(&all[i].w, 1)
				futex.Wake(&all[i].w, 1)
			}
			for i := range all {
				ends(t, ended[i], futex.Woken, futex.Changed) // with a thread, but not asleep yet
			}
			if n := ownSleepers.Load(); n != 0 {
				t.Errorf("%d threads are not given back", n)
			}
			idle(t)
		})
	}
}

// What wakes many at once, and how many words a poller takes: bells of few, and of all.
func TestABellIsHeardByAllWhoShareAThread(t *testing.T) {
	for _, bells := range []int{1, 3, 200} {
		crowded(t)
		const n = 400
		all, rings := make([]pair, n), make([]pair, bells)
		var ended [n]<-chan futex.Result
		for i := range all {
			w, _ := all[i].words(false)
			_, bell := rings[i%bells].words(true)
			end := make(chan futex.Result, 1)
			ended[i] = end
			go func() { end <- new(bed).on(w, bell, time.Hour, nil) }()
		}
		covered(t, n)
		pollers.mu.Lock()
		if least := (n + bells) / 127; len(pollers.all) > 2*least+3 {
			t.Errorf("%d bells: %d pollers for %d sleepers", bells, len(pollers.all), n)
		}
		pollers.mu.Unlock()
		for i := range rings {
			atomic.AddUint32(&rings[i].bell, 1)
			futex.Wake(&rings[i].bell, 1) // as the kernel does
		}
		for i := range all {
			ends(t, ended[i], futex.Rung)
		}
		ownSleepers.Add(-ownThreads)
		idle(t)
		ownSleepers.Add(ownThreads)
	}
}

// A plain lock of three states (Drepper, "Futexes Are Tricky", mutex2) stands and falls with every
// wake-up: no sleep has an end here but by a wake or a cancellation, and an unlock wakes one. Half of the
// sleepers have threads, half share one; some go by their time or are cancelled, and pass on what they may
// have used up. A wake-up that is lost leaves somebody asleep for ever.
func TestNoWakeIsLostAmongSleepersThatShareThreads(t *testing.T) {
	crowded(t)
	const locks, goroutines = 40, 240
	rounds := 300
	if testing.Short() {
		rounds = 50
	}
	type plainLock struct {
		word  uint32
		inner atomic.Int32
		count int
		_     [40]byte
	}
	all := make([]plainLock, locks)
	sleep := func(b *bed, own bool, w futex.Word, d time.Duration, c *futex.Cancel) futex.Result {
		if own {
			return futex.Sleep(w, futex.Word{}, d, c)
		}
		return b.on(w, futex.Word{}, d, c)
	}
	// lock reports whether it has l; it may give up if it has a Cancel or an end.
	lock := func(l *plainLock, own bool, rnd *rand.Rand) bool {
		if atomic.CompareAndSwapUint32(&l.word, 0, 1) {
			return true
		}
		var b bed
		var c *futex.Cancel
		d := time.Hour
		switch rnd.IntN(8) {
		case 0:
			d = time.Duration(rnd.IntN(200)) * time.Microsecond
		case 1:
			c = new(futex.Cancel)
			time.AfterFunc(time.Duration(rnd.IntN(200))*time.Microsecond, c.Cancel)
		}
		slept := false
		for atomic.SwapUint32(&l.word, 2) != 0 {
			r := sleep(&b, own, futex.Word{Addr: &l.word, Val: 2}, d, c)
			slept = slept || r != futex.Changed
			if (r == futex.Expired || r == futex.Cancelled) && rnd.IntN(2) == 0 {
				if slept {
					futex.Wake(&l.word, 1)
				}
				return false
			}
			if c.Cancelled() {
				c = nil
			}
			if d < time.Hour && rnd.IntN(4) == 0 {
				d = time.Hour
			}
		}
		return true
	}
	unlock := func(l *plainLock) {
		if atomic.SwapUint32(&l.word, 0) == 2 {
			futex.Wake(&l.word, 1)
		}
	}
	var many stdsync.WaitGroup
	var taken atomic.Int64
	for i := range goroutines {
		many.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			for range rounds {
				l := &all[rnd.IntN(locks)]
				if !lock(l, i%2 == 0, rnd) {
					continue
				}
				if l.inner.Add(1) != 1 {
					t.Error("two hold one lock")
				}
				l.count++
				taken.Add(1)
				if rnd.IntN(4) == 0 {
					time.Sleep(time.Duration(rnd.IntN(50)) * time.Microsecond)
				} else {
					runtime.Gosched()
				}
				l.inner.Add(-1)
				unlock(l)
			}
		})
	}
	done := make(chan struct{})
	go func() { many.Wait(); close(done) }()
	for last := int64(-1); ; {
		select {
		case <-done:
			t.Logf("%d acquisitions", taken.Load())
			idle(t)
			return
		case <-time.After(10 * time.Second):
		}
		now := taken.Load()
		if now == last {
			for i := range all {
				if w := atomic.LoadUint32(&all[i].word); w != 0 {
					t.Logf("lock %d: word %d", i, w)
				}
				futex.Wake(&all[i].word, 1<<30)
			}
			t.Fatalf("nobody gets on after %d acquisitions: a wake-up was lost", now)
		}
		last = now
	}
}

// Memory that is gone is the affair of the goroutine that waits by it, not of those for whom a poller
// sleeps beside it.
func TestACutFileHarmsOnlyThoseWhoWaitThere(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector's atomics cannot panic on a fault")
	}
	crowded(t)
	path := filepath.Join(t.TempDir(), "r")
	r, err := shm.CreateFile(path, shm.Limit(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	word, err := shm.At[uint32](r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	p := new(pair)
	other := new(bed).asleep(p, true, time.Hour, nil)
	there := make(chan error, 1)
	go func() {
		there <- r.Guard(func() error {
			var b bed
			for {
				b.on(futex.Word{Addr: word}, futex.Word{}, time.Hour, nil)
				if *word != 0 {
					return nil
				}
			}
		})
	}()
	covered(t, 2)
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	third := new(bed).asleep(new(pair), true, time.Millisecond, nil) // has the poller sleep anew
	ends(t, third, futex.Expired)
	select {
	case err := <-there:
		if !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("waits in a file that is gone: %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("waits on in a file that is gone")
	}
	covered(t, 1)
	atomic.AddUint32(&p.w, 1)
	futex.Wake(&p.w, 1)
	ends(t, other, futex.Woken)
	idle(t)
}

// The kernel's queue of a word is that of the memory there when the sleep began. Close puts other memory
// there; a sleep ends by its time then, and the next one does not begin.
func TestASleepInARegionThatIsClosedEndsByItsTime(t *testing.T) {
	crowded(t)
	r, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		t.Fatal(err)
	}
	word, err := shm.At[uint32](r, r.Data())
	if err != nil {
		t.Fatal(err)
	}
	*word = 5
	p := new(pair)
	other := new(bed).asleep(p, true, time.Hour, nil)
	covered(t, 1)
	var b bed
	end := make(chan futex.Result, 1)
	go func() { end <- b.on(futex.Word{Addr: word, Val: 5}, futex.Word{}, 50*time.Millisecond, nil) }()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if r := <-end; r != futex.Expired && r != futex.Changed && r != futex.Woken {
		t.Errorf("ended as %d", r)
	}
	if r := b.on(futex.Word{Addr: word, Val: 5}, futex.Word{}, time.Hour, nil); r != futex.Changed {
		t.Errorf("in the closed region: %d", r)
	}
	runtime.KeepAlive(r)
	atomic.AddUint32(&p.w, 1)
	futex.Wake(&p.w, 1)
	ends(t, other, futex.Woken)
	idle(t)
}

// Under a filter that answers futex_waitv with an error.
func TestSleepersGetOnWhereWaitvIsForbidden(t *testing.T) {
	for _, e := range []syscall.Errno{unix.EPERM, unix.ENOSYS} {
		p, err := sleepForbidden.Start(context.Background(), int(e), proc.Env("GORACE=atexit_sleep_ms=0"))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(); err != nil {
			t.Errorf("%v: %v", e, err)
		}
	}
}

var sleepForbidden = proc.Define("sleep forbidden", func(_ context.Context, e int) error {
	const load, jump, answer = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	program := []unix.SockFilter{
		{Code: load}, // the number of the call
		{Code: jump, Jf: 1, K: unix.SYS_FUTEX_WAITV},
		{Code: answer, K: unix.SECCOMP_RET_ERRNO | uint32(e)},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil // nothing to see here
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&filter)))
	if errno != 0 {
		return nil
	}
	for _, crowd := range []int32{ownThreads, 0} { // the poller first: it has to find out
		ownSleepers.Store(crowd)
		for range 2 {
			p, c := new(pair), new(futex.Cancel)
			w, bell := p.words(true)
			sleep := func(d time.Duration, c *futex.Cancel) (r futex.Result) {
				for r = futex.Woken; r == futex.Woken; { // by signals
					r = new(bed).on(w, bell, d, c)
				}
				return r
			}
			if r := sleep(30*time.Millisecond, c); r != futex.Expired {
				return fmt.Errorf("nothing happens: %d", r)
			}
			time.AfterFunc(2*time.Millisecond, c.Cancel)
			if r := sleep(time.Hour, c); r != futex.Cancelled {
				return fmt.Errorf("cancelled: %d", r)
			}
			time.AfterFunc(2*time.Millisecond, func() { atomic.AddUint32(&p.bell, 1) })
			if r := sleep(time.Hour, nil); r != futex.Rung {
				return fmt.Errorf("the bell: %d", r)
			}
		}
	}
	if futex.CanWaitv() {
		return errors.New("waitv is allowed")
	}
	return nil
})
