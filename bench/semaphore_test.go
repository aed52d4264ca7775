package bench_test

import (
	"testing"

	"github.com/shmkit/shmkit/bench"
)

func TestLendingCountsWhatIsTaken(t *testing.T) {
	for _, kind := range []string{bench.Owned, bench.Ownerless} {
		res, err := bench.Lending{Kind: kind, Procs: 3, Permits: 2, Rounds: 1000}.Run(t.Context(), func() {})
		if err != nil || res.Taken != 3000 {
			t.Errorf("%s: %+v, %v", kind, res, err)
		}
	}
	if _, err := (bench.Lending{Kind: "other", Procs: 1, Permits: 1, Rounds: 1}).Run(t.Context(), func() {}); err == nil {
		t.Error("an unknown kind: no error")
	}
}
