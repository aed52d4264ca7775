//go:build unix && !linux

package shm

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

func reopen(f *os.File, path string) (*os.File, error) { return reopenMode(f, path, false) }

// reopenMode opens the file of f once more, and makes sure that it is the same. While a region is being
// made its file has the name that f was made under, and afterwards that of the region.
func reopenMode(f *os.File, path string, readOnly bool) (*os.File, error) {
	was, err := f.Stat()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{f.Name(), path} {
		if name == "" {
			continue
		}
		var g *os.File
		if g, err = openPath(name, readOnly); err != nil {
			continue
		}
		is, failed := g.Stat()
		if failed == nil && os.SameFile(was, is) {
			return g, nil
		}
		g.Close()
		err = fmt.Errorf("%s is another file now: %w", filepath.Base(name), fs.ErrNotExist)
	}
	return nil, err
}
