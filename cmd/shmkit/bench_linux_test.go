package main

import (
	"os"
	"syscall"
	"testing"
	"time"
)

func TestInterruptedBenchLeavesNothingBehind(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	c := startCommand(t, "bench", "contended/inside=2µs/outside=0s/procs=4", "--window", "1m", "--json")
	var pids []int
	t.Cleanup(func() { killAll(pids) })
	waitFor(t, "processes", func() bool { pids = children(c.Process.Pid); return len(pids) >= 4 })
	time.Sleep(10 * time.Millisecond)
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	if code := c.ProcessState.ExitCode(); code != exitInterrupted {
		t.Errorf("exit code %d\n%s", code, c.stderr.String())
	}
	for _, pid := range pids {
		if runs(pid) {
			t.Errorf("process %d still runs", pid)
		}
	}
	for _, dir := range []string{tmp, c.dir} {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}
