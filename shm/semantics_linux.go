package shm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Whether a process lives is told by byte locks of open file descriptions. A kernel or a file system
// that has others, or that accepts them and does nothing, would let the living be taken for dead. So the
// first attach on each device tries them, and file systems that machines share are refused by name: on
// one machine their locks pass the trial, but neither those nor mapped pages reach the other.

// testBytes is the first of 2^32 bytes for trials, far from the bytes that mean something. A trial
// takes one at random: another process may try at the same time.
const testBytes = 1 << 61

// A fileSystem says what is known of a type of file systems.
type fileSystem struct {
	name   string
	shared bool // between machines
}

// fileSystems are known by the number that statfs(2) tells. What is not listed is judged by trial.
var fileSystems = map[uint32]fileSystem{
	unix.TMPFS_MAGIC:           {name: "tmpfs"},
	unix.RAMFS_MAGIC:           {name: "ramfs"},
	unix.HUGETLBFS_MAGIC:       {name: "hugetlbfs"},
	unix.EXT4_SUPER_MAGIC:      {name: "ext2, ext3 or ext4"},
	unix.XFS_SUPER_MAGIC:       {name: "xfs"},
	unix.BTRFS_SUPER_MAGIC:     {name: "btrfs"},
	unix.BCACHEFS_SUPER_MAGIC:  {name: "bcachefs"},
	unix.F2FS_SUPER_MAGIC:      {name: "f2fs"},
	0x2fc12fc1:                 {name: "zfs"},
	unix.OVERLAYFS_SUPER_MAGIC: {name: "overlay"},
	unix.MSDOS_SUPER_MAGIC:     {name: "fat"},
	unix.EXFAT_SUPER_MAGIC:     {name: "exfat"},
	unix.SQUASHFS_MAGIC:        {name: "squashfs"},
	unix.EROFS_SUPER_MAGIC_V1:  {name: "erofs"},
	unix.ISOFS_SUPER_MAGIC:     {name: "iso9660"},
	unix.PROC_SUPER_MAGIC:      {name: "proc"},
	unix.SYSFS_MAGIC:           {name: "sysfs"},
	unix.FUSE_SUPER_MAGIC:      {name: "fuse"}, // of one machine or of many: the trial decides
	unix.NFS_SUPER_MAGIC:       {"nfs", true},
	unix.SMB_SUPER_MAGIC:       {"smb", true},
	unix.SMB2_SUPER_MAGIC:      {"smb2", true},
	unix.CIFS_SUPER_MAGIC:      {"cifs", true},
	unix.V9FS_MAGIC:            {"9p", true},
	unix.AFS_SUPER_MAGIC:       {"afs", true},
	unix.AFS_FS_MAGIC:          {"afs", true},
	unix.CEPH_SUPER_MAGIC:      {"ceph", true},
	unix.CODA_SUPER_MAGIC:      {"coda", true},
	unix.NCP_SUPER_MAGIC:       {"ncp", true},
	unix.OCFS2_SUPER_MAGIC:     {"ocfs2", true},
	0x01161970:                 {"gfs2", true},
	0x0bd00bd0:                 {"lustre", true},
	0x47504653:                 {"gpfs", true},
	0x19830326:                 {"beegfs", true},
	0x786f4256:                 {"vboxsf", true},
}

func knownFileSystem(magic uint32) fileSystem {
	if s, ok := fileSystems[magic]; ok {
		return s
	}
	return fileSystem{name: fmt.Sprintf("of type %#x", magic)}
}

// lockVerdicts remembers what was found out for each device. Guarded by regions.mu.
var lockVerdicts = make(map[uint64]error)

// checkLocks refuses to attach where locks cannot prove that a process lives. regions.mu is held.
func checkLocks(m *mapping) error {
	st, ok := m.info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	verdict, known := lockVerdicts[uint64(st.Dev)]
	if !known {
		var err error
		if verdict, err = judgeLocks(m.file); err != nil {
			return m.fail("try locks", err)
		}
		lockVerdicts[uint64(st.Dev)] = verdict
	}
	if verdict != nil {
		return m.fail("attach", verdict)
	}
	return nil
}

// judgeLocks returns why locks on the file system of f prove nothing, or nil. The other error says that
// it could not be found out.
func judgeLocks(f *os.File) (verdict, err error) {
	var st unix.Statfs_t
	if err := control(f, func(fd int) error { return unix.Fstatfs(fd, &st) }); err != nil {
		return nil, os.NewSyscallError("fstatfs", err)
	}
	return judge(knownFileSystem(uint32(st.Type)), func() (*os.File, error) { return reopen(f, "") })
}

func judge(s fileSystem, open func() (*os.File, error)) (verdict, err error) {
	const wayOut = "choose a directory in memory or on a local disk with SHMKIT_DIR, or use an anonymous region"
	if s.shared {
		return fmt.Errorf("file system %s: machines share it, and locks and mapped memory there do not hold between them; %s: %w",
			s.name, wayOut, errors.ErrUnsupported), nil
	}
	wrong, err := tryLocks(open)
	if err != nil || wrong == "" {
		return nil, err
	}
	return fmt.Errorf("file system %s: %s, so that locks do not prove that a process lives; %s: %w",
		s.name, wrong, wayOut, errors.ErrUnsupported), nil
}

// tryLocks says what is wrong with the locks of descriptions that open returns, each on the same file.
func tryLocks(open func() (*os.File, error)) (wrong string, err error) {
	pos := int64(testBytes) + int64(rand.Uint32())
	a, err := open()
	if err != nil {
		return "", err
	}
	defer a.Close()
	b, err := open()
	if err != nil {
		return "", err
	}
	defer b.Close()
	refused := func(err error) string {
		return fmt.Sprintf("byte locks of open file descriptions are refused (%v)", err)
	}
	if ok, err := lockByte(a, pos, false); err != nil {
		return refused(err), nil
	} else if !ok {
		return "a byte that nobody has locked cannot be locked", nil
	}
	if held, err := byteHeld(b, pos, 1); err != nil {
		return refused(err), nil
	} else if !held {
		return "a lock is not seen by others", nil
	}
	if ok, err := lockByte(b, pos, false); err != nil {
		return refused(err), nil
	} else if ok {
		return "two descriptions got the same lock", nil
	}
	a.Close()
	if ok, err := lockByte(b, pos, false); err != nil {
		return refused(err), nil
	} else if !ok {
		return "a lock stays when its file is closed", nil
	}
	return "", nil
}
