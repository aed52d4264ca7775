package proc_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	"golang.org/x/sys/unix"
)

// passedOn are the descriptors that this process was itself started with and hands to everybody: by
// number and what they are.
var passedOn = func() string {
	var b strings.Builder
	for fd := 3; fd < 1024; fd++ {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			link, _ := os.Readlink(fmt.Sprint("/proc/self/fd/", fd))
			fmt.Fprintf(&b, "%d %s\n", fd, link)
		}
	}
	return b.String()
}()

// printDescriptors prints what this process has open, a line each, but for Go's own.
func printDescriptors() {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		panic(err)
	}
	for _, n := range names {
		link, err := os.Readlink("/proc/self/fd/" + n)
		if err != nil || n == fmt.Sprint(dir.Fd()) || strings.HasPrefix(link, "anon_inode:[") || strings.HasPrefix(link, "/sys/fs/cgroup/") {
			continue
		}
		fmt.Printf("%s %s\n", n, link)
	}
}

// checkDescriptors checks that a process has nothing open but its standard streams, so many pipes
// (standard output counts), and files called like want.
func checkDescriptors(t *testing.T, list string, pipes int, want ...string) {
	t.Helper()
	for line := range strings.Lines(list) {
		fd, link, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch {
		case strings.Contains(passedOn, line):
		case fd == "0" && link == os.DevNull, fd == "2":
		case strings.HasPrefix(link, "pipe:"):
			pipes--
		default:
			known := false
			for _, w := range want {
				known = known || link == w
			}
			if !known {
				t.Errorf("descriptor %s: %s", fd, link)
			}
		}
	}
	if pipes != 0 {
		t.Errorf("%d pipes are missing:\n%s", pipes, list)
	}
}

type withRegions struct {
	R    *shm.Region
	More []*shm.Region
}

var descriptors = proc.Define("descriptors", func(context.Context, withRegions) error {
	printDescriptors()
	return nil
})

func TestChildInheritsNothingElse(t *testing.T) {
	g := newGate(t)
	start(t, hold, g.addr()) // its pipes are open here
	g.arrival()
	secret, err := os.Create(t.TempDir() + "/secret")
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	one := anonymous(t)
	anonymous(t) // not in the argument
	file, err := shm.CreateFile(t.TempDir() + "/region")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var out buffer
	devNull, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer devNull.Close()
	a := withRegions{R: one, More: []*shm.Region{file, one}}
	if err := start(t, descriptors, a, proc.Stdout(&out), proc.Stderr(devNull)).Wait(); err != nil {
		t.Fatal(err)
	}
	links := []string{link(t, one.File()), link(t, file.File())}
	checkDescriptors(t, out.String(), 2, links...)
	for _, l := range links {
		if n := strings.Count(out.String(), " "+l+"\n"); n == 0 || n > 2 { // mapped, and locked for life
			t.Errorf("the child has %d descriptors of %s:\n%s", n, l, out.String())
		}
	}
}

func link(t *testing.T, f *os.File) string {
	t.Helper()
	l, err := os.Readlink(fmt.Sprint("/proc/self/fd/", f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

var nothing = proc.Define("nothing", func(context.Context, withRegions) error { return nil })

func TestParentKeepsNothingOfEndedProcesses(t *testing.T) {
	count := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	run := func() {
		r := anonymous(t)
		if err := nothing.Run(t.Context(), withRegions{R: r}, withRegions{R: r}); err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	run() // opens what stays open: the poller, standard streams
	before := count()
	for range 5 {
		run()
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

var title = proc.Define("title", func(context.Context, struct{}) error {
	b, err := os.ReadFile("/proc/self/comm")
	fmt.Print(string(b))
	return err
})

func TestChildHasTheNameOfTheProgramInPS(t *testing.T) {
	var out buffer
	if err := start(t, title, struct{}{}, proc.Stdout(&out)).Wait(); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%.15s\n", filepath.Base(os.Args[0])); out.String() != want {
		t.Errorf("it is called %q, want %q", out.String(), want)
	}
}
