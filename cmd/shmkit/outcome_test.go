package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Every guarantee is broken once, in lines that no run with a lock can show: the check must say so. An
// empty fault means that the lines are right.
func TestChecksFindEveryBrokenGuarantee(t *testing.T) {
	const headline = " reports at 12:34:56"
	for _, c := range []struct {
		program *program
		broken  string
		lines   string // separated by |
		took    time.Duration
		fault   string // part of what is said; empty: none
	}{
		{bakers, "nothing", "Mary wants to use the oven.|Mary is baking...|Lois wants to use the oven.|Mary is done baking.|Lois is baking...|Lois is done baking.", 4 * time.Second, ""},
		{bakers, "nothing, Lois first", "Mary wants to use the oven.|Lois wants to use the oven.|Lois is baking...|Lois is done baking.|Mary is baking...|Mary is done baking.", 5 * time.Second, ""},
		{bakers, "exclusion", "Mary wants to use the oven.|Mary is baking...|Lois wants to use the oven.|Lois is baking...|Mary is done baking.|Lois is done baking.", 4 * time.Second, "in use when 1 "},
		{bakers, "time", "Mary wants to use the oven.|Mary is baking...|Lois wants to use the oven.|Mary is done baking.|Lois is baking...|Lois is done baking.", 3999 * time.Millisecond, "they take 4s"},
		{bakers, "a baker's order", "Mary is baking...|Mary wants to use the oven.|Mary is done baking.|Lois wants to use the oven.|Lois is baking...|Lois is done baking.", 4 * time.Second, "out of order"},
		{bakers, "a baker's end", "Mary wants to use the oven.|Mary is baking...|Mary is done baking.|Lois wants to use the oven.|Lois is baking...", 4 * time.Second, "bakers' lines"},
		{bakers, "a missing baker", "Mary wants to use the oven.|Mary is baking...|Mary is done baking.", 4 * time.Second, "Lois came 0 times"},
		{bakers, "a foreign line", "Mary wants to use the oven.|Mary is baking...|Mary is done baking.|panic!|Lois wants to use the oven.|Lois is baking...|Lois is done baking.", 4 * time.Second, "bakers' lines"},

		{squirrels, "nothing", nuts("George Fred Hermione Fred George George Hermione Hermione Fred Fred George Fred Hermione George Hermione", 1), 0, ""},
		{squirrels, "the total's order", nuts("George Fred Hermione Fred George George Hermione Hermione Fred Fred George Fred Hermione George Hermione", 2), 0, "Total: 1"},
		{squirrels, "a missing turn", nuts("George Fred Hermione Fred George George Hermione Hermione Fred Fred George Fred Hermione George", 1), 0, "Hermione came 4 times, not 5"},
		{squirrels, "somebody's turn taken by another", nuts("George Fred Hermione Fred George George Hermione Hermione Fred Fred George Fred Hermione George George", 1), 0, "came 6 times, not 5"},

		{journalists, "nothing", "Ron added a headline.|Harry added a headline.|Hermione added a headline.||All headlines:| - Ron" + headline + "| - Harry" + headline + "| - Hermione" + headline, 0, ""},
		{journalists, "the list's order", "Ron added a headline.|Harry added a headline.|Hermione added a headline.||All headlines:| - Harry" + headline + "| - Ron" + headline + "| - Hermione" + headline, 0, "by the list"},
		{journalists, "the list's place", "Ron added a headline.|Harry added a headline.||All headlines:| - Ron" + headline + "| - Harry" + headline + "| - Hermione" + headline + "|Hermione added a headline.", 0, "after 3 lines"},
		{journalists, "the list's length", "Ron added a headline.|Harry added a headline.|Hermione added a headline.||All headlines:| - Ron" + headline + "| - Harry" + headline, 0, "list of 3"},
		{journalists, "once each", "Ron added a headline.|Ron added a headline.|Hermione added a headline.||All headlines:| - Ron" + headline + "| - Ron" + headline + "| - Hermione" + headline, 0, "Harry came 0 times"},
		{journalists, "a headline's form", "Ron added a headline.|Harry added a headline.|Hermione added a headline.||All headlines:| - Ron reports late| - Harry" + headline + "| - Hermione" + headline, 0, "no headline"},

		{tickets, "nothing", "Bella bought a ticket. Tickets left: 2|Amber bought a ticket. Tickets left: 1|Cherish bought a ticket. Tickets left: 0|Heather found no tickets left.", 0, ""},
		{tickets, "a ticket sold twice", "Bella bought a ticket. Tickets left: 2|Amber bought a ticket. Tickets left: 2|Cherish bought a ticket. Tickets left: 1|Heather found no tickets left.", 0, "line 2"},
		{tickets, "refused before the end", "Bella bought a ticket. Tickets left: 2|Amber found no tickets left.|Cherish bought a ticket. Tickets left: 1|Heather bought a ticket. Tickets left: 0", 0, "line 2"},
		{tickets, "nobody refused", "Bella bought a ticket. Tickets left: 2|Amber bought a ticket. Tickets left: 1|Cherish bought a ticket. Tickets left: 0|Heather bought a ticket. Tickets left: -1", 0, "line 4"},
		{tickets, "a missing turn", "Bella bought a ticket. Tickets left: 2|Amber bought a ticket. Tickets left: 1|Cherish bought a ticket. Tickets left: 0", 0, "Heather came 0 times"},

		{dogs, "nothing", "Max drank water. Water left: 1|Rex drank water. Water left: 0|Bella found the bowl empty.", 0, ""},
		{dogs, "a sip taken twice", "Max drank water. Water left: 1|Rex drank water. Water left: 1|Bella found the bowl empty.", 0, "line 2"},
		{dogs, "a dog twice", "Max drank water. Water left: 1|Max drank water. Water left: 0|Bella found the bowl empty.", 0, "Rex came 0 times"},

		{birds, "nothing", "Bird 4 placed a seed at spot 4.|Bird 0 placed a seed at spot 0.|Bird 1 placed a seed at spot 1.|Bird 3 placed a seed at spot 3.|Bird 2 placed a seed at spot 2.", 0, ""},
		{birds, "a wrong spot", "Bird 4 placed a seed at spot 0.|Bird 0 placed a seed at spot 0.|Bird 1 placed a seed at spot 1.|Bird 3 placed a seed at spot 3.|Bird 2 placed a seed at spot 2.", 0, "spot 0"},
		{birds, "a bird twice", "Bird 4 placed a seed at spot 4.|Bird 4 placed a seed at spot 4.|Bird 1 placed a seed at spot 1.|Bird 3 placed a seed at spot 3.|Bird 2 placed a seed at spot 2.", 0, "Bird 0 came 0 times"},
	} {
		s := &stage{program: c.program, size: c.program.size(demoFlags{oven: 2 * time.Second}), said: strings.Split(c.lines, "|"), took: c.took}
		switch err := c.program.check(s); {
		case c.fault == "" && err != nil:
			t.Errorf("%s, broken: %s: %v", c.program.title, c.broken, err)
		case c.fault != "" && (err == nil || !strings.Contains(err.Error(), c.fault)):
			t.Errorf("%s, broken: %s: %v; it should mention %q", c.program.title, c.broken, err, c.fault)
		}
	}
}

