package containers

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// furnishQueues makes queues and rings in which nothing is 0 that need not be: messages are out on leases, returned, and in the ring, around
// its end; the table has a free entry; ends are taken.
func furnishQueues(m *Manager) error {
	ctx := context.Background()
	var errs []error
	check := func(err error) { errs = append(errs, err) }
	numbers, err := NewSharedQueue[int64](m, 5, Name("numbers"))
	check(err)
	_, err = numbers.PutN(ctx, 1, 2, 3, 4, 5)
	check(err)
	var leases [4]*Lease[int64]
	for i := range leases {
		leases[i], err = numbers.Lease(ctx)
		check(err)
	}
	_, err = numbers.PutN(ctx, 6, 7, 8, 9)
	check(err)
	check(errors.Join(leases[0].Done(), leases[3].Return(), leases[1].Return()))
	texts, err := NewSharedQueue[string](m, 3, Name("texts"))
	check(err)
	long := "long, which is to say of more than fifteen bytes"
	for _, s := range []string{long + ", on a lease", long, "short"} {
		check(texts.Put(ctx, s))
	}
	_, err = texts.Lease(ctx)
	check(err)
	check(texts.Close())
	letters, err := NewSharedRing[letter](m, 3, Name("ring"))
	check(err)
	p, err := letters.Producer(ctx)
	check(err)
	c, err := letters.Consumer(ctx)
	check(err)
	_, err = p.PutN(ctx, letterOf(1), letterOf(2), letterOf(3))
	check(err)
	_, err = c.GetN(ctx, make([]letter, 2))
	check(err)
	check(errors.Join(p.Put(ctx, letterOf(4)), p.Put(ctx, letterOf(5)), c.Release()))
	check(letters.Close())
	return errors.Join(errs...)
}

// readQueues takes what furnishQueues has put, but for what it has on leases.
func readQueues(m *Manager) (string, error) {
	ctx := context.Background()
	numbers, err1 := Find[SharedQueue[int64]](m, "numbers")
	texts, err2 := Find[SharedQueue[string]](m, "texts")
	letters, err3 := Find[SharedRing[letter]](m, "ring")
	if err := errors.Join(err1, err2, err3); err != nil {
		return "", err
	}
	var s strings.Builder
	for _, closed := range []bool{numbers.Closed(), texts.Closed(), letters.Closed()} {
		fmt.Fprint(&s, closed, " ")
	}
	fmt.Fprintln(&s, numbers.Cap(), numbers.Unfinished(), texts.Cap(), texts.Unfinished(), letters.Cap(), letters.Len())
	for v, ok, err := numbers.TryGet(); ok && err == nil; v, ok, err = numbers.TryGet() {
		fmt.Fprint(&s, v, " ")
	}
	for v, ok, err := texts.TryGet(); ok && err == nil; v, ok, err = texts.TryGet() {
		fmt.Fprintf(&s, "%q ", v)
	}
	c, err := letters.Consumer(ctx)
	if err != nil {
		return s.String(), err
	}
	defer c.Release()
	for v, err := range c.All(ctx) {
		fmt.Fprint(&s, v, err)
	}
	return s.String(), nil
}

const goldenQueuesText = `false true true 5 8 3 3 3 3
2 4 5 6 7 8 9 "long, which is to say of more than fifteen bytes" "short" {3 [3 3 3] 3} <nil>{4 [4 4 4] 4} <nil>{5 [5 5 5] 5} <nil>`
