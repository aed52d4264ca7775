package shm

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// temporaryFile makes a file in dir under a name that no region can have.
func temporaryFile(dir string) (f *os.File, path string, err error) {
	for {
		path = filepath.Join(dir, fmt.Sprintf(".shmkit-%016x", rand.Uint64()))
		f, err = openNew(path)
		if !errors.Is(err, fs.ErrExist) {
			return f, path, err
		}
	}
}

// writeZeros reserves by writing, where the file system knows no other way. Only bytes behind the end
// of the file are written: the others are there.
func writeZeros(f *os.File, off, n uint64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	zeros := make([]byte, min(n, 1<<20))
	for at := max(off, uint64(info.Size())); at < off+n; {
		k, err := f.WriteAt(zeros[:min(uint64(len(zeros)), off+n-at)], int64(at))
		if err != nil {
			return err
		}
		at += uint64(k)
	}
	return nil
}
