package shm

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

func sharedMemoryDir() (dir, instead string) { return os.TempDir(), "" }

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
	return openShared(path, readOnly, windows.OPEN_EXISTING)
}

func openNew(path string) (*os.File, error) { return openShared(path, false, windows.CREATE_NEW) }

// openShared lets others rename and remove the file while it is open, which os.OpenFile does not: a
// region gets its name when it is complete and attached.
func openShared(path string, readOnly bool, disposition uint32) (*os.File, error) {
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	access := uint32(windows.GENERIC_READ)
	if !readOnly {
		access |= windows.GENERIC_WRITE
	}
	const share = windows.FILE_SHARE_READ | windows.FILE_SHARE_WRITE | windows.FILE_SHARE_DELETE
	h, err := windows.CreateFile(p, access, share, nil, disposition, windows.FILE_ATTRIBUTE_NORMAL, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(h), path), nil
}

func dropFile(f *os.File) error { return f.Close() }

// fill does nothing: whether a file has holes is not told here.
func fill(*os.File, os.FileInfo, ...[2]uint64) error { return nil }

// reserve writes: mapping a range makes the file as long as the range, and the system reserves that.
func reserve(f *os.File, off, n uint64) error { return writeZeros(f, off, n) }

// overlay does nothing: nothing can be laid over a view here. The view stays until no handle is left.
func (m *mapping) overlay(uint64) error { return nil }

func systemIdentity() identityRecord { return identityRecord{} }

func links(os.FileInfo) uint64 { return 1 }

func ownedByUs(os.FileInfo) bool { return true }

// closedToOthers does not ask: modes say nothing here, and the temporary directory is the user's own.
func closedToOthers(os.FileInfo) bool { return true }

func isFull(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL)
}
