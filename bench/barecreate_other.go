//go:build !linux

package bench

import (
	"errors"
	"fmt"
)

// bareCreate returns an error that is [errors.ErrUnsupported].
func bareCreate(int64) error {
	return fmt.Errorf("bench: bare memory is made on Linux: %w", errors.ErrUnsupported)
}
