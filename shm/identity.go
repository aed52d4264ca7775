package shm

import stdsync "sync"

// An identityRecord says who this process is, for people who look at a region. Nothing is decided by
// it: pids are reused, and differ between pid namespaces.
type identityRecord struct {
	started uint64    // clock ticks after boot
	pidns   uint64    // inode of the pid namespace
	boot    [2]uint64 // boot id of the machine
}

// identity is asked of the system once, when the first region is made or opened.
var identity = stdsync.OnceValue(systemIdentity)
