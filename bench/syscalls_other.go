//go:build !linux || !amd64

package bench

import "context"

func oneSyscall() {}

// Run returns ErrNotTraced.
func (c Syscalls) Run(context.Context) ([]SyscallsResult, error) { return nil, ErrNotTraced }
