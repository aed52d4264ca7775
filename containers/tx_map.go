package containers

import (
	"iter"
	"sync/atomic"

	"github.com/shmkit/shmkit/containers/internal/txn"
)

// A TxMap is a [SharedMap] within a transaction.
type TxMap[K comparable, V any] struct {
	tx *Tx
	m  *mapTx[K, V]
}

// mapTx remembers what becomes of keys. At the commit it first sees to it that there is a place for each of them: segments grow by operations of
// their own, which change nothing for anybody. Then, in the transaction's operation, it fills these places, where nobody looks,
// and has the control words stored that show them, then those that hide others.
type mapTx[K comparable, V any] struct {
	h       SharedMap[K, V]
	changes map[K]*mapChange[K, V]
	order   []*mapChange[K, V]
	moves   []mapMove[K, V]
	shown   map[*atomic.Uint64]uint64 // control words, with the places that are filled
}

// A mapChange is what becomes of a key.
type mapChange[K comparable, V any] struct {
	k    K
	v    V
	had  bool // before the transaction
	gone bool
}

// A mapMove is what a change does in its segment: it fills a place, or the value in the place where the key is, or hides that.
type mapMove[K comparable, V any] struct {
	*mapChange[K, V]
	g       segment
	fills   bool
	to      mapPlace
	inPlace bool
	hides   bool
	at      mapPlace
}

// In makes m part of the transaction, and locks it until that is over. It waits for the lock, or ends the transaction's function, as
// [Manager.Update] says.
func (m SharedMap[K, V]) In(tx *Tx) TxMap[K, V] {
	return TxMap[K, V]{tx, joinAs[*mapTx[K, V]](tx, m.base, func() txObject { return &mapTx[K, V]{h: m, changes: map[K]*mapChange[K, V]{}} })}
}

// Get returns the value of k and true, or false if there is none.
func (t TxMap[K, V]) Get(k K) (v V, ok bool) {
	t.tx.use()
	if c := t.m.changes[k]; c != nil {
		if c.gone {
			return v, false
		}
		return c.v, true
	}
	return t.committed(k)
}

// committed returns the value that k had before the transaction.
func (t TxMap[K, V]) committed(k K) (V, bool) {
	h := t.m.h
	key := keyOf(h.table(), &k)
	v, ok, _, _, err := h.look(h.table(), &key)
	if err != nil {
		t.tx.stop(h.fail("Get", err))
	}
	return v, ok
}

// Contains reports whether there is a value for k.
func (t TxMap[K, V]) Contains(k K) bool {
	_, ok := t.Get(k)
	return ok
}

// Put makes v the value of k. If there is no room for it, Update says so.
func (t TxMap[K, V]) Put(k K, v V) {
	t.tx.use()
	c := t.change(k)
	c.v, c.gone = v, false
}

// Delete takes k and its value out, and reports whether there was one.
func (t TxMap[K, V]) Delete(k K) bool {
	if !t.Contains(k) {
		return false
	}
	c := t.change(k)
	var none V
	c.v, c.gone = none, true
	return true
}

func (t TxMap[K, V]) change(k K) *mapChange[K, V] {
	c := t.m.changes[k]
	if c == nil {
		_, had := t.committed(k)
		c = &mapChange[K, V]{k: k, had: had}
		t.m.changes[k] = c
		t.m.order = append(t.m.order, c)
	}
	return c
}

// Len returns the number of keys. O(changes).
func (t TxMap[K, V]) Len() int {
	t.tx.use()
	return t.m.h.Len() + t.m.growth()
}

// growth returns how many more keys there are after the transaction.
func (m *mapTx[K, V]) growth() (n int) {
	for _, c := range m.order {
		switch {
		case c.had && c.gone:
			n--
		case !c.had && !c.gone:
			n++
		}
	}
	return n
}

// All returns an iterator over keys and values, in no order. The loop's body may change the map: a key that is there from the beginning of the loop to
// its end is visited once, others once or not at all.
func (t TxMap[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		t.tx.use()
		for k, v := range t.m.h.All() {
			c := t.m.changes[k]
			switch {
			case c == nil:
			case c.gone:
				continue
			default:
				v = c.v
			}
			if !yield(k, v) {
				return
			}
		}
		for _, c := range t.m.order { // those that were put before
			if !c.had && !c.gone && !yield(c.k, c.v) {
				return
			}
		}
	}
}

// ready makes room.
func (m *mapTx[K, V]) ready() error {
	for {
		grown, err := m.plan()
		if err != nil || !grown {
			return err
		}
	}
}

