//go:build crashpoints

package sync

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
)

// crash kills this process at the n'th time that it comes to the point which [CrashAt] named.
func crash(point string) {
	if c := crashing.Load(); c != nil && c.point == point && c.left.Add(-1) == 0 {
		p, _ := os.FindProcess(os.Getpid())
		p.Kill()
		select {}
	}
}

type crashPlan struct {
	point string
	left  atomic.Int64
}

var crashing atomic.Pointer[crashPlan]

// CrashAt lets this process kill itself at a point given as name:n.
func CrashAt(plan string) {
	name, n, _ := strings.Cut(plan, ":")
	c := &crashPlan{point: name}
	k, _ := strconv.Atoi(n)
	c.left.Store(int64(k))
	crashing.Store(c)
}
