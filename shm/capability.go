package shm

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// A Report says what regions have to do with on this machine, in this process: see [Capabilities]. The
// zero value of each field says that it is unknown.
type Report struct {
	Directory string // of named regions
	Why       string // why it is this one
	Instead   string // why it is not in the usual place for shared memory; empty if it is, or was chosen
	Default   bool   // nobody chose it: it must be of this user alone
	Exists    Answer // it is made with the first region
	Own       Answer // it belongs to this user
	Private   Answer // it belongs to this user, and nobody else can enter it
	Writable  Answer // files can be made there, or the directory can
	Mode      os.FileMode

	FileSystem string // type of the file system there
	Device     string // which file system it is, as major:minor: who has another one does not see the same regions
	Memory     Answer // files there are memory, and count against limits on it
	ReadOnly   Answer // mounted so
	Size       Amount // of the file system
	Free       Amount // of it, for this user

	Locks       Answer // a byte lock there proves that a process lives: found by trying
	LocksWrong  string // why not
	Fallocate   Answer // memory there can be reserved without writing to it
	Memfd       Answer // anonymous regions are possible: memory in no directory, which nobody can shrink
	Proc        Answer // /proc is mounted: descriptors are opened again through it
	Futex       Answer // the kernel lets waiters sleep; without it they look now and then
	FutexWaitv  Answer // and wakes those at once whose context ends
	Shareable   Answer // 64-bit atomics work between processes
	PageSize    int    // bytes
	WordSize    int    // bytes; programs of another one have regions of their own
	System      string // operating system and architecture
	MemoryLimit Amount // of the control group, the least up to its root
	MemoryFree  Amount // of the machine, without swapping
	Addresses   Amount // limit of this process on its address space
	FileSize    Amount // limit of this process on the size of a file
}

// An Answer is yes, no or not known.
type Answer int8

const (
	NotKnown Answer = iota
	Yes
	No
)

func (a Answer) String() string {
	switch a {
	case Yes:
		return "yes"
	case No:
		return "no"
	}
	return "unknown"
}

func answer(yes bool) Answer {
	if yes {
		return Yes
	}
	return No
}

// An Amount is a number of bytes, if it is known.
type Amount struct {
	Known bool
	Bytes uint64 // math.MaxUint64: no limit
}

func amount(bytes uint64) Amount { return Amount{true, bytes} }

// below reports whether a is known and less than n bytes.
func (a Amount) below(n uint64) bool { return a.Known && a.Bytes < n }

func (a Amount) String() string {
	switch n := a.Bytes; {
	case !a.Known:
		return "unknown"
	case n == math.MaxUint64:
		return "unlimited"
	case n < 1<<10:
		return fmt.Sprintf("%d bytes", n)
	case n < 1<<20:
		return fmt.Sprintf("%.4g KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.4g MiB", float64(n)/(1<<20))
	default:
		return fmt.Sprintf("%.4g GiB", float64(n)/(1<<30))
	}
}

// A Problem is something that stands in the way of regions, or will.
type Problem struct {
	What   string // is so
	Why    string // that matters
	WayOut string // what to change
}

func (p Problem) String() string { return p.What + ": " + p.Why + "; " + p.WayOut }

// Capabilities looks at what is in force here for named regions, in the directory that opts and the
// environment choose, and for anonymous ones. It makes nothing that stays, and does not fail: what it
// cannot find out is unknown.
func Capabilities(opts ...Option) Report {
	p := collect(opts).place()
	r := Report{
		Directory: p.dir, Why: p.why, Instead: p.instead, Default: p.private,
		Shareable: answer(checkShareable() == nil),
		PageSize:  os.Getpagesize(), WordSize: int(wordSize), System: runtime.GOOS + "/" + runtime.GOARCH,
	}
	if abs, err := filepath.Abs(p.dir); err == nil {
		r.Directory = abs
	}
	if info, err := os.Lstat(r.Directory); err == nil {
		r.Exists, r.Mode = Yes, info.Mode()
		r.Own = answer(ownedByUs(info))
		r.Private = answer(checkPrivate(r.Directory) == nil)
		if target, err := os.Stat(r.Directory); err == nil && !p.private { // a chosen one may be a link
			r.Own, r.Mode = answer(ownedByUs(target)), target.Mode()
			r.Private = answer(target.IsDir() && ownedByUs(target) && closedToOthers(target))
		}
	} else if os.IsNotExist(err) {
		r.Exists = No
	}
	r.lookAround()
	return r
}

// nearest returns the directory of regions, or the one above it that exists.
func (r *Report) nearest() string {
	for dir := r.Directory; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
	}
}

const (
	leastRegion = dataStart + defaultSize // bytes of file that a region has unless told
	dockerSize  = 64 << 20                // of /dev/shm in a container, unless told
	elsewhere   = "choose another directory with SHMKIT_DIR or shm.Dir"
)

