package shm

import (
	"fmt"
	stdsync "sync"
)

// A region in a file on a disk outlives a restart of the machine. None of the processes that had it open
// does: the kernel that held their bytes is gone, so each is found dead like any other. But they may all have
// been cut off at once, and the file system may have written some of their last stores and not others. So
// whoever first opens the region after a restart undoes what each of them left half done, and has all of it
// checked, before it or anybody else gets a handle.
//
// The header says in which run of the machine the region was last opened. A copy that is taken to another
// machine looks the same, and is treated the same.

var checker struct {
	mu stdsync.RWMutex
	fn func(r *Region) error
}

// SetCheck installs the check of this process, for every region: it walks all that is in the region, under
// the locks it needs, and returns an error for the first thing that is wrong. It is called once, at start, by
// the package that lays out what is checked. A region that is opened for the first time since the machine was
// restarted is checked before anybody gets a handle. A program without a check leaves it unchecked, for the next one
// that has one: it is to use nothing that is checked.
func SetCheck(check func(r *Region) error) {
	checker.mu.Lock()
	defer checker.mu.Unlock()
	checker.fn = check
}

func theCheck() func(r *Region) error {
	checker.mu.RLock()
	defer checker.mu.RUnlock()
	return checker.fn
}

// ready returns a handle that was just made. If the region is from before a restart of the machine and is
// not in order, it closes the handle and returns why. It is called without regions.mu.
func ready(r *Region, err error) (*Region, error) {
	if err != nil {
		return nil, err
	}
	if err := r.m.afterRestart(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// afterRestart clears up if nobody has opened the region since the machine was restarted. One process does
// it, the others wait. A process that dies over it leaves it to the next one. Readers look at what is there:
// they could put nothing right.
func (m *mapping) afterRestart() error {
	boot := identity().boot
	if m.file == nil || m.readOnly || boot == [2]uint64{} {
		return nil
	}
	restarted := func() (yes bool, err error) {
		err = m.guard(func() error {
			was := [2]uint64{m.header.boot[0].Load(), m.header.boot[1].Load()}
			yes = was != boot && was != [2]uint64{} // made where the system does not tell: it is not known
			return nil
		})
		return yes, err
	}
	if yes, err := restarted(); !yes || err != nil {
		return err
	}
	m.seat.restart.Lock()
	defer m.seat.restart.Unlock()
	if _, err := m.seat.take(restartByte, true); err != nil {
		return m.fail("open", err)
	}
	defer m.seat.give(restartByte)
	if yes, err := restarted(); !yes || err != nil { // somebody did it while we waited
		return err
	}
	m.log.Info("shm: the machine was restarted since the region was used", "region", m.where())
	if err := m.replay(); err != nil {
		return m.fail("open", fmt.Errorf("it is from before a restart of the machine, and cannot be used until it is put right by the command repair: %w", err))
	}
	if theCheck() == nil {
		return nil // it is left to a program that can check it
	}
	return m.guard(func() error {
		m.header.boot[1].Store(boot[1])
		// crash here: it is from another run of the machine still
		m.header.boot[0].Store(boot[0])
		return nil
	})
}

// replay undoes what every dead process of the region left half done, and checks the region.
func (m *mapping) replay() error {
	for i := range m.slots {
		if err := m.guard(func() error { return m.clearUp(i) }); err != nil {
			return err
		}
	}
	if check := theCheck(); check != nil {
		var failed error
		if err := m.guard(func() error { failed = check(&m.uncounted); return nil }); err != nil {
			return err
		}
		return failed
	}
	return nil
}

// clearUp recovers slot i if its process is dead.
func (m *mapping) clearUp(i int) error {
	for i != m.seat.slot && !m.slots[i].is(slotFree) && !m.recover(i) {
		switch word, dead, err := m.left(i); {
		case err != nil:
			return err
		case !dead: // it is of a process that waits for us to finish, or somebody clears up now
			return nil
		case word == uint64(self)|slotUndoing, dutyIn(word) == reportIt:
			return fmt.Errorf("what the process of slot %d left half done cannot be undone: %w", i, ErrCorrupt)
		} // else others have cleared up meanwhile, or died over it
	}
	return nil
}

// left returns the state of slot i if nobody has its byte.
func (m *mapping) left(i int) (word uint64, dead bool, err error) {
	m.seat.undoing.Lock()
	defer m.seat.undoing.Unlock()
	if m.draining[i] {
		return 0, false, nil
	}
	if dead, err = m.seat.take(slotByte(i), false); !dead || err != nil {
		return 0, false, err
	}
	word = m.slots[i].state.Load()
	return word, true, m.seat.give(slotByte(i))
}
