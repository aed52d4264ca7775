// Package bench measures shmkit across real processes, beside the floor that the machine sets and what people
// use instead, in the same run.
//
//	shmkit bench                              what a person reads
//	go test -run '^$' -bench . ./bench        what benchstat reads
//
// Both run the same [Cases]. A [Case] is one question, its [Subject]s are those that answer it: ours, the floor
// and peers. They take turns, a short round of each at a time, so that whatever else the machine does falls on
// all of them, and what is told is the median of the ratios of single rounds. How far the rounds are apart is
// told too, and how busy the machine was with something else.
//
// Every process of a case is an operating-system process with as many processors as this one has (GOMAXPROCS);
// all have mapped the region and wait at a gate before the clock starts; each counts on cache lines of its own.
// A case whose total is wrong, or one of whose processes fails, fails. Nothing is left behind.
//
// # To add cases
//
// Write them into an ordinary file of this package, so that the command has them too, and hand them over by
// [Register] when a package variable is initialised:
//
//	var _ = Register(func() []Case {
//		return []Case{{
//			Name: "append/of=int64", Asks: "Append to a list", Quick: true,
//			Subjects: []Subject{
//				{By: Shmkit, Role: Ours, Run: alone(open)},
//				{By: "slice+sync.Mutex", Role: Peer, Run: …},
//			},
//		}}
//	})
//
// Run makes a [Sample]: how many operations in which time, and what else is known. The function alone makes
// Run for calls of one goroutine: it finds out how many fill the window, and open says what to call, what to
// undo between batches and what to give up at the end. The function counted makes it for what is told how often
// to do something. The kinds of cases are told in the order of sections, in case.go.
//
// What takes processes is a struct that says what to do, with a method Run whose result says what came out:
//
//	Contention  one lock, many processes or goroutines: throughput, shares, waits, processor time
//	Lending     many processes that take permits of one semaphore
//	Sleeper     one process that wants the lock now and then, another one that hammers it
//	Handoffs    two parties that pass locks forth and back, waiting each time
//	Trips       two parties that wake each other, by one primitive or another
//	Kills       from the kill of a holder until a waiter goes on
//	Flow        messages through a queue, from some processes to others
//	Traffic     one map that processes get and put at
//	Crowd       thousands of goroutines that wait: how many threads they cost
//	Starts      the start of a process
//	Attaches    the first open of a region in a process, beside the bare system calls
//	Syscalls    system calls of each call of a Mutex that nobody else wants
//
// The allocator has no cases here: what it takes is not to be had but by containers, and its package is
// internal to those. Its own benchmark measures it beside the C library:
//
//	go test -run '^$' -bench BesideMalloc -benchtime 21x ./containers/internal/heap
//
// The cases named replace are as near as its users come to it.
//
// Peers in other languages are programs of the directory peers, compiled or interpreted when first needed: C by cc;
// Boost.Interprocess by c++, where its headers are; Python's multiprocessing by python3; and redis-server, on a
// socket in a directory of its own. Who is not there is skipped and says so. Those that take long to begin with
// are marked Slow: go test -bench leaves them out when -benchtime is less than 100 ms.
//
// # What the figures mean
//
// Times are of the wall clock and contain what the scheduler does: a process that is not running waits
// like one that is refused. Stamps that two processes compare come from the system's real-time clock;
// a step of that clock in the middle of a case shows as an absurd figure. Figures of a machine that
// does something else are worth little, their ratios more; those of a case with a handful of operations neither:
// a case that is given fewer than processes mostly measures their start.
//
// Waits are counted in buckets a quarter of an octave wide: a quantile is right within 19 %. Processor time and
// context switches are what the kernel charged to the processes of the case, from the opening of the gate to
// their end.
//
// The work inside and outside of a section is a counted loop without memory, measured once at the
// start of a case (the best of several tries), not a loop that reads the clock. On a busy or slowing
// processor 200 ns of it take longer.
package bench
