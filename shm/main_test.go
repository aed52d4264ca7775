package shm_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

func TestMain(m *testing.M) {
	proc.Main()
	os.Exit(m.Run())
}

// named makes a directory of regions for one test.
func named(tb testing.TB) shm.Option {
	tb.Helper()
	return shm.Dir(memoryDir(tb))
}

// memoryDir returns a directory in memory where the system has one.
func memoryDir(tb testing.TB) string {
	tb.Helper()
	base := ""
	if info, err := os.Stat(memory); err == nil && info.IsDir() {
		base = memory
	}
	return dirIn(tb, base)
}

// diskDir returns a temporary directory. Unlike that of TempDir it may hold files that are in use when
// the test ends, which cannot be removed everywhere.
func diskDir(tb testing.TB) string { return dirIn(tb, "") }

func dirIn(tb testing.TB, base string) string {
	tb.Helper()
	dir, err := os.MkdirTemp(base, "shmkit-test-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { removeDir(dir) })
	return dir
}

// must returns r, which is closed when the test ends.
func must(tb testing.TB, r *shm.Region, err error) *shm.Region {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.Close() })
	return r
}

func anonymous(tb testing.TB, opts ...shm.Option) *shm.Region {
	tb.Helper()
	r, err := shm.Anonymous(opts...)
	return must(tb, r, err)
}

// word returns the i'th word of the data area.
func word(r *shm.Region, i int) *atomic.Uint64 {
	w, err := shm.At[atomic.Uint64](r, r.Data()+shm.Offset(8*i))
	if err != nil {
		panic(err)
	}
	return w
}

// fill writes p to the beginning of the data area.
func fill(tb testing.TB, r *shm.Region, p string) {
	tb.Helper()
	b, err := r.Bytes(r.Data(), uint64(len(p)))
	if err != nil {
		tb.Fatal(err)
	}
	copy(b, p)
}

// expect checks the beginning of the data area.
func expect(r *shm.Region, p string) error {
	b, err := r.Bytes(r.Data(), uint64(len(p)))
	if err == nil && string(b) != p {
		err = fmt.Errorf("data begins with %q, want %q", b, p)
	}
	return err
}

const patience = 20 * time.Second // with states that come at once unless something is broken

// wait waits for a state.
func wait(tb testing.TB, what string, is func() bool) {
	tb.Helper()
	if err := await(what, is); err != nil {
		tb.Fatal(err)
	}
}

func await(what string, is func() bool) error {
	for end := time.Now().Add(patience); !is(); {
		if time.Now().After(end) {
			buf := make([]byte, 1<<16)
			return fmt.Errorf("waited %v for: %s\n%s", patience, what, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(200 * time.Microsecond)
	}
	return nil
}

// start starts a process that is killed when the test ends.
func start[A any](tb testing.TB, f *proc.Func[A], a A) *proc.Process {
	tb.Helper()
	// Under the race detector a process sleeps for a second before it ends, unless told.
	p, err := f.Start(tb.Context(), a, proc.Daemon(), proc.Env("GORACE=atexit_sleep_ms=0"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		p.Kill()
		p.Wait()
	})
	return p
}

// kill kills a process and waits until it is gone.
func kill(p *proc.Process) {
	p.Kill()
	<-p.Done()
}

// succeed waits for a process that must end well.
func succeed(tb testing.TB, p *proc.Process) {
	tb.Helper()
	if err := p.Wait(); err != nil {
		tb.Fatal(err)
	}
}

// hold attaches, counts itself in word 0, leaves its token in word 1, and stays.
var hold = proc.Define("hold", func(ctx context.Context, r *shm.Region) error {
	word(r, 1).Store(uint64(shm.Self()))
	word(r, 0).Add(1)
	<-ctx.Done()
	return ctx.Err()
})

// holder starts a process of hold and returns its token, once it is attached.
func holder(tb testing.TB, r *shm.Region) (*proc.Process, shm.Token) {
	tb.Helper()
	before := word(r, 0).Load()
	p := start(tb, hold, r)
	wait(tb, "a process to attach", func() bool { return word(r, 0).Load() > before })
	return p, shm.Token(word(r, 1).Load())
}
