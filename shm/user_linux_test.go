package shm_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

const nobody = 65534

// asUser makes a process one of another user.
func asUser(tb testing.TB, uid uint32) *syscall.SysProcAttr {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("only root can start processes of another user")
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
}

// openDir makes a directory that every user can enter.
func openDir(tb testing.TB, mode fs.FileMode) string {
	tb.Helper()
	dir := memoryDir(tb)
	if err := os.Chmod(dir, mode); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// readableBinary copies this test binary to where every user can execute it.
func readableBinary(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "shmkit-test-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "test")
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		tb.Fatal(err)
	}
	defer from.Close()
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o700)
	if err != nil {
		tb.Fatal(err)
	}
	_, err = io.Copy(to, from)
	if err := errors.Join(err, to.Close(), os.Chmod(path, 0o755), os.Chmod(dir, 0o755)); err != nil {
		tb.Fatal(err)
	}
	return path
}

func TestARegionIsRefusedToOtherUsers(t *testing.T) {
	attr := asUser(t, nobody)
	binary := readableBinary(t)
	open, private := openDir(t, 0o755), memoryDir(t)
	for _, c := range []struct {
		dir  string
		opts []shm.Option
	}{
		{open, nil},                              // by its file
		{private, []shm.Option{shm.Mode(0o666)}}, // by its directory
	} {
		r, err := shm.Create("r", append(c.opts, shm.Dir(c.dir))...)
		must(t, r, err)
		play(t, binary, attr, nil, beRefused, r.Path()).succeed(t)
	}
}

var beRefused = role("be refused", func(args []string) error {
	dir := filepath.Dir(args[0])
	for how, do := range map[string]func() error{
		"Open":     func() error { _, err := shm.Open("r", shm.Dir(dir)); return err },
		"OpenFile": func() error { _, err := shm.OpenFile(args[0]); return err },
		"ReadOnly": func() error { _, err := shm.OpenFile(args[0], shm.ReadOnly()); return err },
		"Remove":   func() error { return shm.Remove("r", shm.Dir(dir)) },
		"Create":   func() error { _, err := shm.Create("s", shm.Dir(dir)); return err },
	} {
		if err := do(); !errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("%s: %v, want fs.ErrPermission", how, err)
		}
	}
	return nil
})

// Who may read a region's file and not write it looks, and changes nothing.
func TestAReaderNeedsNoPermissionToWrite(t *testing.T) {
	attr := asUser(t, nobody)
	r, err := shm.Create("r", shm.Dir(openDir(t, 0o755)), shm.Mode(0o644))
	must(t, r, err)
	fill(t, r, "for all to see")
	play(t, readableBinary(t), attr, nil, lookWithoutWriting, r.Path()).succeed(t)
}

var lookWithoutWriting = role("look without writing", func(args []string) error {
	if r, err := shm.OpenFile(args[0]); !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("open for writing: %v, %v, want fs.ErrPermission", r, err)
	}
	r, err := shm.OpenFile(args[0], shm.ReadOnly())
	if err != nil {
		return err
	}
	for name, err := range map[string]error{"Grow": r.Grow(r.Size() + 1), "Exclusive": r.Exclusive(func() error { return nil })} {
		if !errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("%s: %v, want fs.ErrPermission", name, err)
		}
	}
	return errors.Join(expect(r, "for all to see"), r.Close())
})

// Locks and deaths between two users, in a region that both may write.
func TestUsersShareARegionThatAllowsIt(t *testing.T) {
	attr := asUser(t, nobody)
	binary := readableBinary(t)
	r, err := shm.Create("r", shm.Dir(openDir(t, 0o755)), shm.Mode(0o666))
	must(t, r, err)
	mu := lockIn(r)

	p := play(t, binary, attr, nil, lockFile, r.Path())
	token, _ := p.attached(t, r, 1)
	if _, settled := r.Settled(token); settled || mu.TryLock() {
		t.Fatalf("a live process of another user: settled %v, or its lock is free", settled)
	}
	p.kill()
	if err := mu.LockContext(t.Context()); !errors.Is(err, shmsync.ErrInconsistent) {
		t.Fatalf("its lock after it was killed: %v, want ErrInconsistent", err)
	}
	if err := mu.Recover(t.Context(), func(shm.Death) error { return nil }); err != nil {
		t.Fatal(err)
	}

	// The other way round: the dead one is ours, and the judge is theirs.
	q := play(t, os.Args[0], nil, nil, lockFile, r.Path())
	token, _ = q.attached(t, r, 2)
	j := play(t, binary, attr, nil, recoverFile, r.Path())
	j.attached(t, r, 3)
	q.kill()
	j.succeed(t)
	if shm.SlotsOf(r, token) != 0 || !mu.TryLock() {
		t.Errorf("the dead one stands in %d slots, or its lock was not recovered", shm.SlotsOf(r, token))
	}
}

func lockIn(r *shm.Region) *shmsync.Mutex {
	mu, err := shm.At[shmsync.Mutex](r, r.Data()+512)
	if err != nil {
		panic(err)
	}
	return mu
}

// lockFile is holdFile with the lock held.
var lockFile = role("lock", func(args []string) error {
	r, err := shm.OpenFile(args[0])
	if err != nil {
		return err
	}
	lockIn(r).Lock()
	return roles[holdFile](args)
})

