package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync/atomic"

	"github.com/shmkit/shmkit/containers/internal/txn"
	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

// A Tx is a change of several objects of one region that happens as a whole or not at all: see [Manager.Update]. Objects join it by their In
// methods, such as [SharedNumber.In]. It belongs to the goroutine that runs the function it is given to, and is of no use after that.
//
// # How it works
//
// While the caller's function runs, nothing in the region changes but locks: what it writes is kept in this process' own memory, as words
// and their new values, and what it reads is looked up there first. So a function that fails, panics, or is killed has nothing
// to undo, and no lane is held while it runs or waits. When it returns nil, one operation of the storage takes the blocks that are needed, logs
// all words with their new values, and commits by one store (see internal/txn): from there on the words are
// stored, by this process or, if it is killed, by whoever recovers it, before any of the locks comes free.
//
//	killed                                        | leaves
//	in the caller's function, or taking locks     | before; the locks come free by recovery
//	taking blocks, logging words                  | before: the log is undone, the blocks go back
//	after the commit                              | after: recovery stores the words again
//	giving back what was freed                    | after: recovery goes on with it
//
// Locks are taken as objects join and kept to the end (two-phase locking), so transactions are serializable. One that is behind all those held in
// the order of their offsets is waited for. Any other is only tried; if somebody has it, the attempt ends, the locks are released, and
// the function runs again with the locks of all objects that it has met taken first, in order. So nobody waits for a lock behind his own, and
// there is no deadlock; and a function that meets the same objects each time runs again at most once for each of them.
//
// # How a kind of object joins
//
// Its In method calls [Tx.join] with its base, and a function that makes what it has to remember, which is called the first time only. The view that In returns works
// on the object's words through load and store, never directly. What has to happen in the operation at the commit is done by
// the prepare method of what it remembers: take blocks, fill them, free others, and have words that readers without the lock look
// at first, or last, stored before or after the others. Until the commit prepare must not change what those readers see; what a kill inside it
// leaves is undone with the log.
type Tx struct {
	s    *space
	ctx  context.Context
	over bool

	held    []*shmsync.Mutex // in the order they were taken
	highest uintptr          // address of the last one in order
	met     []base           // objects that fn has asked for, for the next attempt
	joined  map[*object]txObject
	objects []txObject // the same, as they came

	words map[*atomic.Uint64]uint64
	order []*atomic.Uint64 // of words, as they were first stored

	stopped  bool
	conflict bool
	failed   error // why it was stopped, unless by a conflict
}

// A txObject is what a transaction remembers of an object that has joined.
type txObject interface {
	// prepare is called once, in the operation of the commit, with all locks held.
	prepare(c *txCommit) error
}

// A txReady is a txObject that sees to something before the operation of the commit, with all locks held: in operations of its own, which
// change nothing for anybody.
type txReady interface{ ready() error }

// A txGiveUp is one that gives back what ready has taken, if the transaction does not happen. The locks are still held.
type txGiveUp interface{ giveUp() error }

// A txFinish is one that has something to end, or somebody to wake, when the transaction has happened. The locks are still held.
type txFinish interface{ finish() }

// A txCommit is the operation at the commit of a transaction.
type txCommit struct {
	tx    *Tx
	l     *txn.Lane // for heap.AllocIn, heap.FreeIn, Set, Until
	after []txWord
}

type txWord struct {
	w *atomic.Uint64
	v uint64
}

// last has v stored at w after all other words.
func (c *txCommit) last(w *atomic.Uint64, v uint64) { c.after = append(c.after, txWord{w, v}) }

