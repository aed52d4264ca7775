package shm

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	stdsync "sync"
)

const maxName = 200 // bytes

// checkName refuses names that are not [A-Za-z0-9._-]{1,200} or begin with a dot.
func checkName(name string) error {
	bad := func(why string) error {
		return fmt.Errorf("shm: name %q %s; a name is 1 to %d of A-Z a-z 0-9 . _ - and does not begin with a dot: %w",
			name, why, maxName, fs.ErrInvalid)
	}
	switch {
	case name == "":
		return bad("is empty")
	case len(name) > maxName:
		return bad(fmt.Sprintf("has %d bytes", len(name)))
	case name[0] == '.':
		return bad("begins with a dot")
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return bad(fmt.Sprintf("has %q at byte %d", c, i))
		}
	}
	return nil
}

// A place is the directory of named regions.
type place struct {
	dir, why string
	private  bool   // it is the default, which must be of this user alone
	instead  string // why it is not in the usual place for shared memory; empty if it is
}

// place chooses the directory of named regions: the option's, that of the environment variable
// SHMKIT_DIR, or a private one of this user in the system's place for shared memory. It is read when
// a region is made or opened, never at import.
func (o *options) place() place {
	if o.dir != "" {
		return place{dir: o.dir, why: "option Dir"}
	}
	if dir := os.Getenv("SHMKIT_DIR"); dir != "" {
		return place{dir: dir, why: "environment variable SHMKIT_DIR"}
	}
	base, instead := sharedMemoryDir()
	p := place{filepath.Join(base, fmt.Sprintf("shmkit-%d", os.Geteuid())), "default", true, instead}
	if instead != "" {
		p.why = "in place of the default, " + instead
	}
	return p
}

// directory returns the directory of named regions, which it makes if asked to.
func (o *options) directory(make bool) (string, error) {
	p := o.place()
	if make {
		if err := os.MkdirAll(p.dir, 0o700); err != nil {
			return "", fmt.Errorf("shm: directory for regions: %w", err)
		}
	}
	if !p.private {
		return p.dir, nil
	}
	if err := checkPrivate(p.dir); err != nil {
		return "", err
	}
	if make && p.instead != "" && o.log.Enabled(context.Background(), slog.LevelWarn) {
		tellInstead.Do(func() {
			o.log.Warn("shm: named regions lie in the temporary directory", "directory", p.dir, "because", p.instead)
		})
	}
	return p.dir, nil
}

// tellInstead tells the first logger that listens, and no other.
var tellInstead stdsync.Once

// checkPrivate refuses a directory that other users can write to or that is not ours: in a place that
// all share, anybody can have made it first.
func checkPrivate(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return nil // whoever opens a file there says what is missing
	}
	if !info.IsDir() || !ownedByUs(info) || !closedToOthers(info) {
		return fmt.Errorf("shm: directory for regions: %s (%v) is not a private directory of this user; remove it, or choose one with SHMKIT_DIR: %w",
			dir, info.Mode(), fs.ErrPermission)
	}
	return nil
}

// pathOf returns the path of a named region.
func (o *options) pathOf(name string, make bool) (string, error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	dir, err := o.directory(make)
	if err != nil {
		return "", err
	}
	dir, err = filepath.Abs(dir)
	return filepath.Join(dir, name), err
}
