package main

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/containers"
)

// Part is what every process is told, whichever program it belongs to.
type Part struct {
	Name      string
	Index     int // from 0
	Processes int
	Rounds    int
	NoLock    bool
	Quiet     bool
	Gates     containers.Ref[gates]
}

// gates is where the processes of one program wait for one another.
type gates struct {
	begin atomic.Int64 // processes that have come to begin; only grows
	read  atomic.Int64 // processes that have read, without a lock, what all will write; only grows
}

// pass counts the caller in at the gate and returns when n have come. It looks again and again; the more
// do so, the longer it naps, or 250 of them would keep the last ones from arriving: with naps of 5ms that
// took 6s, with these of 125ms 2s. If one of the n dies, its parent ends the others.
func pass(gate *atomic.Int64, n int) {
	gate.Add(1)
	for gate.Load() < int64(n) {
		time.Sleep(50*time.Microsecond + time.Duration(n*n)*2*time.Microsecond)
	}
}

// begin waits until all processes of the program are there, so that they are let go at once.
func (p *Part) begin() { pass(&p.Gates.Ptr().begin, p.Processes) }

// pause stands between a read and the write that follows from it. With the lock it only yields.
// Without, the first one lasts until every process has read: chance alone would often let a program
// of the tutorial's size come out right.
func (p *Part) pause() {
	if p.NoLock && p.Gates.Ptr().read.Load() < int64(p.Processes) {
		pass(&p.Gates.Ptr().read, p.Processes)
	}
	runtime.Gosched()
}

// guard is the lock to work under: mu, or with --no-lock one that keeps nobody out.
func (p *Part) guard(mu sync.Locker) sync.Locker {
	if p.NoLock {
		return noLock{}
	}
	return mu
}

type noLock struct{}

func (noLock) Lock()   {}
func (noLock) Unlock() {}

// say prints one line, by one write, unless the process is to work in silence.
func (p *Part) say(format string, args ...any) {
	if !p.Quiet {
		fmt.Printf(format+"\n", args...)
	}
}
