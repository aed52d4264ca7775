package containers_test

import (
	"fmt"

	"github.com/shmkit/shmkit/containers"
)

func ExampleNamespace() {
	n := containers.Must(containers.NewNamespace(nil))
	n.Set("width", 640)
	n.Set("title", "squirrels")

	width, err := containers.Attribute[int](n, "width")
	title, _ := n.Get("title")
	fmt.Println(width, title, err)
	// Output: 640 squirrels <nil>
}
