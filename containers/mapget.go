package containers

import "math/bits"

// getWord is Get where keys have one word and values are plain: what look does, in one function and without its detours. done is false if it came to
// nothing: a writer has changed the map meanwhile, or there is something to say about it that look says better.
func (m SharedMap[K, V]) getWord(k *K) (v V, ok, done bool) {
	t, region := m.table(), m.s.region
	var key uint64
	switch n := sizeOf[K](); n {
	case 8:
		key = *as[uint64](addr(k))
	default:
		key = wordOf(addr(k), int(n))
	}
	hash := hash64(region.HashSeed(), key)
	epoch := t.o.words[mapEpoch].Load()
	dir := t.o.words[mapDir].Load()
	if dir == 0 {
		return v, false, false
	}
	p, err := addrAt(region, dir&^dirLog2Mask+8*(hash>>(64-dir&dirLog2Mask)), 8)
	if err != nil {
		return v, false, false
	}
	g, err := t.open(word(p, 0).Load())
	if err != nil {
		return v, false, false
	}
	seen := g.seq().Load()
	group := g.home(hash)
search:
	for n := g.reach(); n > 0; n-- {
		ctl := g.control(group).Load()
		for x := matches(ctl, hash); x != 0; x &= x - 1 {
			slot := g.slot(group*groupSlots + uint64(bits.TrailingZeros64(x))>>3)
			if word(slot, 0).Load() == key {
				if sizeOf[V]() == 8 {
					w := word(slot, 1).Load()
					v = *as[V](addr(&w))
				} else {
					v = load[V](plus(slot, 8))
				}
				ok = true
				break search
			}
		}
		if hasEmpty(ctl) {
			break
		}
		group = (group + 1) & (g.groups() - 1)
	}
	if g.seq().Load() != seen || t.o.words[mapEpoch].Load() != epoch {
		return v, false, false
	}
	m.checkLive("Get")
	return v, ok, true
}

// inWords reports whether getWord is for such maps.
func (s mapShape) inWords() bool {
	return s.keyWords() == 1 && s.keyForm() == formPlain && s.valueForm() == formPlain
}
