package shm

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"

	"github.com/shmkit/shmkit/shm/internal/carry"
)

// MarshalBinary encodes a reference to the region, not its contents: its ID, and its path if it has
// one.
func (r *Region) MarshalBinary() ([]byte, error) {
	if r.m == nil {
		return nil, nil
	}
	carry.Note(r)
	return append(r.m.id[:], r.m.path...), nil
}

// UnmarshalBinary makes r a handle on the region that the data refers to: one that this process has
// open, or else the one of that path. It returns an error that is [ErrNotAttached] if there is
// neither.
func (r *Region) UnmarshalBinary(data []byte) error {
	if len(data) == 0 {
		*r = Region{}
		return nil
	}
	var id ID
	if copy(id[:], data) < len(id) {
		return fmt.Errorf("shm: reference of %d bytes to a region: %w", len(data), ErrCorrupt)
	}
	if found := byID(id); found != nil {
		found, err := ready(found, nil)
		if err == nil {
			*r = Region{found.m, found.once}
		}
		return err
	}
	path := string(bytes.TrimPrefix(data, id[:]))
	missing := func(why error) error {
		return fmt.Errorf("shm: region %s (%q) is not open here; open it first, or pass the handle as an argument of proc.Start (%w): %w", id, path, why, ErrNotAttached)
	}
	if path == "" {
		return missing(errors.New("it has no name"))
	}
	found, err := OpenFile(path, func(o *options) { o.want = &id })
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return missing(err)
	case errors.Is(err, ErrNotAttached):
		return missing(errors.New("another region has its name now"))
	case err != nil:
		return err
	case found.ID() != id: // open here already
		found.Close()
		return missing(errors.New("another region has its name now"))
	}
	*r = Region{found.m, found.once}
	return nil
}

// MarshalText is MarshalBinary in base64.
func (r *Region) MarshalText() ([]byte, error) {
	b, err := r.MarshalBinary()
	return base64.RawURLEncoding.AppendEncode(nil, b), err
}

// UnmarshalText is UnmarshalBinary from base64.
func (r *Region) UnmarshalText(text []byte) error {
	b, err := base64.RawURLEncoding.AppendDecode(nil, text)
	if err != nil {
		return fmt.Errorf("shm: reference to a region: %w: %w", err, ErrCorrupt)
	}
	return r.UnmarshalBinary(b)
}

// byID returns a new handle on an open region, one that can be written if there is one, or nil.
func byID(id ID) *Region {
	regions.mu.Lock()
	defer regions.mu.Unlock()
	var found *mapping
	for _, m := range regions.open {
		if m.id == id && (found == nil || found.readOnly) {
			found = m
		}
	}
	if found == nil {
		return nil
	}
	return found.handle()
}
