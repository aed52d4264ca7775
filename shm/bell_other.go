//go:build !linux || futexpoll

package shm

// A bell is nothing where no kernel rings it.
type bell struct{}

func (m *mapping) hangBell() {}

func (s *seat) takeBellDown() {}
