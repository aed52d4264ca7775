package shm_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/shmkit/shmkit/shm"
)

func TestTheDirectoryComesFromTheEnvironment(t *testing.T) {
	dir := filepath.Join(memoryDir(t), "made", "when", "needed")
	t.Setenv("SHMKIT_DIR", dir)
	if _, err := shm.Open("r"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open: %v, want fs.ErrNotExist", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("Open has made the directory")
	}
	r, err := shm.Create("r")
	if must(t, r, err).Path() != filepath.Join(dir, "r") {
		t.Errorf("path %q, want one in %q", r.Path(), dir)
	}
	other := memoryDir(t)
	r, err = shm.Create("r", shm.Dir(other))
	if must(t, r, err).Path() != filepath.Join(other, "r") {
		t.Errorf("path %q, want one in %q: the option comes first", r.Path(), other)
	}
	if err := shm.Remove("r"); err != nil {
		t.Error(err)
	}
}

func TestTheDefaultDirectoryMustBePrivate(t *testing.T) {
	base := memoryDir(t)
	private := filepath.Join(base, "private")
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := shm.CheckPrivate(private); err != nil {
		t.Errorf("a private directory: %v", err)
	}
	if err := shm.CheckPrivate(filepath.Join(base, "none")); err != nil {
		t.Errorf("a missing directory: %v", err)
	}
	link, file := filepath.Join(base, "link"), filepath.Join(base, "file")
	if err := errors.Join(os.Symlink(private, link), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, file} {
		if _, err := os.Lstat(path); err != nil {
			t.Logf("no links here: %v", err)
			continue
		}
		if err := shm.CheckPrivate(path); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s: %v, want fs.ErrPermission", path, err)
		}
	}
	if !haveModes {
		t.Skip("modes say nothing here")
	}
	for _, mode := range []fs.FileMode{0o777, 0o770, 0o750, 0o701, 0o1777} {
		if err := os.Chmod(private, mode); err != nil {
			t.Fatal(err)
		}
		if err := shm.CheckPrivate(private); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("mode %o: %v, want fs.ErrPermission", mode, err)
		}
	}
	if err := os.Chmod(private, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can make a foreign directory")
	}
	if err := os.Chown(private, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := shm.CheckPrivate(private); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a directory of another user: %v, want fs.ErrPermission", err)
	}
}
