package shm

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	stdsync "sync"
	"unsafe"

	"golang.org/x/sys/windows"
)

// A file that is mapped can neither be deleted nor cut here; what can be had of it is a change of its
// name. So files that are being made, and those whose region was removed, have names that no region can
// have, and whoever is the last to use one, or comes by later, deletes it: see deleteUnused.

const namelessPrefix = ".shmkit-"

func sharedMemoryDir() (dir, instead string) { return os.TempDir(), "" }

func unnamedFile(dir string, _ fs.FileMode) (f *os.File, temporary string, err error) {
	tidyOnce(dir)
	return temporaryFile(dir)
}

// nameFile renames the file; the system refuses that if there is one of the name.
func nameFile(_ *os.File, temporary, path string) error { return rename(temporary, path) }

// afresh returns the file of a region that has its name now, opened by that.
func afresh(f *os.File, path string, info os.FileInfo) *os.File {
	if path == "" {
		return f
	}
	g, err := openPath(path, false)
	if err != nil {
		return f
	}
	if !leadsTo(g, info) {
		g.Close()
		return f
	}
	f.Close()
	return g
}

// rename gives a file another name, through a handle of its own: who keeps one that may delete the file
// shuts out everybody who does not expect that.
func rename(from, path string) error {
	to, err := windows.UTF16FromString(path)
	if err != nil {
		return err
	}
	f, err := openShared(from, windows.DELETE, windows.OPEN_EXISTING, windows.FILE_FLAG_OPEN_REPARSE_POINT)
	if err != nil {
		return err
	}
	defer f.Close()
	var info struct { // FILE_RENAME_INFO
		replace uint32
		root    windows.Handle
		length  uint32 // in bytes
		name    [windows.MAX_LONG_PATH]uint16
	}
	info.length = uint32(2 * (len(to) - 1))
	if copy(info.name[:], to) < len(to) {
		return windows.ERROR_FILENAME_EXCED_RANGE
	}
	err = control(f, func(h windows.Handle) error {
		return windows.SetFileInformationByHandle(h, windows.FileRenameInfo, (*byte)(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)))
	})
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: path, Err: err}
	}
	return nil
}

// anonymousFile makes a file under a name that no region can have, in the temporary directory. Other
// processes open it through a handle. The system deletes it with the last handle.
func anonymousFile(*options) (f *os.File, path string, err error) {
	for {
		name := filepath.Join(os.TempDir(), fmt.Sprintf("%s%016x", namelessPrefix, rand.Uint64()))
		f, err = openShared(name, readWrite|windows.DELETE, windows.CREATE_NEW, windows.FILE_FLAG_DELETE_ON_CLOSE|windows.FILE_ATTRIBUTE_TEMPORARY)
		if !errors.Is(err, fs.ErrExist) {
			return f, "", err
		}
	}
}

const readWrite = windows.GENERIC_READ | windows.GENERIC_WRITE

func accessOf(readOnly bool) uint32 {
	if readOnly {
		return windows.GENERIC_READ
	}
	return readWrite
}

// openPath follows no link, as it does not elsewhere.
func openPath(path string, readOnly bool) (*os.File, error) {
	return openShared(path, accessOf(readOnly), windows.OPEN_EXISTING, windows.FILE_FLAG_OPEN_REPARSE_POINT)
}

func openNew(path string) (*os.File, error) {
	return openShared(path, readWrite, windows.CREATE_NEW, 0)
}

// Others may do everything with a file that is open here, also rename it, which os.OpenFile does not
// allow: a region gets its name when it is complete and attached.
const shareAll = windows.FILE_SHARE_READ | windows.FILE_SHARE_WRITE | windows.FILE_SHARE_DELETE

func openShared(path string, access, disposition, flags uint32) (*os.File, error) {
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	h, err := windows.CreateFile(p, access, shareAll, nil, disposition, windows.FILE_ATTRIBUTE_NORMAL|flags, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(h), path), nil
}

var reOpenFile = stdsync.OnceValue(func() *windows.LazyProc {
	return windows.NewLazySystemDLL("kernel32.dll").NewProc("ReOpenFile")
})

func reopen(f *os.File, path string) (*os.File, error) { return reopenMode(f, path, false) }

// reopenMode opens the file of f once more, whatever its name is now.
func reopenMode(f *os.File, _ string, readOnly bool) (*os.File, error) {
	var own uintptr
	err := control(f, func(h windows.Handle) (err error) {
		if own, _, err = reOpenFile().Call(uintptr(h), uintptr(accessOf(readOnly)), shareAll, 0); windows.Handle(own) == windows.InvalidHandle {
			return err
		}
		return nil
	})
	if err != nil { // it is being deleted: locks are told apart by process too, if not in this one
		if h, failed := duplicate(f); failed == nil {
			return os.NewFile(uintptr(h), f.Name()), nil
		}
		return nil, &os.PathError{Op: "reopen", Path: f.Name(), Err: err}
	}
	return os.NewFile(own, f.Name()), nil
}

// duplicate returns another handle of the same open file.
func duplicate(f *os.File) (own windows.Handle, err error) {
	err = control(f, func(h windows.Handle) error {
		me := windows.CurrentProcess()
		return windows.DuplicateHandle(me, h, me, &own, 0, false, windows.DUPLICATE_SAME_ACCESS)
	})
	return own, err
}

func dropFile(f *os.File) error { return f.Close() }

