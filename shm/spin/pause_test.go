package spin

import "testing"

func TestPauseEnds(t *testing.T) {
	for _, n := range []uint32{0, 1, 1000} {
		Pause(n)
	}
}
