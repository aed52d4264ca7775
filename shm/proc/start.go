package proc

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/internal/carry"
)

// killDelay is how long a process that ignores SIGTERM, or is stopped, has before SIGKILL, on top of
// its graceful time.
const killDelay = 5 * time.Second

// outputDelay is how long other holders of a process' output can go on writing when it has ended.
const outputDelay = 2 * time.Second

// Start runs the function in a new process and returns at once. When ctx ends, the process gets
// SIGTERM and, if that does not end it in time, SIGKILL; an ended ctx starts nothing. Start returns an
// error that is [ErrNoMain] before [Main], [ErrDaemonChild] in a daemon, [shm.ErrNotEncodable] if
// something in the argument would be lost; then nothing was executed. What goes wrong later is told by
// [Process.Wait].
func (f *Func[A]) Start(ctx context.Context, argument A, opts ...Option) (*Process, error) {
	p, err := f.start(ctx, argument, opts)
	if err != nil {
		return nil, fmt.Errorf("proc: start %s: %w", f.name, err)
	}
	return p, nil
}

// Run runs the function in one process per argument, waits for all of them and returns their errors,
// joined. The processes are named after the function, with #1, #2 and so on. One that fails does not
// end the others; if one cannot be started, those before it are ended and only its error is returned.
// When ctx ends they are all terminated, as by [Func.Start].
func (f *Func[A]) Run(ctx context.Context, arguments ...A) error {
	var all []*Process
	for i, a := range arguments {
		p, err := f.Start(ctx, a, Name(fmt.Sprintf("%s#%d", f.name, i+1)))
		if err != nil {
			endAll(all)
			return err
		}
		all = append(all, p)
	}
	var errs []error
	for _, p := range all {
		errs = append(errs, p.Wait())
	}
	return errors.Join(errs...)
}

func (f *Func[A]) start(ctx context.Context, argument A, opts []Option) (*Process, error) {
	if err := mayStart(); err != nil {
		return nil, err
	}
	if f.late {
		return nil, fmt.Errorf("it was defined at %s after proc.Main was called, when a child would already look for it; assign it to a package variable", f.place)
	}
	if f.refused != nil {
		return nil, fmt.Errorf("argument of the function defined at %s: %w", f.place, f.refused)
	}
	o, err := collectOptions(opts)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if o.name == "" {
		o.name = fmt.Sprintf("%s#%d", f.name, f.started.Add(1))
	}
	m := &message{Function: f.name, Name: o.name, Daemon: o.daemon, Graceful: o.graceful, MaxProcs: o.maxProcs}
	noted, err := carry.Collect(func() (err error) {
		m.Argument, err = f.encode(argument)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("encode the argument: %w", err)
	}
	regions, err := hold(noted)
	defer release(regions)
	if err != nil {
		return nil, err
	}
	return launch(ctx, o, m, regions)
}

// mayStart reports why no process can be started now.
func mayStart() error {
	switch me := self.Load(); {
	case me == nil && inTest():
		return fmt.Errorf("%w in this test program; give the package a func TestMain(m *testing.M) { proc.Main(); os.Exit(m.Run()) } and start processes only below it", ErrNoMain)
	case me == nil:
		return fmt.Errorf("%w in this process; begin func main with proc.Main(), or wrap it in proc.Run, and start processes only below it", ErrNoMain)
	case me.daemon:
		return fmt.Errorf("%s: %w", me.name, ErrDaemonChild)
	}
	return nil
}

// inTest reports whether this is a test program. Package testing would tell, but does not belong into
// a program.
func inTest() bool {
	name := strings.TrimSuffix(commandName(), ".exe")
	return strings.HasSuffix(name, ".test") || flag.Lookup("test.v") != nil
}

// hold returns a handle of its own on each region that the encoding of an argument noted, so that they
// stay open until the child has them.
func hold(noted []any) (held []*shm.Region, err error) {
	seen := make(map[*os.File]bool)
	for _, n := range noted {
		r := n.(*shm.Region)
		if r.File() == nil {
			return held, &shm.TypeError{
				Path: "region " + r.ID().String() + " in the argument", Got: "in the Go memory of this process (shm.Heap)",
				Want: "make it with shm.Anonymous or shm.Create", Err: shm.ErrNotEncodable,
			}
		}
		if seen[r.File()] {
			continue
		}
		seen[r.File()] = true
		h, err := r.Dup()
		if err != nil {
			return held, err
		}
		held = append(held, h)
	}
	return held, nil
}

func release(regions []*shm.Region) {
	for _, r := range regions {
		r.Close()
	}
}

// launch starts the process. See [childVariable] and [message] for what it is told.
func launch(ctx context.Context, o *options, m *message, regions []*shm.Region) (_ *Process, err error) {
	var mine, its []*os.File // ends of pipes
	defer func() {
		closeAll(its)
		if err != nil {
			closeAll(mine)
		}
	}()
	lifeRead, lifeWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	mine, its = append(mine, lifeWrite), append(its, lifeRead)
	answerRead, answerWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	mine, its = append(mine, answerRead), append(its, answerWrite)

	inherited := its
	for _, r := range regions {
		inherited = append(inherited[:len(inherited):len(inherited)], r.File())
		m.Regions = append(m.Regions, r.File().Name())
	}
	frame, err := m.frame()
	if err != nil {
		return nil, err
	}
	path, err := program()
	if err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{
		Path: path, Args: []string{commandName()},
		Stdout: o.stdout.or(os.Stdout), Stderr: o.stderr.or(os.Stderr),
		WaitDelay: outputDelay,
	}
	numbers, done, err := inherit(cmd, inherited)
	if err != nil {
		return nil, err
	}
	defer done()
	cmd.Env = append(append(os.Environ(), o.env...), childVariable+"="+numbers)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{
		name: o.name, pid: cmd.Process.Pid, daemon: o.daemon, deadline: o.graceful + o.deadline,
		ctx: ctx, cmd: cmd, life: lifeWrite, answer: answerRead, done: make(chan struct{}),
	}
	activate(p)
	// A big message does not fit in the pipe, and a child may never read it. The write ends with the
	// child, at the latest.
	go lifeWrite.Write(frame)
	stop := context.AfterFunc(ctx, p.end)
	go p.reap(stop)
	return p, nil
}

// commandName returns the name by which this program was called.
func commandName() string {
	if len(os.Args) == 0 {
		return "program"
	}
	return os.Args[0]
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
