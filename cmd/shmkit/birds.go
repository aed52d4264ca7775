package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/shmkit/shmkit/containers"
	"github.com/shmkit/shmkit/shm/proc"
)

type bird struct {
	Part
	Spots containers.SharedArray[int64]
}

var plant = proc.Define("birds", func(_ context.Context, b bird) error {
	seed := func(spots []int64) {
		if b.Rounds == 1 {
			spots[b.Index] = int64(b.Index) + 1
			b.pause()
			b.say("%s placed a seed at spot %d.", b.Name, b.Index)
			return
		}
		for i := range spots { // a spot each would show nothing: distinct spots need no lock
			spots[i]++
		}
		b.pause()
		b.say("%s placed a seed at every spot.", b.Name)
	}
	b.begin()
	for range b.Rounds {
		if b.NoLock {
			spots := slices.Collect(b.Spots.Values())
			seed(spots)
			b.Spots.CopyIn(0, spots)
			continue
		}
		b.Spots.With(seed) // under the array's own lock
	}
	return nil
})

var birds = &program{
	title:     "birds",
	shows:     "five processes put seeds into one array that brings its own lock",
	means:     "every seed is at its spot",
	processes: 5, rounds: 1, linesPerTurn: 1,
	name: func(i int) string { return fmt.Sprintf("Bird %d", i) },
	play: playBirds, check: checkBirds,
}

func playBirds(ctx context.Context, s *stage) (outcome, error) {
	spots, err := containers.NewSharedArray[int64](s.manager, s.Processes)
	if err != nil {
		return outcome{}, err
	}
	s.done = func() int64 { return spots.At(0) }
	if err := cast(ctx, s, plant, func(p Part) bird { return bird{p, spots} }); err != nil {
		return outcome{}, err
	}

	var o outcome
	if s.Rounds == 1 {
		lost := int64(0)
		for i, seed := range spots.All() {
			if seed != int64(i)+1 {
				lost++
			}
		}
		o.Summary = fmt.Sprintf("%d seeds at their spots, %d placed", s.turns()-lost, s.turns())
		o.lose(lost, "seed")
	} else {
		seeds, placed := sum(spots.Values()), s.turns()*int64(s.Processes)
		o.Summary = fmt.Sprintf("%d seeds at %d spots, %d placed", seeds, s.Processes, placed)
		o.lose(placed-seeds, "seed")
		for i, seed := range spots.All() {
			if o.Fault == nil && seed != s.turns() {
				o.Fault = fmt.Errorf("%d seeds at spot %d, not %d", seed, i, s.turns())
			}
		}
	}
	return o, nil
}

func checkBirds(s *stage) error {
	if s.Rounds > 1 {
		return s.checkLines(s.said, func(int64) string { return " placed a seed at every spot." })
	}
	var names []string
	for _, line := range s.said {
		name, spot, _ := strings.Cut(line, " placed a seed at spot ")
		if name != "Bird "+strings.TrimSuffix(spot, ".") {
			return fmt.Errorf("%q is not what a bird says", line)
		}
		names = append(names, name)
	}
	return s.everyoneCame(names)
}
