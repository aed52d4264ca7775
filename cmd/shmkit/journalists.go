package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/shmkit/shmkit/containers"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

type journalist struct {
	Part
	Headlines containers.SharedList[string]
	Lock      containers.Ref[shmsync.Mutex]
}

var report = proc.Define("journalists", func(_ context.Context, j journalist) error {
	lock := j.guard(j.Lock.Ptr())
	j.begin()
	for range j.Rounds {
		headline := fmt.Sprintf("%s reports at %s", j.Name, time.Now().Format(time.TimeOnly))
		lock.Lock()
		if err := j.add(headline); err != nil {
			return err
		}
		j.say("%s added a headline.", j.Name)
		lock.Unlock()
	}
	return nil
})

// add appends the headline to the list. Append alone loses nothing, whoever holds which lock; so with
// --no-lock it is done in two steps: find the first free line, write there.
func (j journalist) add(headline string) error {
	if !j.NoLock {
		return j.Headlines.Append(headline)
	}
	free := j.Headlines.Len()
	j.pause()
	j.Headlines.Lock()
	defer j.Headlines.Unlock()
	list := j.Headlines.Locked()
	if free < list.Len() {
		return list.Set(free, headline) // over somebody else's
	}
	return list.Append(headline)
}

var journalists = &program{
	title:     "journalists",
	shows:     "three processes add headlines to one list; the parent then reads them all",
	means:     "everyone's headlines are in the list once, in the order in which they were added",
	processes: 3, rounds: 1, linesPerTurn: 1,
	name: named("Journalist", "Harry", "Ron", "Hermione"),
	play: playJournalists, check: checkJournalists,
}

func playJournalists(ctx context.Context, s *stage) (outcome, error) {
	headlines, err := containers.NewSharedList[string](s.manager)
	if err != nil {
		return outcome{}, err
	}
	lock, err := containers.New[shmsync.Mutex](s.manager)
	if err != nil {
		return outcome{}, err
	}
	s.done = func() int64 { return int64(headlines.Len()) }
	if err := cast(ctx, s, report, func(p Part) journalist { return journalist{p, headlines, lock} }); err != nil {
		return outcome{}, err
	}
	listed := slices.Collect(headlines.Values())
	if !s.quiet {
		err := errors.Join(s.tell("\n"), s.tell("All headlines:\n"))
		for _, headline := range listed {
			err = errors.Join(err, s.tell(" - "+headline+"\n"))
		}
		if err != nil {
			return outcome{}, err
		}
	}

	o := outcome{Summary: fmt.Sprintf("%d headlines listed, %d added", len(listed), s.turns())}
	o.lose(s.turns()-int64(len(listed)), "headline")
	if o.Fault == nil {
		names, err := reporters(listed)
		o.Fault = cmp.Or(err, s.everyoneCame(names))
	}
	return o, nil
}

// checkJournalists: first all have added, then comes the list, in the same order.
func checkJournalists(s *stage) error {
	n := int(s.turns())
	if len(s.said) != 2*n+2 || s.said[n] != "" || s.said[n+1] != "All headlines:" {
		return fmt.Errorf("a list of %d should come after %d lines: %q", n, n, s.said)
	}
	var listed []string
	for _, line := range s.said[n+2:] {
		headline, ok := strings.CutPrefix(line, " - ")
		if !ok {
			return fmt.Errorf("%q is no line of a list", line)
		}
		listed = append(listed, headline)
	}
	names, err := reporters(listed)
	if err != nil {
		return err
	}
	for i, name := range names {
		if want := name + " added a headline."; s.said[i] != want {
			return fmt.Errorf("line %d is %q; by the list it should be %q", i+1, s.said[i], want)
		}
	}
	return s.everyoneCame(names)
}

var headlineForm = regexp.MustCompile(`^(.+) reports at [0-2]\d:[0-5]\d:[0-6]\d$`)

// reporters lists who wrote the headlines.
func reporters(headlines []string) ([]string, error) {
	var names []string
	for _, headline := range headlines {
		m := headlineForm.FindStringSubmatch(headline)
		if m == nil {
			return nil, fmt.Errorf("%q is no headline", headline)
		}
		names = append(names, m[1])
	}
	return names, nil
}
