package blocks

import (
	"os"
	"testing"

	"github.com/shmkit/shmkit/shm/proc"
)

func TestMain(m *testing.M) {
	proc.Main()
	os.Exit(m.Run())
}
