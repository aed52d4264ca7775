package heap

import (
	"os"
	"testing"

	"github.com/shmkit/shmkit/shm/proc"
)

func TestMain(m *testing.M) {
	useRecoverer() // before regions are opened that need it
	proc.Main()
	os.Exit(m.Run())
}
