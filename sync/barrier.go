package sync

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"structs"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
)

var (
	// ErrBrokenBarrier says that a pass of a [Barrier] will not come about: a wait for it ended early, an
	// action failed, or somebody called Abort or Reset. The barrier stays broken until a Reset.
	ErrBrokenBarrier = errors.New("sync: barrier broken")
	// ErrPartyDied is [ErrBrokenBarrier] because a process died that had a part in the barrier.
	ErrPartyDied = fmt.Errorf("%w: a party died", ErrBrokenBarrier)
)

// A Barrier lets a number of parties, goroutines of any number of processes, wait until all of them have come;
// then all go on, and it can be used for the next such pass. It is 128 bytes and lives in a region, inside
// any struct, or outside of regions, where it works among the goroutines of its process. It must not be
// copied, and [Barrier.Init] comes before any use.
//
// A barrier is broken when a Wait ends without a pass: then every Wait returns an error that is
// [ErrBrokenBarrier], at once, until [Barrier.Reset]. For the others would wait for ever.
//
// So it is when a member's process dies: it may have been about to come. A process is a member with as many
// parties as it has called Join for, or as have waited in one generation, whichever is more, and until it has
// called Leave as often. The members' waits find a death within some 100 ms, and return [ErrPartyDied], or,
// with [DropTheDead], go on without the dead. A process that ends in good order without Leave has died all
// the same; so a party that may be over before the others begins with a Join and ends with a Leave. A process
// that closes the region lives, and is waited for; it leaves first.
//
// What a party did before its Wait, in whatever process, synchronizes before the return of every Wait of the
// same pass. A Wait that has returned needs the barrier no more: its memory may be freed then, and those that
// are still on their way out only read there. It may be used for something else when all have returned.
// (One exception: a process that dies at that moment may make them lock the mutex once more.)
type Barrier struct {
	_       structs.HostLayout
	mu      Mutex                   // guards what is said to be guarded, and the holdings' words for this barrier
	id      atomic.Uint64           // random, of this use of the memory; 0: no Init yet
	roster  atomic.Uint64           // a roster; guarded by mu
	muster  atomic.Uint64           // a muster: who has arrived; guarded by mu
	places  atomic.Uint64           // a muster: places given; guarded by mu
	claim   atomic.Uint64           // token of the process that lets generation claimed go, | claimActs; guarded by mu
	timeout atomic.Int64            // ns that a Wait without limit lasts, 0: for ever; immutable
	claimed atomic.Uint32           // guarded by mu
	state   atomic.Uint32           // a barrierState
	parties atomic.Uint32           // of Init; immutable
	drop    atomic.Uint32           // 1: DropTheDead; immutable
	seen    atomic.Uint32           // count of the region's deaths that roster and muster take in; guarded by mu
	broken  atomic.Uint32           // generations that Reset has ended; guarded by mu
	ends    [8]atomic.Uint32        // the last of them: their state; guarded by mu
	_       [128 - 8*7 - 4*14]uint8 // reserved, zero
}

var _ [128]byte = [unsafe.Sizeof(Barrier{})]byte{}

// claimActs says, in a claim, that an action runs: what it has done half nobody can know.
const claimActs = 1

// The words of a process' holding: its value is the number of its members.
const (
	holdsArrived = 0 // a muster: who of its parties have arrived
	holdsID      = 1 // of the barrier; else it is left from another use of the memory, and holds nothing
)

// A BarrierOption is for [Barrier.Init].
type BarrierOption func(*barrierOptions)

type barrierOptions struct {
	timeout time.Duration
	drop    uint32
}

// BarrierTimeout limits each Wait whose context has no deadline to d; 0 does not. WaitTimeout has a limit of
// its own.
func BarrierTimeout(d time.Duration) BarrierOption {
	return func(o *barrierOptions) { o.timeout = d }
}

// DropTheDead lets the others go on without a member that died: the barrier has one party less, until a new
// member takes its place or a Reset. Without, the barrier is broken. It is broken all the same if the dead
// ran an action.
func DropTheDead() BarrierOption { return func(o *barrierOptions) { o.drop = 1 } }

