package sync

import (
	"fmt"
	"strings"
	"testing"
)

// An explicit-state model of the CountingSemaphore, over its own steps: some processes acquire, each as often as it is
// told, and some release. The kernel's queue is first in, first out. Without kills no sleep ends by itself, and everybody
// must finish; with kills every sleep may end, permits may be lost, and nobody may be left asleep beside one.
type countRules struct {
	acquired func(v uint32, waited bool) (uint32, bool, bool)
	released func(v, n uint32) (uint32, int, bool)
	refused  func(v uint32) (uint32, bool)
	blind    bool // one falls asleep whatever the word says
}

var theCountRules = countRules{acquired: acquiredOne, released: releasedMany, refused: refusedOne}

const (
	countStart = iota
	countLook
	countSleep
	countAsleep
	countWake
	countDone
	countDead
)

type countG struct {
	at, left, wake uint8
	expect         uint32
	cancelled      bool
}

type countState struct {
	word           uint32
	kernel         uint16
	taken, given   uint8
	kills, cancels uint8
	g              [4]countG
}

type countConfig struct {
	permits        int
	jobs           []int // of each process: permits it releases, or, below 0, how many it acquires
	back           bool  // whoever acquires releases again
	kills, cancels int
}

type countModel struct {
	countConfig
	countRules
	fault string
	tells bool
}

func (m *countModel) steps(s countState, next func(countState, string)) {
	for i, job := range m.jobs {
		g := s.g[i]
		to := func(what string, change func(n *countState, g *countG)) {
			n := s
			change(&n, &n.g[i])
			if m.tells {
				what = fmt.Sprintf("P%d %s: word %#x", i, what, n.word)
			}
			next(n, what)
		}
		if s.kills > 0 && g.at < countDone {
			to("is killed", func(n *countState, g *countG) {
				n.kills--
				n.kernel = dequeue(n.kernel, i)
				*g = countG{at: countDead}
			})
		}
		if s.cancels > 0 && !g.cancelled && job < 0 && g.at >= countLook && g.at <= countAsleep {
			to("is cancelled", func(n *countState, g *countG) {
				n.cancels--
				g.cancelled = true
				if g.at == countAsleep {
					n.kernel, g.at = dequeue(n.kernel, i), countLook
				}
			})
		}
		finish := func(g *countG) { // of one acquire
			if g.left--; g.left == 0 {
				g.at = countDone
				return
			}
			g.at = countStart
		}
		got := func(n *countState, g *countG, word uint32, wake bool) {
			n.word, n.taken = word, n.taken+1
			g.wake = 0
			if wake {
				g.wake = 1
			}
			g.at, g.expect = countWake, 1 // then it finishes
		}
		switch g.at {
		case countStart:
			if job > 0 || job < 0 && m.back && g.expect == 2 {
				k := max(job, 1)
				w, wake, _ := m.released(s.word, uint32(k))
				to("releases", func(n *countState, g *countG) {
					n.word, n.given = w, n.given+uint8(k)
					g.at, g.wake, g.expect = countWake, uint8(wake), 3
				})
				continue
			}
			if w, _, ok := m.acquired(s.word, false); ok {
				to("acquires", func(n *countState, g *countG) { got(n, g, w, false) })
				continue
			}
			to("waits", func(n *countState, g *countG) { g.at = countLook })
		case countLook:
			w, wake, ok := m.acquired(s.word, true)
			switch {
			case ok:
				to("acquires after a wait", func(n *countState, g *countG) { got(n, g, w, wake) })
			case g.cancelled:
				w, wake := m.refused(s.word)
				to("gives up", func(n *countState, g *countG) {
					n.word = w
					g.at, g.expect, g.wake = countWake, 4, 0
					if wake {
						g.wake = 1
					}
				})
			default:
				to("is about to sleep", func(n *countState, g *countG) {
					n.word |= countWaiters
					g.at, g.expect = countSleep, n.word
				})
			}
		case countSleep:
			if s.word != g.expect && !m.blind {
				to("finds the word changed", func(n *countState, g *countG) { g.at, g.expect = countLook, 0 })
				continue
			}
			to("falls asleep", func(n *countState, g *countG) {
				g.at, g.expect = countAsleep, 0
				n.kernel = enqueue(n.kernel, i)
			})
		case countAsleep:
			if m.kills > 0 {
				to("has slept its time out", func(n *countState, g *countG) {
					n.kernel, g.at = dequeue(n.kernel, i), countLook
				})
			}
		case countWake:
			to("wakes whom it wakes", func(n *countState, g *countG) {
				for ; g.wake > 0; g.wake-- {
					if n.kernel != 0 {
						n.g[n.kernel&15-1].at = countLook
						n.kernel >>= 4
					}
				}
				switch next := g.expect; {
				case next == 1 && m.back:
					g.at, g.expect = countStart, 2
				case next == 4:
					g.at, g.expect = countDone, 0
				case job > 0:
					g.at, g.expect = countDone, 0
				default:
					g.expect = 0
					finish(g)
				}
			})
		}
	}
}

