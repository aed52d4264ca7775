package main

import (
	"fmt"
	"iter"
	"strings"
	"time"
)

// outcome is what one run of a program came to.
type outcome struct {
	Summary string // what was counted
	Lost    int64  // updates that were made and are not there
	Fault   error  // the first guarantee found broken; nil: all held
}

// lose notes that n of what the program counts are missing; below 0, that there are too many.
func (o *outcome) lose(n int64, what string) {
	switch {
	case n < 0:
		o.Fault = fmt.Errorf("that is %d too many", -n)
	case n == 1:
		o.Fault = fmt.Errorf("1 %s was lost", what)
	case n > 1:
		o.Fault = fmt.Errorf("%d %ss were lost", n, what)
	}
	o.Lost = max(n, 0)
}

// result is an outcome as it is printed.
type result struct {
	OK      bool     `json:"ok"`
	Summary string   `json:"summary"`
	Fault   string   `json:"fault,omitempty"`
	Lost    int64    `json:"lost"`
	Seconds float64  `json:"seconds"`
	Lines   []string `json:"lines,omitempty"` // what the processes said; with -v
}

func (o outcome) result(took time.Duration) result {
	r := result{OK: o.Fault == nil, Summary: o.Summary, Lost: o.Lost, Seconds: took.Seconds()}
	if o.Fault != nil {
		r.Fault = o.Fault.Error()
	}
	return r
}

// line is the check line.
func (r result) line(program string) string {
	if r.OK {
		return fmt.Sprintf("ok    %s: %s", program, r.Summary)
	}
	return fmt.Sprintf("FAIL  %s: %s: %s", program, r.Summary, r.Fault)
}

// checkLines checks that line i, from 0, is somebody's name followed by ending(i), and that everyone
// came once in every turn.
func (s *stage) checkLines(lines []string, ending func(i int64) string) error {
	var names []string
	for i, line := range lines {
		end := ending(int64(i))
		name, ok := strings.CutSuffix(line, end)
		if !ok {
			return fmt.Errorf("line %d should end with %q: %q", i+1, end, line)
		}
		names = append(names, name)
	}
	return s.everyoneCame(names)
}

// everyoneCame checks that each process is among names once for every turn, and nobody else is.
func (s *stage) everyoneCame(names []string) error {
	came := map[string]int{}
	for _, name := range names {
		came[name]++
	}
	for i := range s.Processes {
		name := s.name(i)
		if came[name] != s.Rounds {
			return fmt.Errorf("%s came %d times, not %d", name, came[name], s.Rounds)
		}
		delete(came, name)
	}
	for name := range came {
		return fmt.Errorf("%q is nobody's name", name)
	}
	return nil
}

func sum(values iter.Seq[int64]) int64 {
	total := int64(0)
	for v := range values {
		total += v
	}
	return total
}
