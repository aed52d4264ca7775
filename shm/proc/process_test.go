package proc_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

type point struct{ X, Y int }

type everything struct {
	N      int
	S      string
	List   []string
	Points map[string]point
	Inner  struct {
		Deep [2]point
		Kids []everything
	}
}

var show = proc.Define("show", func(_ context.Context, a everything) error {
	_, err := fmt.Printf("%s %#v", proc.CurrentName(), a)
	return err
})

func TestNameAndArgumentsArriveEqual(t *testing.T) {
	a := everything{N: -7, S: "naïve\x00\n", List: []string{"a", "", "c"}, Points: map[string]point{"o": {}, "p": {1, -2}}}
	a.Inner.Deep[1] = point{3, 4}
	a.Inner.Kids = []everything{{S: "kid"}, {}}
	var out buffer
	p := start(t, show, a, proc.Name("George"), proc.Stdout(&out))
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%s %#v", "George", a); out.String() != want {
		t.Errorf("the child got\n%s, want\n%s", out.String(), want)
	}
	if p.Name() != "George" {
		t.Errorf("Name() = %q", p.Name())
	}
}

var length = proc.Define("length", func(_ context.Context, b []byte) error {
	_, err := fmt.Printf("%d %d", len(b), b[len(b)-1])
	return err
})

func TestArgumentLongerThanThePipe(t *testing.T) {
	b := make([]byte, 5<<20)
	b[len(b)-1] = 9
	var out buffer
	if err := start(t, length, b, proc.Stdout(&out)).Wait(); err != nil {
		t.Fatal(err)
	}
	if out.String() != "5242880 9" {
		t.Errorf("the child got length and last byte %s", out.String())
	}
}

func TestArgumentThatNobodyReadsHoldsNothingUp(t *testing.T) {
	p := start(t, length, make([]byte, 5<<20))
	p.Kill()
	if code := ended(t, p); code != -9 {
		t.Errorf("exit code %d, want -9", code)
	}
}

func TestLifeCycle(t *testing.T) {
	if n := len(proc.Active()); n != 0 {
		t.Fatalf("%d children before the first", n)
	}
	g := newGate(t)
	p := start(t, hold, g.addr())
	v := g.arrival()
	if got := v.line(); got != p.Name() {
		t.Errorf("the child is called %q, its handle %q", got, p.Name())
	}
	if _, ok := p.ExitCode(); !p.Alive() || ok || !listed(p) || p.PID() <= 0 {
		t.Errorf("running: alive %v, has exit code %v, listed %v, pid %d", p.Alive(), ok, listed(p), p.PID())
	}
	v.letThrough()
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	if code, ok := p.ExitCode(); p.Alive() || !ok || code != 0 || listed(p) {
		t.Errorf("ended: alive %v, exit code %d %v, listed %v", p.Alive(), code, ok, listed(p))
	}
}

func TestTerminateAndKill(t *testing.T) {
	g := newGate(t)
	a, b := start(t, hold, g.addr()), start(t, hold, g.addr())
	g.arrival()
	g.arrival()
	if err := errors.Join(a.Terminate(), b.Kill()); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[*proc.Process]int{a: -15, b: -9} {
		if code := ended(t, p); code != want {
			t.Errorf("exit code %d, want %d", code, want)
		}
		var exit *proc.ExitError
		if err := p.Wait(); !errors.As(err, &exit) || *exit != (proc.ExitError{Name: p.Name(), PID: p.PID(), Code: want}) {
			t.Errorf("Wait() = %v", err)
		}
		if listed(p) {
			t.Errorf("%s is still listed", p.Name())
		}
		if err := errors.Join(p.Terminate(), p.Kill()); err != nil {
			t.Errorf("ended already: %v", err)
		}
	}
}

var leave = proc.Define("leave", func(_ context.Context, how string) error {
	switch how {
	case "panic":
		panic("as told")
	case "abort":
		abort()
	case "error":
		return errors.New("first line\nand a second")
	}
	var code int
	if _, err := fmt.Sscan(how, &code); err == nil {
		os.Exit(code)
	}
	return nil
})

func TestExitCodes(t *testing.T) {
	for how, want := range map[string]struct {
		code   int
		stderr string
	}{
		"return": {0, ""},
		"7":      {7, ""},
		"8":      {8, ""},
		"error":  {1, "child: first line\nand a second\n"},
		"panic":  {2, "panic: as told"},
		"abort":  {abortCode, ""},
	} {
		t.Run(how, func(t *testing.T) {
			var stderr buffer
			p := start(t, leave, how, proc.Name("child"), proc.Stderr(&stderr))
			<-p.Done()
			text := stderr.String() // complete before the child counts as gone
			if code, _ := p.ExitCode(); code != want.code {
				t.Errorf("exit code %d, want %d; it wrote %q", code, want.code, text)
			}
			var exit *proc.ExitError
			if err := p.Wait(); (err == nil) != (want.code == 0) || err != nil && (!errors.As(err, &exit) || exit.Code != want.code) {
				t.Errorf("Wait() = %v", err)
			}
			if want.code == 1 && text != want.stderr || !strings.Contains(text, want.stderr) {
				t.Errorf("it wrote %q, want %q", text, want.stderr)
			}
		})
	}
}

