package shm_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

// Package proc starts processes of this user and this namespace. The others are what this test binary
// does under a role, told in roleVariable with what the role needs.
const roleVariable = "SHMKIT_TEST_ROLE"

var roles = make(map[string]func(args []string) error)

func role(name string, fn func(args []string) error) string {
	roles[name] = fn
	return name
}

func init() {
	told, ok := os.LookupEnv(roleVariable)
	if !ok {
		return
	}
	words := strings.Split(told, "\n")
	if err := roles[words[0]](words[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", words[0], err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A player is a process that plays a role. Its standard input ends with the test, and so should it.
type player struct {
	*exec.Cmd
	input  *os.File
	output strings.Builder
	ended  bool
}

// play starts a process. It skips the test if the system permits no such process here.
func play(tb testing.TB, binary string, attr *syscall.SysProcAttr, files []*os.File, role string, args ...string) *player {
	tb.Helper()
	theirs, mine, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	p := &player{Cmd: exec.Command(binary), input: mine}
	p.Env = append(os.Environ(), roleVariable+"="+strings.Join(append([]string{role}, args...), "\n"), "GORACE=atexit_sleep_ms=0", "SHMKIT_DIR=")
	p.Stdin, p.Stdout, p.Stderr = theirs, &p.output, &p.output
	p.SysProcAttr, p.ExtraFiles, p.Dir = attr, files, "/"
	err = p.Start()
	theirs.Close()
	if err != nil {
		mine.Close()
		tb.Skipf("this system does not permit the process that this test needs: %v", err)
	}
	tb.Cleanup(p.kill)
	return p
}

func (p *player) kill() {
	if !p.ended {
		p.Process.Kill()
		p.end()
	}
}

// end waits until the process is gone.
func (p *player) end() error {
	p.ended = true
	err := p.Wait()
	p.input.Close()
	return err
}

// succeed waits for a process that must end well.
func (p *player) succeed(tb testing.TB) {
	tb.Helper()
	if err := p.end(); err != nil {
		tb.Fatalf("%v: %s", err, p.output.String())
	}
}

// untilTheTestEnds returns when standard input does.
func untilTheTestEnds() { io.Copy(io.Discard, os.Stdin) }

// holdFile attaches to the region in a file, tells its token and its pid in words 1 and 2, counts itself
// in word 0, and stays.
var holdFile = role("hold", func(args []string) error {
	r, err := shm.OpenFile(args[0])
	if err != nil {
		return err
	}
	word(r, 1).Store(uint64(shm.Self()))
	word(r, 2).Store(uint64(os.Getpid()))
	word(r, 0).Add(1)
	untilTheTestEnds()
	return nil
})

// attached waits until one more process has counted itself, and returns its token and its pid.
func (p *player) attached(tb testing.TB, r *shm.Region, count uint64) (shm.Token, int) {
	tb.Helper()
	if err := await("a process to attach", func() bool { return word(r, 0).Load() >= count }); err != nil {
		p.kill()
		tb.Fatalf("%v\nit said: %s", err, p.output.String())
	}
	return shm.Token(word(r, 1).Load()), int(word(r, 2).Load())
}
