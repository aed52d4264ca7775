package containers

import (
	"context"
	"errors"
	"flag"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/shmkit/shmkit/shm/proc"
)

var mapKills = flag.Int("map-kills", 0, "processes that are killed while they change maps; 0: some")

// A mapping is maps that a process changes over and over, step by step as Done counts: any other process knows what step n does.
type mapping struct {
	M     *Manager
	Words SharedMap[int64, int64]
	Wide  SharedMap[int64, [4]int64]
	Texts SharedMap[string, string]
	Done  AtomicInt
	Seed  uint64
}

func newMapping(m *Manager) mapping {
	return mapping{m, Must(NewSharedMap[int64, int64](m)), Must(NewSharedMap[int64, [4]int64](m)), Must(NewSharedMap[string, string](m)), Must(NewAtomicInt(m, 0)), rand.Uint64()}
}

// mapStep does step n on h, or on model if that is not nil.
func mapStep[K, V comparable](m *Manager, h SharedMap[K, V], model map[K]V, seed, n uint64, key func(i int) K, value func(i int) V) (err error) {
	r := rand.New(rand.NewPCG(seed, n))
	k, other, v, old := key(r.IntN(1500)), key(r.IntN(1500)), value(r.IntN(90)), value(r.IntN(90))
	op := r.IntN(400)
	if model != nil {
		now, has := model[k]
		switch {
		case op < 180:
			model[k] = v
		case op < 270:
			delete(model, k)
		case op < 300:
			if !has {
				model[k] = v
			}
		case op < 320:
			if has && now == old {
				model[k] = v
			}
		case op < 350:
			model[k] = v
		case op < 399:
			delete(model, k)
			model[other] = v
		default:
			clear(model)
		}
		return nil
	}
	switch {
	case op < 180:
		return h.Put(k, v)
	case op < 270:
		h.Delete(k)
	case op < 300:
		_, _, err = h.GetOrPut(k, v)
	case op < 320:
		_, err = CompareAndSwap(h, k, old, v)
	case op < 350:
		return h.Update(context.Background(), k, func(e *V, _ bool) error { *e = v; return nil })
	case op < 399:
		return m.Update(context.Background(), func(tx *Tx) error {
			w := h.In(tx)
			w.Delete(k)
			w.Put(other, v)
			return nil
		})
	default:
		h.Clear()
	}
	return err
}

func word64(i int) int64 { return int64(i) }

// blockText returns strings of which nearly all have a block.
func blockText(i int) string { return someText(i%20 + 37*i + 13) }

// step does step n, on the maps or on the models.
func (j mapping) step(n uint64, words map[int64]int64, wide map[int64][4]int64, texts map[string]string) error {
	switch n % 3 {
	case 0:
		return mapStep(j.M, j.Words, words, j.Seed, n, word64, word64)
	case 1:
		return mapStep(j.M, j.Wide, wide, j.Seed, n, word64, wide32)
	}
	return mapStep(j.M, j.Texts, texts, j.Seed, n, blockText, blockText)
}

var mapsForEver = proc.Define("changes maps for ever", func(_ context.Context, j mapping) error {
	for n := uint64(j.Done.Load()) + 1; ; n++ {
		if err := j.step(n, nil, nil, nil); err != nil {
			return err
		}
		j.Done.Store(int64(n))
	}
})

// Processes that change maps in all ways are killed: the maps are what all steps up to the last one known make of Go's maps, or one step more, and no memory is lost.
func TestMapsOutliveKills(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector does not look into mapped memory, and makes processes start slowly")
	}
	m := newManager(t)
	j := newMapping(m)
	t.Logf("seed %d", j.Seed)
	kills := *mapKills
	if kills == 0 {
		kills = 10
	}
	words, wide, texts := map[int64]int64{}, map[int64][4]int64{}, map[string]string{}
	done, ahead := uint64(0), 0
	for k := range kills {
		killed(t, mapsForEver, j, "it has worked", func() bool { return uint64(j.Done.Load()) > done+uint64(200+k%7*150) })
		same := func() bool { // as others see it who wait for nobody
			return maps.Equal(maps.Collect(j.Words.All()), words) && maps.Equal(maps.Collect(j.Wide.All()), wide) && maps.Equal(maps.Collect(j.Texts.All()), texts)
		}
		for to := uint64(j.Done.Load()); done < to; done++ {
			j.step(done+1, words, wide, texts)
		}
		before := same()
		for _, l := range []lockable{j.Words.lockable, j.Wide.lockable, j.Texts.lockable} { // the change may be one that becomes visible by recovery
			l.Lock()
			l.Unlock()
		}
		if !same() {
			done++
			ahead++
			j.step(done, words, wide, texts)
			if !same() {
				t.Fatalf("killed in step %d: the maps are neither as before nor as after it", done)
			}
		} else if !before {
			t.Fatalf("killed in step %d: the maps looked otherwise before anybody took their locks", done+1)
		}
		j.Done.Store(int64(done))
		if err := errors.Join(j.Words.Check(), j.Wide.Check(), j.Texts.Check()); err != nil {
			t.Fatalf("killed after step %d: %v", done, err)
		}
		if j.Words.Len() != len(words) || j.Wide.Len() != len(wide) || j.Texts.Len() != len(texts) {
			t.Fatalf("%d, %d and %d keys counted, want %d, %d and %d", j.Words.Len(), j.Wide.Len(), j.Texts.Len(), len(words), len(wide), len(texts))
		}
	}
	t.Logf("%d steps, %d of %d kills after the commit; %d, %d and %d keys", done, ahead, kills, len(words), len(wide), len(texts))
}
