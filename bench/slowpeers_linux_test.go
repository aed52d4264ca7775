package bench

import (
	"context"
	"flag"
	"os"
	"testing"
	"time"
)

var slowPeers = flag.Bool("slow-peers", false, "also try those peers that take long to begin")

func TestPeersInPythonAreMeasured(t *testing.T) {
	if err := needPython(); err != nil {
		t.Skip(err)
	}
	for _, args := range [][]string{{"contended", "2"}, {"array", "10"}, {"set", "10"}, {"queue", "64"}} {
		s, err := peerPython("Python", args...).Run(t.Context(), 10*time.Millisecond)
		if err != nil || s.Ops < 1 && s.Total < 1 || s.Elapsed < 10*time.Millisecond || args[0] == "contended" && (len(s.Shares) != 2 || total(s.Shares) != s.Ops) {
			t.Errorf("%v: %+v, %v", args, s, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := peerPython("Python", "contended", "2").Run(ctx, time.Hour); err == nil {
		t.Error("an hour that was interrupted: no error")
	}
}

func TestRedisIsMeasuredAndLeavesNothing(t *testing.T) {
	if err := needRedis(); err != nil {
		t.Skip(err)
	}
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	for _, call := range [][]string{{"RPUSH", "7"}, {"INCR"}, {"GET"}, {"SET"}, {"BRPOP", "8"}} {
		s, err := peerRedis("Redis", call...).Run(t.Context(), 5*time.Millisecond)
		if err != nil || s.Ops < 1 || s.Elapsed <= 0 {
			t.Errorf("%v: %+v, %v", call, s, err)
		}
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) != 1 {
		t.Errorf("while the server runs: %v, %v", left, err)
	}
	Close()
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestBoostIsMeasured(t *testing.T) {
	if !*slowPeers {
		t.Skip("the compiler takes half a minute: -slow-peers runs it")
	}
	if err := needBoost(); err != nil {
		t.Skip(err)
	}
	for _, args := range [][]string{{"alone"}, {"contended", "2", "0", "200"}, {"append-string"}, {"get", "100"}, {"set", "100"}, {"queue", "2", "64"}} {
		s, err := peerBoost("Boost", args...).Run(t.Context(), 5*time.Millisecond)
		if err != nil || s.Ops < 1 && s.Total < 1 || s.Elapsed < 5*time.Millisecond {
			t.Errorf("%v: %+v, %v", args, s, err)
		}
	}
}