// Problems says what stands in the way of regions here, what that leads to, and the way out.
func (r Report) Problems() (all []Problem) {
	add := func(is bool, what, why, wayOut string) {
		if is {
			all = append(all, Problem{what, why, wayOut})
		}
	}
	usual, _ := limits()
	add(r.Shareable == No, "programs for "+r.System+" built like this one exclude only their own goroutines in 64-bit atomics",
		"regions cannot be shared between processes", "build for another architecture (on arm: GOARM=7); shm.Heap works")
	add(r.Proc == No, "/proc is not mounted", "descriptors are opened again through it, so that no region can be attached to",
		"mount it (mount -t proc proc /proc); containers have it unless it was taken away")
	add(r.Memfd == No, "memfd_create with seals is refused", "anonymous regions cannot be made",
		"use named regions, or allow the call in the container's seccomp profile; the kernel has it since Linux 3.17")
	add(r.Instead != "", "named regions are in "+r.Directory+", because of "+r.Instead,
		"the temporary directory may be on a disk, and other programs may look for the regions elsewhere",
		"mount a tmpfs there (docker run --shm-size=1g, --tmpfs /dev/shm; Kubernetes: an emptyDir with medium: Memory), or "+elsewhere)
	switch {
	case r.ReadOnly == Yes:
		add(true, r.Directory+" is on a file system that is mounted read-only", "named regions cannot be made there",
			"mount it writable (docker run --read-only needs --tmpfs or a volume for it), or "+elsewhere)
	case r.Default && r.Own == No:
		add(true, r.Directory+" belongs to another user", "regions there are refused: that user could swap them",
			"have it removed, or "+elsewhere)
	case r.Default && r.Private == No:
		add(true, fmt.Sprintf("%s (%v) is not a private directory", r.Directory, r.Mode),
			"regions there are refused: others could swap them", "remove it or chmod it to 0700, or "+elsewhere)
	case r.Exists == Yes && r.Mode.Type() != os.ModeDir:
		add(true, r.Directory+" is not a directory", "named regions cannot be made there", elsewhere)
	case r.Writable == No:
		add(true, "this user cannot make files in "+r.Directory, "named regions cannot be made there",
			"change its owner or mode (Kubernetes: securityContext.fsGroup for a volume), or "+elsewhere)
	case r.Own == No && r.Mode&0o022 != 0 && r.Mode&os.ModeSticky == 0, r.Own == Yes && r.Mode&0o002 != 0 && r.Mode&os.ModeSticky == 0:
		add(true, fmt.Sprintf("others can write to %s (%v)", r.Directory, r.Mode), "they can remove and swap regions there",
			"take that permission away, or "+elsewhere)
	}
	add(r.Locks == No, "locks in "+r.Directory+" prove nothing ("+r.LocksWrong+")",
		"a live process could be taken for dead, so named regions there are refused",
		elsewhere+", in memory or on a local disk; anonymous regions are not concerned")
	add(r.Memory == Yes && r.Size.below(dockerSize+1), fmt.Sprintf("the file system of %s has %v in all", r.Directory, r.Size),
		"more is refused with shm.ErrNoSpace; 64 MiB is what Docker and Kubernetes give /dev/shm unless told",
		"docker run --shm-size=1g (compose: shm_size); Kubernetes: an emptyDir with medium: Memory and a sizeLimit,"+
			" mounted at /dev/shm or where SHMKIT_DIR says; anonymous regions are not bound by it")
	add(r.Free.below(leastRegion), fmt.Sprintf("the file system of %s has %v free", r.Directory, r.Free),
		fmt.Sprintf("a region needs %v unless told", amount(leastRegion)), "make space, or "+elsewhere)
	add(r.Memory == Yes && r.MemoryLimit.Known && r.Size.Known && r.MemoryLimit.Bytes < r.Size.Bytes,
		fmt.Sprintf("the control group has a memory limit of %v, the file system of %s a size of %v", r.MemoryLimit, r.Directory, r.Size),
		"regions count against the limit, and beyond it the kernel ends processes where a full file system would be shm.ErrNoSpace",
		"raise the limit (docker run --memory; Kubernetes: resources.limits.memory), or make the mount smaller (--shm-size, sizeLimit), or cap regions with shm.Limit")
	add(r.MemoryFree.below(leastRegion), fmt.Sprintf("the machine has %v of memory available", r.MemoryFree),
		fmt.Sprintf("a region needs %v unless told", amount(leastRegion)), "end what uses it")
	add(r.Addresses.below(usual+dataStart), fmt.Sprintf("this process may have %v of addresses (ulimit -v)", r.Addresses),
		fmt.Sprintf("a region sets %v aside unless told", amount(usual)), "raise the limit, or make regions with a smaller shm.Limit")
	add(r.FileSize.below(leastRegion), fmt.Sprintf("this process may make files of %v (ulimit -f)", r.FileSize),
		fmt.Sprintf("a region needs %v unless told", amount(leastRegion)), "raise the limit")
	return all
}

// String returns the report for people, with the problems at its end.
func (r Report) String() string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-18s %s\n", name, fmt.Sprintf(format, args...))
	}
	state := map[Answer]string{Yes: fmt.Sprintf("exists, %v", r.Mode), No: "made with the first region", NotKnown: "unknown"}[r.Exists]
	name := r.FileSystem
	if name == "" {
		name = "unknown"
	}
	line("named regions", "%s (%s; %s)", r.Directory, r.Why, state)
	line("there", "private %v, writable %v, in memory %v", r.Private, r.Writable, r.Memory)
	line("file system", "%s, %v, %v free, read-only %v", name, r.Size, r.Free, r.ReadOnly)
	if r.Device != "" {
		line("device", "%s: programs whose report says another one, such as those in other containers, have named regions of their own", r.Device)
	}
	if r.Locks == No {
		line("locks", "no: %s", r.LocksWrong)
	} else {
		line("locks", "%v", r.Locks)
	}
	line("fallocate", "%v", r.Fallocate)
	line("anonymous regions", "%v", r.Memfd)
	line("/proc", "%v", r.Proc)
	line("futex", "%v, prompt when a context ends: %v", r.Futex, r.FutexWaitv)
	line("memory", "limit %v, available %v", r.MemoryLimit, r.MemoryFree)
	line("limits", "addresses %v, file size %v", r.Addresses, r.FileSize)
	line("program", "%s, words of %d bytes, pages of %d, 64-bit atomics between processes: %v", r.System, r.WordSize, r.PageSize, r.Shareable)
	for _, p := range r.Problems() {
		line("problem", "%v", p)
	}
	return b.String()
}
