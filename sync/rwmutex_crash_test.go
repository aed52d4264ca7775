//go:build crashpoints

package sync_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

var quarrelInLibrary = proc.Define("quarrel in a library", func(ctx context.Context, v victim) error {
	if v.Plan != "" {
		shmsync.CrashAt(v.Plan)
	}
	l := libraryIn(v.Region)
	for range 3 {
		go fightInLibrary(ctx, l)
	}
	fightInLibrary(ctx, l)
	return nil
})

// expireInLibrary dies at a point, or in the middle of a change.
var expireInLibrary = proc.Define("expire in a library", func(ctx context.Context, v victim) error {
	if v.Plan != "" {
		shmsync.CrashAt(v.Plan)
	}
	l := libraryIn(v.Region)
	for {
		if l.rw.LockContext(ctx) != nil {
			l.rw.Recover(ctx, l.repair)
			continue
		}
		if v.Plan == "" {
			l.n++
			p, _ := os.FindProcess(os.Getpid())
			p.Kill()
			select {}
		}
		l.rw.Unlock()
	}
})

// fightInLibrary takes the lock in every way, until the context ends. Readers that die leave no trace, so who
// is inside is not counted: two writers, or a reader beside one, find the data half changed.
func fightInLibrary(ctx context.Context, l *library) {
	read := func() error {
		for range 2 {
			if l.n != l.twin {
				l.faults.Add(1)
			}
			pauseInLibrary(l)
		}
		l.reads.Add(1)
		return nil
	}
	write := func() error {
		if l.n != l.twin {
			l.faults.Add(1)
		}
		l.n++
		pauseInLibrary(l)
		l.twin++
		l.writes.Add(1)
		return nil
	}
	for ctx.Err() == nil {
		short, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(3000))*time.Microsecond)
		var err error
		reads, writes := false, false
		switch rand.IntN(11) {
		case 0:
			reads = l.rw.TryRLock()
		case 1:
			err = l.rw.RLockContext(short)
			reads = err == nil
		case 2:
			err = l.rw.RDo(short, read)
		case 3, 4:
			err = l.rw.RLockContext(ctx)
			reads = err == nil
		case 5:
			writes = l.rw.TryLock()
		case 6:
			err = l.rw.LockContext(short)
			writes = err == nil
		case 7:
			err = l.rw.Do(short, write)
		case 8, 9:
			func() {
				defer func() { err, _ = recover().(error) }()
				l.rw.RLock()
			}()
			reads = err == nil
		default:
			err = l.rw.LockContext(ctx)
			writes = err == nil
		}
		cancel()
		if errors.Is(err, shmsync.ErrInconsistent) {
			l.rw.Recover(ctx, l.repair)
		}
		if reads {
			read()
			l.rw.RUnlock()
		}
		if writes {
			write()
			if rand.IntN(50) == 0 {
				l.rw.Poison()
			}
			l.rw.Unlock()
		}
	}
}

func pauseInLibrary(l *library) {
	switch rand.IntN(20) {
	case 0:
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
	case 1:
		for range rand.IntN(10_000) {
			l.inside.Add(1)
		}
	}
}

