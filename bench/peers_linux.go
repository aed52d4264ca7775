package bench

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

//go:embed peers/peers.c
var peersC []byte

// inC is the program of peers/peers.c, compiled when it is first needed. It has no name any more when it runs, so
// nothing of it is left behind.
var inC = sync.OnceValues(func() (*os.File, error) {
	return compile(peersC, "cc", "-O2", "-pthread", "-x", "c")
})

// compile returns the program of source, which has no name.
func compile(source []byte, compiler string, flags ...string) (*os.File, error) {
	dir, err := os.MkdirTemp("", "shmkit-bench")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "peers")
	cmd := exec.CommandContext(context.Background(), compiler, append(flags, "-o", program, "-")...)
	cmd.Stdin = bytes.NewReader(source)
	ownGroup(cmd) // an interrupt ends it no earlier than this process, which removes what it has made
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("bench: %s: %w: %s", compiler, err, bytes.TrimSpace(out))
	}
	return os.Open(program)
}

// needC says why the C peers cannot be run.
func needC() error {
	_, err := exec.LookPath("cc")
	if err != nil {
		return errors.New("bench: there is no C compiler cc")
	}
	_, err = inC()
	return err
}

// ownGroup makes cmd a process group of its own: what the terminal's Ctrl-C ends is this process, which ends the
// whole group.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
}

// peerC is a subject that the C program measures; the last argument is the window in ms.
func peerC(by string, role Role, args ...string) Subject {
	return Subject{By: by, Role: role, Need: needC, Run: func(ctx context.Context, window time.Duration) (*Sample, error) {
		f, err := inC()
		if err != nil {
			return nil, err
		}
		args := append(append([]string(nil), args...), strconv.Itoa(int(max(window.Milliseconds(), 1))))
		cmd := exec.CommandContext(ctx, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), args...)
		return runPeer(cmd)
	}}
}

//go:embed peers/peers.py
var peersPython []byte

// inPython is the text of peers/peers.py in a file that has no name any more.
var inPython = sync.OnceValues(func() (*os.File, error) {
	f, err := os.CreateTemp("", "shmkit-bench")
	if err != nil {
		return nil, err
	}
	_, err = f.Write(peersPython)
	return f, errors.Join(err, os.Remove(f.Name()))
})

func needPython() error {
	if _, err := exec.LookPath("python3"); err != nil {
		return errors.New("bench: there is no python3")
	}
	return nil
}

// peerPython is a subject that the Python program measures; the last argument is the window in ms.
func peerPython(by string, args ...string) Subject {
	return Subject{By: by, Role: Peer, Slow: true, Need: needPython, Run: func(ctx context.Context, window time.Duration) (*Sample, error) {
		f, err := inPython()
		if err != nil {
			return nil, err
		}
		args := append([]string{fmt.Sprintf("/proc/self/fd/%d", 3)}, args...)
		cmd := exec.CommandContext(ctx, "python3", append(args, strconv.Itoa(int(max(window.Milliseconds(), 1))))...)
		cmd.ExtraFiles = []*os.File{f}
		return runPeer(cmd)
	}}
}

//go:embed peers/boost.cc
var peersBoost []byte

// inBoost is the program of peers/boost.cc, as inC.
var inBoost = sync.OnceValues(func() (*os.File, error) {
	return compile(peersBoost, "c++", "-O2", "-std=c++17", "-pthread", "-x", "c++")
})

// needBoost says whether there are a compiler and the headers.
var needBoost = sync.OnceValue(func() error {
	if _, err := exec.LookPath("c++"); err != nil {
		return errors.New("bench: there is no C++ compiler c++")
	}
	cmd := exec.Command("c++", "-E", "-x", "c++", "-")
	cmd.Stdin = strings.NewReader("#if !__has_include(<boost/interprocess/managed_external_buffer.hpp>) || !__has_include(<boost/unordered_map.hpp>)\n#error none\n#endif\n")
	if err := cmd.Run(); err != nil {
		return errors.New("bench: there are no headers of Boost.Interprocess")
	}
	return nil
})

// peerBoost is a subject that the C++ program measures; the last argument is the window in ms.
func peerBoost(by string, args ...string) Subject {
	return Subject{By: by, Role: Peer, Slow: true, Need: needBoost, Run: func(ctx context.Context, window time.Duration) (*Sample, error) {
		f, err := inBoost()
		if err != nil {
			return nil, err
		}
		args := append(append([]string(nil), args...), strconv.Itoa(int(max(window.Milliseconds(), 1))))
		return runPeer(exec.CommandContext(ctx, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), args...))
	}}
}

// runPeer runs a program that prints what it has measured, and reads that.
func runPeer(cmd *exec.Cmd) (*Sample, error) {
	var out, trouble bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &trouble
	ownGroup(cmd)
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(trouble.Bytes()))
	}
	return readSample(out.String())
}

// readSample reads lines of a word and numbers.
func readSample(text string) (*Sample, error) {
	s := &Sample{CPU: -1, Switches: -1}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			return nil, fmt.Errorf("bench: a peer printed %q", line)
		}
		var values []int64
		for _, w := range words[1:] {
			v, err := strconv.ParseInt(w, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("bench: a peer printed %q", line)
			}
			values = append(values, v)
		}
		switch words[0] {
		case "ops":
			s.Ops = values[0]
		case "elapsed":
			s.Elapsed = time.Duration(values[0])
		case "total":
			s.Total = values[0]
		case "longest":
			s.Longest = time.Duration(values[0])
		case "cpu":
			s.CPU = time.Duration(values[0])
		case "bytes":
			s.Bytes = values[0]
		case "switches":
			s.Switches = values[0]
		case "shares":
			s.Shares = values
		case "waits":
			for i, v := range values[:min(len(values), len(s.Waits))] {
				s.Waits[i] = uint64(v)
			}
		default:
			return nil, fmt.Errorf("bench: a peer printed %q", line)
		}
	}
	// In a short window on a busy machine there may be none, but not in all.
	if max(s.Ops, s.Total) < 1 || s.Elapsed <= 0 {
		return nil, fmt.Errorf("bench: a peer did %d operations in %v", s.Ops, s.Elapsed)
	}
	return s, nil
}
