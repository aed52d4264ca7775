//go:build !linux

package bench

import (
	"context"
	"errors"
	"time"
)

// KillFloor returns an error that is [errors.ErrUnsupported].
func KillFloor(context.Context, int) ([]time.Duration, error) { return nil, errors.ErrUnsupported }
