package sync

import "testing"

// Before one begins to wait one takes a lock only that Lock itself would take.
func TestMutexIsNotTakenSoonPastThoseWhoWaitOrFromAHolder(t *testing.T) {
	other := token ^ 1<<20
	for name, v := range map[string]uint64{
		"held":                    other,
		"held, somebody sleeps":   other | flagWaiters,
		"held, somebody starves":  other | flagWaiters | flagStarving,
		"held by our own process": token,
		"its own process waits":   token | flagLocal,
		"kept for those who wait": flagStarving,
		"free and inconsistent":   flagInconsistent,
	} {
		var m Mutex
		m.word.Store(v)
		if m.lockSoon() || m.word.Load() != v {
			t.Errorf("%s: taken, or changed from %#x to %#x", name, v, m.word.Load())
		}
	}
	var m Mutex
	if !m.lockSoon() || m.word.Load() != token {
		t.Errorf("a free lock: not taken, %#x", m.word.Load())
	}
}
