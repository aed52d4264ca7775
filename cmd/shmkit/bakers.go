package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/shmkit/shmkit/containers"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

type baker struct {
	Part
	Oven   containers.Ref[shmsync.Mutex]
	Baking time.Duration
}

var bake = proc.Define("bakers", func(_ context.Context, b baker) error {
	oven := b.guard(b.Oven.Ptr())
	b.begin()
	for range b.Rounds {
		b.say("%s wants to use the oven.", b.Name)
		oven.Lock()
		b.say("%s is baking...", b.Name)
		b.pause()
		time.Sleep(b.Baking)
		b.say("%s is done baking.", b.Name)
		oven.Unlock()
	}
	return nil
})

var bakers = &program{
	title:     "bakers",
	shows:     "two processes share one oven: a lock lets one bake after the other",
	means:     "never two at the oven, each baker's lines in order, one baking time after the other",
	processes: 2, rounds: 1, linesPerTurn: 3, baking: true,
	name: named("Baker", "Mary", "Lois"),
	play: playBakers, check: checkBakers,
}

func playBakers(ctx context.Context, s *stage) (outcome, error) {
	oven, err := containers.New[shmsync.Mutex](s.manager)
	if err != nil {
		return outcome{}, err
	}
	s.quiet = false // its lines tell what happened at the oven, and nothing else does
	if err := cast(ctx, s, bake, func(p Part) baker { return baker{p, oven, s.Oven} }); err != nil {
		return outcome{}, err
	}
	return outcome{Summary: fmt.Sprintf("%d baked in %.2fs", s.turns(), s.took.Seconds())}, nil
}

// checkBakers relies on the order of the lines: a baker writes its last two while it holds the oven.
func checkBakers(s *stage) error {
	const wants, baking, done = " wants to use the oven.", " is baking...", " is done baking."
	after := map[string]string{wants: baking, baking: done, done: wants}
	due := map[string]string{} // the line that each baker must come with next; first wants
	inside := map[string]bool{}
	var finished []string
	overlaps := 0
	for _, line := range s.said {
		for said, next := range after {
			name, ok := strings.CutSuffix(line, said)
			if !ok {
				continue
			}
			if d, begun := due[name]; begun && d != said || !begun && said != wants {
				return fmt.Errorf("%q came out of order", line)
			}
			due[name] = next
			switch said {
			case baking:
				inside[name] = true
				if len(inside) > 1 {
					overlaps++
				}
			case done:
				delete(inside, name)
				finished = append(finished, name)
			}
		}
	}
	if overlaps > 0 {
		return fmt.Errorf("the oven was in use when %d of them came to it", overlaps)
	}
	if len(s.said) != 3*len(finished) {
		return fmt.Errorf("%d lines are not %d bakers' lines", len(s.said), len(finished))
	}
	if least := time.Duration(s.turns()) * s.Oven; s.took < least {
		return fmt.Errorf("one after the other they take %v", least)
	}
	return s.everyoneCame(finished)
}