// Init makes b ready for use by a number of parties. Nobody else may use b yet. It returns an error that is
// [fs.ErrInvalid] for less than one party or a negative timeout, having changed nothing.
func (b *Barrier) Init(parties int, opts ...BarrierOption) error {
	var told barrierOptions
	for _, o := range opts {
		o(&told)
	}
	r, _, err := locate(b, "init of a barrier")
	switch {
	case err != nil:
		return err
	case parties < 1 || int64(parties) > math.MaxInt32:
		return fmt.Errorf("sync: barrier of %d parties: %w", parties, fs.ErrInvalid)
	case told.timeout < 0:
		return fmt.Errorf("sync: barrier with a timeout of %v: %w", told.timeout, fs.ErrInvalid)
	}
	b.id.Store(0)
	b.mu.word.Store(0)
	b.roster.Store(uint64(newRoster(uint32(parties), 0)))
	b.muster.Store(0)
	b.places.Store(0)
	b.claim.Store(0)
	b.claimed.Store(0)
	b.parties.Store(uint32(parties))
	b.timeout.Store(int64(told.timeout))
	b.drop.Store(told.drop)
	b.broken.Store(0)
	b.seen.Store(deaths(r))
	// The first generation is random, so that memory that was freed, or is used again, reads as another
	// one; and not the one that zeros stand for.
	b.state.Store((rand.Uint32N(barrierGenerations-2) + 1) * barrierNext)
	b.id.Store(rand.Uint64() | 1)
	return nil
}

// Wait waits until as many parties have come as the barrier has, and returns this one's place: 0 is the one
// that came last and let the others go, and those before it are numbered from 1 as they came. (Where the dead
// are dropped there may be gaps.) Every pass has exactly one 0.
//
// If the context ends first, the barrier is broken, and Wait returns an error that is both [ErrBrokenBarrier]
// and the context's; those who wait get [ErrBrokenBarrier]. A Wait that comes last passes whatever its context.
// Other errors are [shm.ErrClosed], [shm.ErrNoSpace] if the region has no room for what this process holds,
// and [fs.ErrInvalid] for a barrier without Init. The place is -1 with an error.
func (b *Barrier) Wait(ctx context.Context) (place int, err error) {
	return b.WaitAction(ctx, nil)
}

// WaitAction is Wait with an action, which the one who comes last runs before anybody goes on: each pass runs
// one action, that of its place 0. If it fails or panics, that WaitAction returns its error or panics, and the
// barrier is broken; also if its process dies in it. A limit of one who waits counts while it runs, too.
func (b *Barrier) WaitAction(ctx context.Context, action func() error) (place int, err error) {
	if d := b.timeout.Load(); d > 0 {
		if _, limited := ctx.Deadline(); !limited {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, time.Duration(d))
			defer cancel()
		}
	}
	return b.wait(limit{what: whatBarrier, ctx: ctx}, action)
}

// WaitTimeout is Wait for a limited time; its error at the end of it is [os.ErrDeadlineExceeded] too. 0 and
// less mean to pass if this is the last party, and to break the barrier if not. If the barrier's own lock is not to be had for 20 ms
// more, since the process that holds it is stopped or not run, that is the only error: this party has not arrived, and the barrier is not broken.
func (b *Barrier) WaitTimeout(d time.Duration) (place int, err error) {
	return b.wait(limit{what: whatBarrier, deadline: time.Now().Add(d)}, nil)
}

const whatBarrier = "wait at a barrier"

// Join makes one more party of this process a member before it waits for the first time, so that its death is
// noticed from now on. The errors are those of Wait; a broken barrier can be joined.
func (b *Barrier) Join() error {
	u, err := b.use("join a barrier")
	if err != nil {
		return err
	}
	if err := u.lock(limit{what: "join a barrier"}); err != nil {
		return err
	}
	s, err := u.share()
	if err == nil {
		err = u.join(&s)
	}
	return errors.Join(err, b.mu.unlockOpen())
}

