//go:build unix

package blocks

import (
	"os"
	"syscall"
)

const killedCode = -int(syscall.SIGKILL)

// kill ends this process as kill -9 does, at this very place.
func kill() {
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
