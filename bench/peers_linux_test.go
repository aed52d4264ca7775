package bench

import (
	"context"
	"os/exec"
	"testing"
	"time"
)

func TestPeersInCAreMeasured(t *testing.T) {
	if err := needC(); err != nil {
		if _, missing := exec.LookPath("cc"); missing != nil {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   []string
		shares int
	}{
		{[]string{"contended", "pthread", "3", "0", "200", "100"}, 3},
		{[]string{"contended", "robust", "2", "200", "0", "100"}, 2},
		{[]string{"contended", "futex3", "2", "0", "0", "100"}, 2},
		{[]string{"contended", "rwlock", "2", "0", "0", "10"}, 2},
		{[]string{"alone", "robust"}, 0},
		{[]string{"pingpong"}, 0},
		{[]string{"flow", "1", "8"}, 1},
		{[]string{"flow", "3", "64"}, 3},
		{[]string{"flow", "2", "4096"}, 2},
	} {
		s, err := peerC("C", Peer, c.args...).Run(t.Context(), 20*time.Millisecond)
		if err != nil {
			t.Errorf("%v: %v", c.args, err)
			continue
		}
		if s.Ops < 1 || s.Elapsed < 20*time.Millisecond || len(s.Shares) != c.shares || s.CPU <= 0 || c.args[0] != "alone" && c.args[0] != "flow" && s.Waits.Count() == 0 {
			t.Errorf("%v: %d in %v, shares %v, processor time %v", c.args, s.Ops, s.Elapsed, s.Shares, s.CPU)
		}
		if c.shares > 0 && total(s.Shares) != s.Ops {
			t.Errorf("%v: shares %v of %d", c.args, s.Shares, s.Ops)
		}
	}
	if _, err := peerC("C", Peer, "no such thing").Run(t.Context(), time.Millisecond); err == nil {
		t.Error("a program that fails: no error")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err := peerC("C", Peer, "contended", "pthread", "2", "0", "0", "100").Run(ctx, time.Hour)
	if err == nil || time.Since(begin) > time.Minute {
		t.Errorf("an hour that was interrupted: %v after %v", err, time.Since(begin))
	}
}

func TestWhatPeersPrintIsJudged(t *testing.T) {
	s, err := readSample("ops 10\nelapsed 2000\nshares 4 6\nwaits 0 3 7\ncpu 5\nswitches 1\n")
	if err != nil || s.NsPerOp() != 200 || len(s.Shares) != 2 || s.Waits[2] != 7 || s.Waits.Count() != 10 || s.CPU != 5 {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := readSample("ops 0\nelapsed 1\ntotal 5\n"); err != nil {
		t.Error("a window in which nobody came to run:", err)
	}
	for _, bad := range []string{"", "ops 10\n", "ops\n", "ops x\nelapsed 1\n", "ops 0\nelapsed 1\n", "what 1\n"} {
		if _, err := readSample(bad); err == nil {
			t.Errorf("%q was believed", bad)
		}
	}
}
