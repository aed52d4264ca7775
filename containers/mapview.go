package containers

import "iter"

// With calls fn with the map's methods, the lock held: several steps that no other writer comes between.
// Each of them is seen by readers as it is done, and stays done if fn panics or the process dies; the lock
// comes free in any case. v is of use only until fn returns. Calling the map's own writing methods inside
// fn would wait for ever; use those of v.
func (m SharedMap[K, V]) With(fn func(v MapView[K, V])) {
	m.acquire("With")
	defer m.release()
	fn(MapView[K, V]{m})
}

// Locked returns the methods to use between Lock and Unlock, which act under the lock already held.
func (m SharedMap[K, V]) Locked() MapView[K, V] {
	m.checkLive("Locked")
	if m.mu != nil && m.foreign() {
		// The caller may have taken its lock itself, after a death, past the repair that Lock would have made.
		if err := m.settle(); err != nil {
			panic(m.fail("Locked", err))
		}
	}
	return MapView[K, V]{m}
}

// A MapView is a [SharedMap] whose lock is held, by [SharedMap.With] or by the caller between Lock and
// Unlock: its methods do not take it. Using one without the lock corrupts the map.
type MapView[K comparable, V any] struct{ m SharedMap[K, V] }

// Get is [SharedMap.Get].
func (v MapView[K, V]) Get(k K) (V, bool) { return v.m.Get(k) }

// Contains is [SharedMap.Contains].
func (v MapView[K, V]) Contains(k K) bool { return v.m.Contains(k) }

// Len returns the number of keys.
func (v MapView[K, V]) Len() int { return v.m.Len() }

// Put is [SharedMap.Put].
func (v MapView[K, V]) Put(k K, e V) error {
	if err := v.m.check("Put"); err != nil {
		return err
	}
	t := v.m.table()
	key, value := keyOf(t, &k), valueOf(t, &e)
	if err := t.put(&key, value); err != nil {
		return v.m.fail("Put", err)
	}
	return nil
}

// GetOrPut is [SharedMap.GetOrPut].
func (v MapView[K, V]) GetOrPut(k K, e V) (actual V, loaded bool, err error) {
	if err := v.m.check("GetOrPut"); err != nil {
		return e, false, err
	}
	if now, ok := v.m.Get(k); ok {
		return now, true, nil
	}
	return e, false, v.Put(k, e)
}

// Update is [SharedMap.Update] under the lock already held.
func (v MapView[K, V]) Update(k K, fn func(e *V, ok bool) error) error {
	if err := v.m.check("Update"); err != nil {
		return err
	}
	e, ok := v.m.Get(k)
	if err := fn(&e, ok); err != nil {
		return err
	}
	return v.Put(k, e)
}

// Delete is [SharedMap.Delete].
func (v MapView[K, V]) Delete(k K) bool {
	v.m.checkLive("Delete")
	ok, err := v.m.deleteLocked(&k)
	if err != nil {
		panic(v.m.fail("Delete", err))
	}
	return ok
}

// PopItem is [SharedMap.PopItem].
func (v MapView[K, V]) PopItem() (K, V, bool) {
	v.m.checkLive("PopItem")
	k, e, ok, err := v.m.popLocked()
	if err != nil {
		panic(v.m.fail("PopItem", err))
	}
	return k, e, ok
}

// Clear is [SharedMap.Clear].
func (v MapView[K, V]) Clear() {
	v.m.checkLive("Clear")
	if err := v.m.table().clear(); err != nil {
		panic(v.m.fail("Clear", err))
	}
}

// All is [SharedMap.All].
func (v MapView[K, V]) All() iter.Seq2[K, V] { return v.m.All() }

// Keys is [SharedMap.Keys].
func (v MapView[K, V]) Keys() iter.Seq[K] { return v.m.Keys() }

// Values is [SharedMap.Values].
func (v MapView[K, V]) Values() iter.Seq[V] { return v.m.Values() }
