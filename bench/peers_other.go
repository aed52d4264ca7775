//go:build !linux

package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

var errNoPeers = fmt.Errorf("bench: peers in other languages are measured on Linux: %w", errors.ErrUnsupported)

func peerC(by string, role Role, _ ...string) Subject { return elsewhere(by, role) }

func peerPython(by string, _ ...string) Subject { return elsewhere(by, Peer) }

func peerBoost(by string, _ ...string) Subject { return elsewhere(by, Peer) }

func peerRedis(by string, _ ...string) Subject { return elsewhere(by, Peer) }

func elsewhere(by string, role Role) Subject {
	return Subject{By: by, Role: role, Need: func() error { return errNoPeers }, Run: func(context.Context, time.Duration) (*Sample, error) {
		return nil, errNoPeers
	}}
}
