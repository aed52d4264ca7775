package shm_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// A blow is what foreign code does to the descriptors of a region.
type blow struct {
	Liveness, Mapping bool   // which of the two it hits
	Reuse             string // the file that gets the number; empty: nobody
}

func (b blow) String() string {
	return fmt.Sprintf("liveness=%v,mapping=%v,reused=%v", b.Liveness, b.Mapping, b.Reuse != "")
}

// strike strikes r. It returns the numbers that it has hit.
func (b blow) strike(r *shm.Region) (numbers []int, err error) {
	if b.Liveness {
		numbers = append(numbers, int(shm.LivenessFile(r).Fd()))
	}
	if b.Mapping {
		numbers = append(numbers, int(r.File().Fd()))
	}
	for _, fd := range numbers {
		if b.Reuse == "" {
			err = errors.Join(err, syscall.Close(fd))
			continue
		}
		path := b.Reuse
		if path == sameFile {
			path = fmt.Sprintf("/proc/self/fd/%d", r.File().Fd())
		}
		f, openErr := os.OpenFile(path, os.O_RDWR, 0)
		if openErr != nil {
			return numbers, openErr
		}
		err = errors.Join(err, unix.Dup3(int(f.Fd()), fd, unix.O_CLOEXEC), f.Close())
	}
	return numbers, err
}

// lookers are uses of a region that look for the proof. Each answers what it finds.
var lookers = map[string]func(r *shm.Region) error{
	"Scan":      func(r *shm.Region) error { r.Scan(); return access(r) },
	"Settled":   func(r *shm.Region) error { r.Settled(shm.NewToken()); return access(r) },
	"Exclusive": func(r *shm.Region) error { return r.Exclusive(func() error { return nil }) },
	"Grow":      func(r *shm.Region) error { return r.Grow(1 << 20) },
	"Close":     func(r *shm.Region) error { return r.Close() },
}

// access looks for nothing itself.
func access(r *shm.Region) error { _, err := r.Bytes(r.Data(), 1); return err }

// sameFile as the file that gets the number: that of the region, opened by somebody who does not hold the
// byte.
const sameFile = "the same"

