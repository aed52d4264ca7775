package containers

// getWord is Get where keys have one word and values are plain: what look does, in one function and without its detours. done is false if it came to
// nothing: a writer has changed the map meanwhile, or there is something to say about it that look says better.
func (m SharedMap[K, V]) getWord(k *K) (v V, ok, done bool) {
	t, key := m.table(), wordOf(addr(k), int(sizeOf[K]()))
	hash := hash64(t.s.region.HashSeed(), key)
	epoch := t.o.words[mapEpoch].Load()
	dir := t.o.words[mapDir].Load()
	if dir == 0 {
		return v, false, false
	}
	g, err := t.segment(dir, hash)
	if err != nil {
		return v, false, false
	}
	seen := g.seq().Load()
	at, ok := g.findWord(hash, key)
	if ok {
		p := plus(g.slot(at.slot()), 8)
		if sizeOf[V]() == 8 {
			w := word(p, 0).Load()
			v = *as[V](addr(&w))
		} else {
			v = load[V](p)
		}
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
