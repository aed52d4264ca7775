package proc

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
)

// An Option changes how a process is started.
type Option func(*options)

type options struct {
	name     string
	env      []string
	stdout   output
	stderr   output
	maxProcs int
	daemon   bool
	graceful time.Duration
	deadline time.Duration // see killDelay
	err      error         // the first option that makes no sense
}

// An output is where a stream goes, if an option said so.
type output struct {
	set bool
	to  io.Writer
}

func collectOptions(opts []Option) (*options, error) {
	o := &options{deadline: killDelay}
	for _, opt := range opts {
		opt(o)
	}
	return o, o.err
}

func (o *options) refuse(format string, args ...any) {
	if o.err == nil {
		o.err = fmt.Errorf(format+": %w", append(args, fs.ErrInvalid)...)
	}
}

// Name gives the process a name: for its own [CurrentName], for errors and for [Process.Name]. Without
// it, it is the function's name and a number.
func Name(name string) Option {
	return func(o *options) { o.name = name }
}

// Env adds variables ("KEY=value") to the environment that the process inherits. A later value of a
// key replaces an earlier one.
func Env(variables ...string) Option {
	return func(o *options) {
		for _, v := range variables {
			if strings.IndexByte(v, '=') < 1 || strings.IndexByte(v, 0) >= 0 {
				o.refuse("environment variable %q is not KEY=value", v)
			}
		}
		o.env = append(o.env, variables...)
	}
}

// Stdout sends the standard output of the process to w; nil throws it away. An [*os.File] is handed to
// the process. Any other writer is written to by a goroutine, and the process counts as ended when all
// has been written; processes that it has left behind with the same output are cut off from it two
// seconds later.
func Stdout(w io.Writer) Option {
	return func(o *options) { o.stdout = output{true, writer(w)} }
}

// Stderr is [Stdout] for standard error. The same w for both is written to by one goroutine.
func Stderr(w io.Writer) Option {
	return func(o *options) { o.stderr = output{true, writer(w)} }
}

// writer makes a nil file a nil writer, which os/exec understands.
func writer(w io.Writer) io.Writer {
	if f, ok := w.(*os.File); ok && f == nil {
		return nil
	}
	return w
}

// or returns where a stream goes: by default to the parent's own, or nowhere if that is closed.
func (s output) or(inherited *os.File) io.Writer {
	if s.set {
		return s.to
	}
	if _, err := inherited.Stat(); err != nil {
		return nil
	}
	return inherited
}

// MaxProcs sets GOMAXPROCS of the process: how many threads execute Go code at once.
func MaxProcs(n int) Option {
	return func(o *options) {
		if n < 1 {
			o.refuse("MaxProcs(%d), at least 1", n)
		}
		o.maxProcs = n
	}
}

// Daemon makes the process one that nobody waits for: it is ended when its parent's main function has
// returned and ordinary children are done, and also when the parent is killed. It may not start
// processes.
func Daemon() Option {
	return func(o *options) { o.daemon = true }
}

// Graceful makes SIGTERM and SIGINT end the context of the function instead of the process. The
// process has d from then on; if the function returns in time, its result counts as ever, except that
// an error which is [context.Canceled] counts as the signal. Otherwise the signal comes again, with its
// default action. It changes nothing on Windows, which has no such signals.
func Graceful(d time.Duration) Option {
	return func(o *options) {
		if d < 0 {
			o.refuse("Graceful(%v)", d)
		}
		o.graceful = d
	}
}
