package containers

import (
	"fmt"

	"github.com/shmkit/shmkit/shm"
)

// check names the first broken invariant. The lock is held, nothing is at work.
func (q *queue) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, shm.ErrCorrupt)...)
	}
	head, tail, err := q.bounds()
	if err != nil {
		return err
	}
	blocks := map[uint64]bool{}
	for v := head; v != tail; v++ {
		if err := q.checkText(q.slot(v), blocks); err != nil {
			return fmt.Errorf("message %d: %w", v, err)
		}
	}
	if c := q.word(queueLeases).Load(); c&tableOpen != 0 {
		return bad("leases %#x: the table is open while nothing is at work", c)
	}
	used := q.table(tableUsed).Load()
	if used > q.leases {
		return bad("%d entries used of %d", used, q.leases)
	}
	var states [4]uint64
	numbers := map[uint64]uint64{}
	for i := range used {
		p, err := q.entry(i)
		if err != nil {
			return err
		}
		c, number := word(p, leaseControl).Load(), word(p, leaseNumber).Load()
		states[c&leaseState]++
		switch c & leaseState {
		case leaseFree:
			continue
		case leaseOut, leaseReturned:
		default:
			return bad("entry %d is in state %#x", i, c)
		}
		if number >= head {
			return bad("entry %d has message %d, and the ring those from %d on", i, number, head)
		}
		if other, twice := numbers[number]; twice {
			return bad("entries %d and %d both have message %d", other, i, number)
		}
		numbers[number] = i
		if err := q.checkText(plus(p, leaseSlot), blocks); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
	}
	if returned, leased := q.counts(); returned != states[leaseReturned] || leased != states[leaseOut] {
		return bad("%d messages returned and %d leased are counted, %d and %d are there", returned, leased, states[leaseReturned], states[leaseOut])
	}
	for _, list := range []struct {
		head  int
		state uint64
	}{{tableFree, leaseFree}, {tableReturned, leaseReturned}} {
		var n, last uint64
		for next := q.table(list.head).Load(); next != 0; n++ {
			p, err := q.entry(next - 1)
			if err != nil {
				return err
			}
			if c := word(p, leaseControl).Load(); c&leaseState != list.state || n >= states[list.state] || next > used {
				return bad("entry %d in state %#x is in the list of those in state %d", next-1, c, list.state)
			}
			if number := word(p, leaseNumber).Load(); list.state == leaseReturned && n > 0 && number <= last {
				return bad("message %d is returned behind %d", number, last)
			} else {
				last = number
			}
			next = word(p, leaseNext).Load()
		}
		if n != states[list.state] {
			return bad("%d entries are in the list of those in state %d, %d are there", n, list.state, states[list.state])
		}
	}
	return nil
}
