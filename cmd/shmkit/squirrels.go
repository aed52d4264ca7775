package main

import (
	"context"
	"fmt"

	"github.com/shmkit/shmkit/containers"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

type squirrel struct {
	Part
	Pile containers.SharedInt
	Lock containers.Ref[shmsync.Mutex]
}

var collect = proc.Define("squirrels", func(_ context.Context, q squirrel) error {
	lock := q.guard(q.Lock.Ptr())
	q.begin()
	for range q.Rounds {
		lock.Lock()
		nuts := q.Pile.Load()
		q.pause()
		q.Pile.Store(nuts + 1)
		q.say("%s added a nut. Total: %d", q.Name, nuts+1)
		lock.Unlock()
	}
	return nil
})

var squirrels = &program{
	title:     "squirrels",
	shows:     "three processes add to one number under a lock of its own",
	means:     "every nut was counted; the total rose by one from line to line",
	processes: 3, rounds: 5, linesPerTurn: 1,
	name: named("Squirrel", "George", "Fred", "Hermione"),
	play: playSquirrels, check: checkSquirrels,
}

func playSquirrels(ctx context.Context, s *stage) (outcome, error) {
	pile, err := containers.NewSharedInt(s.manager, 0)
	if err != nil {
		return outcome{}, err
	}
	lock, err := containers.New[shmsync.Mutex](s.manager)
	if err != nil {
		return outcome{}, err
	}
	s.done = pile.Load
	if err := cast(ctx, s, collect, func(p Part) squirrel { return squirrel{p, pile, lock} }); err != nil {
		return outcome{}, err
	}

	nuts, added := pile.Load(), s.turns()
	o := outcome{Summary: fmt.Sprintf("%d nuts counted, %d added", nuts, added)}
	o.lose(added-nuts, "update")
	return o, nil
}

// checkSquirrels: the total rises by one from line to line.
func checkSquirrels(s *stage) error {
	return s.checkLines(s.said, func(i int64) string { return fmt.Sprintf(" added a nut. Total: %d", i+1) })
}
