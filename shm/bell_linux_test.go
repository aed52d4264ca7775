//go:build !futexpoll

package shm_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	stdsync "sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shmkit/shm"
)

const rung = uint32(1<<31 | 1<<30) // what the kernel leaves in a bell's word

// needBells skips a test where nothing rings at the end of a thread, as under an emulator.
func needBells(tb testing.TB) {
	tb.Helper()
	var head, size uintptr
	_, _, e := unix.RawSyscall(unix.SYS_GET_ROBUST_LIST, 0, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&size)))
	if e == unix.ENOSYS {
		tb.Skip("the system keeps no robust lists of threads")
	}
}

// bellOf waits until the process t has a bell in r.
func bellOf(tb testing.TB, r *shm.Region, t shm.Token) (word *atomic.Uint32, val uint32) {
	tb.Helper()
	wait(tb, "a bell", func() bool {
		word, val, _ = r.Bell(t)
		return word != nil
	})
	return word, val
}

// sleeper sleeps by a word that reads val, and says what ended its sleep. A signal that comes after the
// word has changed ends it like the wake that comes then.
func sleeper(tb testing.TB, word *atomic.Uint32, val uint32) <-chan error {
	tb.Helper()
	ended := make(chan error, 1)
	call := fmt.Sprintf("%d %#x ", unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)))
	sleepers := func() (n int) {
		runtime.LockOSThread()
		own, err := os.ReadFile("/proc/thread-self/syscall")
		runtime.UnlockOSThread()
		switch {
		case err != nil:
			tb.Skip("the kernel does not tell in what calls threads are: ", err)
		case !strings.HasPrefix(string(own), fmt.Sprintf("%d ", unix.SYS_READ)):
			tb.Skipf("an emulator hides in what calls threads are: a read is %q", own)
		}
		files, _ := filepath.Glob("/proc/self/task/*/syscall")
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), call) {
				n++
			}
		}
		return n
	}
	before := sleepers()
	go func() {
		for {
			_, _, e := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), 0, uintptr(val), 0, 0, 0)
			switch {
			case e == 0 && word.Load() == val: // for no reason
			case e == 0, e == unix.EAGAIN:
				ended <- nil
				return
			case e != unix.EINTR:
				ended <- e
				return
			}
		}
	}()
	wait(tb, "a sleeper sleeps", func() bool { return sleepers() > before })
	return ended
}

func woken(tb testing.TB, ended <-chan error) {
	tb.Helper()
	select {
	case err := <-ended:
		if err != nil {
			tb.Errorf("the sleep ended by %v, want a wake", err)
		}
	case <-time.After(patience):
		tb.Error("sleeps on")
	}
}

// ringer attaches to the region in a file, waits until it has a bell there, tells its token, and ends as
// told once word 2 says so.
var ringer = role("ringer", func(args []string) error {
	r, err := shm.OpenFile(args[0])
	if err != nil {
		return err
	}
	if err := hung(r); err != nil {
		return err
	}
	word(r, 1).Store(uint64(shm.Self()))
	word(r, 0).Add(1)
	now := word(r, 2)
	if err := await("the word to end", func() bool { return now.Load() != 0 }); err != nil {
		return err
	}
	switch args[1] {
	case "exit":
	case "panic":
		panic("as told")
	case "close, then kill":
		if err := r.Close(); err != nil {
			return err
		}
		fallthrough
	case "kill":
		unix.Kill(os.Getpid(), unix.SIGKILL)
	case "exec":
		os.Setenv(roleVariable, stay)
		return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	case "lose the seat":
		if _, err := (blow{Liveness: true}).strike(r); err != nil {
			return err
		}
		r.Scan() // notices
		untilTheTestEnds()
	}
	return nil
})

var stay = role("stay", func([]string) error {
	untilTheTestEnds()
	return nil
})

// hung waits until this process has a bell in r.
func hung(r *shm.Region) error {
	return await("a bell of our own", func() bool {
		word, _, _ := r.Bell(shm.Self())
		return word != nil
	})
}

