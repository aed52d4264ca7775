package containers_test

import (
	"context"
	"fmt"
	"log"

	"github.com/shmkit/shmkit/containers"
)

func ExampleSharedMap() {
	words, err := containers.NewSharedMap[string, int64](nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, w := range []string{"nut", "tree", "nut"} {
		err := words.Update(context.Background(), w, func(n *int64, ok bool) error {
			*n++
			return nil
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	n, ok := words.Get("nut")
	fmt.Println(n, ok, words.Len())
	// Output: 2 true 2
}
