package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A command is the whole command in a process of its own.
type command struct {
	*exec.Cmd
	out    *bufio.Reader // its standard output
	stderr strings.Builder
	dir    string // where its named regions would be
}

func startCommand(t *testing.T, args ...string) *command {
	t.Helper()
	c := &command{Cmd: exec.CommandContext(t.Context(), os.Args[0], args...), dir: t.TempDir()}
	c.Env = append(os.Environ(), asCommand+"=1", "SHMKIT_DIR="+c.dir)
	c.Stderr = &c.stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c
}

// waitFor polls for a state that comes by itself.
func waitFor(t *testing.T, what string, state func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !state(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// children lists the processes that pid has started and not yet reaped.
func children(pid int) []int {
	var pids []int
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, thread := range threads {
		list, _ := os.ReadFile(thread) // the thread may be gone
		for _, field := range strings.Fields(string(list)) {
			child, _ := strconv.Atoi(field)
			pids = append(pids, child)
		}
	}
	return pids
}

// runs reports whether the process is there and not just waiting to be reaped.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return state != "" && state[0] != 'Z' && state[0] != 'X'
}

// killAll ends what a failing test has left.
func killAll(pids []int) {
	for _, pid := range pids {
		if runs(pid) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

func TestInterruptedDemoEndsAllItsProcessesAndLeavesNothing(t *testing.T) {
	for _, c := range []struct {
		args   string
		procs  int            // to be seen running before the signal
		signal syscall.Signal // negative: sent to its children too, as by a terminal
	}{
		{"demo bakers --oven 1h", 2, syscall.SIGINT},
		{"demo bakers --oven 1h", 2, syscall.SIGTERM},
		{"demo bakers --oven 1h --no-lock -v", 2, syscall.SIGINT},
		{"demo squirrels --processes 8 --rounds 1000000000", 1, syscall.SIGINT},
		{"demo squirrels --processes 4 --rounds 1000000000", 4, syscall.SIGINT},
		{"demo bakers --oven 1h", 2, -syscall.SIGINT},
		{"demo squirrels --processes 4 --rounds 1000000000", 1, -syscall.SIGINT},
		{"demo journalists dogs --rounds 1000000000 --no-lock --json", 3, syscall.SIGINT},
	} {
		t.Run(fmt.Sprintf("%s signal=%d", c.args, c.signal), func(t *testing.T) {
			cmd := startCommand(t, strings.Fields(c.args)...)
			var pids []int
			waitFor(t, "its processes", func() bool {
				pids = children(cmd.Process.Pid)
				return len(pids) >= c.procs
			})
			if strings.Contains(c.args, "bakers") { // they have come as far as they get
				waitForLine(t, cmd, "is baking...")
			}
			defer killAll(pids)
			send := func() error { return cmd.Process.Signal(c.signal) }
			if c.signal < 0 {
				send = func() error { return syscall.Kill(-cmd.Process.Pid, -c.signal) }
			}
			if err := send(); err != nil {
				t.Fatal(err)
			}
			rest := new(strings.Builder)
			_, _ = cmd.out.WriteTo(rest)
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
				t.Errorf("exit code %d, want %d", code, exitInterrupted)
			}
			mustContain(t, cmd.stderr.String(), "shmkit: interrupted")
			for _, pid := range pids {
				if runs(pid) {
					t.Errorf("process %d goes on", pid)
				}
			}
			if left, _ := os.ReadDir(cmd.dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if strings.Contains(c.args, "--json") {
				mustContain(t, rest.String(), `"version": 1`, `"ok": false`, `"error": "interrupted"`)
			}
		})
	}
}

func TestKilledDemoTakesItsProcessesAlong(t *testing.T) {
	for _, args := range []string{"demo bakers --oven 1h", "demo squirrels --processes 4 --rounds 1000000000"} {
		cmd := startCommand(t, strings.Fields(args)...)
		var pids []int
		waitFor(t, "its processes", func() bool {
			pids = children(cmd.Process.Pid)
			return len(pids) >= 2
		})
		defer killAll(pids)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		for _, pid := range pids {
			waitFor(t, fmt.Sprintf("the end of process %d of %s", pid, args), func() bool { return !runs(pid) })
		}
	}
}

func waitForLine(t *testing.T, cmd *command, ending string) {
	t.Helper()
	for {
		line, err := cmd.out.ReadString('\n')
		if err != nil {
			t.Fatalf("no line ends with %q: %v\n%s", ending, err, cmd.stderr.String())
		}
		if strings.HasSuffix(line, ending+"\n") {
			return
		}
	}
}