// plan decides what each change does. If there is no room for one it makes some, and reports that: then segments, and so all places, are
// others.
func (m *mapTx[K, V]) plan() (grown bool, err error) {
	t := m.h.table()
	m.moves, m.shown = m.moves[:0], map[*atomic.Uint64]uint64{}
	for _, c := range m.order {
		key := keyOf(t, &c.k)
		g, at, found, ok, err := t.lookup(&key)
		if err != nil {
			return false, err
		}
		move := mapMove[K, V]{mapChange: c, g: g, at: at}
		value := valueOf(t, &c.v)
		switch {
		case c.gone:
			move.hides = found
		case !ok:
			return true, t.begin()
		case found && value.whole(t):
			move.inPlace = true
		default:
			move.hides, move.fills = found, true
			if move.to, ok = m.place(g, at, found, key.hash); !ok {
				return true, t.grow(g, key.hash)
			}
			w := g.control(move.to.group)
			m.shown[w] = with(m.control(w), move.to.i, full(key.hash))
		}
		m.moves = append(m.moves, move)
	}
	return false, nil
}

// control returns a control word with all places that are, or will be, in use. What the transaction hides is of no use to it: readers
// look there until the end.
func (m *mapTx[K, V]) control(w *atomic.Uint64) uint64 {
	if ctl, ok := m.shown[w]; ok {
		return ctl
	}
	return w.Load()
}

// place returns a place for a key: in the group where it is, if it is anywhere, or in another one where it may be.
func (m *mapTx[K, V]) place(g segment, at mapPlace, found bool, hash uint64) (mapPlace, bool) {
	if found {
		if i := vacant(m.control(g.control(at.group))); i < groupSlots {
			return mapPlace{at.group, i}, true
		}
	}
	group := g.home(hash)
	for n := g.reach(); n > 0; n-- {
		if i := vacant(m.control(g.control(group))); i < groupSlots {
			return mapPlace{group, i}, true
		}
		group = (group + 1) & (g.groups() - 1)
	}
	return mapPlace{}, false
}

// prepare does what plan has decided. Between the control words that show and those that hide, a key may be there twice; a reader that passes by the
// new place before, and comes to the old one afterwards, sees neither, but that the sequence has changed. A slot that is hidden becomes a deleted one, never an
// empty one: keys of this transaction may be further on because its group was full.
func (m *mapTx[K, V]) prepare(c *txCommit) error {
	t := m.h.table()
	later := map[*atomic.Uint64]uint64{} // control words as they are in the end
	var shows, hides []*atomic.Uint64    // each once
	var segments []segment
	for i := range m.moves {
		e := &m.moves[i]
		if err := m.move(c, t, e); err != nil {
			return err
		}
		if e.fills {
			w := e.g.control(e.to.group)
			if _, ok := later[w]; !ok {
				later[w] = m.shown[w]
				shows = append(shows, w)
			}
		}
	}
	for w, ctl := range later {
		m.shown[w] = ctl
	}
	final := map[*atomic.Uint64]uint64{}
	seen := map[uint64]bool{}
	for i := range m.moves {
		e := &m.moves[i]
		if !e.hides {
			continue
		}
		w := e.g.control(e.at.group)
		ctl, ok := final[w]
		if !ok {
			ctl = m.control(w)
			hides = append(hides, w)
		}
		final[w] = with(ctl, e.at.i, ctlDeleted)
		if !seen[e.g.off()] {
			seen[e.g.off()] = true
			segments = append(segments, e.g)
		}
	}
	for _, w := range shows {
		if err := c.l.Later(w, m.shown[w]); err != nil {
			return err
		}
	}
	for step := range uint64(2) { // before and after what hides
		for _, g := range segments {
			if err := c.l.Later(g.seq(), g.seq().Load()+1+step); err != nil {
				return err
			}
		}
		for _, w := range hides {
			if step == 0 {
				if err := c.l.Later(w, final[w]); err != nil {
					return err
				}
			}
		}
	}
	if n := m.growth(); n != 0 {
		count := &t.o.words[mapCount]
		return c.l.Later(count, count.Load()+uint64(n))
	}
	return nil
}

// move fills a place, and frees what the hidden one refers to.
func (m *mapTx[K, V]) move(c *txCommit, t table, e *mapMove[K, V]) error {
	key, value := keyOf(t, &e.k), valueOf(t, &e.v)
	if e.inPlace {
		return c.l.Later(word(e.g.slot(e.at.slot()), int(t.keyWords())), wordOf(value.p, value.n))
	}
	if !e.fills && !e.hides { // taken out, and was not there: the map may have no memory
		return nil
	}
	old := e.g.slot(e.at.slot())
	if e.fills {
		p := e.g.slot(e.to.slot())
		txn.Announce(p, uintptr(e.g.size))
		if e.hides {
			copyBlock(p, old, 8*t.keyWords())
		} else if err := key.storeIn(t, c.l, p); err != nil {
			return err
		}
		if err := value.storeIn(t, c.l, plus(p, 8*t.keyWords())); err != nil {
			return err
		}
	}
	if !e.hides {
		return nil
	}
	if !e.fills {
		if err := t.freeIn(c.l, blockOf(t.keyText(old))); err != nil {
			return err
		}
	}
	return t.freeIn(c.l, blockOf(t.valueText(old)))
}
