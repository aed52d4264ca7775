package containers_test

import (
	"fmt"
	"log"

	"github.com/shmkit/shmkit/containers"
)

func ExampleSharedArray() {
	a, err := containers.NewSharedArray[int64](nil, 3) // nil: this process' own Manager
	if err != nil {
		log.Fatal(err)
	}
	a.Set(0, 5)
	a.With(func(v []int64) { // seen by others as a whole, or not at all
		v[1], v[2] = v[0]+1, v[0]+2
	})
	for i, v := range a.All() {
		fmt.Println(i, v)
	}
	// Output:
	// 0 5
	// 1 6
	// 2 7
}

func ExampleArrayView() {
	spots := containers.Must(containers.NewSharedArray[int32](nil, 5))
	spots.Lock()
	v := spots.Locked()
	v.Set(2, v.At(2)+3)
	spots.Unlock()
	fmt.Println(spots.At(2))
	// Output: 3
}