func TestAProcessNoticesThatItsDescriptorsAreGone(t *testing.T) {
	for _, which := range []blow{{Liveness: true}, {Mapping: true}, {Liveness: true, Mapping: true}} {
		for _, reuse := range []bool{false, true} {
			b := which
			if reuse {
				b.Reuse = filepath.Join(memoryDir(t), "foreign")
				if err := os.WriteFile(b.Reuse, []byte("theirs"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			t.Run(b.String(), func(t *testing.T) { succeed(t, start(t, noticeThat, b)) })
		}
	}
	t.Run("the same file", func(t *testing.T) { succeed(t, start(t, noticeThat, blow{Liveness: true, Reuse: sameFile})) })
}

var noticeThat = proc.Define("noticeThat", func(_ context.Context, b blow) error {
	for name, use := range lookers {
		r, err := shm.Anonymous(shm.Limit(8 << 20))
		if err != nil {
			return err
		}
		again, err := r.Dup()
		if err != nil {
			return err
		}
		w := word(r, 0)
		w.Store(1)
		numbers, err := b.strike(r)
		if err != nil {
			return err
		}
		if name == "Close" {
			if err := again.Close(); err != nil {
				return err
			}
		}
		if err := use(r); !errors.Is(err, shm.ErrClosed) || !strings.Contains(err.Error(), "counts as dead") {
			return fmt.Errorf("%s: %v, want ErrClosed that says why", name, err)
		}
		if !r.Closed() || w.Load() != 0 {
			return fmt.Errorf("%s: closed %v, and the data is %d, want 0", name, r.Closed(), w.Load())
		}
		if _, err := shm.At[uint64](r, r.Data()); !errors.Is(err, shm.ErrClosed) {
			return fmt.Errorf("%s: At: %v, want ErrClosed", name, err)
		}
		r.Close()
		again.Close()
		if err := r.Close(); err != nil {
			return fmt.Errorf("%s: a second Close: %v", name, err)
		}
		r, again = nil, nil
		for range 3 {
			runtime.GC() // it closes files that nobody refers to
		}
		if b.Reuse == "" || b.Reuse == sameFile {
			continue
		}
		for _, fd := range numbers {
			if to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); to != b.Reuse {
				return fmt.Errorf("%s: number %d leads to %q, %v, want %q", name, fd, to, err, b.Reuse)
			}
		}
		if err := untouched(b.Reuse); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
})

// untouched reports what has happened to the file that got a number of ours.
func untouched(path string) error {
	b, err := os.ReadFile(path)
	if err != nil || string(b) != "theirs" {
		return fmt.Errorf("the foreign file holds %d bytes, %v", len(b), err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil || l.Type != unix.F_UNLCK {
		return fmt.Errorf("byte %d of the foreign file is locked, %v", l.Start, err)
	}
	return nil
}

// The number leads to another file, where every byte is free. That says nothing about anybody.
func TestWhoHasLostItsSeatJudgesNobody(t *testing.T) {
	r := anonymous(t)
	_, token := holder(t, r)
	foreign := filepath.Join(memoryDir(t), "foreign")
	if err := os.WriteFile(foreign, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"Settled", "sweep"} {
		succeed(t, start(t, judgeWithoutASeat, misjudge{r, token, foreign, how}))
		if _, settled := r.Settled(token); settled || r.Deaths().Load() > 1 { // one: of the judge before
			t.Errorf("%s: a live process was found dead, %d deaths", how, r.Deaths().Load())
		}
	}
}

type misjudge struct {
	Region  *shm.Region
	Token   shm.Token
	Foreign string
	How     string
}

var judgeWithoutASeat = proc.Define("judgeWithoutASeat", func(_ context.Context, m misjudge) error {
	if _, err := (blow{Liveness: true, Reuse: m.Foreign}).strike(m.Region); err != nil {
		return err
	}
	if m.How == "Settled" {
		if _, settled := m.Region.Settled(m.Token); settled {
			return errors.New("a live process is settled")
		}
		return untouched(m.Foreign)
	}
	shm.Sweep(m.Region) // as one that had begun before the number was lost
	if shm.SlotsOf(m.Region, m.Token) != 1 {
		return errors.New("a live process has lost its slot")
	}
	return untouched(m.Foreign)
})

// Others find the process dead, at once, while it runs. When it notices it cannot reach the region any
// more, by old pointers or by opening it; a new process can.
func TestWhoHasLostItsSeatIsOut(t *testing.T) {
	dir := memoryDir(t)
	r, err := shm.Create("r", shm.Dir(dir))
	must(t, r, err)
	p := start(t, stumble, dir)
	wait(t, "the victim to be struck", func() bool { return word(r, 0).Load() == 1 })
	token := shm.Token(word(r, 1).Load())
	if pid, settled := r.Settled(token); !settled || pid != p.PID() {
		t.Errorf("pid %d, settled %v: who closes its proof of life counts as dead", pid, settled)
	}
	word(r, 2).Store(1)
	succeed(t, p)
	if n := word(r, 3).Load(); n != 0 {
		t.Errorf("word 3 is %d: it has written to the region after it had noticed", n)
	}
	if shm.SlotsOf(r, token) != 0 {
		t.Error("it has a slot again")
	}
	succeed(t, start(t, openAndEnd, dir))
}

var stumble = proc.Define("stumble", func(_ context.Context, dir string) error {
	r, err := shm.Open("r", shm.Dir(dir))
	if err != nil {
		return err
	}
	struck, told, late := word(r, 0), word(r, 2), word(r, 3)
	word(r, 1).Store(uint64(shm.Self()))
	if _, err := (blow{Liveness: true}).strike(r); err != nil {
		return err
	}
	struck.Store(1)
	if err := await("the parent to have looked", func() bool { return told.Load() == 1 }); err != nil {
		return err
	}
	r.Scan()
	if !r.Closed() {
		return errors.New("not noticed")
	}
	late.Store(1)
	if _, err := shm.Open("r", shm.Dir(dir)); !errors.Is(err, shm.ErrClosed) {
		return fmt.Errorf("opened again: %v, want ErrClosed", err)
	}
	reader, err := shm.Open("r", shm.Dir(dir), shm.ReadOnly()) // who only looks needs no proof
	if err != nil {
		return err
	}
	return reader.Close()
})

// The seat that is kept after Close is lost as well. Then the region cannot be opened again, but a new one
// of its name can.
func TestAKeptSeatIsLost(t *testing.T) { succeed(t, start(t, loseAKeptSeat, memoryDir(t))) }

var loseAKeptSeat = proc.Define("loseAKeptSeat", func(_ context.Context, dir string) error {
	foreign := filepath.Join(dir, ".foreign")
	if err := os.WriteFile(foreign, []byte("theirs"), 0o600); err != nil {
		return err
	}
	for _, reuse := range []string{"", foreign} {
		r, err := shm.Create("r", shm.Dir(dir))
		if err != nil {
			return err
		}
		lock := shm.LivenessFile(r)
		fd := int(lock.Fd())
		if err := r.Close(); err != nil {
			return err
		}
		if reuse == "" {
			err = syscall.Close(fd)
		} else {
			var f *os.File
			if f, err = os.OpenFile(reuse, os.O_RDWR, 0); err == nil {
				err = errors.Join(unix.Dup3(int(f.Fd()), fd, unix.O_CLOEXEC), f.Close())
			}
		}
		if err != nil {
			return err
		}
		for range 2 {
			if _, err := shm.Open("r", shm.Dir(dir)); !errors.Is(err, shm.ErrClosed) {
				return fmt.Errorf("opened again: %v, want ErrClosed", err)
			}
		}
		if n := shm.Seats(); n != 0 {
			return fmt.Errorf("%d seats are kept that prove nothing", n)
		}
		if err := shm.Remove("r", shm.Dir(dir)); err != nil {
			return err
		}
		if _, err := shm.Open("r", shm.Dir(dir)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if r, err = shm.Create("r", shm.Dir(dir)); err != nil {
			return fmt.Errorf("a new one: %w", err)
		}
		if err := errors.Join(r.Close(), shm.Remove("r", shm.Dir(dir))); err != nil {
			return err
		}
	}
	return untouched(foreign)
})
