// Package sync provides locks that work across processes and across goroutines alike. Import it as
// shmsync; a bare sync is always the standard one.
//
//	import shmsync "github.com/shmkit/shmkit/sync"
//
//	type account struct {
//		mu      shmsync.Mutex
//		balance int64
//	}
//
// A lock is a value whose zero value is unlocked. It lives in a region of package shm, inside whatever
// struct it guards, at any address; outside of regions it works among the goroutines of its process.
//
// # What is promised
//
// Exclusion among all goroutines of all processes that have the region open. No system call and no
// allocation while nobody else wants the lock. One sleeping thread per process and lock, however many
// goroutines wait. Context variants of every wait.
//
// A process may die at any instruction. Its locks come free: the next one to take such a lock is told
// that the data may be half changed, and so is everybody after it until somebody repairs the data.
// Nobody waits for ever for the dead.
//
// # What is not promised
//
// Fairness beyond this: a waiter that has waited for a millisecond is not overtaken by newcomers for
// ever. Detection of deadlocks, beyond hints: see [Suspects]. Protection from a process that writes into the lock's word. A holder
// that is stopped, frozen or swapped out lives, and is waited for. Ownership is per process: goroutines
// have no identity, so one may unlock what another one locked.
//
// # The word
//
// A [Mutex] is one 64-bit word: the random 60-bit token of the process that holds it, and four flags.
//
//	63                          4   3   2   1   0
//	| token of the holder, or 0   | S | L | P | W |
//
//	W  somebody may sleep on the word: whoever releases it wakes one
//	P  the data may be half changed: kept in the free word too, cleared by the holder only
//	L  goroutines of the holder's own process wait in its gate
//	S  held: somebody has waited for long; free: kept for those who have slept
//
// Because the token stands in the word, taking the lock and saying who has it are one
// compare-and-swap. Designs that write the owner in a second step have a moment in which the lock is
// taken by nobody, and a kill in it leaves it taken for ever; emulations of robust locks by a lock bit
// and an owner's pid can rob a living holder in the same moment. A pid would not do as the owner: pids
// are reused and differ between pid namespaces. The kernel's robust lists would not do either: they
// belong to threads, which goroutines change, and they announce a death while other threads of the
// process may still be writing (a dying process was seen to write for 40 ms more).
//
//	FREE 0 ── CAS 0→T (inlined) ──────────────> HELD T
//	FREE P ── CAS P→T|P, then repair ─────────> HELD T
//	HELD T ── CAS T→0 (inlined) ──────────────> FREE
//	HELD T|f, f without L, S ── CAS →P?, wake one if W ──> FREE
//	HELD T|S ── CAS →S|P?, wake one ──────────> RESERVED
//	HELD T|L, W or waited long, not S ── pass to a goroutine of the gate; the word keeps T
//	HELD T|L, otherwise ── CAS →P? or →S|P?; the first in the gate competes
//	RESERVED ── CAS →T|W|P? by one who slept ─> HELD T
//	HELD D|f, D dead and undone ── CAS →T|P|W|S? ──> HELD T
//
// # Death
//
// Whether a token's process is dead only the kernel says, through package shm: every attached process
// holds a lock on a byte of the region's file, which is released after the last thread of the process
// has run its last instruction. A waiter asks when it has slept for a millisecond, so a free or busily
// changing lock never asks. The takeover is a compare-and-swap from exactly the word that was judged.
//
// Asking often would cost, and asking seldom let a death go unnoticed for 100 ms. So one who has looked
// once sleeps by a second word too, the holder's bell: the kernel rings it when the process ends
// (set_robust_list, for one thread of each process), often before the last of its threads has run its
// last instruction. So it proves nothing; who hears it asks every 50 µs at first. Measured from the kill of
// a small process to the next turn: 0.9 ms at the median, 50 ms without the bell. Where there is no bell,
// looks are the way, after 1 ms, 2, 4, and so on, and then every 100: on other systems, and if a process is
// killed before it has hung its bell, which takes it a fraction of a millisecond.
//
// After a kill between any two steps the word is one of: free, reserved, or held by a token whose death
// can be decided. W, L and S are hints. If one is lost with a process, or a wake-up is (the waker died
// between the release and the wake, or the woken died before it took the lock), then the others find
// out when their sleep ends: every sleep has an end, at first after 1 ms, then after up to 100 ms.
//
// # Waiting
//
// Of the goroutines of one process that wait for one lock, one, the leader, competes: it looks at the
// word for some microseconds, and then, if another process holds the lock, sleeps in the kernel; if its
// own does, it parks in the lock's gate with the others, and costs no thread.
//
// Before all that, and before anything is set up for it, one looks four times more for a lock that is free
// and clean, as Lock does at first. The setting up takes longer than a short section: without this, 8
// processes with 200 ns inside and 200 outside took turns 1.8 million times a second, with it 2.9.
//
// Among themselves the goroutines of a process behave as with the standard mutex. A holder that finds
// others in the gate lets go, and the first of them competes with whoever comes: a goroutine that runs
// takes the lock hundreds of times in the time that a parked one needs to start. One that has waited
// for a millisecond gets the lock passed on. Passing it on every time was tried first: each turn cost a
// switch of goroutines. While other processes sleep on the word the lock is passed within the process,
// which does not touch shared memory, until a waiter elsewhere sets S: letting go would wake one of
// them every time.
//
// A release forgets W and wakes one sleeper, and the sleeper sets W again when it takes the lock: it
// cannot know who else sleeps. Until then other releases wake nobody, so there is no herd. A sleeper
// that gives up passes the wake-up that it may have consumed on to the next.
//
// After a release the word is not touched again, not even to see whether a reservation was used: the
// memory may be gone by then. So a reservation that nobody claims stays until somebody tries the lock:
// tries and refused waiters take it like a free lock, and a waiter becomes entitled by one sleep.
//
// # The model
//
// The steps of the word are pure functions, in transitions.go. The tests run them in every order, for a
// few goroutines in two and three processes, with kills, cancellations and sleeps that time out, and
// look for two inside, for half changed data entered as clean, for a state in which somebody waits and
// nothing can happen, and for one from which somebody who lives cannot finish. Sixteen bugs injected into
// the steps are each found. go test ./sync -run Model -models explores some millions of states. The
// model found a lost wake-up that no test had: a woken leader whose own process had taken the lock
// parked behind it, got the lock passed on, and released it without a wake, while a third process slept.
//
// Package shm has another model, of what this one takes for granted: how processes attach, are proven
// dead, and are recovered. Not in the models: weak memory, and Close.
//
// # RWMutex
//
// An [RWMutex] is a Mutex, by which writers exclude each other, and a count of readers in each process: in the
// holding that its slot has for the lock. So readers of different processes write to no common memory, and
// a reader's share dies with its process: nobody has to find and subtract it.
//
//	reader:  writers know of the count: count + 1; look: the word is 0 ──────> in
//	         otherwise: count − 1; look for 10 µs whether the word becomes 0; then take the word like a writer,
//	         let writers know of the count, count + 1, release the word ─────> in
//	         out: count − 1; if that is 0 and D is set: clear D, wake
//	writer:  take the word; for each count that is known, and not 0, of a process that lives: set D, sleep
//	         writer = token ────────────────────────────────────────────────> in
//	         out: writer = 0; release the word
//
// A reader changes its count, then reads the word; a writer changes the word, then reads the counts: one of them
// sees the other. The count's word carries the key of the lock, so a step on a holding that another lock has by
// now fails; that a lock was made anew at the same place is seen by the bit, which is part of the lock.
//
// Readers that have to wait stand in one queue with the writers, that of the Mutex, with all that this brings:
// fairness, limits, takeover, wake-ups that are passed on. Nobody starves: a writer that has the word lets no new
// reader in, and a reader that has waited its turn gets the word. They look at the word for a while before they
// queue, because the reader that has it is gone in a moment; without, one slow reader makes the next one slow,
// and that one the next.
//
// Kills. A reader counted in a dead process is nobody: writers look at slots that live, and ask the kernel when they
// have slept for a millisecond. Whoever dies with the word leaves P in it for the next one, like any holder of a
// Mutex. But only a writer inside changes data, and says so in the word writer, after the last reader has gone and before
// Lock returns; so the next one clears P in silence if writer is 0: the dead one was a reader on its way in, a
// writer that still waited, or one that had finished. With writer set the data may be half changed, and nobody
// is inside, since the word was never 0 from then on: whoever takes it, reader or writer, may repair.
// A repair that has succeeded clears writer first, then P. D is left behind by a writer that was killed: readers of that
// process take the slow way once, and the first of them clears it, with the word held.
//
// The model of the RWMutex runs these steps with kills, cancellations and timeouts, over the Mutex as a thing that
// works; eighteen injected bugs are each found.
//
// Rejected: readers in the word, or in the lock (the dead cannot be subtracted, and every reader takes the line from
// every other); a bit for each reading process in the word (it would have to be set and cleared by the first and
// the last of its readers, and a bit of a dead process would be its successor's); readers that wait on the word
// without taking it (the one that a release wakes has to pass the wake-up on, and with that waits in a second
// protocol); adding to the count without a comparison, 6 ns for 8, since that may hit a holding that has another owner by now.
// Sources: the counts are the distributed readers of Hsieh and Weihl ("Scalable reader-writer locks for parallel
// systems") and of Linux' percpu_rw_semaphore and brlock; a bias to readers that a writer revokes as in BRAVO (Dice and Kogan)
// would have saved the check of the word, and cost the writer a scan of the hashed table.
//
// # Cond
//
// A [Cond] is exact and first in, first out, so its waiters stand in a line that all processes see. Each waiter is a
// place, a holding of its process, with a ticket; each process links its own places in the order of their tickets, and
// a signal goes to the lowest ticket among the first of all processes. Everything is changed with the mutex held.
//
//	WAITING ── signal, others wait: owed+1, then the place ──> OWED ── locks the mutex: owed-1 ──> gone
//	WAITING ── signal to the last, or a broadcast ──────────> FREE ── locks the mutex ──────────> gone
//	OWED ── nobody waits any more: owed = 0 ─────────────────> FREE
//	WAITING ── the context's end, with the mutex ────────────> gone
//
// A process' places die with it, as a whole: no link leads from one process to another, so there is no list to
// repair. What a death can take with it is a signal: a place that was OWED. So the Cond counts those, and whoever waits,
// or is owed himself, compares the count with the places of the living when the region's count of deaths has changed, and
// signals others for what is missing. A signaller counts first and marks then, one who is released uncounts first and
// goes then: a kill in between reads as a signal that somebody dead had, and is given again; none is lost. A broadcast
// leaves a mark before the first place, and whoever finds it finishes it. Where nobody is left to give a signal to, nothing
// is counted: so the released of a broadcast need not come back to the Cond, and its memory may be something else by then.
//
// One goroutine of each process sleeps by a word of the process, the bell, and tells the others in Go. A signal changes
// the place first, then the bell, and wakes at last, when the mutex is unlocked: who is woken while it is held runs in the
// holder's place, and waits for it. The sleeper reads the bell, then the places, and sleeps by what the bell read. Its sleep
// ends after 100 ms at the latest; so a waker that is killed costs that.
//
// Tried and rejected: one sequence word for all, as in musl and Rust, wakes one sleeper of each process for each signal and
// lets late waiters take what was meant for earlier ones; the groups of glibc need a lock inside that no death may leave
// locked, and lost a wake-up for eight years (bug 25847). Tickets with a watermark, as in Go's notifyList, do not know
// which tickets have died. The model of the Cond runs its steps in all orders with kills and cancellations; fifteen bugs
// injected into them are each found. It found that a leader which had noticed a death, and was signalled before it had
// locked the mutex, took the notice with it.
//
// # Wait on many
//
// [WaitAny] is one more sleeper beside those of the gates: it marks the word of each lock as a leader does, and sleeps by
// all of them together (futex_waitv). It takes the first that is to be had. Of the others it may have used up a wake-up, of
// any of them, since the kernel tells of one word and may have woken by several; so it gives each up as a leader does that
// is cancelled after a sleep, and passes a wake-up on. Without that a waiter sleeps for ever beside a free lock, as a test
// shows whose sleeps have no end. It never parks in a gate, also if its own process holds the lock: then it sleeps, and
// the release wakes it, or finds it reserved after a millisecond.
//
// # Who has it, and who waits
//
// [Mutex.Owner] says who holds a lock and whether that process lives, on what evidence; [Mutex.Stats]
// and [StatsOf] how much locks are fought for. Only calls that do not get the lock within a
// microsecond or two write anything down, into a page of their process' own that the others can read.
//
// # Barrier
//
// What a process has at a [Barrier] stands in its holding, in its slot of the region: how many of its parties
// are members, and how many of them have arrived in which generation. So it dies with the process. The
// barrier's own numbers, behind an embedded Mutex, are sums of that; whoever finds that the count of the
// region's deaths has changed, or the mutex left by the dead, makes them anew. If members are missing, then
// the barrier is broken, or has so many parties less, as it was made.
//
//	g WAITS ── arrive, n of n: claim, mutex released, action ──> CAS ──> g+1 WAITS
//	g WAITS ── limit, Abort, failed action: CAS ──> g BROKEN
//	g WAITS ── a member died, or the claimant in its action: CAS ──> g BROKEN
//	g BROKEN ── Reset: note how g ended, CAS ──> g+1 WAITS
//
// The word that waiters sleep by has the generation, whether it is broken, and whether somebody may sleep. It
// changes by compare-and-swap from exactly what was judged, with and without the mutex. The pass is the last
// that its maker does with the memory, and it needs no mutex: so who has passed may free the barrier. One who
// leaves late only reads: another generation means that its own was passed, unless a Reset has noted that it
// was broken. A generation starts from a random number, so that memory which was freed meanwhile does not
// read as the one that is waited for. After a kill between two stores: see barrier_wait.go.
//
// Rejected: to count arrivals in the word (the dead cannot be taken out of it); to run the action with the
// mutex held (nobody could give up meanwhile); to keep everybody in until all have left, as POSIX barriers
// do (one that is stopped would keep the next generation out). A barrier that a limit or a failure breaks for
// all follows Java's CyclicBarrier and Python's threading.Barrier; dropping the dead, Java's Phaser.
//
// # Once
//
// A [Once] is done when one word says so, which is stored once, by a holder of its Mutex. The mutex gives it
// one runner at a time, and the next in line when that one fails, panics or dies; what the dead left half
// done is the function's own affair, so nobody is told of an inconsistent lock. A word of its own, with the
// runner's token in it, would save eight bytes and cost a second protocol of waiting.
//
// # RecursiveMutex
//
// A [RecursiveMutex] is a Mutex, an owner, and a depth, the last two written by whoever holds the first only.
// Goroutines have no identity: the caller says who it is. The owner is stored mixed with the token of its
// process, and counts while the mutex has that token, so what the dead left there is nobody. The depth
// starts anew with each first lock.
//
// # Deadlocks
//
// [Suspects] finds cycles of processes that wait for each other's locks, as they themselves publish waits of
// more than a moment. A process has many goroutines, and the one that waits need not be the one that holds:
// a cycle is a hint, and nothing is done about it.
//
// # Semaphore
//
// A [Semaphore] must never hand out more than it has, and get back what the dead had, exactly, wherever they died. So
// nothing is stored twice: what a process has taken out stands in one word of its holding (see package shm), its stake,
// and dies with it; what is free is the limit less the sum of the stakes, added up by whoever needs to know.
//
//	                     mu held, free ≥ n
//	FREE ────────────────────────────────────────> IN USE (of a process)
//	 ^ ^                                             │  ^
//	 │ └── mu held, somebody waits (S) ──────────────┤  │ own process,
//	 │                                 nobody waits  v  │ one CAS
//	 └──── mu held, another process needs it ────── IDLE (of that process)
//
// The sum grows only in sections of a robust Mutex, by one compare-and-swap each: before it the permit is free, after
// it a kill gives it back with the stake. There is no second store that could be missing, so there is nothing to repair
// after a death in a section. Outside of sections a process only moves permits of its own between in use and idle; that
// is the fast path. It is told to stop by a flag in the same word, S: whoever is to wait takes the idle permits of
// all stakes and sets S, each by one compare-and-swap, and from then on what is returned is returned in a section,
// where he is seen. The key of the object stands in the word too, so a stake that was given up, and its holding used
// for another object, is not mistaken. A process finds its stake in a table by the semaphore's address; a bit in the
// semaphore says whether the stake counts: one of another semaphore that lay there before does not.
//
// One goroutine of a process waits with a claim in the holding: a ticket, and how many permits it needs. The others
// queue in a lock of the process' own. Whoever makes enough free for the oldest claim calls it: one process is woken
// for what it can have, not all. Who is served or gives up calls the next. For a millisecond a claim is patient, and
// whoever runs may take what is free, which is what a semaphore of short uses lives on; from then on it is first come,
// first served, so a large request is not starved. A claim dies with its process too; a waiter sleeps by the region's
// count of deaths besides, and looks for deaths every 100 ms.
//
// Tried, or thought through and left: a count of what is free beside the stakes, under a robust mutex (two stores for
// each step, a repair that has to know which is true, and twice two compare-and-swaps and a shared line for each
// pair); a word that has the count and the owner of the last change (no kill between the two, but a death would have to
// be found in a history); and a robust lock held by the process whose turn it is (one that closes the region while it
// waits would hold it until it ends). The ticketed queue follows glibc's and Go's notify lists; that permits stay with
// their last user until they are needed follows biased locks (Kawachiya, Koseki, Onodera, "Lock Reservation").
//
// A [CountingSemaphore] is one word, after Dijkstra, POSIX and glibc. A Release clears W and wakes as many sleepers as it
// has permits; one that was woken sets W again and, if permits are left, wakes the next, since a second Release may have
// found W cleared. One that gives up passes the wake-up on.
//
// # WaitGroup
//
// The tasks of a [WaitGroup] are counted once for all, and for each process that answers for some of them in its
// holding. No step leaves fewer answered for than are outstanding, wherever its process is killed: Add answers first and
// counts then, Done counts first, Take answers before others answer for less. So what is missing is what the dead have
// answered for, and nobody needs to have seen them die. The one step that changes two things of others, a Done of a task that
// another process answers for, is stored as an intent first and finished by whoever comes next.
//
// To the kernel the end of an orderly process and a kill are the same. The rule that tells them apart is who answers: one
// that ends with nothing to answer for is done, one with tasks is missed. A count of shares in which Done makes
// the share of a child negative was tried in thought: it works as long as nobody dies, and then nobody can say whose task
// it was.
//
// # Platforms
//
// On Linux sleepers sleep in a futex, keyed by file and offset, so that processes may map the region
// anywhere. A wait that a context can end, or a bell, waits for several words where the kernel can
// (futex_waitv, Linux 5.16, unless a filter forbids it), and looks every 20 ms where it cannot. At most
// 256 goroutines of a process sleep in threads of their own, each for another lock; those beyond that
// share pollers, each of which sleeps for up to 127 of them. Elsewhere, and with the build tag futexpoll,
// sleepers poll with naps that grow to 20 ms.
//
// The race detector does not look into mapped memory and does not see what is ordered there; the locks
// tell it, each through a shadow of its own in Go memory, so that heap data they guard is not reported,
// and a race between holders of different locks still is.
//
// The Go memory model speaks of one program. Its atomics carry over to pages shared between processes
// because they compile to the processor's atomic instructions, and coherence is a matter of physical
// memory. Where 64-bit atomics are emulated by a table in the process (ARM before version 7, 32-bit
// MIPS) the locks do not work across processes.
//
// # Sources
//
// The sleeping scheme follows Drepper, "Futexes Are Tricky", mutex2, with the woken waiter as the
// designated waker. The reservation for a starving waiter follows the starvation mode of Go's own
// sync.Mutex and the eventual fairness of WebKit's WTF::Lock. The gate is a cohort lock in the sense of
// Dice, Marathe and Shavit, a process being a cohort. Explicit queues in shared memory (MCS and its
// kin) were rejected: repairing a queue after a kill needs a cleaner of its own (Bohannon, Lieuwen,
// Silberschatz, "Recovering Scalable Spin Locks"), and the kernel's queue is repaired already.
package sync
