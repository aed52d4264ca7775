package shm

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

func sharedMemoryDir() string { return os.TempDir() }

func unnamedFile(dir string, _ fs.FileMode) (f *os.File, temporary string, err error) {
	return temporaryFile(dir)
}

// nameFile renames the file; the system refuses that if there is one of the name.
func nameFile(_ *os.File, temporary, path string) error {
	from, err1 := windows.UTF16PtrFromString(temporary)
	to, err2 := windows.UTF16PtrFromString(path)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	return os.NewSyscallError("MoveFileEx", windows.MoveFileEx(from, to, 0))
}

// anonymousFile makes a file under a name that no region can have; other processes open it by that
// name. It goes with the temporary directory.
func anonymousFile(*options) (f *os.File, path string, err error) {
	return temporaryFile(os.TempDir())
}

func openPath(path string, readOnly bool) (*os.File, error) {
	return os.OpenFile(path, access(readOnly), 0)
}

func reopen(f *os.File, path string) (*os.File, error) { return reopenMode(f, path, false) }

func reopenMode(f *os.File, path string, readOnly bool) (*os.File, error) {
	if path == "" {
		path = f.Name()
	}
	return os.OpenFile(path, access(readOnly), 0)
}

func dropFile(f *os.File) error { return f.Close() }

// sparse does not tell here.
func sparse(os.FileInfo, uint64) bool { return false }

// reserve writes: mapping a range makes the file as long as the range, and the system reserves that.
func reserve(f *os.File, off, n uint64) error { return writeZeros(f, off, n) }

// overlay does nothing: nothing can be laid over a view here. The view stays until no handle is left.
func (m *mapping) overlay(uint64) error { return nil }

func systemIdentity() identityRecord { return identityRecord{} }

func links(os.FileInfo) uint64 { return 1 }

func ownedByUs(os.FileInfo) bool { return true }

func isFull(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL)
}
