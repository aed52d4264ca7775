// Package bench measures shmkit across real processes, beside a floor that the kernel sets or a peer
// that people use instead, in the same run.
//
//	go test -run '^$' -bench . ./bench
//
// The cases live in ordinary files, so that a command can run them too: each is a struct that says
// what to do, with a method Run, and the result says what came out. A program that runs them calls
// [Main] first in main. Every process of a case is an operating-system process; all have mapped the
// region and wait at a gate before the clock starts; each counts on cache lines of its own, and a case
// whose total is wrong fails.
//
//	Starts      the start of a process, beside a bare os/exec of the same program
//	Attaches    the first open of a region in a process, beside the bare system calls
//	Contention  one lock, many processes or goroutines: throughput, shares, waits, processor time
//	Readers     one lock for readers and writers, read by many processes, beside independent loops
//	Sleeper     one process that wants the lock now and then, another one that hammers it
//	Kills       from the kill of a holder until a waiter goes on, beside the kernel's own time
//	Crowd       thousands of goroutines that wait: how many threads they cost
//	Handoffs    two parties that pass locks forth and back, waiting each time
//	RoundTrips  two parties that signal each other through a condition variable
//	Syscalls    system calls of each call of a Mutex that nobody else wants
//	Permits     semaphores and wait groups that nobody else wants, beside a Mutex
//	Lending     many processes that take permits of one semaphore
//	PingPong    two processes that wake each other through semaphores
//
// # What the figures mean
//
// Times are of the wall clock and contain what the scheduler does: a process that is not running waits
// like one that is refused. Stamps that two processes compare come from the system's real-time clock;
// a step of that clock in the middle of a case shows as an absurd figure. Figures of a machine that
// does something else are worth nothing; those of a case with a handful of rounds neither: a case that
// is given fewer rounds than processes mostly measures their start.
//
// The work inside and outside of a section is a counted loop without memory, measured once at the
// start of a case (the best of several tries), not a loop that reads the clock. On a busy or slowing
// processor 200 ns of it take longer.
package bench
