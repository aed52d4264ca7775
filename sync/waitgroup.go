package sync

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"structs"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
)

const maxOutstanding = 1<<27 - 1

// A WaitGroup waits for tasks of any number of processes, and finds out if one of the processes dies before
// its tasks are done. Its zero value has none outstanding; it is 64 bytes and lives in a region, inside any
// struct, or outside of regions, where it works among the goroutines of its process. It must not be copied.
//
// The everyday use is that of the standard library's: the parent calls Add for each child before it starts it,
// each child calls Done at its end, the parent calls Wait. In addition somebody answers for each outstanding
// task:
//
//   - after Add the process that called it answers, until the task is done or taken;
//   - Take says that this process answers for tasks from now on: a child that calls Take(1) at its start is
//     missed if it dies. It takes them over from those who have only added them;
//   - Done by a process that answers for a task is for one of its own; by any other process it is for one that
//     somebody has added and nobody has taken, while there are such.
//
// A process that ends, in whatever way, while it answers for tasks is a member that died: what it answered for
// is lost. (To the kernel a return from main and a kill are the same; an orderly process is done with its tasks, or has
// had others take them.) One that answers for nothing may end at any time, so a parent that adds tasks for others
// and does not stay until they are taken must say so with Leave. What becomes of lost tasks is said by
// [WaitGroup.Init]: with [ReportDeaths], the zero value's, they stay outstanding and every Wait returns a
// [*MemberDiedError], until every outstanding task is taken by somebody who lives, or done. With [SubtractDead] they are
// done.
//
// Each step is one section of a robust lock, and takes effect whole or, if the process dies in it, not at all. So does
// an Add of tasks, and a Done; an Add of fewer than none is as many of Done in one section, and may be cut off between
// them. A process that answers for tasks takes one of the holdings of package shm.
type WaitGroup struct {
	_      structs.HostLayout
	users  members
	mu     Mutex
	word   atomic.Uint32 // counts how often the count came to 0; bit 0: somebody may sleep by it
	policy atomic.Uint32 // a DeathPolicy
	count  atomic.Uint32 // of outstanding tasks; changed under mu
	rest   atomic.Uint32 // of them those that nobody answers for, and nobody is missed for; changed under mu
	intent atomic.Uint64 // what a Done of others' tasks is about to store, 0: none; changed under mu
}

var _ [64]byte = [unsafe.Sizeof(WaitGroup{})]byte{}

// Words of a holding, changed under mu.
const (
	holdingAdded = 0 // tasks that the process answers for because it has added them
	holdingTaken = 1 // and because it has taken them
)

// A DeathPolicy says what becomes of the tasks that a dead process answered for.
type DeathPolicy uint32

const (
	ReportDeaths DeathPolicy = iota // they stay outstanding, and Wait tells of them
	SubtractDead                    // they are done
)

// Init makes w a WaitGroup without outstanding tasks. It is called before anybody else uses w. An error is
// [fs.ErrInvalid], nothing has changed then.
func (w *WaitGroup) Init(policy DeathPolicy) error {
	if policy > SubtractDead {
		return fmt.Errorf("sync: wait group with policy %d: %w", policy, fs.ErrInvalid)
	}
	if err := enterSection(&w.mu); err != nil {
		return err
	}
	w.users.clear()
	w.count.Store(0)
	w.rest.Store(0)
	w.intent.Store(0)
	w.policy.Store(uint32(policy))
	return leaveSection(&w.mu)
}

// Count returns how many tasks are outstanding, at some moment during the call; with SubtractDead without those of
// processes whose death was noticed.
func (w *WaitGroup) Count() int {
	if w.policy.Load() == uint32(SubtractDead) && w.count.Load() != 0 {
		if a, err := w.begin("count"); err == nil {
			a.settle()
			a.end()
		}
	}
	return int(w.count.Load())
}

// Add adds n tasks, which this process answers for; with n below 0 it is as many calls of Done, of which some may have
// taken effect, and the rest not, if the process dies in it: nobody else sees some of them only. It panics with a
// [*MisuseError], and changes nothing, if there would be fewer than none outstanding, or 1<<27. As long as any is
// outstanding anybody may add; when none is, add before those can call Wait that are to wait for them. It panics with
// an error that is [shm.ErrNoSpace] if the region has no room for the holdings of this process, or [shm.ErrClosed].
func (w *WaitGroup) Add(n int) {
	if n < 0 {
		w.done(-int64(max(n, -maxOutstanding-1))) // more than there can be
	}
	if n <= 0 {
		return
	}
	a, err := w.begin("add")
	if err != nil {
		panic(err)
	}
	if count := w.count.Load(); int64(n) > maxOutstanding-int64(count) {
		err = &MisuseError{What: fmt.Sprintf("add %d tasks to %d outstanding", n, count)}
	} else if err = a.answer(holdingAdded, uint32(n)); err == nil {
		crash("answers for tasks")
		w.count.Store(count + uint32(n)) // a kill before: as if there had been no Add
		crash("added tasks")
	}
	a.must(err)
}