// Update runs fn, and makes what it does through the views of objects that have joined tx happen as one: when fn returns nil all of it has
// happened, also for those who find it after this process is killed; when fn returns an error, which Update returns as it is, or panics, or the
// process is killed before Update has made it happen, nothing has. A nil Manager is this process' own one.
//
// fn may run more than once, when others have the locks that it meets in another order; each time it finds a new tx, and it should have no
// effect but through that. Objects are locked from their In on until the end: others wait to write them, and see what was before when
// they read. Those who read without the lock may see one object changed and another not yet, for some ns or, if the process is stopped
// then, longer; who wants to see several together reads them in an Update.
//
// An Update inside fn is refused with [ErrNested], whatever its region; in another goroutine that fn waits for, it is not known as one, and waits until its context
// ends if it needs an object that has joined. The ordinary methods of such an object wait if they write: until their context ends, or, without one, for ever. An object that
// cannot join ends fn by a panic that Update turns into an error, so let it pass: [shm.ErrStale], [shm.ErrClosed], [fs.ErrPermission] for a region
// open for reading, [fs.ErrInvalid] for an object of another region, [shm.ErrTypeMismatch] for one that has joined through a handle of another type, [shmsync.ErrInconsistent] with a caller's lock, and what ctx
// says if it ends while a lock is waited for. If memory runs out, or more than 65,000 words change at once, the error is [shm.ErrNoSpace], and nothing has changed.
//
// It costs each object's lock, an operation of the storage, and an entry of its log for each word that changes; what changes is kept in the program's memory until the end.
func (m *Manager) Update(ctx context.Context, fn func(tx *Tx) error) error {
	s, err := m.space()
	if err != nil {
		return err
	}
	if err := enterUpdate(); err != nil {
		return fmt.Errorf("containers: Update: %v: %w", s, err)
	}
	defer leaveUpdate()
	var met []base
	for {
		tx := &Tx{s: s, ctx: ctx, joined: map[*object]txObject{}, words: map[*atomic.Uint64]uint64{}}
		err := tx.attempt(met, fn)
		if !tx.conflict {
			return err
		}
		met = tx.met
		slices.SortFunc(met, func(a, b base) int { return compareAddr(a.mu, b.mu) })
	}
}

func compareAddr(a, b *shmsync.Mutex) int {
	switch p, q := uintptr(addr(a)), uintptr(addr(b)); {
	case p < q:
		return -1
	case p > q:
		return 1
	}
	return 0
}

// attempt runs fn once, with the locks of those objects taken first.
func (tx *Tx) attempt(first []base, fn func(*Tx) error) error {
	defer tx.end()
	for _, b := range first {
		if err := tx.lock(b); err != nil && !errors.Is(err, shm.ErrStale) { // it may not be asked for this time
			return err
		}
	}
	err := tx.call(fn)
	switch {
	case tx.conflict:
		return nil
	case tx.failed != nil:
		return tx.failed
	case err != nil:
		return err
	}
	tx.over = true
	return tx.commit()
}

// call runs fn until it returns or is stopped.
func (tx *Tx) call(fn func(*Tx) error) error {
	defer func() {
		if tx.stopped {
			if r := recover(); r != nil && r != any(tx) {
				panic(r)
			}
		}
	}()
	return callUpdate(tx, fn)
}

// stop ends fn.
func (tx *Tx) stop(err error) {
	tx.stopped, tx.failed = true, err
	panic(tx)
}

// end releases the locks.
func (tx *Tx) end() {
	tx.over = true
	for i := len(tx.held) - 1; i >= 0; i-- {
		unlockOpen(tx.s.region, tx.held[i])
	}
	tx.held = nil
}

// use panics if tx is at its end.
func (tx *Tx) use() {
	if tx == nil || tx.over {
		panic("containers: use of a Tx after its function has returned")
	}
	if tx.stopped {
		panic(tx) // the caller has recovered from it
	}
}

// join locks b's object, unless it has joined, and returns what make remembers of it. If it cannot, it ends fn.
func (tx *Tx) join(b base, make func() txObject) txObject {
	tx.use()
	if b.obj == nil {
		b.live() // panics
	}
	if o, ok := tx.joined[b.obj]; ok {
		if !b.live() {
			tx.stop(b.useless("In"))
		}
		return o
	}
	if b.s != tx.s {
		tx.stop(b.fail("In", fmt.Errorf("the transaction is one of %v: %w", tx.s, fs.ErrInvalid)))
	}
	if b.mu != nil {
		tx.met = append(tx.met, b)
	}
	if err := tx.lock(b); err != nil {
		tx.stop(err)
	}
	if tx.conflict {
		tx.stop(nil)
	}
	o := make()
	tx.joined[b.obj] = o
	tx.objects = append(tx.objects, o)
	return o
}