// A process kills itself between two steps of a lock, at each place there is, while it and others read and
// write: the others go on, and nobody enters what a writer left half changed as if it were whole.
func TestAKillBetweenAnyTwoStepsOfTheRWMutexStopsNobody(t *testing.T) {
	points := crashPoints(t, "rwmutex.go", "share.go", "drain.go")
	if len(points) < 15 {
		t.Fatalf("only %d points found: %q", len(points), points)
	}
	unread := map[string]bool{"has the word, unread": true, "writes, unread": true} // see the next test
	reached, want := 0, 0
	for _, point := range points {
		if unread[point] {
			continue
		}
		want++
		for _, n := range []int{1, 4} {
			if n > 1 && point == "known to writers" { // once for each process
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", point, n), func(t *testing.T) {
				r, l := newLibrary(t)
				l.rw.RLock()
				l.rw.RUnlock()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ended := make(chan bool)
				for range 2 {
					go func() { fightInLibrary(ctx, l); ended <- true }()
				}
				witness, err := quarrelInLibrary.Start(ctx, victim{Region: r}, proc.Daemon())
				if err != nil {
					t.Fatal(err)
				}
				p, err := quarrelInLibrary.Start(ctx, victim{r, fmt.Sprintf("%s:%d", point, n)}, proc.Daemon())
				if err != nil {
					t.Fatal(err)
				}
				defer func() {
					cancel()
					for _, p := range []*proc.Process{p, witness} {
						p.Kill()
						<-p.Done()
					}
					<-ended
					<-ended
				}()
				begin := time.Now()
				plans := []string{"", "has the word:1", "waited for readers:1"}
				for k := 0; ; k++ {
					select {
					case <-p.Done():
					case <-time.After(5 * time.Millisecond):
						q, err := expireInLibrary.Start(ctx, victim{r, plans[k%len(plans)]}, proc.Daemon())
						if err != nil {
							t.Fatal(err)
						}
						select {
						case <-q.Done():
						case <-time.After(time.Second): // its point does not come
							q.Kill()
							<-q.Done()
						}
						if time.Since(begin) > 20*time.Second {
							t.Skipf("the point was not reached in 20 s, %d reads and %d writes", l.reads.Load(), l.writes.Load())
						}
						continue
					}
					break
				}
				reached++
				reads, writes := l.reads.Load(), l.writes.Load()
				for l.reads.Load() < reads+100 || l.writes.Load() < writes+100 {
					if time.Since(begin) > 2*time.Minute {
						t.Fatalf("nobody goes on: %d reads, %d writes after the kill", l.reads.Load()-reads, l.writes.Load()-writes)
					}
					time.Sleep(time.Millisecond)
				}
				if f := l.faults.Load(); f != 0 {
					t.Errorf("half changed data was seen %d times", f)
				}
			})
		}
	}
	if reached < want {
		t.Errorf("%d times a point was reached, of %d points", reached, want)
	}
}

// takeAndDie takes the lock some times and gives it back, and comes to a point where it dies.
var takeAndDie = proc.Define("take a lock and die", func(_ context.Context, v victim) error {
	how, plan, _ := strings.Cut(v.Plan, "; ")
	shmsync.CrashAt(plan)
	rw := &libraryIn(v.Region).rw
	for range 3 {
		if how == "write" {
			rw.Lock()
			rw.Unlock()
		} else {
			rw.RLock()
			rw.RUnlock()
		}
	}
	return nil
})

// What a kill at a point leaves is known exactly: a lock is inconsistent if, and only if, its writer was inside.
func TestAKillBetweenAnyTwoStepsOfTheRWMutexIsToldIfAWriterWasInside(t *testing.T) {
	const reader, writer = false, true
	for point, want := range map[string]struct {
		write, read  bool // the victim writes; somebody has read before
		inconsistent bool
	}{
		"has the word, unread": {writer, false, false},
		"writes, unread":       {writer, false, true},
		"has the word":         {writer, true, false},
		"writes":               {writer, true, true},
		"wrote":                {writer, true, false},
		"known to writers":     {reader, true, false},
		"registered":           {reader, true, false},
		"came in":              {reader, true, false},
		"went":                 {reader, true, false},
	} {
		t.Run(point, func(t *testing.T) {
			r, l := newLibrary(t)
			if want.read {
				l.rw.RLock()
				l.rw.RUnlock()
			}
			how := "read"
			if want.write {
				how = "write"
			}
			p, err := takeAndDie.Start(t.Context(), victim{r, how + "; " + point + ":1"})
			if err != nil {
				t.Fatal(err)
			}
			<-p.Done()
			if p.Wait() == nil {
				t.Fatal("the point was not reached")
			}
			until(t, "the death is known", func() bool { r.Scan(); return r.Deaths().Load() == 1 })
			err = l.rw.RLockContext(context.Background())
			if got := errors.Is(err, shmsync.ErrInconsistent); got != want.inconsistent || err != nil && !got {
				t.Fatalf("a reader after the kill: %v", err)
			}
			if err != nil {
				err = l.rw.Recover(context.Background(), func(shm.Death) error { return nil })
			} else {
				l.rw.RUnlock()
			}
			if err != nil {
				t.Error(err)
			}
			answers(t, r, true, true)
			l.check(t)
		})
	}
}
