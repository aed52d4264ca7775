package shm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// duplicates returns descriptors of one and the same description: their locks do not exclude each other.
func duplicates(t *testing.T, f *os.File) func() (*os.File, error) {
	return func() (*os.File, error) {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewFile(uintptr(fd), f.Name()), err
	}
}

func scratch(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestLocksThatDoNotExcludeAreFound(t *testing.T) {
	f := scratch(t)
	if wrong, err := tryLocks(duplicates(t, f)); err != nil || wrong == "" {
		t.Errorf("locks of one description taken twice passed (%v)", err)
	}
	if wrong, err := tryLocks(func() (*os.File, error) { return reopen(f, "") }); err != nil || wrong != "" {
		t.Errorf("two descriptions: %q, %v", wrong, err)
	}
}

func TestLocksThatStayAfterCloseAreFound(t *testing.T) {
	f := scratch(t)
	var again []*os.File
	defer func() {
		for _, d := range again {
			d.Close()
		}
	}()
	wrong, err := tryLocks(func() (*os.File, error) {
		g, err := reopen(f, "")
		if err != nil {
			return nil, err
		}
		d, err := duplicates(t, g)() // keeps the description when g is closed
		again = append(again, d)
		return g, err
	})
	if err != nil || !strings.Contains(wrong, "stays") {
		t.Errorf("%q, %v; want that a lock stays", wrong, err)
	}
}

func TestFileSystemsThatMachinesShareAreRefusedByName(t *testing.T) {
	for _, magic := range []uint32{unix.NFS_SUPER_MAGIC, unix.V9FS_MAGIC, unix.CIFS_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC} {
		s := knownFileSystem(magic)
		verdict, err := judge(s, func() (*os.File, error) { return nil, errors.New("tried") })
		if err != nil || !errors.Is(verdict, errors.ErrUnsupported) {
			t.Errorf("%s: %v, %v; want errors.ErrUnsupported without a trial", s.name, verdict, err)
			continue
		}
		for _, part := range []string{s.name, "SHMKIT_DIR"} {
			if !strings.Contains(verdict.Error(), part) {
				t.Errorf("%q does not name %s", verdict, part)
			}
		}
	}
	if s := knownFileSystem(0x12345678); s.shared || !strings.Contains(s.name, "0x12345678") {
		t.Errorf("an unknown type is %+v; want it judged by trial and named by its number", s)
	}
}

func TestWhereLocksProveNothingNoRegionIsMade(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	verdict, err := judge(fileSystem{name: "testfs"}, duplicates(t, f))
	if err != nil || verdict == nil {
		t.Fatal(verdict, err)
	}
	os.Remove(f.Name())
	r, err := Create("before", Dir(dir))
	if err != nil {
		t.Fatal(err)
	}
	r.Close()

	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	judged := func(v error) {
		regions.mu.Lock()
		defer regions.mu.Unlock()
		lockVerdicts[uint64(st.Dev)] = v
	}
	judged(verdict)
	defer judged(nil)
	_, err = Create("r", Dir(dir))
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "testfs") {
		t.Errorf("Create: %v; want errors.ErrUnsupported that names the file system", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Errorf("%v, %v: a refused region has left a file", files, err)
	}
}

func TestLocksAreTriedOncePerDevice(t *testing.T) {
	f := scratch(t)
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	dev := uint64(info.Sys().(*syscall.Stat_t).Dev)
	m := &mapping{file: f, info: info}
	regions.mu.Lock()
	defer regions.mu.Unlock()
	delete(lockVerdicts, dev)
	if err := checkLocks(m); err != nil {
		t.Fatal(err)
	}
	if _, ok := lockVerdicts[dev]; !ok {
		t.Fatal("the verdict was not kept")
	}
	f.Close() // a second trial could not open it
	if err := checkLocks(m); err != nil {
		t.Errorf("tried again: %v", err)
	}
}