func TestTheKernelRingsTheBellOfAProcessThatEnds(t *testing.T) {
	needBells(t)
	for _, end := range []string{"kill", "exit", "panic", "exec", "close, then kill", "lose the seat", "kill in a namespace"} {
		t.Run(end, func(t *testing.T) {
			r := namedRegion(t)
			how, inside := strings.CutSuffix(end, " in a namespace")
			var attr *syscall.SysProcAttr
			if inside {
				attr = inNamespace()
			}
			p := play(t, os.Args[0], attr, nil, ringer, r.Path(), how)
			token, _ := p.attached(t, r, 1)
			bell, val := bellOf(t, r, token)
			ended := sleeper(t, bell, val)
			word(r, 2).Store(1)
			woken(t, ended)
			if v := bell.Load(); v != rung {
				t.Errorf("the word is %#x, want %#x", v, rung)
			}
			if again, _, rang := r.Bell(token); again != nil || !rang {
				t.Errorf("after the bell: word %v, rung %v", again, rang)
			}
			wait(t, "the proof of its death", func() bool { _, settled := r.Settled(token); return settled })
		})
	}
}

// manyBells has bells in the regions of several files, and had others before, between and behind them.
var manyBells = role("many bells", func(args []string) error {
	var others []*shm.Region
	another := func() error {
		r, err := shm.Anonymous(shm.Limit(1 << 20))
		if err == nil {
			others = append(others, r)
			err = hung(r)
		}
		return err
	}
	if err := another(); err != nil {
		return err
	}
	var mine []*shm.Region
	for _, path := range args {
		r, err := shm.OpenFile(path)
		if err != nil {
			return err
		}
		if err := errors.Join(hung(r), another()); err != nil {
			return err
		}
		mine = append(mine, r)
	}
	for _, i := range []int{1, len(others) - 1, 0} {
		if err := others[i].Close(); err != nil {
			return err
		}
	}
	if err := another(); err != nil { // in the place of one that is gone
		return err
	}
	if n, want := shm.Bells(), len(mine)+len(others)-3; n != want {
		return fmt.Errorf("%d bells hang, want %d", n, want)
	}
	for _, r := range mine {
		word(r, 1).Store(uint64(shm.Self()))
		word(r, 0).Add(1)
	}
	untilTheTestEnds()
	return nil
})

func TestEveryRegionHasItsBell(t *testing.T) {
	needBells(t)
	var regions []*shm.Region
	var paths []string
	for range 4 {
		r := namedRegion(t)
		regions, paths = append(regions, r), append(paths, r.Path())
	}
	p := play(t, os.Args[0], nil, nil, manyBells, paths...)
	var tokens []shm.Token
	for _, r := range regions {
		token, _ := p.attached(t, r, 1)
		bellOf(t, r, token)
		tokens = append(tokens, token)
	}
	// What others write into the slots of one region silences that one at most.
	slot := -1
	for i := range shm.SlotCount {
		if token, _, _ := shm.Slot(regions[1], i); token == tokens[1] {
			slot = i
		}
	}
	for i := range 16 {
		if i > 1 { // token and state are read by others only
			shm.SlotWords(regions[1])[16*slot+i].Store(0x1eed_1eed_1eed_1ee0 + uint64(i))
		}
	}
	p.kill()
	for i, r := range regions {
		if _, _, rang := r.Bell(tokens[i]); rang != (i != 1) {
			t.Errorf("region %d: rung %v", i, rang)
		}
	}
}

