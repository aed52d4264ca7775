//go:build !linux || futexpoll

package sync

import (
	"time"

	"github.com/shmkit/shmkit/sync/internal/futex"
)

// A bed is where one goroutine sleeps. Sleeping look by look holds no thread, so there is nothing to
// share.
type bed struct{}

// on sleeps as [futex.Sleep] does.
func (*bed) on(w, bell futex.Word, d time.Duration, cancel *futex.Cancel) futex.Result {
	return futex.Sleep(w, bell, d, cancel)
}

// Here no sleep has a thread of its own.
func takeThread() bool { return false }
func giveThread()      {}
