// Package bench measures shmkit under contention across real processes, and beside what people use
// instead.
//
//	go test -bench . ./bench
//
// The cases live in ordinary files, so that a command can run them too. Every process of a case is an
// operating-system process; all have mapped the region and wait at a gate before the clock starts;
// each counts on cache lines of its own, and a case whose total is wrong fails.
package bench
