package proc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm/proc"
)

const (
	gateVariable  = "PROC_TEST_GATE"
	countVariable = "PROC_TEST_COUNT"
)

// programs are whole programs; each is the main of a process that tests start.
var programs = map[string]func(){
	// ordinary: its main ends before its child.
	"ordinary": func() {
		proc.Run(func(ctx context.Context) error {
			_, err := hold.Start(ctx, os.Getenv(gateVariable), proc.Env(programVariable+"=ordinary"))
			fmt.Println("main ends")
			return err
		})
	},
	// daemon: its main ends, when standard input does, before its daemon.
	"daemon": func() {
		proc.Run(func(ctx context.Context) error {
			_, err := hold.Start(ctx, os.Getenv(gateVariable), proc.Daemon())
			io.Copy(io.Discard, os.Stdin)
			return err
		})
	},
	"succeeds": func() { proc.Run(func(context.Context) error { return nil }) },
	"fails":    func() { proc.Run(func(context.Context) error { return errors.New("no luck") }) },
	// interrupted: stays until it is told to end, and then says how.
	"interrupted": func() {
		proc.Run(func(ctx context.Context) error {
			fmt.Println("ready")
			<-ctx.Done()
			return fmt.Errorf("stopped: %w", ctx.Err())
		})
	},
	// waits: stays in Run's wait for a child that has nothing to do with its context.
	"waits": func() {
		proc.Run(func(context.Context) error {
			_, err := hold.Start(context.Background(), os.Getenv(gateVariable))
			return err
		})
	},
	// embedder: calls Main and Wait itself.
	"embedder": func() {
		proc.Main()
		p, err := hold.Start(context.Background(), os.Getenv(gateVariable))
		d, err1 := hold.Start(context.Background(), os.Getenv(gateVariable), proc.Daemon())
		if err := errors.Join(err, err1); err != nil {
			panic(err)
		}
		io.Copy(io.Discard, os.Stdin)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		err = proc.Wait(ctx)
		fmt.Println(errors.Is(err, context.Canceled), p.Alive(), d.Alive())
		fmt.Println(proc.Wait(context.Background()), p.Alive())
	},
	// unguarded: starts a process without Main, on the way to main.
	"unguarded": func() {
		count()
		startUnguarded()
	},
	// forgets: does not come to Main as a child.
	"forgets": func() {
		if _, child := os.LookupEnv("SHMKIT_CHILD"); child {
			return
		}
		proc.Main()
		p, err := hold.Start(context.Background(), "nowhere")
		if err != nil {
			panic(err)
		}
		err = p.Wait()
		var exit *proc.ExitError
		fmt.Println(errors.Is(err, proc.ErrNoMain), errors.As(err, &exit), err)
	},
	// misled: has the variable for children without being one.
	"misled": func() {
		proc.Main()
		fmt.Println("went on")
	},
	// closed: has no standard output, nor does its child.
	"closed": func() {
		proc.Main()
		os.Stdout.Close()
		os.Stderr.Close()
		p, err := hold.Start(context.Background(), os.Getenv(gateVariable))
		if err != nil {
			os.Exit(3)
		}
		if p.Wait() != nil {
			os.Exit(4)
		}
	},
	// bystander: is no child, and says whether it was made to look like one.
	"bystander": func() {
		_, child := os.LookupEnv("SHMKIT_CHILD")
		fmt.Printf("%v", child)
		printDescriptors()
	},
}

func init() {
	if os.Getenv(programVariable) == "unguarded-init" {
		count()
		startUnguarded()
	}
}

// count counts processes, and ends before there are many.
func count() {
	f, err := os.OpenFile(os.Getenv(countVariable), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	f.WriteString("x")
	if info, err := f.Stat(); err != nil || info.Size() > 3 {
		os.Exit(4)
	}
}

func startUnguarded() {
	p, err := hold.Start(context.Background(), "nowhere")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	p.Wait()
}

func TestUnguardedStartEndsWithAnErrorAndStartsNothing(t *testing.T) {
	for _, name := range []string{"unguarded", "unguarded-init"} {
		t.Run(name, func(t *testing.T) {
			counter := t.TempDir() + "/count"
			r := program(t, name, countVariable+"="+counter)
			if code := r.code(); code != 3 {
				t.Errorf("exit code %d, want 3", code)
			}
			if b, _ := os.ReadFile(counter); len(b) != 1 {
				t.Errorf("%d processes, want 1", len(b))
			}
			if got := r.stderr.String(); !strings.Contains(got, proc.ErrNoMain.Error()) || !strings.Contains(got, "TestMain") {
				t.Errorf("it says %q", got)
			}
		})
	}
}

func TestProgramEndsAfterItsOrdinaryChild(t *testing.T) {
	g := newGate(t)
	r := program(t, "ordinary", gateVariable+"="+g.addr())
	v := g.arrival()
	select {
	case <-r.ended:
		t.Errorf("the program ended before its child")
	case <-time.After(300 * time.Millisecond):
	}
	if got := r.stdout.String(); got != "main ends\n" {
		t.Errorf("it wrote %q", got)
	}
	v.letThrough()
	if code := r.code(); code != 0 {
		t.Errorf("exit code %d: %s", code, r.stderr.String())
	}
}

func TestProgramEndsItsDaemon(t *testing.T) {
	g := newGate(t)
	r := program(t, "daemon", gateVariable+"="+g.addr())
	v := g.arrival()
	r.stdin.Close()
	if code := r.code(); code != 0 {
		t.Errorf("exit code %d: %s", code, r.stderr.String())
	}
	v.gone()
}

func TestKilledParentTakesItsDaemonAlong(t *testing.T) {
	g := newGate(t)
	r := program(t, "daemon", gateVariable+"="+g.addr())
	v := g.arrival()
	v.line()
	r.cmd.Process.Kill()
	v.gone()
}

func TestKilledParentLeavesItsOrdinaryChild(t *testing.T) {
	g := newGate(t)
	r := program(t, "waits", gateVariable+"="+g.addr())
	v := g.arrival()
	v.line()
	r.cmd.Process.Kill()
	<-r.ended
	v.c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if _, err := v.r.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the child went along: %v", err)
	}
	v.letThrough()
}

