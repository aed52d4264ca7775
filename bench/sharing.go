package bench

import (
	"fmt"
	"sync"
)

// sharing says whether it is a lock for readers and writers, or the floor of those.
func sharing(lock string) bool { return lock == ShmkitRW || lock == StandardRW || lock == Loops }

// checkSharing refuses what readers and writers cannot do.
func (c Contention) checkSharing() error {
	switch {
	case c.Writes < 0 || c.Writes > 100 || c.Lock == Loops && c.Writes > 0:
		return fmt.Errorf("bench: %d %% of writes under %s", c.Writes, c.Lock)
	case c.Rounds > 0:
		return fmt.Errorf("bench: readers do not count rounds together: %s runs by the clock", c.Lock)
	case c.Lock == StandardRW && c.Procs > 1:
		return fmt.Errorf("bench: %s works in one process, not in %d", c.Lock, c.Procs)
	}
	return nil
}

// A mix says which times are to write, so many of a hundred, evenly spread and in no order that another
// one has too.
type mix struct{ writes, at uint32 }

func (m *mix) write() bool {
	m.at = m.at*1664525 + 1013904223
	return m.at>>16*100>>16 < m.writes
}

// Readers work inside, but change nothing. A wait that is looked at may be of the one or the other.

func (k *taker) shareShmkit(writes int) {
	t, rw, m := k.t, &k.t.rw, mix{uint32(writes), uint32(clock())}
	for !t.stop.Load() {
		begin := k.begin()
		for i := range k.stride {
			if writes > 0 && m.write() {
				rw.Lock()
				if i == 0 {
					k.entered(begin)
				}
				t.take(k.inside)
				rw.Unlock()
				k.wrote++
			} else {
				rw.RLock()
				if i == 0 {
					k.entered(begin)
				}
				if k.inside > 0 {
					spin(k.inside)
				}
				rw.RUnlock()
			}
			k.took++
		}
	}
}

func (k *taker) shareStandard(rw *sync.RWMutex, writes int) {
	t, m := k.t, mix{uint32(writes), uint32(clock())}
	for !t.stop.Load() {
		begin := k.begin()
		for i := range k.stride {
			if writes > 0 && m.write() {
				rw.Lock()
				if i == 0 {
					k.entered(begin)
				}
				t.take(k.inside)
				rw.Unlock()
				k.wrote++
			} else {
				rw.RLock()
				if i == 0 {
					k.entered(begin)
				}
				if k.inside > 0 {
					spin(k.inside)
				}
				rw.RUnlock()
			}
			k.took++
		}
	}
}

// loop is what two locked instructions on a word of one's own take.
func (k *taker) loop() {
	for !k.t.stop.Load() {
		begin := k.begin()
		k.entered(begin)
		for range k.stride {
			if !k.l.word.CompareAndSwap(0, 1) || !k.l.word.CompareAndSwap(1, 0) {
				k.l.word.Store(0)
			}
			k.took++
		}
	}
}
