//go:build !unix || solaris || aix

package bench

import (
	"errors"
	"time"
)

// bareAttach returns an error that is [errors.ErrUnsupported].
func bareAttach(string) (time.Duration, error) { return 0, errors.ErrUnsupported }
