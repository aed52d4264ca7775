package proc_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm/proc"
)

// programVariable makes the test binary run as one of programs, whole programs with a main of their own.
const programVariable = "PROC_TEST_PROGRAM"

// patience is how long a test waits for something that should happen at once.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	// Under the race detector every process sleeps for a second when it ends, unless told not to.
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")
	if name := os.Getenv(programVariable); name != "" {
		programs[name]() // an unknown one panics; it must not run the tests again
		os.Exit(0)
	}
	proc.Main()
	os.Exit(m.Run())
}

// program runs one of programs and gathers what it says.
func program(t *testing.T, name string, env ...string) *running {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	t.Cleanup(cancel)
	r := &running{t: t, cmd: exec.CommandContext(ctx, os.Args[0]), ended: make(chan struct{})}
	r.cmd.Env = append(os.Environ(), append(env, programVariable+"="+name)...)
	r.cmd.Cancel = func() error { return r.cmd.Process.Signal(syscall.SIGQUIT) } // prints its stacks
	r.cmd.WaitDelay = 300 * time.Millisecond                                     // children that it leaves behind have its output
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	stdin, err := r.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.stdin = stdin
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		r.cmd.Wait()
		close(r.ended)
	}()
	t.Cleanup(func() {
		r.cmd.Process.Kill()
		<-r.ended
	})
	return r
}

type running struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdin          io.Closer
	stdout, stderr buffer
	ended          chan struct{}
}

// code waits for the end.
func (r *running) code() int {
	r.t.Helper()
	select {
	case <-r.ended:
		return r.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		r.t.Fatalf("the program did not end; it wrote %q and %q", r.stdout.String(), r.stderr.String())
		return 0
	}
}

// A buffer may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// A gate is where children say that they are there, and stay until they are let through.
type gate struct {
	t *testing.T
	l net.Listener
}

func newGate(t *testing.T) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &gate{t, l}
}

func (g *gate) addr() string { return g.l.Addr().String() }

// arrival waits for a child.
func (g *gate) arrival() *visitor {
	g.t.Helper()
	g.l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	c, err := g.l.Accept()
	if err != nil {
		g.t.Fatalf("nobody came: %v", err)
	}
	g.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &visitor{g.t, c, bufio.NewReader(c)}
}

type visitor struct {
	t *testing.T
	c net.Conn
	r *bufio.Reader
}

// line returns what the child says next.
func (v *visitor) line() string {
	v.t.Helper()
	s, err := v.r.ReadString('\n')
	if err != nil {
		v.t.Fatalf("the child said nothing: %v", err)
	}
	return strings.TrimSuffix(s, "\n")
}

// letThrough lets the child go on.
func (v *visitor) letThrough() { v.c.Close() }

// gone waits until the child has ended or let go of the gate.
func (v *visitor) gone() {
	v.t.Helper()
	for {
		if _, err := v.r.ReadString('\n'); errors.Is(err, os.ErrDeadlineExceeded) {
			v.t.Fatal("the child is still there")
		} else if err != nil {
			return
		}
	}
}

// visit is the child's side.
func visit(addr string) net.Conn {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		panic(err)
	}
	return c
}

// stay says something at the gate and returns when it is let through.
func stay(addr, what string) {
	c := visit(addr)
	fmt.Fprintln(c, what)
	io.Copy(io.Discard, c)
	c.Close()
}

// hold is the child that runs until it is let through.
var hold = proc.Define("hold", func(_ context.Context, addr string) error {
	stay(addr, proc.CurrentName())
	return nil
})

// start starts a process that does not outlive the test.
func start[A any](t *testing.T, f *proc.Func[A], argument A, opts ...proc.Option) *proc.Process {
	t.Helper()
	p, err := f.Start(t.Context(), argument, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, p) })
	return p
}

func end(t *testing.T, p *proc.Process) {
	p.Kill()
	ended(t, p)
}

// ended waits for the end of a process and returns its code.
func ended(t *testing.T, p *proc.Process) int {
	t.Helper()
	select {
	case <-p.Done():
		code, _ := p.ExitCode()
		return code
	case <-time.After(patience):
		t.Fatalf("%s did not end", p.Name())
		return 0
	}
}

func listed(p *proc.Process) bool {
	for _, q := range proc.Active() {
		if p == q {
			return true
		}
	}
	return false
}
