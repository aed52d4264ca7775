package shm

import "sync/atomic"

// A bell wakes those who wait for a lock of a process when that process ends, some milliseconds before
// their own looks at it would find that out. It proves nothing: the kernel rings it when one thread of the
// process ends, while others may still write for as long as it takes to end them (40 ms were seen). The
// truth stays the byte lock; whoever hears the bell begins to ask for that more often.
//
// The word holds the id of a thread of the process, the guardian, as that thread sees itself, and
// bellWaiters, which asks the kernel to wake. When the thread ends the kernel replaces the id by bellRung
// and wakes one sleeper, who wakes the others. The word is 0 where no bell hangs: the process ended before
// it had one, its system has none, or somebody wrote over it. A process whose word is scribbled on is heard
// late, or polled in vain, and that is all.
const (
	bellThread  = 1<<30 - 1 // FUTEX_TID_MASK
	bellRung    = 1 << 30   // FUTEX_OWNER_DIED
	bellWaiters = 1 << 31   // FUTEX_WAITERS
)

// Bell returns the word of r that changes, and by which the kernel wakes one sleeper, when the process t
// ends, and what it reads until then. Whoever finds the word changed wakes all its sleepers, and asks
// [Region.Settled] often: the change proves nothing. rung reports that it has changed already, and word is
// nil then, as it is when t has no bell. The word is valid like a pointer of [At].
func (r *Region) Bell(t Token) (word *atomic.Uint32, val uint32, rung bool) {
	m := r.m
	if t == 0 || m.file == nil {
		return nil, 0, false
	}
	m.guard(func() error { // in a file that was cut nothing rings
		for i := range m.slots {
			s := &m.slots[i]
			if s.token.Load() != uint64(t) {
				continue
			}
			v := s.bell.Load()
			switch {
			case s.token.Load() != uint64(t): // freed while we looked
			case v&bellRung != 0:
				rung = true
			case v&bellWaiters != 0 && v&bellThread != 0:
				word, val = &s.bell, v
			}
			break
		}
		return nil
	})
	return word, val, rung
}