// nuts are the squirrels' lines with totals from first on.
func nuts(names string, first int) string {
	var lines []string
	for i, name := range strings.Fields(names) {
		lines = append(lines, fmt.Sprintf("%s added a nut. Total: %d", name, first+i))
	}
	return strings.Join(lines, "|")
}

func TestTheCheckLineSaysWhatWasLost(t *testing.T) {
	var two, one, more outcome
	two.lose(2, "update")
	one.lose(1, "seed")
	more.lose(-3, "update")
	for got, want := range map[string]string{
		outcome{Summary: "3 sold, 1 refused, 0 left"}.result(0).line("tickets"): "ok    tickets: 3 sold, 1 refused, 0 left",
		two.result(0).line("p"):  "FAIL  p: : 2 updates were lost",
		one.result(0).line("p"):  "FAIL  p: : 1 seed was lost",
		more.result(0).line("p"): "FAIL  p: : that is 3 too many",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for _, c := range []struct {
		took, left int64
		want       string
	}{
		{3, 0, "ok    tickets: 3 sold, 1 refused, 0 left"},
		{4, 2, "FAIL  tickets: 4 sold, 0 refused, 2 left: 3 updates were lost"},
		{2, 0, "FAIL  tickets: 2 sold, 2 refused, 0 left: that is 1 too many"},
		{2, 1, "FAIL  tickets: 2 sold, 2 refused, 1 left: 3 were there to be had"},
	} {
		o := size{Processes: 4, Rounds: 1}.supplied(c.took, c.left, "%d sold, %d refused, %d left")
		if got := o.result(0).line("tickets"); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