func TestDoneIsReadyOnlyAfterTheEnd(t *testing.T) {
	g := newGate(t)
	p := start(t, hold, g.addr())
	v := g.arrival()
	select {
	case <-p.Done():
		t.Fatal("ready while the child runs")
	default:
	}
	v.letThrough()
	if ended(t, p) != 0 {
		t.Error(p.Wait())
	}
}

func TestClose(t *testing.T) {
	g := newGate(t)
	p := start(t, hold, g.addr())
	v := g.arrival()
	if err := p.Close(); !errors.Is(err, proc.ErrRunning) || !strings.Contains(err.Error(), p.Name()) {
		t.Errorf("Close of a running process: %v", err)
	}
	v.letThrough()
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Close(), p.Close()); err != nil {
		t.Errorf("Close after the end: %v", err)
	}
	for op, f := range map[string]func() error{"Wait": p.Wait, "Terminate": p.Terminate, "Kill": p.Kill, "Alive": func() error { return caught(func() { p.Alive() }) }} {
		if err := f(); !errors.Is(err, shm.ErrClosed) {
			t.Errorf("%s after Close: %v", op, err)
		}
	}
	if code, ok := p.ExitCode(); code != 0 || !ok {
		t.Errorf("ExitCode after Close: %d, %v", code, ok)
	}
}

func TestProcessThatWasNeverStarted(t *testing.T) {
	var p proc.Process
	for op, f := range map[string]func() error{
		"Wait": p.Wait, "Terminate": p.Terminate, "Kill": p.Kill, "Close": p.Close,
		"Alive": func() error { return caught(func() { p.Alive() }) },
		"Done":  func() error { return caught(func() { p.Done() }) },
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), "never started") {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// caught returns the error that f panics with.
func caught(f func()) (err error) {
	defer func() { err, _ = recover().(error) }()
	f()
	return nil
}

var parentOf = proc.Define("parentOf", func(ctx context.Context, addr string) error {
	if _, err := orphan.Start(ctx, addr); err != nil {
		return err
	}
	<-proc.ParentDone()
	return nil
})

var orphan = proc.Define("orphan", func(_ context.Context, addr string) error {
	c := visit(addr)
	select {
	case <-proc.ParentDone():
		fmt.Fprintln(c, "gone")
	case <-time.After(200 * time.Millisecond): // long enough to notice, if it thought so
		fmt.Fprintln(c, "alive")
	}
	<-proc.ParentDone()
	fmt.Fprintln(c, "gone")
	return nil
})

func TestGrandchildSeesItsParentGone(t *testing.T) {
	g := newGate(t)
	p := start(t, parentOf, g.addr())
	v := g.arrival()
	if got := v.line(); got != "alive" {
		t.Fatalf("the parent lives, the grandchild sees it %s", got)
	}
	p.Terminate()
	if got := v.line(); got != "gone" {
		t.Errorf("the parent has ended, the grandchild sees it %s", got)
	}
	if code := ended(t, p); code != -15 {
		t.Errorf("exit code %d", code)
	}
	v.gone()
}

var leavesOne = proc.Define("leavesOne", func(ctx context.Context, addr string) error {
	_, err := hold.Start(ctx, addr)
	if err == nil {
		err = errors.New("no time")
	}
	return err
})

func TestChildEndsAfterItsOwnChildren(t *testing.T) {
	g := newGate(t)
	p := start(t, leavesOne, g.addr(), proc.Stderr(nil))
	v := g.arrival()
	v.line()
	select {
	case <-p.Done():
		t.Error("the child ended before the grandchild")
	case <-time.After(200 * time.Millisecond):
	}
	v.letThrough()
	if code := ended(t, p); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
}

var startsAnother = proc.Define("startsAnother", func(ctx context.Context, _ struct{}) error {
	_, err := hold.Start(ctx, "nowhere")
	fmt.Print(errors.Is(err, proc.ErrDaemonChild), ": ", err)
	return nil
})

func TestDaemonMayNotStartProcesses(t *testing.T) {
	var out buffer
	p := start(t, startsAnother, struct{}{}, proc.Daemon(), proc.Name("imp"), proc.Stdout(&out))
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if want := "true: proc: start hold: imp: a daemon may not start processes"; out.String() != want {
		t.Errorf("it got %q, want %q", out.String(), want)
	}
}

var surroundings = proc.Define("surroundings", func(context.Context, struct{}) error {
	_, child := os.LookupEnv("SHMKIT_CHILD")
	fmt.Printf("%d %s %s %v", runtime.GOMAXPROCS(0), os.Getenv("A"), os.Getenv("B"), child)
	return nil
})

func TestOptionsReachTheChild(t *testing.T) {
	t.Setenv("A", "inherited")
	t.Setenv("B", "inherited")
	var out buffer
	p := start(t, surroundings, struct{}{}, proc.MaxProcs(3), proc.Env("B=first", "B=own"), proc.Stdout(&out))
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if want := "3 inherited own false"; out.String() != want {
		t.Errorf("the child sees %q, want %q", out.String(), want)
	}
	if os.Getenv("SHMKIT_CHILD") != "" {
		t.Error("the variable for children is set here")
	}
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	for _, opt := range []proc.Option{proc.MaxProcs(0), proc.Graceful(-1), proc.Env("novalue"), proc.Env("=x"), proc.Env("a=\x00")} {
		if p, err := surroundings.Start(t.Context(), struct{}{}, opt); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("got %v, %v", p, err)
		}
	}
}

