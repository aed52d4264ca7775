package bench

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Case is one question that several subjects answer in turns, in one run, so that whatever else the
// machine does falls on all of them.
type Case struct {
	// Name is the kind of case and then parts key=value: "contended/inside=200ns/procs=8". The report
	// draws a curve over a key whose values are numbers (procs, size).
	Name string
	Asks string // the question, and what an operation is: one line
	// Quick cases are run by shmkit bench --quick as well; few of a kind.
	Quick bool
	// Least is the shortest window that tells anything, as for shares over a second; 0: any.
	Least    time.Duration
	Subjects []Subject // ours first
}

// A Role is what a subject is there for.
type Role string

const (
	Ours  Role = "ours"
	Floor Role = "floor" // what the machine takes at least, with nothing around it
	Peer  Role = "peer"  // what people use instead
)

// A Subject is one of those that answer a case.
type Subject struct {
	By   string // who it is: "shmkit", "flock", "C pthread" has no blanks: "pthread"
	Role Role
	// Need says why the subject cannot be run here; nil: it always can. It is asked once for each run of
	// the case and must not be slow.
	Need func() error
	// Slow subjects take long before they begin: a program is compiled with templates, an interpreter or a server
	// started. Benchmarks leave them out when their time is short.
	Slow bool
	// Run measures for about as long as window, and verifies what came out. It leaves nothing behind,
	// also when ctx ends. It is called several times.
	Run func(ctx context.Context, window time.Duration) (*Sample, error)
}

// Kind returns what stands before the first / of the name.
func (c *Case) Kind() string {
	kind, _, _ := strings.Cut(c.Name, "/")
	return kind
}

// Parts returns the parts key=value of the name.
func (c *Case) Parts() []string { return strings.Split(c.Name, "/")[1:] }

var registered []func() []Case

// sections is the order in which kinds of cases are told; kinds that it does not have come last.
var sections = []string{
	"uncontended", "contended", "second", "goroutines", "mixed", "handoff", "sleeper", "rw", "permits", "lending",
	"pingpong", "cond", "barrier", "kill", "crowd", "syscalls",
	"append", "read", "iterate", "value", "map", "replace", "queue", "copy", "attach", "start", "create",
}

// Register adds cases. Call it to initialise a package variable of a file that has some:
//
//	var _ = Register(func() []Case { return []Case{…} })
//
// The function is called when the cases are first wanted, in a program that runs or lists them.
func Register(cases func() []Case) struct{} {
	registered = append(registered, cases)
	return struct{}{}
}

// Cases returns all cases, kind by kind. Two of the same name, or subjects of one, are a mistake: it panics.
var Cases = sync.OnceValue(func() []Case {
	var all []Case
	seen := map[string]bool{}
	for _, cases := range registered {
		for _, c := range cases() {
			for _, s := range c.Subjects {
				name := c.Name + "/by=" + s.By
				if seen[name] || strings.ContainsAny(name, " \t\n") {
					panic(fmt.Sprintf("bench: %q: a second one, or a blank in it", name))
				}
				seen[name] = true
			}
			all = append(all, c)
		}
	}
	rank := func(c Case) int {
		if i := slices.Index(sections, c.Kind()); i >= 0 {
			return i
		}
		return len(sections)
	}
	slices.SortStableFunc(all, func(a, b Case) int { return rank(a) - rank(b) })
	return all
})

// Ready returns why s cannot be run here, or nil.
func (s *Subject) Ready() error {
	if s.Need == nil {
		return nil
	}
	return s.Need()
}