// recoverFile waits for a lock whose holder lives, until it is killed.
var recoverFile = role("recover", func(args []string) error {
	r, err := shm.OpenFile(args[0])
	if err != nil {
		return err
	}
	if lockIn(r).TryLock() {
		return errors.New("the lock is free")
	}
	word(r, 0).Add(1)
	recovered := false
	err = lockIn(r).Recover(context.Background(), func(shm.Death) error { recovered = true; return nil })
	if err == nil && !recovered {
		err = errors.New("nothing was recovered")
	}
	return err
})

// A descriptor is not enough: the file is opened again, which asks for its permissions. They are those
// of the file alone, whatever directory it lies in; anonymous regions have none.
func TestADescriptorIsNotAPermission(t *testing.T) {
	attr := asUser(t, nobody)
	binary := readableBinary(t)
	closed, err := shm.Create("closed", named(t))
	must(t, closed, err)
	open, err := shm.Create("open", named(t), shm.Mode(0o666))
	must(t, open, err)
	for _, c := range []struct {
		r    *shm.Region
		want string
	}{{closed, "refused"}, {open, "attached"}, {anonymous(t), "attached"}} {
		play(t, binary, attr, []*os.File{c.r.File()}, useDescriptor, c.want).succeed(t)
	}
}

var useDescriptor = role("use descriptor", func(args []string) error {
	r, err := shm.FromFile(os.NewFile(3, "inherited"))
	if args[0] == "refused" {
		if !errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("FromFile: %v, want fs.ErrPermission", err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	return r.Close()
})

// The usual place is one where everybody can make files. Whatever stands there under this user's name is
// used only if it is a directory of this user's alone.
func TestTheUsualPlaceIsRefusedIfOthersCouldReachIt(t *testing.T) {
	uid := uint32(1<<30 + os.Getpid()%(1<<20)) // a user that there is not
	attr := asUser(t, uid)
	binary := readableBinary(t)
	if info, err := os.Stat("/dev/shm"); err != nil || info.Mode().Perm() != 0o777 {
		t.Skip("/dev/shm is not there for everybody")
	}
	place := "/dev/shm/shmkit-" + strconv.FormatUint(uint64(uid), 10)
	if _, err := os.Lstat(place); err == nil {
		t.Skip(place + " is taken")
	}
	t.Cleanup(func() { os.RemoveAll(place) })
	theirs := int(uid)
	elsewhere := memoryDir(t)
	if err := os.Chown(elsewhere, theirs, theirs); err != nil {
		t.Fatal(err)
	}
	directory := func(mode fs.FileMode, owner int) func() error {
		return func() error {
			return errors.Join(os.Mkdir(place, 0o700), os.Chmod(place, mode), os.Chown(place, owner, owner))
		}
	}
	for _, c := range []struct {
		name    string
		prepare func() error
		want    string
	}{
		{"nothing", func() error { return nil }, "made"},
		{"a private directory", directory(0o700, theirs), "made"},
		{"a file", func() error {
			return errors.Join(os.WriteFile(place, nil, 0o600), os.Chown(place, theirs, theirs))
		}, "refused"},
		{"a symbolic link to a private directory", func() error {
			return errors.Join(os.Symlink(elsewhere, place), os.Lchown(place, theirs, theirs))
		}, "refused"},
		{"a directory of the group", directory(0o770, theirs), "refused"},
		{"a directory that others can enter", directory(0o701, theirs), "refused"},
		{"a directory of everybody", directory(0o777, theirs), "refused"},
		{"a directory of another user", directory(0o700, nobody), "refused"},
		{"a directory of another user for everybody", directory(0o777, nobody), "refused"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			if err := c.prepare(); err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(place)
			play(t, binary, attr, nil, useUsualPlace, c.want, place).succeed(t)
		})
	}
}

var useUsualPlace = role("use usual place", func(args []string) error {
	r, err := shm.Create("r")
	if args[0] == "refused" {
		_, openErr := shm.Open("r")
		_, listErr := shm.List()
		for _, err := range []error{err, openErr, listErr, shm.Remove("r")} {
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("not refused: %v", err)
			}
			if !strings.Contains(err.Error(), args[1]) {
				return fmt.Errorf("refused without naming the directory: %v", err)
			}
		}
		return nil
	}
	if err != nil {
		return err
	}
	if dir := filepath.Dir(r.Path()); dir != args[1] {
		return fmt.Errorf("it lies in %s, want %s", dir, args[1])
	}
	info, err := os.Stat(args[1])
	if err != nil || info.Mode() != fs.ModeDir|0o700 {
		return fmt.Errorf("the directory is %v, %v", info.Mode(), err)
	}
	return errors.Join(r.Close(), shm.Remove("r"))
})

// Whoever can put a link in the place of a region must not choose which file is opened.
func TestARegionBehindASymbolicLinkIsRefused(t *testing.T) {
	dir := memoryDir(t)
	target, err := shm.Create("target", shm.Dir(dir))
	must(t, target, err).Close()
	if err := os.Symlink(target.Path(), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := shm.Open("link", shm.Dir(dir)); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("Open: %v, want ELOOP", err)
	}
	if _, err := shm.OpenOrCreate("link", shm.Dir(dir)); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("OpenOrCreate: %v, want ELOOP", err)
	}
	if _, err := shm.Create("link", shm.Dir(dir)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create: %v, want fs.ErrExist", err)
	}
	target, err = shm.Open("target", shm.Dir(dir))
	must(t, target, err)
	if _, err := shm.Open("link", shm.Dir(dir)); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("Open while this process has it open: %v, want ELOOP", err)
	}
}
