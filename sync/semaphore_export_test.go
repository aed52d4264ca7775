package sync

import "github.com/shmkit/shmkit/shm"

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

// Parked returns how many goroutines of this process are parked behind a leader that waits for s.
func (s *CountingSemaphore) Parked() int { return parkedBehind(&s.word) }

// Sleeps reports whether somebody may sleep on s' word.
func (s *CountingSemaphore) Sleeps() bool { return s.word.Load()&countWaiters != 0 }

// Parked returns how many goroutines of this process are parked behind a leader that waits for w.
func (w *WaitGroup) Parked() int { return parkedBehind(&w.word) }

// Sleeps reports whether somebody may sleep on w's word.
func (w *WaitGroup) Sleeps() bool { return w.word.Load()&1 != 0 }

func parkedBehind[T any](m *T) (n int) {
	g := enter(m)
	defer leave(m, g)
	g.mu.Lock()
	defer g.mu.Unlock()
	for w := g.head; w != nil; w = w.next {
		n++
	}
	return n
}

// Attached returns how many processes have r open.
func Attached(r *shm.Region) (n int) {
	for i := range shm.Slots {
		if t, _ := r.Share(i, r.Data()); t != 0 {
			n++
		}
	}
	return n
}

// Answered returns how many tasks are answered for, and how many are outstanding.
func (w *WaitGroup) Answered() (answered, outstanding int) {
	a, err := w.begin("look")
	if err != nil {
		return 0, 0
	}
	defer a.end()
	added, taken := a.sum()
	return int(added + taken), int(w.count.Load())
}
