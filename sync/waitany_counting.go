package sync

import (
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/sync/internal/futex"
)

func (s *CountingSemaphore) visit(l limit) (visit, error) {
	r, _, err := locate(&s.word, l.what)
	if err != nil {
		return nil, err
	}
	return &countingVisit{s, r, l.what}, nil
}

// A countingVisit makes the steps of one more process that waits.
type countingVisit struct {
	s      *CountingSemaphore
	region *shm.Region // or nil
	what   string
}

func (v *countingVisit) try(slept, _ bool) (bool, error) {
	got, more, err := v.s.take(v.region, slept, v.what)
	if more {
		futex.Wake(plain(&v.s.word), 1)
	}
	if got && raceEnabled {
		raceAcquire(&v.s.word)
	}
	return got, err
}

func (v *countingVisit) arm(_ bool, words []futex.Word) ([]futex.Word, bool) {
	word := v.s.word.Load()
	if permitsOf(word) > 0 || word&countWaiters == 0 && !v.s.word.CompareAndSwap(word, word|countWaiters) {
		return words, false
	}
	crash("a permit awaited by a visit")
	return append(words, futex.Word{Addr: plain(&v.s.word), Val: word | countWaiters}), true
}

func (v *countingVisit) due(bool) time.Time { return time.Now().Add(longSleep) }

func (v *countingVisit) leave(slept, got bool) {
	if slept && !got && (v.region == nil || !v.region.Closed()) {
		v.s.giveUp()
	}
}
