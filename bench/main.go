package bench

import (
	"os"

	"github.com/shmkit/shmkit/shm/proc"
)

// bareVar, when set, makes this program the floor of [Starts]: it does nothing.
const bareVar = "SHMKIT_BENCH_BARE"

// Main is [proc.Main] for programs that run cases of this package: call it first in main or TestMain.
func Main() {
	if os.Getenv(bareVar) != "" {
		os.Stdout.Write([]byte{'.'}) // as a started process says that its function runs
		os.Exit(0)
	}
	proc.Main()
}
