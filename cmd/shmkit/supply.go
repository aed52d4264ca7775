package main

import "fmt"

// supply is how many tickets or sips there are to begin with: the turns of one process come too late.
func (s size) supply() int64 { return s.turns() - int64(s.Rounds) }

// supplied judges the totals of tickets and dogs: took turns say that they got something, and left is
// still there. The format gets these two and, between them, the turns that got nothing.
func (s size) supplied(took, left int64, format string) outcome {
	o := outcome{Summary: fmt.Sprintf(format, took, s.turns()-took, left)}
	o.lose(took-(s.supply()-left), "update")
	if o.Fault == nil && took != s.supply() {
		o.Fault = fmt.Errorf("%d were there to be had", s.supply())
	}
	return o
}

// checkSupply: what is left goes down by one from line to line, to 0, and after that nobody gets any.
func (s *stage) checkSupply(got, none string) error {
	return s.checkLines(s.said, func(i int64) string {
		if left := s.supply() - 1 - i; left >= 0 {
			return fmt.Sprintf(got, left)
		}
		return none
	})
}
