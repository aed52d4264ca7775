package sync

// Claims returns how many processes wait for s asleep, or are about to.
func (s *Semaphore) Claims() (n int) {
	q := request{s: s}
	if q.locate() != nil || enterSection(&s.mu) != nil {
		return 0
	}
	defer leaveSection(&s.mu)
	q.each(func(t *stake) {
		if v, ok := t.value(); ok && v != 0 && t.h.Words[holdingClaim].Load() != 0 {
			n++
		}
	})
	return n
}

// Queued returns how many goroutines of this process wait for s.
func (s *Semaphore) Queued() int { return turnUsers(s) }

func turnUsers[T any](m *T) int {
	t := enterTurn(m)
	defer leaveTurn(m, t)
	turns.mu.Lock()
	defer turns.mu.Unlock()
	return t.users - 1
}

// Turns returns for how many objects goroutines of this process queue in turn.
func Turns() int {
	turns.mu.Lock()
	defer turns.mu.Unlock()
	return len(turns.by)
}
