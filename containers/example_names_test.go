package containers_test

import (
	"context"
	"fmt"
	"log"

	"github.com/shmkit/shmkit/containers"
	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

func ExampleManager_Names() {
	r, err := shm.Anonymous()
	if err != nil {
		log.Fatal(err)
	}
	m, err := containers.NewManager(r)
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	containers.Must(containers.NewSharedMap[string, int64](m, containers.Name("prices")))
	containers.Must(containers.NewSharedInt(m, 5, containers.Name("pile")))
	for _, o := range containers.Must(m.Names()) {
		fmt.Println(o.Name, "-", o.Kind)
	}
	n, err := m.Sweep(context.Background()) // what killed processes have left
	fmt.Println("swept:", n, err)
	// Output:
	// pile - number
	// prices - map
	// swept: 0 <nil>
}

func ExampleInit() {
	// Whichever process comes first gives the semaphore its permits; all others find it so.
	jobs, err := containers.New[shmsync.CountingSemaphore](nil, containers.Name("jobs"), containers.OrOpen(),
		containers.Init(func(s *shmsync.CountingSemaphore) error { return s.Init(3) }))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(jobs.Ptr().Value())
	// Output: 3
}
