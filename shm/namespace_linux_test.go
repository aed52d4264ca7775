package shm_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

// inNamespace makes a process the first of a pid namespace of its own: its pid is 1.
func inNamespace() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
}

func namedRegion(tb testing.TB) *shm.Region {
	tb.Helper()
	r, err := shm.Create("r", named(tb))
	return must(tb, r, err)
}

func TestAProcessOfAnotherNamespaceLivesAndDies(t *testing.T) {
	r := namedRegion(t)
	p := play(t, os.Args[0], inNamespace(), nil, holdFile, r.Path())
	token, pid := p.attached(t, r, 1)
	if pid != 1 {
		t.Fatalf("pid %d: it is in no namespace of its own", pid)
	}
	alive := func(how string) {
		t.Helper()
		for range 3 {
			shm.Sweep(r)
			if told, settled := r.Settled(token); settled || told != pid {
				t.Fatalf("%s: pid %d, settled %v, want 1 and false", how, told, settled)
			}
		}
	}
	alive("running")
	if err := p.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	wait(t, "it to be stopped", func() bool { return processState(p.Process.Pid) == 'T' })
	alive("stopped")
	p.kill()
	before := r.Deaths().Load()
	wait(t, "a scan to find the dead process", func() bool { r.Scan(); return r.Deaths().Load() == before+1 })
	if told, settled := r.Settled(token); !settled || told != pid {
		t.Errorf("killed: pid %d, settled %v, want 1 and true", told, settled)
	}
	if n := shm.SlotsOf(r, token); n != 0 {
		t.Errorf("killed: it stands in %d slots", n)
	}
}

// processState returns the letter that the kernel gives for the state of a process, 0 if there is none.
func processState(pid int) byte {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	var state byte
	for i := range stat {
		if stat[i] == ')' && i+2 < len(stat) {
			state = stat[i+2] // behind the last one: the name may have some
		}
	}
	return state
}

// Each process is the first of a namespace, so all have one pid: that of the dead is that of the living.
func TestAPidThatIsUsedAgainProvesNothing(t *testing.T) {
	r := namedRegion(t)
	p := play(t, os.Args[0], inNamespace(), nil, holdFile, r.Path())
	dead, first := p.attached(t, r, 1)
	p.kill()
	q := play(t, os.Args[0], inNamespace(), nil, holdFile, r.Path())
	living, second := q.attached(t, r, 2)
	if first != second || dead == living {
		t.Fatalf("pids %d and %d, tokens %v and %v", first, second, dead, living)
	}
	if _, settled := r.Settled(dead); !settled {
		t.Error("the dead one lives by the pid of the living one")
	}
	shm.Sweep(r)
	if _, settled := r.Settled(living); settled || shm.SlotsOf(r, living) != 1 {
		t.Errorf("the living one, by the pid of the dead one: settled %v, in %d slots", settled, shm.SlotsOf(r, living))
	}
}

// The one who asks has the same pid as the one it asks about, and cannot see it.
func TestAJudgeOfAnotherNamespaceFindsTheSame(t *testing.T) {
	r := namedRegion(t)
	p := play(t, os.Args[0], inNamespace(), nil, holdFile, r.Path())
	token, _ := p.attached(t, r, 1)
	j := play(t, os.Args[0], inNamespace(), nil, judgeFile, r.Path(), strconv.FormatUint(uint64(token), 10))
	if err := await("the judge to ask", func() bool { return word(r, 3).Load() > 50 || word(r, 4).Load() != 0 }); err != nil {
		j.kill()
		t.Fatalf("%v\nit said: %s", err, j.output.String())
	}
	if word(r, 4).Load() != 0 {
		t.Fatal("the judge has found a live process dead")
	}
	p.kill()
	word(r, 5).Store(1)
	j.succeed(t)
	if word(r, 4).Load() != 1 || shm.SlotsOf(r, token) != 0 {
		t.Errorf("found dead %d times, stands in %d slots", word(r, 4).Load(), shm.SlotsOf(r, token))
	}
}

// judgeFile asks whether the process of a token is dead, counting questions in word 3, until it is. It
// counts that in word 4, and it is an error before word 5 is set.
var judgeFile = role("judge", func(args []string) error {
	r, err := shm.OpenFile(args[0])
	if err != nil {
		return err
	}
	t, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	if os.Getpid() != 1 {
		return fmt.Errorf("pid %d", os.Getpid())
	}
	return await("the process to be dead", func() bool {
		_, settled := r.Settled(shm.Token(t))
		if settled {
			word(r, 4).Add(1)
		}
		word(r, 3).Add(1)
		return settled
	})
})

// A process is killed whose children live on, one of them for long, and others that it is just starting.
// None of them has the descriptor that proves its life.
func TestChildrenDoNotKeepADeadProcessAlive(t *testing.T) {
	r := namedRegion(t)
	p := play(t, os.Args[0], nil, nil, breed, r.Path())
	token, _ := p.attached(t, r, 1)
	wait(t, "a child that stays, and many that do not", func() bool { return word(r, 3).Load() == 1 && word(r, 4).Load() > 20 })
	if word(r, 5).Load() != 0 {
		t.Error("a child has descriptors of its parent's region")
	}
	if _, settled := r.Settled(token); settled {
		t.Fatal("dead, although it starts processes")
	}
	p.Process.Kill()
	p.Process.Wait()
	p.ended = true
	wait(t, "the parent to be dead", func() bool { _, settled := r.Settled(token); return settled })
	if processState(int(word(r, 6).Load())) == 0 {
		t.Error("its child is gone: the test shows nothing")
	}
	p.input.Close()
	p.Wait() // for the output, which the child holds too
}

var breed = role("breed", func(args []string) error {
	r, err := shm.OpenFile(args[0])
	if err != nil {
		return err
	}
	child := func(how string) *exec.Cmd {
		c := exec.Command("/proc/self/exe")
		c.Env = append(os.Environ(), roleVariable+"="+linger+"\n"+args[0]+"\n"+how)
		c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
		return c
	}
	if err := child("stay").Start(); err != nil {
		return err
	}
	word(r, 1).Store(uint64(shm.Self()))
	word(r, 0).Add(1)
	for range 2 {
		go func() {
			for child("go").Run() == nil {
				word(r, 4).Add(1)
			}
		}()
	}
	untilTheTestEnds()
	return nil
})

// linger looks for descriptors that it should not have inherited.
var linger = role("linger", func(args []string) error {
	inherited := descriptorsOf(filepath.Dir(args[0]))
	if args[1] == "go" && inherited == 0 {
		return nil
	}
	r, err := shm.OpenFile(args[0])
	if err != nil {
		return err
	}
	word(r, 5).Add(uint64(inherited))
	if args[1] == "stay" {
		word(r, 6).Store(uint64(os.Getpid()))
		word(r, 3).Store(1)
		untilTheTestEnds()
	}
	return nil
})
