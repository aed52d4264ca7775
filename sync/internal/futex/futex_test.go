package futex

import (
	"sync/atomic"
	"testing"
	"time"
)

// sleep sleeps in a goroutine of its own, on after signals.
func sleep(w, bell *uint32, d time.Duration, c *Cancel) <-chan Result {
	end := make(chan Result, 1)
	b := Word{}
	if bell != nil {
		b = Word{bell, 7}
	}
	go func() {
		for {
			r := Sleep(Word{w, 5}, b, d, c)
			if r != Woken || atomic.LoadUint32(w) != 5 {
				end <- r
				return
			}
		}
	}()
	return end
}

// expect waits for the end of a sleep.
func expect(t *testing.T, end <-chan Result, want ...Result) {
	t.Helper()
	select {
	case r := <-end:
		for _, w := range want {
			if r == w {
				return
			}
		}
		t.Errorf("the sleep ended as %d, want one of %d", r, want)
	case <-time.After(20 * time.Second):
		t.Error("sleeps on")
	}
}

func words() (w, bell *uint32) {
	w, bell = new(uint32), new(uint32)
	*w, *bell = 5, 7
	return w, bell
}

func TestASleepEndsByWhatComesFirst(t *testing.T) {
	for _, early := range []bool{true, false} { // before the sleep begins, or some time into it
		for _, withBell := range []bool{false, true} {
			for _, withCancel := range []bool{false, true} {
				run := func(d time.Duration, do func(w, bell *uint32, c *Cancel), want ...Result) {
					t.Helper()
					w, bell := words()
					var b *uint32
					var c *Cancel
					if withBell {
						b = bell
					}
					if withCancel {
						c = new(Cancel)
					}
					if early {
						do(w, b, c)
						expect(t, sleep(w, b, d, c), want...)
						return
					}
					end := sleep(w, b, d, c)
					time.Sleep(3 * time.Millisecond)
					do(w, b, c)
					expect(t, end, want...)
				}
				run(time.Hour, func(w, _ *uint32, _ *Cancel) {
					atomic.StoreUint32(w, 6)
					Wake(w, 1)
				}, Changed, Woken)
				run(5*time.Millisecond, func(*uint32, *uint32, *Cancel) {}, Expired)
				if withBell {
					run(time.Hour, func(_, bell *uint32, _ *Cancel) {
						atomic.StoreUint32(bell, 8)
						Wake(bell, 1)
					}, Rung)
				}
				if withCancel {
					run(time.Hour, func(_, _ *uint32, c *Cancel) { c.Cancel() }, Cancelled)
				}
			}
		}
	}
	w, _ := words()
	if r := Sleep(Word{w, 5}, Word{}, 0, nil); r != Expired {
		t.Errorf("a sleep of no time ended as %d", r)
	}
}

// A Result of Changed says that no wake-up was used up: only a word that was different before may say so.
func TestAWakeIsNeverReportedAsAChange(t *testing.T) {
	w, bell := words()
	for i, b := range []*uint32{nil, bell} {
		end := sleep(w, b, time.Hour, nil)
		time.Sleep(20 * time.Millisecond) // it sleeps by now, or there is nothing to see
		atomic.StoreUint32(w, 6)
		Wake(w, 1)
		expect(t, end, Woken, Changed)
		atomic.StoreUint32(w, 5)
		if r := Sleep(Word{w, 4}, Word{}, time.Hour, nil); Kernel && r != Changed {
			t.Errorf("%d: another value before ended a sleep as %d", i, r)
		}
	}
}

func TestCancelTellsThoseWhoWaitInGo(t *testing.T) {
	var none *Cancel
	if none.Cancelled() || none.Done() != nil {
		t.Error("no Cancel was called")
	}
	for _, first := range []bool{true, false} {
		c := new(Cancel)
		if first {
			c.Cancel()
		}
		done := c.Done()
		if !first {
			select {
			case <-done:
				t.Error("done before Cancel")
			default:
			}
			c.Cancel()
		}
		c.Cancel() // again
		<-done
		<-c.Done()
	}
}

func TestANapSeesWhatASleepSees(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(w, bell *uint32, c *Cancel)
		d    time.Duration
		want Result
	}{
		"change": {func(w, _ *uint32, _ *Cancel) { atomic.StoreUint32(w, 6) }, time.Hour, Woken},
		"bell":   {func(_, bell *uint32, _ *Cancel) { atomic.StoreUint32(bell, 6) }, time.Hour, Rung},
		"cancel": {func(_, _ *uint32, c *Cancel) { c.Cancel() }, time.Hour, Cancelled},
		"time":   {func(_, _ *uint32, c *Cancel) {}, 5 * time.Millisecond, Expired},
	} {
		for _, cancel := range []*Cancel{nil, new(Cancel)} {
			if cancel == nil && name == "cancel" {
				continue
			}
			w, bell := words()
			end := make(chan Result, 1)
			begin := time.Now()
			go func() { end <- Nap(Word{w, 5}, Word{bell, 7}, c.d, cancel) }()
			time.Sleep(time.Millisecond)
			c.do(w, bell, cancel)
			expect(t, end, c.want)
			if took := time.Since(begin); name == "time" && took < c.d {
				t.Errorf("expired after %v, want %v at least", took, c.d)
			}
		}
	}
}