// Leave makes one party of this process a member no more: its death means nothing to the others. The number
// of parties stays; another takes its place. It panics with a [*MisuseError] if no party of this process is a
// member that does not wait, and changes nothing then; with an error that is [shm.ErrClosed] if the region
// is closed.
func (b *Barrier) Leave() {
	u, err := b.use("leave a barrier")
	if err == nil {
		err = u.lock(limit{what: "leave a barrier"})
	}
	if err != nil {
		panic(err)
	}
	s, err := u.share()
	if err == nil && s.members <= s.arrived {
		err = &MisuseError{What: "leave of a barrier by a process that is no member of it, or whose members all wait"}
	}
	if err == nil {
		u.leave(&s)
	}
	if closed := b.mu.unlockOpen(); closed != nil {
		err = closed
	}
	if err != nil {
		panic(err)
	}
}

// Abort breaks the barrier: those who wait, and come later, get [ErrBrokenBarrier].
func (b *Barrier) Abort() {
	if _, err := b.use("abort a barrier"); err != nil {
		panic(err)
	}
	b.breakUp(barrierBroken, nil)
}

// Reset makes a broken barrier usable, with as many parties as Init was told. Those who still wait get
// [ErrBrokenBarrier]. Members stay members. The error is [shm.ErrClosed], or [fs.ErrInvalid] without Init.
func (b *Barrier) Reset() error {
	u, err := b.use("reset a barrier")
	if err != nil {
		return err
	}
	if err := u.lock(limit{what: "reset a barrier"}); err != nil {
		return err
	}
	u.reset()
	return b.mu.unlockOpen()
}

// Broken reports whether the barrier is broken. It does not look for deaths; those who wait do.
func (b *Barrier) Broken() bool { return !b.now().open() }

// Waiting returns how many parties wait for the next pass.
func (b *Barrier) Waiting() int {
	v := b.now()
	if !v.open() {
		return 0
	}
	return int(muster(b.muster.Load()).in(v.generation()))
}

// Parties returns how many parties make a pass.
func (b *Barrier) Parties() int { return int(roster(b.roster.Load()).parties()) }

func (b *Barrier) now() barrierState { return barrierState(b.state.Load()) }

// isClaimed reports whether somebody lets generation g go.
func (b *Barrier) isClaimed(g uint32) bool { return b.claim.Load() != 0 && b.claimed.Load() == g }

// breakUp breaks the generation that is there, if may says so and it is not broken; nil says yes.
func (b *Barrier) breakUp(how barrierState, may func(barrierState) bool) (did bool) {
	for {
		v := b.now()
		next, ok := v.broken(how)
		if !ok || may != nil && !may(v) {
			return false
		}
		if b.state.CompareAndSwap(uint32(v), uint32(next)) {
			crash("barrier broken")
			if v.slept() {
				wakeAll(&b.state)
			}
			return true
		}
	}
}

// end says whether generation g is over, and how it ended. Nothing but reads: the memory may be freed.
func (b *Barrier) end(g uint32) (over bool, err error) {
	v := b.now()
	switch {
	case v.generation() == g:
		return !v.open(), v.err()
	case v == 0:
		return true, nil // cleared: nobody frees a barrier that did not let us go
	}
	// A reset notes which generation it ends, before it does; all others were passed.
	n := b.broken.Load()
	for i := range b.ends {
		if e := barrierState(b.ends[i].Load()); uint32(i) < n && e.generation() == g {
			return true, e.err()
		}
	}
	oldest := barrierState(b.ends[n%uint32(len(b.ends))].Load()).generation()
	if n > uint32(len(b.ends)) && (g-oldest)%barrierGenerations > barrierGenerations/2 {
		return true, ErrBrokenBarrier // so late that nobody knows
	}
	return true, nil
}

// deaths is the count of deaths in r.
func deaths(r *shm.Region) uint32 {
	if r == nil {
		return 0
	}
	return r.Deaths().Load()
}
