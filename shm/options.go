package shm

import (
	"fmt"
	"io/fs"
	"log/slog"
	"math/bits"
)

// An Option changes how a region is made or opened.
type Option func(*options)

type options struct {
	size               uint64 // of the data area, bytes
	limit              uint64 // of the data area, bytes
	sizeSet, limitSet  bool
	mode               fs.FileMode
	dir                string
	readOnly           bool
	want               *ID // of the region to be opened; nil: any
	log                *slog.Logger
	continueAfterDeath bool
}

const (
	defaultSize = 256 << 10 // bytes of data area that a new region has; it grows on demand
	wordSize    = uint32(bits.UintSize / 8)
)

// limits returns the default and the largest limit of a region: address space, not memory. With the
// largest one, seven regions fit in a 64-bit process.
func limits() (usual, most uint64) {
	if wordSize == 8 {
		return usualLimit, 1 << 44
	}
	return 64 << 20, 256 << 20
}

// Size sets the size of a new region's data area in bytes, 256 KiB unless told. The memory is
// really reserved; the region can grow up to its limit. Opening ignores it: the real size counts.
func Size(bytes uint64) Option {
	return func(o *options) { o.size, o.sizeSet = bytes, true }
}

// Limit sets how far the data area of a new region can grow, in bytes: address space that each
// process sets aside when it opens the region, not memory. It is 64 GiB unless told, at most 2^44
// bytes less the header; 64 MiB and 256 MiB on 32-bit systems. On Windows, where the file is as long as
// the limit from the start, it is 256 MiB unless told.
func Limit(bytes uint64) Option {
	return func(o *options) { o.limit, o.limitSet = bytes, true }
}

// Mode sets the permissions of a new region's file; 0600 unless told.
func Mode(mode fs.FileMode) Option {
	return func(o *options) { o.mode = mode.Perm() }
}

// Dir sets the directory of named regions. Without it, it is that of the environment variable
// SHMKIT_DIR, else a private directory of this user.
func Dir(path string) Option {
	return func(o *options) { o.dir = path }
}

// ReadOnly opens a region for looking only: it takes no slot, and locks in it cannot be taken.
func ReadOnly() Option {
	return func(o *options) { o.readOnly = true }
}

// Logger tells l about deaths, recoveries and growth. The package is silent without it. l must not use
// regions itself.
func Logger(l *slog.Logger) Option {
	return func(o *options) { o.log = l }
}

// ContinueAfterDeath makes the locks of a new region free, not inconsistent, after the death of
// their holder. It is for locks that guard nothing in memory, such as the use of a device.
func ContinueAfterDeath() Option {
	return func(o *options) { o.continueAfterDeath = true }
}

func collect(opts []Option) *options {
	usual, _ := limits()
	o := &options{size: defaultSize, limit: usual, mode: 0o600, log: slog.New(slog.DiscardHandler)}
	for _, opt := range opts {
		opt(o)
	}
	return o
}

// checkSizes settles and checks the sizes of a region to be made.
func (o *options) checkSizes() error {
	_, most := limits()
	most -= dataStart
	switch {
	case o.size == 0, o.limitSet && o.limit == 0:
		return fmt.Errorf("shm: size or limit 0; a region has at least 1 byte: %w", fs.ErrInvalid)
	case o.limitSet && o.limit > most:
		return fmt.Errorf("shm: limit %d, at most %d here: %w", o.limit, most, fs.ErrInvalid)
	case o.limitSet && !o.sizeSet:
		o.size = min(o.size, o.limit)
	case !o.limitSet && o.size > o.limit:
		o.limit = min(o.size, most)
	}
	if o.size > o.limit {
		return fmt.Errorf("shm: size %d is above the limit %d: %w", o.size, o.limit, fs.ErrInvalid)
	}
	return nil
}
