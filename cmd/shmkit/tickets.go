package main

import (
	"context"

	"github.com/shmkit/shmkit/containers"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

type customer struct {
	Part
	Tickets containers.SharedInt
	Lock    containers.Ref[shmsync.Mutex]
	Sold    containers.SharedArray[int64] // by customer
}

var buy = proc.Define("tickets", func(_ context.Context, c customer) error {
	lock := c.guard(c.Lock.Ptr())
	sold := int64(0)
	c.begin()
	for range c.Rounds {
		lock.Lock()
		if tickets := c.Tickets.Load(); tickets > 0 {
			c.pause()
			c.Tickets.Store(tickets - 1)
			sold++
			c.say("%s bought a ticket. Tickets left: %d", c.Name, tickets-1)
		} else {
			c.say("%s found no tickets left.", c.Name)
		}
		lock.Unlock()
	}
	c.Sold.Set(c.Index, sold)
	return nil
})

var tickets = &program{
	title:     "tickets",
	shows:     "four processes buy three tickets: looking and taking are one step under a lock",
	means:     "every ticket was sold once, one after the other; the turns after that found none",
	processes: 4, rounds: 1, linesPerTurn: 1,
	name: named("Customer", "Amber", "Heather", "Cherish", "Bella"),
	play: playTickets, check: checkTickets,
}

func playTickets(ctx context.Context, s *stage) (outcome, error) {
	tickets, err := containers.NewSharedInt(s.manager, s.supply())
	if err != nil {
		return outcome{}, err
	}
	lock, err := containers.New[shmsync.Mutex](s.manager)
	if err != nil {
		return outcome{}, err
	}
	sold, err := containers.NewSharedArray[int64](s.manager, s.Processes)
	if err != nil {
		return outcome{}, err
	}
	s.done = func() int64 { return s.supply() - tickets.Load() }
	if err := cast(ctx, s, buy, func(p Part) customer { return customer{p, tickets, lock, sold} }); err != nil {
		return outcome{}, err
	}
	return s.supplied(sum(sold.Values()), tickets.Load(), "%d sold, %d refused, %d left"), nil
}

func checkTickets(s *stage) error {
	return s.checkSupply(" bought a ticket. Tickets left: %d", " found no tickets left.")
}