// Done says that a task is done. It panics with a [*MisuseError], and changes nothing, if none is outstanding. Done
// synchronizes before the return of each Wait that it ends.
func (w *WaitGroup) Done() { w.done(1) }

func (w *WaitGroup) done(n int64) {
	if raceEnabled {
		raceReleaseMerge(&w.word)
	}
	a, err := w.begin("done")
	if err != nil {
		panic(err)
	}
	if count := w.count.Load(); n > int64(count) {
		err = &MisuseError{What: fmt.Sprintf("done with %d tasks of %d outstanding", n, count)}
	} else {
		own := min(a.answers(), uint32(n))
		a.doneForOthers(uint32(n) - own)
		w.count.Store(w.count.Load() - own)
		crash("done with tasks") // what this process answered for goes with it
		a.discharge(own)
	}
	a.must(err)
}

// Take says that this process answers from now on for n of the outstanding tasks: those that were added and nobody
// has taken, its own first, and then, if there are no such any more, those that the dead have left. It panics with a
// [*MisuseError], and changes nothing, if there are not so many that nobody has taken; and as Add does. If the process dies in it, it may be missed for some of the n only.
func (w *WaitGroup) Take(n int) {
	a, err := w.begin("take")
	if err != nil {
		panic(err)
	}
	_, taken := a.sum()
	if free := int64(w.count.Load()) - int64(taken); n < 1 || int64(n) > free {
		err = &MisuseError{What: fmt.Sprintf("take %d tasks of %d that nobody has taken", n, max(free, 0))}
	} else if err = a.answer(holdingTaken, uint32(n)); err == nil {
		crash("took tasks") // answered for twice; a kill here, and they are again as if not taken
		a.takeOver(uint32(n))
	}
	a.must(err)
}

// Leave says that this process does not answer for any task any more, and nobody does until they are taken: its end,
// and that of those who do them without having taken them, is not noticed.
func (w *WaitGroup) Leave() {
	a, err := w.begin("leave")
	if err != nil {
		panic(err)
	}
	if n := a.answers(); n > 0 {
		w.rest.Store(w.rest.Load() + n)
		crash("left tasks") // answered for twice; not after a kill
		a.discharge(n)
	}
	a.must(nil)
}

// Wait waits until no task is outstanding, and returns nil: at once if none is, whatever the context. When the last
// one is done, those who wait go on, even if others are added at once. An error is a [*MemberDiedError], which is
// [ErrMemberDied], as long as tasks are outstanding that a dead process answered for; the context's; or
// [shm.ErrClosed]. A death is noticed within 100 ms, mostly sooner.
func (w *WaitGroup) Wait(ctx context.Context) error { return w.wait(limit{ctx: ctx}) }

// WaitTimeout is Wait for a limited time, and reports whether no task is outstanding: false and no error if the time is
// over. 0 and less mean to look.
func (w *WaitGroup) WaitTimeout(d time.Duration) (done bool, err error) {
	if err = w.wait(limit{deadline: time.Now().Add(d)}); errors.Is(err, errTimeout) {
		return false, nil
	}
	return err == nil, err
}

func (w *WaitGroup) wait(l limit) error {
	l.what = "wait for a group"
	times := w.word.Load() / 2
	if w.count.Load() != 0 {
		watch := watch{word: &w.word, mortal: true, limit: l, over: func(v uint32) (bool, error) {
			if v/2 != times || w.count.Load() == 0 {
				return true, nil
			}
			return w.look()
		}}
		if err := watch.wait(); err != nil {
			return err
		}
	}
	if raceEnabled {
		raceAcquire(&w.word)
	}
	return nil
}

// look reports whether no task is outstanding, or an error if the dead have left some.
func (w *WaitGroup) look() (over bool, err error) {
	a, err := w.begin("wait for a group")
	if err != nil {
		return false, err
	}
	lost := a.settle()
	count := w.count.Load()
	err = a.end()
	if err == nil && lost > 0 {
		err = &MemberDiedError{Lost: int(lost), Outstanding: int(count)}
	}
	return count == 0, err
}