func TestRunExitCodes(t *testing.T) {
	for _, c := range []struct {
		program string
		sig     os.Signal
		code    int
		stderr  string
	}{
		{"succeeds", nil, 0, ""},
		{"fails", nil, 1, ": no luck\n"},
		{"interrupted", os.Interrupt, 130, ""},
		{"interrupted", syscall.SIGTERM, 143, ""},
	} {
		t.Run(fmt.Sprint(c.program, c.code), func(t *testing.T) {
			r := program(t, c.program)
			if c.sig != nil {
				waitFor(t, func() bool { return r.stdout.String() == "ready\n" })
				if err := r.cmd.Process.Signal(c.sig); err != nil {
					t.Skip(err)
				}
			}
			if code := r.code(); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			if got := r.stderr.String(); !strings.HasSuffix(got, c.stderr) || c.stderr == "" && got != "" {
				t.Errorf("it wrote %q, want %q", got, c.stderr)
			}
		})
	}
}

// waitFor waits for a state that nothing announces.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not come to that")
		}
	}
}

func TestEmbeddersWait(t *testing.T) {
	g := newGate(t)
	r := program(t, "embedder", gateVariable+"="+g.addr())
	a, b := g.arrival(), g.arrival()
	r.stdin.Close()
	waitFor(t, func() bool { return strings.Count(r.stdout.String(), "\n") == 1 })
	if got := r.stdout.String(); got != "true true false\n" {
		t.Errorf("under an ended context: wait was canceled, child and daemon alive: %s", got)
	}
	a.letThrough()
	b.letThrough()
	if code := r.code(); code != 0 || !strings.HasSuffix(r.stdout.String(), "\n<nil> false\n") {
		t.Errorf("exit code %d: %s%s", code, r.stdout.String(), r.stderr.String())
	}
}

func TestChildThatDoesNotComeToMainIsAnError(t *testing.T) {
	r := program(t, "forgets")
	if r.code(); !strings.HasPrefix(r.stdout.String(), "true true proc: hold#1 (pid ") {
		t.Errorf("it wrote %q and %q", r.stdout.String(), r.stderr.String())
	}
}

func TestProgramThatIsNoChildRefusesTheVariable(t *testing.T) {
	for _, value := range []string{"", "x", "3,4", "1000,1001", "1,2"} {
		r := program(t, "misled", "SHMKIT_CHILD="+value)
		if code := r.code(); code != 1 || r.stdout.String() != "" || !strings.Contains(r.stderr.String(), "proc: ") {
			t.Errorf("SHMKIT_CHILD=%q: exit code %d, it wrote %q and %q", value, code, r.stdout.String(), r.stderr.String())
		}
	}
}

func TestClosedStandardOutput(t *testing.T) {
	g := newGate(t)
	r := program(t, "closed", gateVariable+"="+g.addr())
	g.arrival().letThrough()
	if code := r.code(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

var startsBystander = proc.Define("startsBystander", func(context.Context, struct{}) error {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), programVariable+"=bystander")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
})

func TestOtherProgramsAreNotTakenForChildren(t *testing.T) {
	var out buffer
	if err := start(t, startsBystander, struct{}{}, proc.Stdout(&out)).Wait(); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "false") {
		t.Errorf("the child of a child got the variable")
	}
	checkDescriptors(t, strings.TrimPrefix(out.String(), "false"), 1)
}

type gracefulCase struct {
	Addr string
	Mode string
}

var graceful = proc.Define("graceful", func(ctx context.Context, c gracefulCase) error {
	if c.Mode == "ignores" {
		signal.Ignore(syscall.SIGTERM)
	}
	conn := visit(c.Addr)
	go func() { // whatever else goes wrong, it does not outlive the test
		io.Copy(io.Discard, conn)
		os.Exit(9)
	}()
	fmt.Fprintln(conn, "there")
	<-ctx.Done()
	fmt.Fprintln(conn, "told")
	switch c.Mode {
	case "returns nil":
		return nil
	case "returns the context's error":
		return fmt.Errorf("stopped: %w", ctx.Err())
	case "returns another error":
		return errors.New("not stored")
	}
	select {}
})
