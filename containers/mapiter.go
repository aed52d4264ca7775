package containers

import "math/bits"

// An iterator goes through the hashes from the lowest to the highest, one segment after the other: what it has to know is only where
// the last one's range ended. However segments are replaced meanwhile, a key's hash stays, and is passed once.

type mapItem[K, V any] struct {
	k K
	v V
}

// bounds returns the first hash of the range of g, in which hash is, and the first one behind it, 0 if there is none.
func (g segment) bounds(hash uint64) (start, end uint64) {
	size := uint64(1) << (64 - g.depth()) // 0 for all of them
	start = hash &^ (size - 1)
	return start, start + size
}

// firstUsed returns the first slot in use of a control word that has one.
func firstUsed(ctl uint64) uint64 { return uint64(bits.TrailingZeros64(ctl&ctlHigh)) >> 3 }

// readFrom appends the items with hashes from a given one on that are in one segment, all as they were at one moment, and
// returns from where to go on, if there is more.
func (m SharedMap[K, V]) readFrom(items []mapItem[K, V], from uint64) (got []mapItem[K, V], next uint64, more bool) {
	if m.obj == nil {
		m.notLive("All")
	}
	t := m.table()
	for try, locked := 1, false; ; try++ {
		epoch := t.o.words[mapEpoch].Load()
		got, next, g, err := m.snapshot(t, items, from, epoch)
		sound := (g.p == nil || g.seq().Load() == g.seen) && t.o.words[mapEpoch].Load() == epoch
		if locked {
			m.mu.Unlock()
		}
		if sound || locked {
			m.checkLive("All")
			if err != nil {
				panic(m.fail("All", err))
			}
			return got, next, next != 0
		}
		locked = m.overtaken(try)
	}
}

func (m SharedMap[K, V]) snapshot(t table, items []mapItem[K, V], from, epoch uint64) (got []mapItem[K, V], next uint64, g seenSegment, err error) {
	dir := t.o.words[mapDir].Load()
	if dir == 0 {
		return items, 0, g, nil
	}
	if g.segment, err = t.segment(dir, from); err != nil {
		return items, 0, seenSegment{}, err
	}
	g.seen = g.seq().Load()
	start, next := g.bounds(from)
	for group := range g.groups() {
		for ctl := g.control(group).Load() & ctlHigh; ctl != 0; ctl &= ctl - 1 {
			k, v, err := m.item(t, g.slot(group*groupSlots+firstUsed(ctl)), g.still(t, epoch))
			if err != nil {
				return items, 0, g, err
			}
			if start != from {
				if key := keyOf(t, &k); key.hash < from {
					continue
				}
			}
			items = append(items, mapItem[K, V]{k, v})
		}
	}
	return items, next, g, nil
}