// An answering is who answers for the tasks of a group, as its lock's holder sees it.
type answering struct {
	w      *WaitGroup
	region *shm.Region
	offset shm.Offset
	slot   int
	slots  bool // processes can be told apart, and missed
	before uint32
}

// begin takes mu, and finishes what a process has left that died with it.
func (w *WaitGroup) begin(what string) (a answering, err error) {
	a.w = w
	if a.region, a.offset, err = locate(w, what); err != nil {
		return a, err
	}
	if a.region != nil {
		if a.slot, a.slots = a.region.Slot(); !a.slots && a.region.Closed() {
			return a, closedError(what, a.region)
		}
	}
	if err := enterSection(&w.mu); err != nil {
		return a, err
	}
	a.before = w.count.Load()
	a.finish()
	return a, nil
}

// end gives mu back, and lets those go on who wait if no task is outstanding any more. One who dies over it leaves
// them to find out by his death.
func (a *answering) end() error {
	w, wake := a.w, false
	if w.count.Load() == 0 && a.before != 0 {
		crash("came to nothing")
		v := w.word.Load()
		for !w.word.CompareAndSwap(v, (v|1)+1) {
			v = w.word.Load()
		}
		crash("told that it came to nothing")
		wake = v&1 != 0
	}
	if err := leaveSection(&w.mu); err != nil {
		return err
	}
	if wake {
		wakeAll(&w.word)
		crash("woke those who wait")
	}
	return nil
}

// must is end for those who panic with errors.
func (a *answering) must(err error) {
	if closed := a.end(); err == nil {
		err = closed
	}
	if err != nil {
		panic(err)
	}
}

// tasksIn returns how many tasks a word of a holding stands for.
func tasksIn(h *shm.Holding, word int) uint32 { return uint32(h.Words[word].Load()) & maxOutstanding }

// answers returns how many tasks this process answers for.
func (a *answering) answers() uint32 {
	if h := a.own(); h != nil {
		return tasksIn(h, holdingAdded) + tasksIn(h, holdingTaken)
	}
	return 0
}

// own returns the holding of this process, nil if it does not answer for anything.
func (a *answering) own() (own *shm.Holding) {
	if !a.slots || !a.w.users.has(a.slot) {
		return nil
	}
	if t, h := a.region.Share(a.slot, a.offset); t == shm.Self() && h != nil && h.Word.Load()&shm.HoldingMask != 0 {
		return h
	}
	return nil
}

// answer adds n to a word of this process' holding.
func (a *answering) answer(word int, n uint32) error {
	if !a.slots {
		return nil
	}
	key := shm.HoldingKey(a.offset)
	for {
		h, err := a.region.Hold(a.offset)
		if err != nil {
			return err
		}
		a.w.users.join(a.slot, h, key)
		if v := h.Word.Load(); v == key|1 || v == key && h.Word.CompareAndSwap(key, key|1) {
			crash("took a holding")
			h.Words[word].Add(uint64(n))
			return nil
		}
	}
}

// discharge takes n off what this process answers for, as far as it does, and off what it has taken first.
func (a *answering) discharge(n uint32) {
	if h := a.own(); h != nil && n > 0 {
		for _, word := range [...]int{holdingTaken, holdingAdded} {
			k := min(n, tasksIn(h, word))
			h.Words[word].Store(uint64(tasksIn(h, word) - k))
			n -= k
			crash("answers for less")
		}
		a.tidy(h)
	}
}

// tidy gives a holding up that stands for nothing.
func (a *answering) tidy(h *shm.Holding) {
	if h.Words[holdingAdded].Load() == 0 && h.Words[holdingTaken].Load() == 0 {
		key := shm.HoldingKey(a.offset)
		h.Word.CompareAndSwap(key|1, key)
	}
}

// each calls look with the holdings of processes that answer for anything.
func (a *answering) each(look func(h *shm.Holding)) {
	if a.slots {
		a.w.users.each(a.region, a.offset, func(h *shm.Holding) {
			if h.Word.Load() == shm.HoldingKey(a.offset)|1 {
				look(h)
			}
		})
	}
}

