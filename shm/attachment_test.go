package shm_test

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
)

func attachmentOf(t *testing.T, r *shm.Region, pid int) (shm.Attachment, bool) {
	t.Helper()
	all, err := r.Attachments()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if a.PID == pid {
			return a, true
		}
	}
	return shm.Attachment{}, false
}

func TestAttachmentsTellWhoLivesAndWhyThatIsKnown(t *testing.T) {
	r := anonymous(t)
	begin := time.Now()
	p := start(t, hold, r)
	wait(t, "the child is attached", func() bool { return word(r, 0).Load() == 1 })
	own, ok := attachmentOf(t, r, os.Getpid())
	if !ok || own.Token != shm.Self() || own.Life != shm.Alive {
		t.Errorf("this process: %+v, %v", own, ok)
	}
	a, ok := attachmentOf(t, r, p.PID())
	if !ok || a.Life != shm.Alive || a.Evidence == "" || a.Closed || a.Attached.Before(begin) || a.Attached.After(time.Now()) || uint64(a.Token) != word(r, 1).Load() {
		t.Errorf("a living child: %+v, %v", a, ok)
	}
	if h, ok := r.Holder(a.Token); !ok || h.PID != p.PID() {
		t.Errorf("by its token: %+v, %v", h, ok)
	}
	kill(p)
	wait(t, "its death is seen", func() bool {
		a, ok := attachmentOf(t, r, p.PID())
		return ok && a.Life == shm.Dead && a.Evidence != ""
	})
	wait(t, "it is cleared up after", func() bool {
		r.Scan()
		_, ok := attachmentOf(t, r, p.PID())
		return !ok
	})
	if _, ok := r.Holder(a.Token); ok {
		t.Error("a token that nobody has any more has a holder")
	}
}

func TestAttachmentsTellOfStatesOnTheWay(t *testing.T) {
	r := anonymous(t)
	slot := (shm.SlotOf(r) + 100) % shm.SlotCount
	other, dead := shm.NewToken(), shm.NewToken()
	for _, c := range []struct {
		name  string
		token shm.Token
		state uint64
		by    shm.Token
		life  shm.Life
	}{
		{"attaching, its byte free", 0, shm.SlotAttached, dead, shm.Unknown},
		{"attached, its byte free", dead, shm.SlotAttached, dead, shm.Dead},
		{"its recoverer died", dead, shm.SlotUndoing, other, shm.Dead},
		{"undone", dead, shm.SlotUndone, other, shm.Dead},
		{"draining", dead, shm.SlotDraining, other, shm.Dead},
	} {
		shm.StrangerIn(r, slot, c.token, c.state, c.by)
		all, err := r.Attachments()
		if err != nil || len(all) != 2 {
			t.Fatalf("%s: %+v, %v", c.name, all, err)
		}
		i := slices.IndexFunc(all, func(a shm.Attachment) bool { return a.Slot == slot })
		if i < 0 {
			t.Errorf("%s: not listed: %+v", c.name, all)
		} else if a := all[i]; a.Token != c.token || a.Life != c.life || a.Evidence == "" {
			t.Errorf("%s: %+v", c.name, a)
		}
	}
	shm.StrangerIn(r, slot, 0, 0, 0)
}

func TestAttachmentsOfAClosedRegion(t *testing.T) {
	r := anonymous(t)
	second, err := r.Dup()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	second.Close()
	if _, err := r.Attachments(); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("error %v", err)
	}
	if _, ok := r.Holder(shm.Self()); ok {
		t.Error("a holder in a closed region")
	}
	r.Waited(8, time.Second, true, false)
	r.WaitOver(r.Waiting(8, time.Now()))
}

func TestWaitsAreShownUntilTheyAreOver(t *testing.T) {
	dir := named(t)
	r, err := shm.Create("waits", dir)
	must(t, r, err)
	since := time.Now().Add(-time.Second)
	var entries []int
	for i := range 5 {
		entries = append(entries, r.Waiting(shm.Offset(8*i+8), since.Add(time.Duration(i))))
	}
	a, _ := attachmentOf(t, r, os.Getpid())
	if len(a.Waiting) != 4 || entries[4] >= 0 {
		t.Errorf("room for four: %v, entries %v", a.Waiting, entries)
	}
	for i, w := range a.Waiting {
		if w.Lock != shm.Offset(8*i+8) || w.Since.UnixNano() != since.UnixNano()+int64(i) {
			t.Errorf("wait %d: %+v", i, w)
		}
	}
	r.WaitOver(entries[1])
	r.WaitOver(entries[4])
	if a, _ = attachmentOf(t, r, os.Getpid()); len(a.Waiting) != 3 {
		t.Errorf("after one is over: %v", a.Waiting)
	}
	r.Close() // those that still wait are refused, and have nothing to take back
	r, err = shm.Open("waits", dir)
	must(t, r, err)
	if a, _ = attachmentOf(t, r, os.Getpid()); len(a.Waiting) != 0 {
		t.Errorf("after a close: %v", a.Waiting)
	}
}

func TestTalliesKeepTheLocksThatAreWaitedForMost(t *testing.T) {
	r := anonymous(t)
	const locks, waits = 10_000, 100_000
	hot := []shm.Offset{80_000_000, 80_000_512, 80_002_000}
	for i := range waits {
		off, d := shm.Offset(8*(i*7919%locks)+8), time.Duration(1)
		if i%2 == 0 {
			off, d = hot[i/2%len(hot)], time.Microsecond
		}
		r.Waited(off, d, i%4 == 0, i%8 == 0)
	}
	a, _ := attachmentOf(t, r, os.Getpid())
	if tot := a.Total; tot.Waits != waits || tot.Longest != time.Microsecond || tot.Waited != waits/2*(1+time.Microsecond) || tot.Takeovers != waits/8 || tot.Took.IsZero() {
		t.Errorf("total: %+v", tot)
	}
	kept, counted := 0, uint64(0)
	for _, tally := range a.Tallies {
		if slices.Contains(hot, tally.Lock) {
			kept++
			counted += tally.Waits
			if tally.Longest != time.Microsecond {
				t.Errorf("a lock waited for often: %+v", tally)
			}
		}
	}
	if kept != len(hot) || counted < waits/2-100 {
		t.Errorf("%d of %d kept, %d of their %d waits: %+v", kept, len(hot), counted, waits/2, a.Tallies)
	}
}

func TestTalliesOfManyGoroutinesLoseNothing(t *testing.T) {
	r := anonymous(t)
	const each = 1000
	done := make(chan bool)
	for g := range 8 {
		go func() {
			for i := range each {
				r.Waited(shm.Offset(8+8*((g+i)%3)), time.Duration(g), false, false)
			}
			done <- true
		}()
	}
	for range 8 {
		<-done
	}
	a, _ := attachmentOf(t, r, os.Getpid())
	var sum uint64
	for _, tally := range a.Tallies {
		sum += tally.Waits
	}
	if a.Total.Waits != 8*each || sum != 8*each || a.Total.Longest != 7 {
		t.Errorf("total %+v, by lock %d", a.Total, sum)
	}
}
