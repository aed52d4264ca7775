package shm

// Places: of some objects a process has not one share but many, like the goroutines of it that wait in a
// queue. Each is a holding of its own. They are found by number, not by key, and told apart by what the
// object writes into them; so the key is one that no Hold asks for.

// Place takes one more holding of this process for the object at off, and gives it that value, which is not
// 0. The number leads others to it: see [Region.PlaceAt]. It is given back like any holding. No other object
// has off, and nobody calls Hold with it. Errors are those of [Region.Hold]. O(n) for a process of n holdings.
func (r *Region) Place(off Offset, value uint64) (h *Holding, number uint32, err error) {
	i, ok := r.Slot()
	if !ok {
		return nil, 0, r.m.fail("hold", ErrClosed)
	}
	m, word := r.m, HoldingKey(off)|value
	m.seat.holding.Lock()
	defer m.seat.holding.Unlock()
	m.eachPage(i, self, func(page []Holding) bool {
		for k := range page {
			// Taken from any object that does not use it: one that pins it meanwhile is faster.
			if w := page[k].Word.Load(); w&HoldingMask == 0 && page[k].Word.CompareAndSwap(w, word) {
				h, number = &page[k], m.placeNumber(page)+uint32(k)
				return false
			}
		}
		return true
	})
	if h != nil {
		return h, number, nil
	}
	page, err := m.takeSpare(i)
	if err != nil {
		return nil, 0, err
	}
	h = &page.held[0]
	h.Word.Store(word)
	page.next.Store(m.slots[i].overflow.Load())
	m.slots[i].overflow.Store(uint64(m.spareNumber(page)) + 1) // publishes
	return h, m.placeNumber(page.held[:]), nil
}

const slotPlaces, pagePlaces = uint32(len(holdings{}.held)), uint32(len(sparePage{}.held))

// PlaceAt returns the holding with that number of the process t, whose slot is i; nil if it has none. What the
// holding is for, its word says.
func (r *Region) PlaceAt(i int, t Token, number uint32) *Holding {
	m := r.m
	if number < slotPlaces {
		return &m.holdings[i].held[number]
	}
	n := (number - slotPlaces) / pagePlaces
	if n >= spareCount || m.spares.owners[n].Load() != uint64(t) {
		return nil
	}
	return &m.spare(int(n)).held[(number-slotPlaces)%pagePlaces]
}

// Places calls look with each holding in slot i, which is the process t's, that has a value for the object at off.
func (r *Region) Places(i int, t Token, off Offset, look func(h *Holding)) {
	key := HoldingKey(off)
	r.m.eachPage(i, t, func(page []Holding) bool {
		for k := range page {
			if w := page[k].Word.Load(); w&^HoldingMask == key && w&HoldingMask != 0 {
				look(&page[k])
			}
		}
		return true
	})
}

// Attached returns the token of the process that has the region open in slot i, and the number of that opening:
// whoever closes the region and opens it again has the same token, and another number. The token is 0 if there is
// none, or it is dead and what it left half done is undone, or it has closed the region.
func (r *Region) Attached(i int) (t Token, opening uint32) {
	s := &r.m.slots[i]
	opening = s.gen.Load()
	t = Token(s.token.Load())
	if t == 0 || yields(s.state.Load()) || s.flags.Load()&slotClosed != 0 {
		return 0, 0
	}
	return t, opening
}
