package shm

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func (r *Report) lookAround() {
	r.Proc = No
	if _, err := os.Stat("/proc/self/fd"); err == nil {
		r.Proc = Yes
	}
	r.lookAtMount(r.nearest())
	r.Memfd = tryMemfd()
	r.Futex, r.FutexWaitv = tryFutex()
	r.MemoryLimit = memoryLimit("/")
	if free, ok := memoryAvailable(); ok {
		r.MemoryFree = amount(free)
	}
	r.Addresses, r.FileSize = limitOn(unix.RLIMIT_AS), limitOn(unix.RLIMIT_FSIZE)
}

// lookAtMount looks at the file system of dir, and tries what regions do in a file without a name.
func (r *Report) lookAtMount(dir string) {
	var where unix.Stat_t
	if unix.Stat(dir, &where) == nil {
		r.Device = fmt.Sprintf("%d:%d", unix.Major(uint64(where.Dev)), unix.Minor(uint64(where.Dev)))
	}
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil {
		known := knownFileSystem(uint32(st.Type))
		r.FileSystem = known.name
		r.Memory = answer(uint32(st.Type) == unix.TMPFS_MAGIC || uint32(st.Type) == unix.RAMFS_MAGIC)
		r.ReadOnly = answer(st.Flags&unix.ST_RDONLY != 0)
		if st.Blocks > 0 { // else it has no size
			r.Size, r.Free = amount(st.Blocks*uint64(st.Bsize)), amount(st.Bavail*uint64(st.Bsize))
		}
		if known.shared {
			r.Locks, r.LocksWrong = No, "file system "+known.name+": machines share it"
		}
	}
	r.Writable = answer(unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS) == nil)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() || r.Writable == No || r.Default && r.Private == No {
		return
	}
	f, temporary, err := unnamedFile(dir, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if temporary != "" {
		os.Remove(temporary) // crash here: an empty file under a name that no region can have
	}
	if r.Locks == NotKnown && r.Proc == Yes {
		if verdict, err := judgeLocks(f); err == nil {
			r.Locks = answer(verdict == nil)
			if verdict != nil {
				r.LocksWrong = verdict.Error()
			}
		}
	}
	page := uint64(os.Getpagesize())
	if checkFileSize(f, page) != nil { // the kernel would send a signal
		return
	}
	switch fallocate(f, 0, 0, page) {
	case nil:
		r.Fallocate = Yes
	case unix.EOPNOTSUPP, unix.ENOSYS:
		r.Fallocate = No
	}
}

func tryMemfd() Answer {
	f, _, err := anonymousFile(nil)
	switch {
	case err == nil:
		f.Close()
		return Yes
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM): // says nothing of the next time
		return NotKnown
	}
	return No
}

// tryFutex calls with arguments that no kernel accepts: one that knows the call says so, one that does
// not, or a filter in front of it, says something else.
func tryFutex() (futex, waitv Answer) {
	const opWake, odd = 1, 1 // an address that is not aligned
	_, _, e := unix.RawSyscall6(unix.SYS_FUTEX, odd, opWake, 0, 0, 0, 0)
	_, _, e2 := unix.RawSyscall6(unix.SYS_FUTEX_WAITV, 0, 0, 0, 0, 0, 0)
	return answer(e == unix.EINVAL), answer(e2 == unix.EINVAL)
}

func limitOn(resource int) Amount {
	var l unix.Rlimit
	if unix.Getrlimit(resource, &l) != nil {
		return Amount{}
	}
	if l.Cur == unix.RLIM_INFINITY {
		return amount(math.MaxUint64)
	}
	return amount(l.Cur)
}

// memoryLimit returns the least memory limit of this process' control group and those above it, of both
// versions, as far as they can be seen. The files are those under root.
func memoryLimit(root string) Amount {
	groups, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return Amount{}
	}
	mounts, err := os.ReadFile(filepath.Join(root, "proc/self/mountinfo"))
	if err != nil {
		return Amount{}
	}
	least := Amount{}
	for line := range strings.Lines(string(groups)) {
		// hierarchy:controllers:path
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) != 3 {
			continue
		}
		kind, file := "cgroup", "memory.limit_in_bytes"
		if part[0] == "0" && part[1] == "" {
			kind, file = "cgroup2", "memory.max"
		} else if !listed(part[1], "memory") {
			continue
		}
		at, below := groupMount(string(mounts), kind)
		if at == "" {
			continue
		}
		// The mount shows the groups below one of them. A path outside of that, seen from another
		// namespace, leaves its top.
		group := "/"
		if rest, ok := strings.CutPrefix(part[2], strings.TrimSuffix(below, "/")); ok && (rest == "" || rest[0] == '/') {
			group = path.Clean("/" + rest)
		}
		for {
			if n, ok := readLimit(filepath.Join(root, at, group, file)); ok && (!least.Known || n < least.Bytes) {
				least = amount(n)
			}
			if group == "/" {
				break
			}
			group = path.Dir(group)
		}
		if !least.Known && kind == "cgroup2" { // the root of all has no such file: nothing limits
			rules, _ := os.ReadFile(filepath.Join(root, at, "cgroup.controllers"))
			if strings.Contains(string(rules), "memory") {
				least = amount(math.MaxUint64)
			}
		}
	}
	return least
}

// groupMount returns where control groups are mounted that rule memory, and which group is on top.
func groupMount(mounts, kind string) (at, below string) {
	for line := range strings.Lines(mounts) {
		// id parent device root mountpoint options [more] - type source options
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 || r[0] != kind {
			continue
		}
		if kind == "cgroup2" || listed(r[2], "memory") {
			return l[4], l[3]
		}
	}
	return "", ""
}

func listed(list, word string) bool { return strings.Contains(","+list+",", ","+word+",") }

func readLimit(file string) (uint64, bool) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	text := strings.TrimSpace(string(data))
	if text == "max" {
		return math.MaxUint64, true
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if n >= 1<<62 { // version 1 writes the largest number of pages for none
		n = math.MaxUint64
	}
	return n, err == nil
}
