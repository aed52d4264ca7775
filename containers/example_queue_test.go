package containers_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/shmkit/shmkit/containers"
)

func ExampleSharedQueue() {
	ctx := context.Background()
	jobs, err := containers.NewSharedQueue[string](nil, 100) // nil: this process' own Manager
	if err != nil {
		log.Fatal(err)
	}
	if _, err := jobs.PutN(ctx, "sweep", "cook"); err != nil {
		log.Fatal(err)
	}
	jobs.Close()
	for {
		job, err := jobs.Get(ctx)
		if errors.Is(err, containers.ErrQueueClosed) {
			break
		}
		fmt.Println(job, err)
	}
	// Output:
	// sweep <nil>
	// cook <nil>
}

func ExampleLease() {
	ctx := context.Background()
	jobs := containers.Must(containers.NewSharedQueue[int64](nil, 100))
	if err := jobs.Put(ctx, 7); err != nil {
		log.Fatal(err)
	}
	job := containers.Must(jobs.Lease(ctx))
	job.Return() // as if its process had died
	job = containers.Must(jobs.Lease(ctx))
	fmt.Println(job.Value, job.Attempt)
	fmt.Println(job.Done(), jobs.Join(ctx))
	// Output:
	// 7 2
	// <nil> <nil>
}
