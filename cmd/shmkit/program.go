package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// program is one of the tutorial's six.
type program struct {
	title string // what it is called on the command line
	shows string // what there is to see, for the help
	means string // what "ok" says about it, for the help

	processes    int // as in the tutorial, as are rounds
	rounds       int
	name         func(i int) string // of process i, from 0
	linesPerTurn int
	baking       bool // it has --oven

	// play makes the shared data, starts the processes, waits for them and looks at what they left.
	play func(context.Context, *stage) (outcome, error)
	// check looks at what was said, where play found nothing wrong and the processes were not silent.
	check func(*stage) error
}

// programs returns all six, in the tutorial's order.
func programs() []*program {
	return []*program{bakers, squirrels, journalists, tickets, dogs, birds}
}

func programNames() []string {
	var names []string
	for _, p := range programs() {
		names = append(names, p.title)
	}
	return names
}

var everyProgramHas = []string{"processes", "rounds", "no-lock"}

// flags are those that concern the program, not the command.
func (p *program) flags() []string {
	if p.baking {
		return slices.Concat([]string{"oven"}, everyProgramHas)
	}
	return everyProgramHas
}

// named gives the first processes the tutorial's names and numbers the others.
func named(kind string, names ...string) func(int) string {
	return func(i int) string {
		if i < len(names) {
			return names[i]
		}
		return fmt.Sprintf("%s %d", kind, i+1)
	}
}

// size is how large a program is run, and whether with its lock.
type size struct {
	Processes int
	Rounds    int // turns that each process takes
	NoLock    bool
	Oven      time.Duration
}

const (
	mostProcesses = 250 // a region has room for 256, this one included
	mostRounds    = 1_000_000_000
	loudest       = 200 // lines; a program that would print more works in silence
)

// size is the tutorial's, changed by the flags given.
func (p *program) size(f demoFlags) size {
	s := size{Processes: p.processes, Rounds: p.rounds, NoLock: f.noLock, Oven: f.oven}
	if f.processes > 0 {
		s.Processes = f.processes
	}
	if f.rounds > 0 {
		s.Rounds = f.rounds
	}
	return s
}

// turns is how many turns all processes take together.
func (s size) turns() int64 { return int64(s.Processes) * int64(s.Rounds) }
