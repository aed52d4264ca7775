package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// What the command ends with.
const (
	exitFine        = 0
	exitFailed      = 1 // checked and wrong, or could not be done
	exitUsage       = 2
	exitInterrupted = 130
)

// run is the whole command, called in process by main and by tests. A first SIGINT or SIGTERM ends
// its context, which ends what it has started; a second one has its usual effect.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := interruptible()
	defer stop()

	root := newRoot(stdin, stdout, stderr)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)

	var usage *usageError
	switch {
	case err == nil:
		return exitFine
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "shmkit: %v\nTry '%s --help'.\n", err, cmd.CommandPath())
		return exitUsage
	case errors.Is(err, errInterrupted):
		fmt.Fprintln(stderr, "shmkit: interrupted")
		return exitInterrupted
	default:
		fmt.Fprintf(stderr, "shmkit: %v\n", err)
		return exitFailed
	}
}

// interruptible returns a context that the first SIGINT or SIGTERM ends. Those that a shell has told us
// to ignore, as in the background, stay ignored.
func interruptible() (context.Context, context.CancelFunc) {
	var heeded []os.Signal
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		if !signal.Ignored(sig) {
			heeded = append(heeded, sig)
		}
	}
	if len(heeded) == 0 { // NotifyContext would heed all there are
		return context.WithCancel(context.Background())
	}
	ctx, stop := signal.NotifyContext(context.Background(), heeded...)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// newRoot returns the command with all its subcommands.
func newRoot(stdin io.Reader, stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "shmkit",
		Short: "Share data between processes, and see that nothing is lost",
		Long: `shmkit shares locks, numbers, arrays and lists between processes of one machine.

This command shows it at work. Begin with

  shmkit demo

which runs six small programs with real processes and checks what came out, and go on with

  shmkit bench --quick

which measures, in less than a minute, what this costs beside what people use instead.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			err := fmt.Errorf("there is no command %q", args[0])
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				err = fmt.Errorf("%w; did you mean %s?", err, strings.Join(near, " or "))
			}
			return &usageError{err}
		},
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		ValidArgsFunction: cobra.NoFileCompletions,
		SilenceErrors:     true, // run prints them
		SilenceUsage:      true,
	}
	root.SuggestionsMinimumDistance = 2 // left at 0 when SuggestionsFor is called from outside cobra
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(newDemo(), newBench(), newVersion())
	addCompletion(root) // last: it keeps the output for itself, and looks whether there are commands
	return root
}

// usageError is a mistake in how the command was called.
type usageError struct{ err error }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// errInterrupted says that SIGINT or SIGTERM ended the work.
var errInterrupted = errors.New("interrupted")

// noArgs refuses arguments as cobra.NoArgs does, as the usage error it is.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no arguments, not %q", cmd.CommandPath(), args[0])
	}
	return nil
}
