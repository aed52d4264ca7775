package shm

import (
	"bytes"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	stdsync "sync"
	"testing"

	"golang.org/x/sys/unix"
)

// tree writes files below a new directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestTheMemoryLimitIsTheLeastUpToTheRoot(t *testing.T) {
	const (
		v1     = "32 31 0:29 / /cg/cpu rw - cgroup cgroup rw,cpu\n35 31 0:32 / /cg/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
		v2     = "41 31 0:38 / /cg rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
		v1Open = "9223372036854771712\n"
	)
	for _, c := range []struct {
		name  string
		files map[string]string
		want  Amount
	}{
		{"nothing is known", nil, Amount{}},
		{"version 2, above", map[string]string{
			"proc/self/cgroup": "0::/pod/box\n", "proc/self/mountinfo": v2,
			"cg/pod/box/memory.max": "max\n", "cg/pod/memory.max": "4096\n",
		}, amount(4096)},
		{"version 2, here", map[string]string{
			"proc/self/cgroup": "0::/pod/box\n", "proc/self/mountinfo": v2,
			"cg/pod/box/memory.max": "1024\n", "cg/pod/memory.max": "4096\n",
		}, amount(1024)},
		{"version 2, none", map[string]string{
			"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": v2, "cg/cgroup.controllers": "cpu memory\n",
		}, amount(math.MaxUint64)},
		{"version 2, a namespace of its own", map[string]string{
			"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": v2, "cg/memory.max": "512\n",
		}, amount(512)},
		{"version 2, outside of the namespace", map[string]string{
			"proc/self/cgroup": "0::/../other\n", "proc/self/mountinfo": strings.Replace(v2, " / ", " /mine ", 1), "cg/memory.max": "512\n",
		}, amount(512)},
		{"version 1", map[string]string{
			"proc/self/cgroup": "5:cpu:/x\n4:memory:/a/b\n", "proc/self/mountinfo": v1,
			"cg/memory/a/b/memory.limit_in_bytes": v1Open, "cg/memory/a/memory.limit_in_bytes": "8192\n", "cg/memory/memory.limit_in_bytes": v1Open,
		}, amount(8192)},
		{"version 1, none", map[string]string{
			"proc/self/cgroup": "4:memory:/a\n", "proc/self/mountinfo": v1, "cg/memory/a/memory.limit_in_bytes": v1Open,
		}, amount(math.MaxUint64)},
		{"version 1, the mount begins at the group", map[string]string{
			"proc/self/cgroup":                "4:memory:/docker/abc\n",
			"proc/self/mountinfo":             "35 31 0:32 /docker/abc /cg/memory ro - cgroup cgroup rw,memory\n",
			"cg/memory/memory.limit_in_bytes": "2048\n",
		}, amount(2048)},
		{"rubbish", map[string]string{
			"proc/self/cgroup": "0::\n::::\nx\n0::/a\n", "proc/self/mountinfo": "1 2\n - \n" + v2, "cg/a/memory.max": "many\n",
		}, Amount{}},
	} {
		if got := memoryLimit(tree(t, c.files)); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestAReportLeavesNothingAndTellsWhatIsThere(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "not", "yet")
	r := Capabilities(Dir(dir))
	if files, err := os.ReadDir(base); err != nil || len(files) != 0 {
		t.Errorf("the report has left %v (%v)", files, err)
	}
	if r.Directory != dir || r.Exists != No || r.Writable != Yes || r.Locks != Yes || r.Memfd != Yes || r.Proc != Yes || r.Futex != Yes {
		t.Errorf("a missing directory below a usable one:\n%v", r)
	}
	if r.FileSystem == "" || !r.Size.Known || !r.Addresses.Known || !r.FileSize.Known || !r.MemoryFree.Known {
		t.Errorf("something is unknown:\n%v", r)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if r := Capabilities(Dir(dir)); r.Exists != Yes || r.Private != Yes || r.Own != Yes {
		t.Errorf("a private directory:\n%v", r)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
		t.Errorf("the report has left %v (%v)", files, err)
	}
	before := openDescriptors(t)
	Capabilities(Dir(dir))
	if after := openDescriptors(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tell(t, Capabilities(Dir(file)), "not a directory")
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// tell expects a problem that names what, in the report as text too.
func tell(t *testing.T, r Report, what string) {
	t.Helper()
	for _, p := range r.Problems() {
		if strings.Contains(p.What, what) {
			if p.Why == "" || p.WayOut == "" || !strings.Contains(r.String(), p.What) {
				t.Errorf("%+v is not whole, or missing in the report", p)
			}
			return
		}
	}
	t.Errorf("no problem tells of %q:\n%v", what, r)
}

func TestProblemsNameWhatIsWrongAndNothingElse(t *testing.T) {
	fine := Report{Directory: "/d", Memory: Yes, Size: amount(1 << 30), Free: amount(1 << 30), MemoryLimit: amount(1 << 30), Mode: os.ModeDir | 0o700, Exists: Yes}
	for _, r := range []Report{fine, {}} {
		if p := r.Problems(); len(p) != 0 {
			t.Errorf("problems where nothing is wrong, or known: %v", p)
		}
	}
	for what, change := range map[string]func(*Report){
		"64 MiB in all":                  func(r *Report) { r.Size = amount(64 << 20) },
		"memory limit of 512 MiB":        func(r *Report) { r.MemoryLimit = amount(512 << 20) },
		"4 KiB free":                     func(r *Report) { r.Free = amount(4 << 10) },
		"4 KiB of memory available":      func(r *Report) { r.MemoryFree = amount(4 << 10) },
		"/proc is not mounted":           func(r *Report) { r.Proc = No },
		"memfd_create":                   func(r *Report) { r.Memfd = No },
		"/dev/shm: no such file":         func(r *Report) { r.Instead = "/dev/shm: no such file or directory" },
		"read-only":                      func(r *Report) { r.ReadOnly = Yes },
		"another user":                   func(r *Report) { r.Default, r.Own = true, No },
		"not a private directory":        func(r *Report) { r.Default, r.Private = true, No },
		"cannot make files":              func(r *Report) { r.Writable = No },
		"others can write":               func(r *Report) { r.Own, r.Mode = Yes, os.ModeDir|0o777 },
		"prove nothing (nfs)":            func(r *Report) { r.Locks, r.LocksWrong = No, "nfs" },
		"1 MiB of addresses (ulimit -v)": func(r *Report) { r.Addresses = amount(1 << 20) },
		"files of 512 bytes (ulimit -f)": func(r *Report) { r.FileSize = amount(512) },
		"64-bit atomics":                 func(r *Report) { r.Shareable = No },
	} {
		r := fine
		change(&r)
		tell(t, r, what)
		if n := len(r.Problems()); n != 1 {
			t.Errorf("%s: %d problems, want that one: %v", what, n, r.Problems())
		}
	}
}

func TestWithoutSharedMemoryTheTemporaryDirectoryIsUsedAndToldOnce(t *testing.T) {
	was := usualDir
	defer func() { usualDir = was }()
	usualDir = filepath.Join(t.TempDir(), "none")
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	t.Setenv("SHMKIT_DIR", "")

	r := Capabilities()
	if filepath.Dir(r.Directory) != temp {
		t.Errorf("the directory is %s, want one in %s", r.Directory, temp)
	}
	tell(t, r, usualDir)

	tellInstead = stdsync.Once{} // another test may have been told
	var log bytes.Buffer
	l := slog.New(slog.NewTextHandler(&log, nil))
	for _, opts := range [][]Option{nil, {Logger(l)}, {Logger(l)}} {
		region, err := Create("r", opts...)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Dir(filepath.Dir(region.Path())) != temp {
			t.Errorf("the region is %s", region.Path())
		}
		region.Close()
		if err := Remove("r"); err != nil {
			t.Fatal(err)
		}
	}
	if text := log.String(); strings.Count(text, "temporary directory") != 1 || !strings.Contains(text, usualDir) {
		t.Errorf("want it told once, and why:\n%s", text)
	}
}

// What a container finds is made here with mounts of one process' own.
func TestWhatContainersFindIsExplained(t *testing.T) {
	if os.Getenv("SHMKIT_TEST_MOUNTS") != "" {
		os.Stdout.WriteString(Capabilities().String())
		return
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip("needs unshare")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	temp := t.TempDir()
	for _, c := range []struct{ name, mount, want string }{
		{"64 MiB", "mount -t tmpfs -o size=64m tmpfs /dev/shm", "--shm-size"},
		{"read-only", "mount -t tmpfs -o ro tmpfs /dev/shm", "/dev/shm: read-only file system"},
		{"missing", "mount -t tmpfs tmpfs /dev", "/dev/shm: no such file or directory"},
		{"full", "mount -t tmpfs -o size=64k tmpfs /dev/shm", "64 KiB free"},
		{"no /proc", "mount -t tmpfs tmpfs /proc", "/proc is not mounted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), unshare, "-Urm", "sh", "-c", c.mount+` && exec "$0" -test.run='^TestWhatContainersFindIsExplained$'`, self)
			cmd.Env = append(os.Environ(), "SHMKIT_TEST_MOUNTS=1", "SHMKIT_DIR=", "TMPDIR="+temp)
			out, err := cmd.CombinedOutput()
			if err != nil && !bytes.Contains(out, []byte("named regions")) {
				t.Skipf("cannot mount here: %v: %s", err, out)
			}
			if _, problems, _ := strings.Cut(string(out), "\nproblem "); err != nil || !strings.Contains(problems, c.want) {
				t.Errorf("%v; the problems do not tell of %q:\n%s", err, c.want, out)
			}
		})
	}
}

// Programs that see different mounts can tell from their reports.
func TestReportsTellMountsApart(t *testing.T) {
	here, err := os.MkdirTemp("/dev/shm", "shmkit-test-")
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(here)
	one, same, other := Capabilities(Dir(here)), Capabilities(Dir("/dev/shm")), Capabilities(Dir("/proc"))
	if one.Device == "" || one.Device != same.Device || one.Device == other.Device {
		t.Errorf("devices %q, %q on the same file system, %q on another one", one.Device, same.Device, other.Device)
	}
	if !strings.Contains(one.String(), one.Device) {
		t.Errorf("the report does not show it:\n%v", one)
	}
}

// A limit on the size of files sends a signal to those who go beyond.
func TestAReportOutlivesALimitOnFiles(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	now := was
	now.Cur = 16
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &now); err != nil {
		t.Fatal(err)
	}
	r := Capabilities(Dir(t.TempDir()))
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	if r.Fallocate != NotKnown {
		t.Errorf("fallocate %v, want it unknown", r.Fallocate)
	}
	tell(t, r, "ulimit -f")
}