// sum returns how many tasks are answered for by nobody, by those who added them, or by those who took them.
func (a *answering) sum() (added, taken uint32) {
	added = a.w.rest.Load()
	a.each(func(h *shm.Holding) {
		added += tasksIn(h, holdingAdded)
		taken += tasksIn(h, holdingTaken)
	})
	return added, taken
}

// lostOf returns how many of count tasks the dead have answered for: those that the living do not. Every step leaves
// no fewer answered for than are outstanding, whatever kills its process; only a death takes from them.
func lostOf(count, added, taken uint32) uint32 { return count - min(count, added+taken) }

// settle returns how many tasks are lost. With SubtractDead they are done.
func (a *answering) settle() (lost uint32) {
	if !a.slots {
		return 0
	}
	added, taken := a.sum()
	count := a.w.count.Load()
	lost = lostOf(count, added, taken)
	if lost > 0 && a.w.policy.Load() == uint32(SubtractDead) {
		a.w.count.Store(count - lost)
		crash("subtracted the dead")
		lost = 0
	}
	return lost
}

// adders calls take with what answers for tasks that were added and not taken, until it returns false: at first this
// process, then what nobody answers for, then the others. A nil holding is nobody's.
func (a *answering) adders(take func(h *shm.Holding, slot int, n uint32) bool) {
	own := a.own()
	if own != nil && tasksIn(own, holdingAdded) > 0 && !take(own, a.slot, tasksIn(own, holdingAdded)) {
		return
	}
	if n := a.w.rest.Load(); n > 0 && !take(nil, shm.Slots, n) {
		return
	}
	for slot := range shm.Slots {
		if h := a.holding(slot); h != nil && h != own && tasksIn(h, holdingAdded) > 0 && !take(h, slot, tasksIn(h, holdingAdded)) {
			return
		}
	}
}

// holding returns the holding of a slot that answers for tasks, or nil.
func (a *answering) holding(slot int) *shm.Holding {
	if !a.slots || !a.w.users.has(slot) {
		return nil
	}
	if _, h := a.region.Share(slot, a.offset); h != nil && h.Word.Load() == shm.HoldingKey(a.offset)|1 {
		return h
	}
	return nil
}

// takeOver takes n off what is answered for because it was added.
func (a *answering) takeOver(n uint32) {
	if n == 0 || !a.slots {
		return
	}
	a.adders(func(h *shm.Holding, _ int, has uint32) bool {
		k := min(n, has)
		n -= k
		a.setAdded(h, has-k)
		crash("took tasks over")
		return n > 0
	})
}

func (a *answering) setAdded(h *shm.Holding, n uint32) {
	if h == nil {
		a.w.rest.Store(n)
		return
	}
	h.Words[holdingAdded].Store(uint64(n))
	a.tidy(h)
}

// The intent of a Done of tasks that another process, or nobody, answers for because they were added:
//
//	63  62    54 53        27 26    0
//	| 1 | slot  | they answer | count |
//
// It is stored first. So if this process dies before both are stored, whoever comes next stores them: otherwise the
// task would be answered for twice, and the loss of another one not be noticed.
func intentOf(slot int, added, count uint32) uint64 {
	return 1<<63 | uint64(slot)<<54 | uint64(added)<<27 | uint64(count)
}

// doneForOthers is done with n tasks that this process does not answer for: with those that were added, as far as there
// are such, and with those that were taken, or lost.
func (a *answering) doneForOthers(n uint32) {
	if a.slots && n > 0 {
		a.adders(func(h *shm.Holding, slot int, has uint32) bool {
			if slot == a.slot {
				return true
			}
			k := min(n, has)
			n -= k
			a.w.intent.Store(intentOf(slot, has-k, a.w.count.Load()-k))
			crash("is about to be done with others' tasks")
			a.finish()
			return n > 0
		})
	}
	if n > 0 {
		a.w.count.Store(a.w.count.Load() - n)
		crash("done with tasks that others have taken")
	}
}

// finish does what is intended.
func (a *answering) finish() {
	v := a.w.intent.Load()
	if v == 0 {
		return
	}
	slot := int(v >> 54 & (2*shm.Slots - 1))
	added := uint32(v>>27) & maxOutstanding
	if slot == shm.Slots {
		a.setAdded(nil, added)
	} else if h := a.holding(slot); h != nil { // else it has died: its share is gone
		a.setAdded(h, added)
	}
	crash("others answer for less")
	a.w.count.Store(uint32(v) & maxOutstanding)
	crash("done with others' tasks")
	a.w.intent.Store(0)
	crash("did what was intended")
}
