package shm

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Files in memory can be promised more than the machine has; the kernel then kills processes to find it.
// So the question is tested, and not what would follow from a wrong answer.
func TestMoreMemoryThanTheMachineHasIsRefusedBeforeAnyIsTaken(t *testing.T) {
	available, ok := memoryAvailable()
	if !ok {
		t.Skip("needs MemAvailable in /proc/meminfo")
	}
	fd, err := unix.MemfdCreate("room", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "room")
	defer f.Close()
	if err := checkRoom(f, 2*available); !isFull(err) {
		t.Errorf("%d bytes with %d available: %v", 2*available, available, err)
	}
	if err := checkRoom(f, available/2); err != nil {
		t.Errorf("%d bytes with %d available: %v", available/2, available, err)
	}
}

func TestMoreThanTheFileSystemHasIsRefusedAtOnce(t *testing.T) {
	dir := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "room"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	free := st.Bavail * uint64(st.Bsize)
	if err := checkRoom(f, 2*free+1<<30); !isFull(err) {
		t.Errorf("%d bytes with %d free: %v", 2*free+1<<30, free, err)
	}
	if err := checkRoom(f, 16<<20); err != nil && free > 1<<30 {
		t.Errorf("16 MiB with %d free: %v", free, err)
	}
}