func TestOutputGoesNowhereAndToAFile(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := start(t, show, everything{}, proc.Name("n"), proc.Stdout(f)).Wait(); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(f.Name()); !strings.HasPrefix(string(b), "n proc_test.everything") {
		t.Errorf("the file has %q", b)
	}
	for _, opt := range []proc.Option{proc.Stdout(nil), proc.Stdout((*os.File)(nil))} {
		if err := start(t, show, everything{}, opt).Wait(); err != nil {
			t.Error(err)
		}
	}
}

func TestContextEndsTheProcess(t *testing.T) {
	g := newGate(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	p, err := hold.Start(ctx, g.addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, p) })
	g.arrival()
	why := errors.New("enough")
	cancel(why)
	if code := ended(t, p); code != -15 {
		t.Errorf("exit code %d, want -15", code)
	}
	var exit *proc.ExitError
	if err := p.Wait(); !errors.Is(err, why) || !errors.As(err, &exit) {
		t.Errorf("Wait() = %v", err)
	}
	if _, err := hold.Start(ctx, g.addr()); !errors.Is(err, why) {
		t.Errorf("Start under an ended context: %v", err)
	}
}

func TestRunJoinsErrorsAndNumbersProcesses(t *testing.T) {
	err := leave.Run(t.Context(), "return", "7", "return", "8")
	var names []string
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("Run() = %v", err)
	}
	for _, err := range joined.Unwrap() {
		var exit *proc.ExitError
		if !errors.As(err, &exit) {
			t.Fatal(err)
		}
		names = append(names, fmt.Sprint(exit.Name, " ", exit.Code))
	}
	if got := strings.Join(names, ", "); got != "leave#2 7, leave#4 8" {
		t.Errorf("failed: %s", got)
	}
	if err := leave.Run(t.Context(), "return", "0"); err != nil {
		t.Error(err)
	}
	if err := leave.Run(t.Context()); err != nil {
		t.Errorf("without arguments: %v", err)
	}
}

// picky cannot be encoded when it is bad.
type picky string

func (p picky) MarshalBinary() ([]byte, error) {
	if p == "bad" {
		return nil, errors.New("it is bad")
	}
	return []byte(p), nil
}

func (p *picky) UnmarshalBinary(b []byte) error { *p = picky(b); return nil }

var holdPicky = proc.Define("holdPicky", func(_ context.Context, p picky) error {
	stay(string(p), "")
	return nil
})

func TestRunEndsTheOthersIfOneCannotBeStarted(t *testing.T) {
	g := newGate(t)
	err := holdPicky.Run(t.Context(), picky(g.addr()), picky(g.addr()), "bad")
	if err == nil || !strings.Contains(err.Error(), "it is bad") {
		t.Errorf("Run() = %v", err)
	}
	if left := proc.Active(); len(left) != 0 {
		t.Errorf("%d processes are left", len(left))
	}
}

func TestManyStartsAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			var out buffer
			name := fmt.Sprint("p", i)
			p, err := show.Start(t.Context(), everything{N: i}, proc.Name(name), proc.Stdout(&out))
			if err != nil {
				t.Error(err)
				return
			}
			if err := p.Wait(); err != nil {
				t.Error(err)
			}
			if want := fmt.Sprintf("%s %#v", name, everything{N: i}); out.String() != want {
				t.Errorf("got %q, want %q", out.String(), want)
			}
		})
	}
	wg.Wait()
}
