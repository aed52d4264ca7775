package bench_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/shmkit/shmkit/bench"
)

// run is a report in which ours takes so many times what the floor does.
func runOf(ratio, noise, load float64) *bench.Report {
	return &bench.Report{Version: 1, Results: []*bench.Result{
		{Name: "case/procs=2", Load: load, Entries: []bench.Entry{
			{By: "shmkit", Role: bench.Ours, NsPerOp: 10 * ratio, ToFloor: ratio, ToOurs: 1, Noise: noise},
			{By: "floor", Role: bench.Floor, NsPerOp: 10, ToFloor: 1, ToOurs: 1 / ratio},
		}},
		{Name: "other", Entries: []bench.Entry{ // without a floor: by the peer
			{By: "shmkit", Role: bench.Ours, NsPerOp: 50, ToOurs: 1},
			{By: "peer", Role: bench.Peer, NsPerOp: 100, ToOurs: 2, Noise: 0.01},
		}},
	}}
}

func TestGuardSaysWhichRatioMovedBeyondTheNoise(t *testing.T) {
	base := runOf(1.0, 0.05, 0).Baseline()
	if len(base.Ratios) != 2 || base.Ratios["other/by=shmkit"].Ratio != 0.5 || base.Ratios["other/by=shmkit"].To != "peer" || base.Ratios["case/procs=2/by=shmkit"].To != "floor" {
		t.Fatalf("%+v", base)
	}
	for _, c := range []struct {
		what               string
		ratio, noise, load float64
		moved, slower      bool
	}{
		{"the same", 1, 0.05, 0, false, false},
		{"within what builds differ by", 1.14, 0, 0, false, false},
		{"slower", 1.3, 0.05, 0, true, true},
		{"slower, but the rounds were as far apart", 1.3, 0.3, 0, false, false},
		{"much slower than the noise", 1.5, 0.3, 0, true, true},
		{"faster", 0.7, 0.05, 0, true, false},
		{"within the noise, to the better", 0.8, 0.3, 0, false, false},
		{"slower on a busy machine", 2, 0.05, 0.8, true, true},
	} {
		moved, compared := runOf(c.ratio, c.noise, c.load).Compare(base)
		if compared != 2 || (len(moved) == 1) != c.moved {
			t.Errorf("%s: %d compared, moved: %v", c.what, compared, moved)
			continue
		}
		if c.moved && (moved[0].Slower() != c.slower || moved[0].Name != "case/procs=2/by=shmkit" || moved[0].Unsure != (c.load > 0)) {
			t.Errorf("%s: %+v", c.what, moved[0])
		}
	}
}

func TestGuardTellsTheWorstFirst(t *testing.T) {
	now := runOf(1.4, 0, 0)
	now.Results[1].Entries[1].ToOurs = 1 // the peer has caught up: ours takes twice as long, by it
	moved, _ := now.Compare(runOf(1, 0, 0).Baseline())
	var b bytes.Buffer
	if err := bench.WriteMoves(&b, moved, 2); err != nil {
		t.Fatal(err)
	}
	first, second := strings.Index(b.String(), "other/by=shmkit is slower: 1 × peer, was 0.5"), strings.Index(b.String(), "case/procs=2/by=shmkit is slower: 1.4 × floor, was 1 ")
	if first < 0 || second < first || !strings.Contains(b.String(), "2 of 2 ratios moved") {
		t.Errorf("%s", b.String())
	}
}

func TestGuardComparesOnlyWhatIsTheSame(t *testing.T) {
	base := runOf(1, 0, 0).Baseline()
	delete(base.Ratios, "other/by=shmkit")
	row := base.Ratios["case/procs=2/by=shmkit"]
	row.To = "another floor"
	base.Ratios["case/procs=2/by=shmkit"] = row
	if moved, compared := runOf(5, 0, 0).Compare(base); compared != 0 || len(moved) != 0 {
		t.Errorf("%d compared, %v", compared, moved)
	}
}