// removeFile takes the name of a region's file away. The file goes when nobody uses it any more.
func removeFile(path string) error {
	dir := filepath.Dir(path)
	if err := rename(path, filepath.Join(dir, fmt.Sprintf("%s%016x", namelessPrefix, rand.Uint64()))); err != nil {
		return err
	}
	tidy(dir)
	return nil
}

// nameless reports whether no process can open f by the name of a region. path is a name that it had.
func nameless(f *os.File, path string) (bool, error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	buf := make([]uint16, windows.MAX_LONG_PATH)
	err = control(f, func(h windows.Handle) error {
		_, err := windows.GetFinalPathNameByHandle(h, &buf[0], uint32(len(buf)), 0)
		return err
	})
	if now := windows.UTF16ToString(buf); err == nil && isAt(info, now) {
		path = now
	}
	return !isAt(info, path) || strings.HasPrefix(filepath.Base(path), namelessPrefix), nil
}

// isAt reports whether a path leads to a file.
func isAt(info os.FileInfo, path string) bool {
	f, err := openShared(path, windows.FILE_READ_ATTRIBUTES, windows.OPEN_EXISTING, windows.FILE_FLAG_OPEN_REPARSE_POINT)
	if err != nil {
		return false
	}
	defer f.Close()
	return leadsTo(f, info)
}

// litter are the directories where files without a user may lie.
var litter struct {
	mu     stdsync.Mutex
	looked map[string]bool // this process has looked there once: others may have been killed
	left   map[string]bool // this process has removed regions there that were in use
}

// tidyOnce deletes what killed processes have left in dir.
func tidyOnce(dir string) {
	litter.mu.Lock()
	defer litter.mu.Unlock()
	if litter.looked == nil {
		litter.looked, litter.left = make(map[string]bool), make(map[string]bool)
	}
	if !litter.looked[dir] {
		litter.looked[dir] = true
		deleteUnused(dir)
	}
}

// tidy deletes what was in use when its region was removed and is not any more. more is a directory in
// which one was removed now, or empty.
func tidy(more string) {
	litter.mu.Lock()
	defer litter.mu.Unlock()
	if litter.looked == nil {
		litter.looked, litter.left = make(map[string]bool), make(map[string]bool)
	}
	if more != "" {
		litter.left[more] = true
	}
	for dir := range litter.left {
		if !deleteUnused(dir) {
			delete(litter.left, dir)
		}
	}
}

// deleteUnused deletes the files in dir whose names no region can have and that nobody has open, and
// reports whether some are left. Whoever makes such a file has it open from the first moment.
func deleteUnused(dir string) (left bool) {
	pattern, err := windows.UTF16PtrFromString(filepath.Join(dir, namelessPrefix+"*"))
	if err != nil {
		return false
	}
	var data windows.Win32finddata
	find, err := windows.FindFirstFile(pattern, &data)
	for ; err == nil; err = windows.FindNextFile(find, &data) {
		p, err := windows.UTF16PtrFromString(filepath.Join(dir, windows.UTF16ToString(data.FileName[:])))
		if err != nil {
			continue
		}
		h, err := windows.CreateFile(p, windows.DELETE, 0, nil, windows.OPEN_EXISTING, windows.FILE_FLAG_DELETE_ON_CLOSE, 0)
		if err != nil {
			left = true
			continue
		}
		windows.CloseHandle(h)
	}
	if find != windows.InvalidHandle {
		windows.FindClose(find)
	}
	return left
}

// mapShared maps n bytes of a file, and makes it as long. A file that may only be read stays as it is.
func mapShared(f *os.File, n uint64, readOnly bool) ([]byte, error) {
	protection, access := uint32(windows.PAGE_READWRITE), uint32(windows.FILE_MAP_READ|windows.FILE_MAP_WRITE)
	if readOnly {
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		n = min(n, uint64(info.Size()))
		protection, access = windows.PAGE_READONLY, windows.FILE_MAP_READ
	}
	section, err := windows.CreateFileMapping(windows.Handle(f.Fd()), nil, protection, uint32(n>>32), uint32(n), nil)
	if err != nil {
		return nil, os.NewSyscallError("CreateFileMapping", err)
	}
	defer windows.CloseHandle(section) // the view keeps it
	addr, err := windows.MapViewOfFile(section, access, 0, 0, uintptr(n))
	if err != nil {
		return nil, os.NewSyscallError("MapViewOfFile", err)
	}
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), n), nil
}

func unmap(mem []byte) {
	windows.UnmapViewOfFile(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
	tidy("")
}

// fill does nothing: whether a file has holes is not told here.
func fill(*os.File, os.FileInfo, uint64, ...[2]uint64) error { return nil }

// reserve writes: mapping a range makes the file as long as the range, and the system reserves that.
func reserve(f *os.File, off, n uint64) error { return writeZeros(f, off, n) }

// overlay does nothing: nothing can be laid over a view here without a moment in which nothing is there.
// The view stays until no handle is left.
func (m *mapping) overlay(uint64) error { return nil }

func systemIdentity() identityRecord { return identityRecord{} }

func ownedByUs(os.FileInfo) bool { return true }

// closedToOthers does not ask: modes say nothing here, and the temporary directory is the user's own.
func closedToOthers(os.FileInfo) bool { return true }

// tellsClosed reports whether an error says that a file is closed.
func tellsClosed(err error) bool {
	return errors.Is(err, os.ErrClosed) || errors.Is(err, windows.ERROR_INVALID_HANDLE)
}

func isFull(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL)
}
