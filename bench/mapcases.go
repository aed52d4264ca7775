package bench

import (
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/shmkit/shmkit/containers"
)

// keyed is the size of the maps that other languages are measured with.
const keyed = 100_000

// scattered is one of n keys: all of them in turn, far from each other. n is a power of ten.
func scattered(i, n int) int64 { return int64(uint64(i) * 48271 % uint64(n)) }

// A mapCall is what is done with a map of many keys, by one goroutine that nobody disturbs.
type mapCall string

const (
	mapGet    mapCall = "get"
	mapSet    mapCall = "set"    // a key that is there
	mapInsert mapCall = "insert" // one that is not, from an empty map on
)

// on makes a batch of the call.
func (call mapCall) on(d dict, keys int, empty func() error) (batch, error) {
	if call == mapInsert {
		return batch{most: keys, fresh: empty, calls: func(n int) error {
			for i := range n {
				k := scattered(i, keys)
				if err := d.put(k, k); err != nil {
					return err
				}
			}
			k := scattered(n-1, keys)
			if v, ok := d.get(k); !ok || v != k {
				return fmt.Errorf("bench: key %d has %d, %t", k, v, ok)
			}
			return nil
		}}, nil
	}
	if err := fillDict(d, keys); err != nil {
		return batch{}, err
	}
	if call == mapGet {
		return batch{calls: func(n int) error {
			for i := range n {
				k := scattered(i, keys)
				if v, ok := d.get(k); !ok || v != value(k, 0) {
					return fmt.Errorf("bench: key %d has %d, %t", k, v, ok)
				}
			}
			return nil
		}}, nil
	}
	times := int64(0) // all batches count on
	return batch{calls: func(n int) error {
		for i := range n {
			times++
			k := scattered(i, keys)
			if err := d.put(k, value(k, times)); err != nil {
				return err
			}
		}
		k := scattered(n-1, keys)
		if v, ok := d.get(k); !ok || v != value(k, times) {
			return fmt.Errorf("bench: key %d has %#x, %t, not %#x", k, v, ok, value(k, times))
		}
		return nil
	}}, nil
}

func (call mapCall) subjects(keys int) []Subject {
	return []Subject{
		{By: Shmkit, Role: Ours, Run: alone(inManager(func(m *containers.Manager) (batch, error) {
			shared, err := containers.NewSharedMap[int64, int64](m)
			if err != nil {
				return batch{}, err
			}
			return call.on(&sharedDict{shared}, keys, func() error { shared.Clear(); return nil })
		}))},
		{By: ByGuardedMap, Role: Peer, Run: alone(func() (batch, error) {
			d := &guardedDict{m: map[int64]int64{}}
			return call.on(d, keys, func() error { d.m = map[int64]int64{}; return nil })
		})},
	}
}

const kept = 10_000 // texts that are there while some are replaced

// replaced are the subjects that put texts in the place of others: memory for one is taken, that of the other given
// back. length says how long the n'th is.
func replaced(length func(n int) int) []Subject {
	text := strings.Repeat("text", 256)
	times := func(put func(k int64, v string) error, get func(k int64) (string, bool)) (batch, error) {
		for k := range int64(kept) {
			if err := put(k, text[:length(int(k))]); err != nil {
				return batch{}, err
			}
		}
		done := 0
		return batch{calls: func(n int) error {
			for range n {
				done++
				if err := put(scattered(done, kept), text[:length(done)]); err != nil {
					return err
				}
			}
			if v, ok := get(scattered(done, kept)); !ok || v != text[:length(done)] {
				return fmt.Errorf("bench: a text of %d bytes, %t, not of %d", len(v), ok, length(done))
			}
			return nil
		}}, nil
	}
	return []Subject{
		{By: Shmkit, Role: Ours, Run: alone(inManager(func(m *containers.Manager) (batch, error) {
			shared, err := containers.NewSharedMap[int64, string](m)
			if err != nil {
				return batch{}, err
			}
			return times(shared.Put, shared.Get)
		}))},
		{By: ByGuardedMap, Role: Peer, Run: alone(func() (batch, error) {
			var mu sync.Mutex
			m := map[int64]string{}
			return times(func(k int64, v string) error {
				mu.Lock()
				m[k] = strings.Clone(v)
				mu.Unlock()
				return nil
			}, func(k int64) (string, bool) {
				v, ok := m[k]
				return v, ok
			})
		})},
	}
}

var _ = Register(func() (cases []Case) {
	for _, call := range []struct {
		call mapCall
		asks string
	}{
		{mapGet, "Get of int64 from a map of so many, in no order"},
		{mapSet, "Put of int64 at keys that are there, in no order"},
		{mapInsert, "Put of int64 at new keys, from an empty map to one of so many"},
	} {
		for _, keys := range []int{1_000, 10_000, keyed, 1_000_000} {
			subjects := call.call.subjects(keys)
			if keys == keyed && call.call != mapInsert {
				name, n := string(call.call), strconv.Itoa(keys)
				subjects = append(subjects, peerBoost("Boost", name, n), peerPython("Python-Manager", name, n), peerRedis("Redis", strings.ToUpper(name)))
			}
			cases = append(cases, Case{
				Name: fmt.Sprintf("map/call=%s/size=%d", call.call, keys), Asks: call.asks,
				Quick: keys == keyed, Subjects: subjects,
			})
		}
	}
	for _, writes := range []int{0, 10, 50} {
		for _, procs := range []int{1, 2, 4} {
			c := Traffic{By: Shmkit, Procs: procs, Keys: keyed, Writes: writes}
			guarded, synced := c, c
			guarded.By, synced.By = ByGuardedMap, BySyncMap
			cases = append(cases, Case{
				Name:     fmt.Sprintf("map/writes=%d%%/procs=%d", writes, procs),
				Asks:     "Get, and so many Put of a hundred, at 100,000 keys, by processes; the others by goroutines of one",
				Quick:    writes == 10 && procs == 2,
				Subjects: []Subject{c.subject(Ours), guarded.subject(Peer), synced.subject(Peer)},
			})
		}
	}
	for _, texts := range []struct {
		size   string
		length func(n int) int
	}{
		{"64", func(int) int { return 64 }},
		{"16-1024", func(n int) int { return 16 + n*7919%1009 }},
	} {
		cases = append(cases, Case{
			Name: "replace/bytes=" + texts.size, Quick: texts.size != "64",
			Asks:     "a text put in the place of one of 10,000: memory is taken, and given back; in Go, by the collector",
			Subjects: replaced(texts.length),
		})
	}
	return cases
})
