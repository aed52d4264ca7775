package containers_test

import (
	"context"
	"fmt"

	"github.com/shmkit/shmkit/containers"
)

// A message goes from one queue to the next together with the count of those that went: whoever is killed when, it is in one of
// the two, and counted if it is in the second.
func ExampleSharedQueue_In() {
	ctx := context.Background()
	in := containers.Must(containers.NewSharedQueue[string](nil, 10))
	out := containers.Must(containers.NewSharedQueue[string](nil, 10))
	moved := containers.Must(containers.NewSharedInt(nil, 0))
	var m *containers.Manager // this process' own
	fmt.Println(in.Put(ctx, "wool"))
	job := containers.Must(in.Lease(ctx))
	fmt.Println(m.Update(ctx, func(tx *containers.Tx) error {
		if err := out.In(tx).Put("a " + job.Value + " sweater"); err != nil {
			return err // nothing has happened then
		}
		moved.In(tx).Add(1)
		return job.In(tx).Done()
	}))
	fmt.Println(out.Get(ctx))
	fmt.Println(moved.Load(), in.Unfinished())
	// Output:
	// <nil>
	// <nil>
	// a wool sweater <nil>
	// 1 0
}