func TestABellStaysOverCloseAndOpen(t *testing.T) {
	needBells(t)
	dir := named(t)
	r, err := shm.Create("r", dir)
	must(t, r, err)
	bell, val := bellOf(t, r, shm.Self())
	before := shm.Bells()
	for range 3 {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if n := shm.Bells(); n != before {
			t.Errorf("closed: %d bells hang, want %d", n, before)
		}
		if bell, _, rang := r.Bell(shm.Self()); bell != nil || rang {
			t.Error("a closed region has bells")
		}
		r, err = shm.Open("r", dir)
		must(t, r, err)
		if !shm.HangBell(r) || shm.Bells() != before {
			t.Errorf("opened again: %d bells hang, want %d", shm.Bells(), before)
		}
		if _, again := bellOf(t, r, shm.Self()); again != val {
			t.Errorf("opened again: the word is %#x, was %#x", again, val)
		}
	}
	if bell.Load() != 0 { // private memory since the first Close
		t.Errorf("the closed region's word is %#x", bell.Load())
	}
	if err := errors.Join(shm.Remove("r", dir), r.Close()); err != nil {
		t.Fatal(err)
	}
	if n := shm.Bells(); n != before-1 {
		t.Errorf("given up: %d bells hang, want %d", n, before-1)
	}
}

func TestABellIsThatOfTheProcessInTheSlot(t *testing.T) {
	needBells(t)
	r := namedRegion(t)
	p := play(t, os.Args[0], nil, nil, ringer, r.Path(), "kill")
	first, _ := p.attached(t, r, 1)
	bellOf(t, r, first)
	p.kill()
	wait(t, "the proof of its death", func() bool { _, settled := r.Settled(first); return settled })
	for name, token := range map[string]shm.Token{"of the dead": first, "of nobody": shm.NewToken(), "none": 0} {
		if word, _, rang := r.Bell(token); word != nil || rang {
			t.Errorf("token %s: word %v, rung %v", name, word, rang)
		}
	}
	p = play(t, os.Args[0], nil, nil, ringer, r.Path(), "kill")
	second, _ := p.attached(t, r, 2)
	if bell, _ := bellOf(t, r, second); bell.Load() == rung {
		t.Error("the bell of the next has rung already")
	}
	reader, err := shm.OpenFile(r.Path(), shm.ReadOnly())
	must(t, reader, err)
	bellOf(t, reader, second)
	heap, err := shm.Heap()
	must(t, heap, err)
	if word, _, rang := heap.Bell(shm.Self()); word != nil || rang {
		t.Error("a region on the heap has a bell")
	}
}

// A word that somebody else has written is no bell, unless it looks like one.
func TestAScribbledBellIsNone(t *testing.T) {
	needBells(t)
	r := namedRegion(t)
	p := play(t, os.Args[0], nil, nil, ringer, r.Path(), "kill")
	token, _ := p.attached(t, r, 1)
	bell, _ := bellOf(t, r, token)
	for v, want := range map[uint32]bool{0: false, 1 << 31: false, 77: false, 77 | 1<<31: true} {
		bell.Store(v)
		if word, val, rang := r.Bell(token); (word != nil) != want || rang || want && val != v {
			t.Errorf("%#x: word %v reads %#x, rung %v", v, word, val, rang)
		}
	}
	bell.Store(1 << 30)
	if word, _, rang := r.Bell(token); word != nil || !rang {
		t.Errorf("%#x: word %v, rung %v", 1<<30, word, rang)
	}
}

// deaf runs where a filter answers some system call with an error. It is not worse off otherwise.
var deaf = role("deaf", func(args []string) error {
	call, _ := strconv.Atoi(args[1])
	errno, _ := strconv.Atoi(args[2])
	if err := forbid(call, syscall.Errno(errno)); err != nil {
		fmt.Println("skip:", err)
		return nil
	}
	r, err := shm.OpenFile(args[0])
	if err != nil {
		return err
	}
	for range 2 {
		shm.HangBell(r)
		if word, _, rang := r.Bell(shm.Self()); word != nil || rang || shm.Bells() != 0 {
			return fmt.Errorf("a bell hangs: %v, rung %v", word, rang)
		}
	}
	if shm.SlotsOf(r, shm.Self()) != 1 {
		return errors.New("not attached")
	}
	again, err := shm.Anonymous(shm.Limit(1 << 20))
	if err != nil {
		return err
	}
	return errors.Join(again.Close(), r.Close())
})

