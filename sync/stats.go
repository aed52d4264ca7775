package sync

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/shmkit/shmkit/shm"
)

// An Owner says who holds a lock, for people: it may be over as soon as it is read.
type Owner struct {
	shm.Attachment
	// Since is when the process last got the lock after a wait. It has held it since then or later;
	// zero if it has never had to wait for it, or that is not known any more.
	Since time.Time
}

// String says who it is and whether it lives.
func (o Owner) String() string {
	s := fmt.Sprintf("process %d (%v), %v: %s", o.PID, o.Token, o.Life, o.Evidence)
	if !o.Since.IsZero() {
		s += fmt.Sprintf("; has the lock since %v or later", o.Since.Format(time.RFC3339Nano))
	}
	return s
}

// Owner returns who holds m, and false if nobody does. It takes no lock, asks the kernel once whether
// the holder lives, and changes nothing: a holder found dead is left to those who take the lock. A
// holder that the region does not know any more has died, and what it left half done has been undone:
// then only its token is told.
func (m *Mutex) Owner() (Owner, bool) {
	t := shm.Token(m.word.Load() &^ flags)
	if t == 0 {
		return Owner{}, false
	}
	r, off, _ := locate(m, "owner")
	switch {
	case r == nil && uint64(t) == token:
		return Owner{Attachment: shm.Lone()}, true
	case r == nil:
		return Owner{Attachment: shm.Attachment{Slot: -1, Token: t, Evidence: "the lock lies in no open region"}}, true
	}
	a, ok := r.Holder(t)
	if !ok {
		return Owner{Attachment: shm.Attachment{Slot: -1, Token: t, Life: shm.Dead, Evidence: "its token stands in no slot of the region"}}, true
	}
	o := Owner{Attachment: a}
	for _, l := range a.Tallies {
		if l.Lock == off {
			o.Since = l.Took
		}
	}
	return o, true
}

// Stats says how much a lock is fought for: by the processes that are attached now, since they are,
// and in calls only that did not get it within a microsecond or two.
type Stats struct {
	Waits     uint64        // calls that had to wait for longer than that, with success or without
	Waited    time.Duration // all together
	Longest   time.Duration
	Takeovers uint64    // from dead holders
	Waiting   int       // processes that have been waiting for another one for more than a millisecond now
	Oldest    time.Time // since when the first of them has; zero if nobody does
}

func (s *Stats) add(t shm.Tally) {
	s.Waits += t.Waits
	s.Waited += t.Waited
	s.Longest = max(s.Longest, t.Longest)
	s.Takeovers += t.Takeovers
}

func (s *Stats) wait(w shm.Wait) {
	s.Waiting++
	if s.Oldest.IsZero() || w.Since.Before(s.Oldest) {
		s.Oldest = w.Since
	}
}

// Stats returns how much m is fought for. Each process counts the 30 locks of a region that it waits
// for most, and shows four of those that it waits for now; Stats adds them up. Nothing is counted
// for a lock outside of regions or on the Go heap. It takes no lock.
func (m *Mutex) Stats() Stats {
	var s Stats
	r, off, _ := locate(m, "stats")
	if r == nil {
		return s
	}
	all, err := r.Attachments()
	if err != nil {
		return s // closed: there is nothing to tell
	}
	for _, a := range all {
		for _, t := range a.Tallies {
			if t.Lock == off {
				s.add(t)
			}
		}
		for _, w := range a.Waiting {
			if w.Lock == off {
				s.wait(w)
			}
		}
	}
	return s
}

// RegionStats says how much the locks of a region are fought for.
type RegionStats struct {
	Stats             // of all its locks
	Locks []LockStats // those waited for most, the most first
}

// LockStats are those of the lock at an offset.
type LockStats struct {
	Lock shm.Offset
	Stats
}

// StatsOf returns how much the locks of r are fought for, as far as its processes count: see
// [Mutex.Stats]. It works on a region opened read-only too. An error is [shm.ErrClosed].
func StatsOf(r *shm.Region) (RegionStats, error) {
	var s RegionStats
	all, err := r.Attachments()
	if err != nil {
		return s, err
	}
	locks := map[shm.Offset]*LockStats{}
	at := func(off shm.Offset) *Stats {
		if locks[off] == nil {
			locks[off] = &LockStats{Lock: off}
		}
		return &locks[off].Stats
	}
	for _, a := range all {
		s.add(a.Total)
		for _, t := range a.Tallies {
			at(t.Lock).add(t)
		}
		for _, w := range a.Waiting {
			s.wait(w)
			at(w.Lock).wait(w)
		}
	}
	for _, l := range locks {
		s.Locks = append(s.Locks, *l)
	}
	slices.SortFunc(s.Locks, func(x, y LockStats) int {
		return cmp.Or(cmp.Compare(y.Waited, x.Waited), cmp.Compare(x.Lock, y.Lock))
	})
	return s, nil
}