func (m *countModel) check(s *countState) (ended bool, fault string) {
	if int(permitsOf(s.word)) != m.permits+int(s.given)-int(s.taken) {
		return false, "the number is wrong"
	}
	ended = true
	for i := range m.jobs {
		at := s.g[i].at
		// With a kill, permits may be lost: then it is an end to sleep where there are none.
		waits := m.kills > 0 && s.kills == 0 && permitsOf(s.word) == 0 && at >= countLook && at <= countAsleep
		ended = ended && (at == countDone || at == countDead || waits)
	}
	return ended, ""
}

func (m *countModel) run() (int, string) {
	first := countState{word: counting(0, uint32(m.permits)), kills: uint8(m.kills), cancels: uint8(m.cancels)}
	for i, job := range m.jobs {
		first.g[i].left = uint8(max(-job, 1))
	}
	return world[countState]{
		first: first,
		steps: m.steps,
		check: m.check,
		same:  func(a, b *countState) bool { return a.kills == b.kills && a.cancels == b.cancels },
		tells: &m.tells,
	}.explore()
}

var countConfigs = []countConfig{
	{permits: 1, jobs: []int{-2, -2, -2}, back: true},
	{permits: 0, jobs: []int{-1, -1, -1, 3}},
	{permits: 0, jobs: []int{-2, -1, 2, 1}},
	{permits: 0, jobs: []int{-1, -1, 1, 1}, cancels: 1},
	{permits: 1, jobs: []int{-1, -1, -1}, back: true, cancels: 2},
	{permits: 1, jobs: []int{-1, -1, -2}, back: true, cancels: 1},
	{permits: 0, jobs: []int{-1, -1, 1, 1}, kills: 1},
	{permits: 1, jobs: []int{-2, -1, -1}, back: true, kills: 1, cancels: 1},
}

func TestModelOfTheCountingSemaphoreHoldsInEveryOrderOfSteps(t *testing.T) {
	t.Parallel()
	for _, c := range countConfigs {
		states, fault := (&countModel{countConfig: c, countRules: theCountRules}).run()
		if fault != "" {
			t.Errorf("%+v: %d states: %s", c, states, fault)
		}
		t.Logf("%+v: %d states", c, states)
	}
}

func TestModelOfTheCountingSemaphoreFindsInjectedBugs(t *testing.T) {
	t.Parallel()
	for name, inject := range map[string]func(*countRules){
		"one who has waited does not say that others may sleep": func(r *countRules) {
			r.acquired = func(v uint32, _ bool) (uint32, bool, bool) { return acquiredOne(v, false) }
		},
		"one who has waited leaves permits to those who sleep": func(r *countRules) {
			r.acquired = func(v uint32, waited bool) (uint32, bool, bool) {
				next, _, ok := acquiredOne(v, waited)
				return next, false, ok
			}
		},
		"one who gives up keeps a wake-up": func(r *countRules) {
			r.refused = func(v uint32) (uint32, bool) { return v, false }
		},
		"a release wakes nobody": func(r *countRules) {
			r.released = func(v, n uint32) (uint32, int, bool) {
				next, _, ok := releasedMany(v, n)
				return next, 0, ok
			}
		},
		"one falls asleep though there is a permit": func(r *countRules) { r.blind = true },
	} {
		t.Run(name, func(t *testing.T) {
			r := theCountRules
			inject(&r)
			for _, c := range countConfigs {
				if states, fault := (&countModel{countConfig: c, countRules: r}).run(); fault != "" {
					what, _, _ := strings.Cut(fault, "\n")
					t.Logf("%+v: %s after %d states", c, what, states)
					return
				}
			}
			t.Error("not found")
		})
	}
}