// forbid has the kernel answer a system call of this process with an error, as a filter of a container does.
func forbid(call int, e syscall.Errno) error {
	const load, jump, answer = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	program := []unix.SockFilter{
		{Code: load, K: 0}, // the number of the call
		{Code: jump, Jf: 1, K: uint32(call)},
		{Code: answer, K: unix.SECCOMP_RET_ERRNO | uint32(e)},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&filter)))
	if errno != 0 {
		return errno
	}
	return nil
}

func TestNoBellWhereTheSystemRefuses(t *testing.T) {
	for name, call := range map[string]int{"set_robust_list": unix.SYS_SET_ROBUST_LIST, "mremap": unix.SYS_MREMAP} {
		for _, e := range []syscall.Errno{unix.EPERM, unix.ENOSYS} {
			t.Run(name+"/"+unix.ErrnoName(e), func(t *testing.T) {
				r := namedRegion(t)
				for i := range shm.SlotCount {
					if i != shm.SlotOf(r) {
						shm.Soil(r, i) // the bell of one before has rung
					}
				}
				p := play(t, os.Args[0], nil, nil, deaf, r.Path(), strconv.Itoa(call), strconv.Itoa(int(e)))
				p.succeed(t)
				if strings.Contains(p.output.String(), "skip:") {
					t.Skip(p.output.String())
				}
			})
		}
	}
}

// The list is walked at a death while it changes: the process dies in the middle of opening and giving up
// regions, and its bell in another one rings.
var openAndGiveUp = role("open and give up", func(args []string) error {
	r, err := shm.OpenFile(args[0])
	if err != nil {
		return err
	}
	if err := hung(r); err != nil {
		return err
	}
	word(r, 1).Store(uint64(shm.Self()))
	word(r, 0).Add(1)
	var many stdsync.WaitGroup
	for range 2 {
		many.Go(func() {
			for {
				other, err := shm.Anonymous(shm.Limit(1 << 20))
				if err != nil {
					panic(err)
				}
				shm.HangBell(other)
				other.Close()
			}
		})
	}
	many.Wait()
	return nil
})

func TestABellRingsWhileOthersComeAndGo(t *testing.T) {
	needBells(t)
	missed := 0
	const rounds = 40
	for range rounds {
		r := namedRegion(t)
		p := play(t, os.Args[0], nil, nil, openAndGiveUp, r.Path())
		token, _ := p.attached(t, r, 1)
		bellOf(t, r, token)
		time.Sleep(2 * time.Millisecond)
		p.kill()
		if _, _, rang := r.Bell(token); !rang {
			missed++
		}
		r.Close()
	}
	// A walk in the middle of a change may leave one out; a list that is broken leaves out most.
	if missed > rounds/4 {
		t.Errorf("%d of %d bells did not ring", missed, rounds)
	}
}

// How long after a kill does the bell ring, and when is the byte lock free, which is the proof?
func BenchmarkKill(b *testing.B) {
	var bells, proofs []float64
	for b.Loop() {
		b.StopTimer()
		r, err := shm.Create("r", named(b))
		must(b, r, err)
		p := play(b, os.Args[0], nil, nil, ringer, r.Path(), "kill")
		token, _ := p.attached(b, r, 1)
		word, val := bellOf(b, r, token)
		ended := sleeper(b, word, val)
		b.StartTimer()
		begin := time.Now()
		p.Process.Kill()
		if err := <-ended; err != nil {
			b.Fatal(err)
		}
		bells = append(bells, time.Since(begin).Seconds()*1e6)
		for settled := false; !settled; {
			_, settled = r.Settled(token)
		}
		proofs = append(proofs, time.Since(begin).Seconds()*1e6)
		b.StopTimer()
		p.kill()
		r.Close()
		b.StartTimer()
	}
	for name, all := range map[string][]float64{"bell": bells, "proof": proofs} {
		slices.Sort(all)
		b.ReportMetric(all[len(all)/2], name+"-p50-us")
		b.ReportMetric(all[len(all)*99/100], name+"-p99-us")
	}
}
