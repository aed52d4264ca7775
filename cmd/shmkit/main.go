// Command shmkit shows, from the outside, what the library does.
//
// Results go to standard output, progress and messages to standard error. It ends with 0 when all
// is well, 1 when something was checked and found wrong or could not be done, 2 when it was called
// wrongly and 130 when it was interrupted.
package main

import (
	"os"

	"github.com/shmkit/shmkit/bench"
)

func main() {
	bench.Main() // in a child this runs the child's function and does not return
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
