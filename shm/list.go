package shm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Remove takes the name away. Processes that have the region go on sharing it, and its memory is
// freed when the last has closed it; the name is free at once. It returns an error that is
// [fs.ErrNotExist] if there is no such region.
func Remove(name string, opts ...Option) error {
	path, err := collect(opts).pathOf(name, false)
	if err != nil {
		return err
	}
	if err := removeFile(path); err != nil {
		return fmt.Errorf("shm: remove region %s: %w", name, err)
	}
	regions.mu.Lock()
	defer regions.mu.Unlock()
	return leave() // a descriptor kept since Close would keep the memory
}

// An Info says what [List] found.
type Info struct {
	Name    string
	Path    string
	Size    uint64 // bytes of file: header, slots and data
	ModTime time.Time
	Err     error // why it cannot be opened, or nil
}

// List returns the named regions, in the order of their names. It opens nothing and takes no lock; a
// file that is no region, or one of another version, is listed with an error.
func List(opts ...Option) ([]Info, error) {
	dir, err := collect(opts).directory(false)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("shm: list regions: %w", err)
	}
	var infos []Info
	for _, e := range entries {
		stat, err := e.Info()
		if checkName(e.Name()) != nil || err != nil || !stat.Mode().IsRegular() {
			continue // not ours, or removed meanwhile
		}
		path := filepath.Join(dir, e.Name())
		i := Info{Name: e.Name(), Path: path, Size: uint64(stat.Size()), ModTime: stat.ModTime()}
		if !knownHere(stat) {
			i.Err = probe(e.Name(), path)
		}
		infos = append(infos, i)
	}
	return infos, nil
}

// knownHere reports whether this process has the region of a file open, or had.
func knownHere(info os.FileInfo) bool {
	regions.mu.Lock()
	defer regions.mu.Unlock()
	return find(info, true) != nil || seated(info)
}

// probe reads the header of a region's file.
func probe(name, path string) error {
	f, err := openPath(path, true)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = readHeader(f, "region "+name)
	return err
}
