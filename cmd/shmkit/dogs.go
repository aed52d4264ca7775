package main

import (
	"context"

	"github.com/shmkit/shmkit/containers"
	"github.com/shmkit/shmkit/shm/proc"
)

type dog struct {
	Part
	Bowl  containers.SharedInt
	Drunk containers.SharedArray[int64] // by dog
}

var drink = proc.Define("dogs", func(_ context.Context, d dog) error {
	drunk := int64(0)
	sip := func(water *int64) {
		if *water == 0 {
			d.say("%s found the bowl empty.", d.Name)
			return
		}
		d.pause()
		*water--
		drunk++
		d.say("%s drank water. Water left: %d", d.Name, *water)
	}
	d.begin()
	for range d.Rounds {
		if d.NoLock {
			water := d.Bowl.Load()
			sip(&water)
			d.Bowl.Store(water)
			continue
		}
		d.Bowl.With(sip) // under the bowl's own lock
	}
	d.Drunk.Set(d.Index, drunk)
	return nil
})

var dogs = &program{
	title:     "dogs",
	shows:     "three processes drink from one bowl, a number that brings its own lock",
	means:     "every sip was taken once, one after the other; the turns after that found the bowl empty",
	processes: 3, rounds: 1, linesPerTurn: 1,
	name: named("Dog", "Rex", "Bella", "Max"),
	play: playDogs, check: checkDogs,
}

func playDogs(ctx context.Context, s *stage) (outcome, error) {
	bowl, err := containers.NewSharedInt(s.manager, s.supply())
	if err != nil {
		return outcome{}, err
	}
	drunk, err := containers.NewSharedArray[int64](s.manager, s.Processes)
	if err != nil {
		return outcome{}, err
	}
	s.done = func() int64 { return s.supply() - bowl.Load() }
	if err := cast(ctx, s, drink, func(p Part) dog { return dog{p, bowl, drunk} }); err != nil {
		return outcome{}, err
	}
	return s.supplied(sum(drunk.Values()), bowl.Load(), "%d drank, %d found the bowl empty, %d left"), nil
}

func checkDogs(s *stage) error {
	return s.checkSupply(" drank water. Water left: %d", " found the bowl empty.")
}