// joinAs is join for a kind of object whose handles may have different types though the object is one: of equal layout.
func joinAs[O txObject](tx *Tx, b base, make func() txObject) O {
	joined := tx.join(b, make)
	o, ok := joined.(O)
	if !ok {
		tx.stop(b.fail("In", &shm.TypeError{
			Path: "the handle",
			Got:  fmt.Sprintf("one that joins as %T", o),
			Want: fmt.Sprintf("the object has joined as %T: use one type for it in a transaction", joined),
			Err:  shm.ErrTypeMismatch,
		}))
	}
	return o
}

// lock takes the lock of b's object, or finds that there is a conflict.
func (tx *Tx) lock(b base) error {
	at := uintptr(addr(b.mu))
	switch {
	case b.mu != nil && slices.Contains(tx.held, b.mu):
		if err := b.check("In"); err != nil {
			return err
		}
		if b.foreign() {
			return b.settle()
		}
		return nil
	case at > tx.highest || b.mu == nil:
		if err := b.lock(tx.ctx, "In"); err != nil {
			return err
		}
		tx.highest = at
	case !b.live():
		return b.useless("In")
	case !b.mu.TryLockIdle():
		tx.conflict = true // also if its owner is dead: then the next attempt finds out
		return nil
	default:
		err := b.check("In")
		if err == nil {
			err = b.settle()
		}
		if err != nil {
			b.mu.Unlock()
			return err
		}
	}
	tx.held = append(tx.held, b.mu)
	return nil
}

// load returns w as the transaction has it.
func (tx *Tx) load(w *atomic.Uint64) uint64 {
	if v, ok := tx.words[w]; ok {
		return v
	}
	return w.Load()
}

// store stores v in w at the commit.
func (tx *Tx) store(w *atomic.Uint64, v uint64) {
	if _, ok := tx.words[w]; !ok {
		tx.order = append(tx.order, w)
	}
	tx.words[w] = v
}

// commit makes the transaction happen. The locks are held.
func (tx *Tx) commit() error {
	if len(tx.objects) == 0 {
		return nil
	}
	if !tx.s.region.Pin() { // Close waits for the rest
		return fmt.Errorf("containers: Update: %w", shm.ErrClosed)
	}
	defer tx.s.region.Unpin()
	if err := tx.happen(); err != nil {
		for _, o := range tx.objects {
			if g, ok := o.(txGiveUp); ok {
				err = errors.Join(err, g.giveUp())
			}
		}
		if errors.Is(err, txn.ErrLogFull) {
			return fmt.Errorf("containers: Update: %w: %w", err, shm.ErrNoSpace)
		}
		return fmt.Errorf("containers: Update: %w", err)
	}
	// crash here: those who wait end their wait at a death
	for _, o := range tx.objects {
		if f, ok := o.(txFinish); ok {
			f.finish()
		}
	}
	return nil
}

// happen does what commit promises, or nothing.
func (tx *Tx) happen() error {
	for _, o := range tx.objects {
		if r, ok := o.(txReady); ok {
			if err := r.ready(); err != nil {
				return err
			}
		}
	}
	return tx.s.change(func(l *txn.Lane) error {
		c := &txCommit{tx: tx, l: l}
		for _, o := range tx.objects {
			if err := o.prepare(c); err != nil {
				return err
			}
		}
		for _, w := range tx.order {
			if err := l.Later(w, tx.words[w]); err != nil {
				return err
			}
		}
		for _, e := range c.after {
			if err := l.Later(e.w, e.v); err != nil {
				return err
			}
		}
		return nil
	})
}
