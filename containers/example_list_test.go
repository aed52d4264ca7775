package containers_test

import (
	"fmt"
	"log"

	"github.com/shmkit/shmkit/containers"
)

func ExampleSharedList() {
	headlines, err := containers.NewSharedList[string](nil) // nil: this process' own Manager
	if err != nil {
		log.Fatal(err)
	}
	if err := headlines.Append("Harry reports"); err != nil {
		log.Fatal(err) // the region is full, for instance
	}
	for _, h := range headlines.All() {
		fmt.Println(h)
	}
	fmt.Println(headlines.At(-1))
	// Output:
	// Harry reports
	// Harry reports
}

func ExampleListView() {
	queue := containers.Must(containers.NewSharedList[int64](nil))
	queue.With(func(v containers.ListView[int64]) { // the lock is held
		for i := range 3 {
			if err := v.Append(int64(i)); err != nil {
				log.Fatal(err)
			}
		}
		first, _ := v.PopFirst()
		fmt.Println(first, v.Len())
	})
	// Output: 0 2
}
