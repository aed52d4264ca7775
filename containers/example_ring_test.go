package containers_test

import (
	"context"
	"fmt"

	"github.com/shmkit/shmkit/containers"
)

// One goroutine, of this process or another one, has the producing end, and one the consuming end.
func ExampleSharedRing() {
	ctx := context.Background()
	ring := containers.Must(containers.NewSharedRing[int64](nil, 1024))
	go func() {
		producer := containers.Must(ring.Producer(ctx))
		defer producer.Release()
		for n := range int64(4) {
			if err := producer.Put(ctx, n*n); err != nil {
				panic(err)
			}
		}
		ring.Close()
	}()
	consumer := containers.Must(ring.Consumer(ctx))
	defer consumer.Release()
	for n, err := range consumer.All(ctx) {
		if err != nil {
			panic(err)
		}
		fmt.Println(n)
	}
	// Output:
	// 0
	// 1
	// 4
	// 9
}
