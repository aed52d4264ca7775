package bench

import (
	"fmt"
	"io"
	"slices"
)

// A Baseline is what [Report.Compare] compares with: ratios, which hold on another machine of the same kind, not
// times, which hold nowhere.
type Baseline struct {
	Version int                    `json:"version"`
	Machine Machine                `json:"machine"`
	Ratios  map[string]BaselineRow `json:"ratios"` // by case and subject, as in case/by=shmkit
}

// A BaselineRow is how long one of ours took, by what it was measured by.
type BaselineRow struct {
	To    string  `json:"to"`    // the floor, or the first peer where there is none
	Ratio float64 `json:"ratio"` //
	Noise float64 `json:"noise"` // how far half of the rounds were apart, by the median
}

// Baseline is what later runs are compared with.
func (r *Report) Baseline() *Baseline {
	b := &Baseline{Version: 1, Machine: r.Machine, Ratios: map[string]BaselineRow{}}
	for _, res := range r.Results {
		for _, e := range res.Entries {
			if row, ok := res.measured(e); ok {
				b.Ratios[res.Name+"/by="+e.By] = row
			}
		}
	}
	return b
}

// measured returns one of ours by the floor; where there is none, by the first peer.
func (r *Result) measured(e Entry) (BaselineRow, bool) {
	if e.Role != Ours {
		return BaselineRow{}, false
	}
	for _, role := range []Role{Floor, Peer} {
		i := slices.IndexFunc(r.Entries, func(other Entry) bool { return other.Role == role && other.ToOurs > 0 })
		switch {
		case i >= 0 && role == Floor && e.ToFloor > 0:
			return BaselineRow{r.Entries[i].By, e.ToFloor, e.Noise}, true
		case i >= 0 && role == Peer && e.ToOurs > 0:
			return BaselineRow{r.Entries[i].By, e.ToOurs / r.Entries[i].ToOurs, r.Entries[i].Noise}, true
		}
	}
	return BaselineRow{}, false
}

// A Move is a ratio that is not what it was, by more than the noise of both runs.
type Move struct {
	Name     string // case/by=subject
	Was, Is  BaselineRow
	Tolerate float64 // what the noise allows: 0.2 is a fifth more or less
	Unsure   bool    // the machine was busy with something else when it was measured now
}

// Slower reports whether it moved to the worse.
func (m Move) Slower() bool { return m.Is.Ratio > m.Was.Ratio }

func (m Move) String() string {
	what := "faster"
	if m.Slower() {
		what = "slower"
	}
	s := fmt.Sprintf("%s is %s: %.3g × %s, was %.3g ×; the noise allows ±%.0f %%", m.Name, what, m.Is.Ratio, m.Is.To, m.Was.Ratio, m.Tolerate*100)
	if m.Unsure {
		s += "; the machine was busy with something else"
	}
	return s
}

// leastMove is how far a ratio may move however quiet both runs were: two builds of the same source differ by
// that much, since their code lies elsewhere.
const leastMove = 0.15

// Compare returns the ratios that moved by more than the noise that both runs measured, the worst first, and how
// many it compared. A case that the baseline does not know, or that was measured by something else, is not compared.
func (r *Report) Compare(b *Baseline) (moved []Move, compared int) {
	busy := map[string]bool{}
	for _, res := range r.Results {
		for _, e := range res.Entries {
			busy[res.Name+"/by="+e.By] = res.Busy()
		}
	}
	for name, is := range r.Baseline().Ratios {
		was, known := b.Ratios[name]
		if !known || was.To != is.To || was.Ratio <= 0 {
			continue
		}
		compared++
		m := Move{Name: name, Was: was, Is: is, Tolerate: max(leastMove, was.Noise+is.Noise), Unsure: busy[name]}
		if change := is.Ratio / was.Ratio; change > 1+m.Tolerate || change < 1/(1+m.Tolerate) {
			moved = append(moved, m)
		}
	}
	slices.SortFunc(moved, func(x, y Move) int {
		a, b := x.Is.Ratio/x.Was.Ratio, y.Is.Ratio/y.Was.Ratio
		switch {
		case a > b:
			return -1
		case a < b:
			return 1
		}
		return 0
	})
	return moved, compared
}

// WriteMoves tells what moved.
func WriteMoves(w io.Writer, moved []Move, compared int) error {
	for _, m := range moved {
		fmt.Fprintln(w, m)
	}
	_, err := fmt.Fprintf(w, "%d of %d ratios moved by more than the noise\n", len(moved), compared)
	return err
}
