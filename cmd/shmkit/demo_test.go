package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// sections cuts the output of a demo at its check lines, which it checks to be ok. The lines that the
// processes of each program said come out by the program's name.
func sections(t *testing.T, stdout string) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	var lines []string
	for line := range strings.Lines(stdout) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "FAIL") {
			t.Error(line)
		}
		check, ok := strings.CutPrefix(line, "ok    ")
		if !ok {
			if line != "" || len(lines) > 0 { // an empty line parts programs
				lines = append(lines, line)
			}
			continue
		}
		name, _, _ := strings.Cut(check, ":")
		found[name], lines = lines, nil
	}
	return found
}

// split parts lines into who spoke and what they said.
func split(lines []string) (names, said []string) {
	for _, line := range lines {
		name, rest, _ := strings.Cut(line, " ")
		names, said = append(names, name), append(said, rest)
	}
	return names, said
}

func mustEqual(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// mustBeEach checks that each name is there n times.
func mustBeEach(t *testing.T, got []string, n int, names ...string) {
	t.Helper()
	var want []string
	for _, name := range names {
		for range n {
			want = append(want, name)
		}
	}
	slices.Sort(want)
	mustEqual(t, "names", slices.Sorted(slices.Values(got)), want)
}

func TestDemoPrintsWhatTheTutorialGuarantees(t *testing.T) {
	o := fine(t, "demo", "--oven", "50ms")
	if o.stderr != "" {
		t.Errorf("on standard error: %s", o.stderr)
	}
	lines := sections(t, o.stdout)
	if len(lines) != 6 {
		t.Fatalf("%d programs, want 6:\n%s", len(lines), o.stdout)
	}

	t.Run("bakers", func(t *testing.T) {
		names, said := split(lines["bakers"])
		mustBeEach(t, names, 3, "Mary", "Lois")
		own := map[string][]string{}
		var atOven []string
		for i, name := range names {
			own[name] = append(own[name], said[i])
			if said[i] != "wants to use the oven." {
				atOven = append(atOven, name+" "+said[i])
			}
		}
		for _, name := range []string{"Mary", "Lois"} {
			mustEqual(t, name, own[name], []string{"wants to use the oven.", "is baking...", "is done baking."})
		}
		first, _, _ := strings.Cut(atOven[0], " ")
		second, _, _ := strings.Cut(atOven[2], " ")
		mustEqual(t, "at the oven", atOven, []string{first + " is baking...", first + " is done baking.", second + " is baking...", second + " is done baking."})
	})
	t.Run("squirrels", func(t *testing.T) {
		names, said := split(lines["squirrels"])
		mustBeEach(t, names, 5, "George", "Fred", "Hermione")
		var want []string
		for k := range 15 {
			want = append(want, fmt.Sprintf("added a nut. Total: %d", k+1))
		}
		mustEqual(t, "said", said, want)
	})
	t.Run("journalists", func(t *testing.T) {
		all := lines["journalists"]
		if len(all) != 8 {
			t.Fatalf("%d lines, want 8: %q", len(all), all)
		}
		names, said := split(all[:3])
		mustBeEach(t, names, 1, "Harry", "Ron", "Hermione")
		mustEqual(t, "said", said, slices.Repeat([]string{"added a headline."}, 3))
		mustEqual(t, "heading", all[3:5], []string{"", "All headlines:"})
		for i, name := range names {
			if form := `^ - ` + name + ` reports at \d\d:\d\d:\d\d$`; !regexp.MustCompile(form).MatchString(all[5+i]) {
				t.Errorf("headline %d: %q, want %s", i+1, all[5+i], form)
			}
		}
	})
	t.Run("tickets", func(t *testing.T) {
		names, said := split(lines["tickets"])
		mustBeEach(t, names, 1, "Amber", "Heather", "Cherish", "Bella")
		mustEqual(t, "said", said, []string{"bought a ticket. Tickets left: 2", "bought a ticket. Tickets left: 1", "bought a ticket. Tickets left: 0", "found no tickets left."})
		mustContain(t, o.stdout, "ok    tickets: 3 sold, 1 refused, 0 left\n")
	})
	t.Run("dogs", func(t *testing.T) {
		names, said := split(lines["dogs"])
		mustBeEach(t, names, 1, "Rex", "Bella", "Max")
		mustEqual(t, "said", said, []string{"drank water. Water left: 1", "drank water. Water left: 0", "found the bowl empty."})
		mustContain(t, o.stdout, "ok    dogs: 2 drank, 1 found the bowl empty, 0 left\n")
	})
	t.Run("birds", func(t *testing.T) {
		mustEqual(t, "said", slices.Sorted(slices.Values(lines["birds"])), []string{
			"Bird 0 placed a seed at spot 0.", "Bird 1 placed a seed at spot 1.", "Bird 2 placed a seed at spot 2.",
			"Bird 3 placed a seed at spot 3.", "Bird 4 placed a seed at spot 4."})
		mustContain(t, o.stdout, "ok    birds: 5 seeds at their spots, 5 placed\n")
	})
}

func TestEnlargedProgramsStayExact(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"squirrels --processes 8 --rounds 20000", "ok    squirrels: 160000 nuts counted, 160000 added\n"},
		{"squirrels --processes 1 --rounds 1000", "ok    squirrels: 1000 nuts counted, 1000 added\n"},
		{"journalists --processes 4 --rounds 2500", "ok    journalists: 10000 headlines listed, 10000 added\n"},
		{"tickets --processes 6 --rounds 10000", "ok    tickets: 50000 sold, 10000 refused, 0 left\n"},
		{"tickets --processes 1 --rounds 7 --runs 1", "7 refused, 0 left\n"},
		{"dogs --processes 6 --rounds 10000", "ok    dogs: 50000 drank, 10000 found the bowl empty, 0 left\n"},
		{"birds --processes 6 --rounds 5000", "ok    birds: 180000 seeds at 6 spots, 180000 placed\n"},
		{"birds --processes 12", "ok    birds: 12 seeds at their spots, 12 placed\n"},
	} {
		t.Run(c.args, func(t *testing.T) {
			o := fine(t, append([]string{"demo"}, strings.Fields(c.args)...)...)
			mustContain(t, o.stdout, c.want)
			if many := strings.Contains(c.args, "00"); many && strings.Count(o.stdout, "\n") != 1 {
				t.Errorf("more than the check line:\n%s", o.stdout)
			}
		})
	}
}

// Bakers always speak, since nothing but their order tells what they did; here too only the check is shown.
func TestManyBakingsAreCheckedButNotShown(t *testing.T) {
	o := fine(t, "demo", "bakers", "--oven", "100us", "--processes", "4", "--rounds", "50")
	if !regexp.MustCompile(`^ok    bakers: 200 baked in [\d.]+s\n$`).MatchString(o.stdout) {
		t.Errorf("%q", o.stdout)
	}
}

func TestVerboseShowsAndChecksEveryLine(t *testing.T) {
	for _, name := range []string{"squirrels", "journalists", "tickets", "dogs", "birds"} {
		lines := sections(t, fine(t, "demo", name, "--processes", "4", "--rounds", "100", "-v").stdout)
		want := 400
		if name == "journalists" {
			want = 802
		}
		if got := len(lines[name]); got != want {
			t.Errorf("%s: %d lines, want %d", name, got, want)
		}
	}
}

func TestWithoutItsLockEveryProgramFailsAndSaysWhatWasLost(t *testing.T) {
	for _, p := range programs() {
		for _, larger := range []string{"", "--processes 4 --rounds 80"} {
			t.Run(strings.TrimSpace(p.title+" "+larger), func(t *testing.T) {
				args := append([]string{"demo", p.title, "--no-lock"}, strings.Fields(larger)...)
				says := `(\d+) (update|headline|seed)s? (was|were) lost`
				if p.baking {
					args = append(args, "--oven", "1ms")
					says = `the oven was in use when (\d+) of them came to it`
				}
				o := shmkit(args...)
				if o.code != exitFailed {
					t.Errorf("exit code %d, want %d", o.code, exitFailed)
				}
				check := regexp.MustCompile(`(?m)^FAIL  ` + p.title + `: [^:]*: ` + says + `$`).FindStringSubmatch(o.stdout)
				if check == nil {
					t.Fatalf("no check line that says what was lost:\n%s", o.stdout)
				}
				if check[1] == "0" {
					t.Error(check[0])
				}
				mustContain(t, o.stderr, "1 of 1 checks failed, as they must with --no-lock")
			})
		}
	}
}

func TestAHundredRunsOfEachProgramHold(t *testing.T) {
	runs := 100
	if testing.Short() {
		runs = 10
	}
	o := fine(t, "demo", "--oven", "2ms", "--runs", fmt.Sprint(runs))
	if got := strings.Count(o.stdout, "ok    "); got != 6*runs {
		t.Errorf("%d runs were ok, want %d", got, 6*runs)
	}
	if got := strings.Count(o.stdout, "\n"); got != 6*runs {
		t.Errorf("%d lines for %d runs: only the check lines should be printed", got, 6*runs)
	}
	mustContain(t, o.stdout, fmt.Sprintf("ok    tickets: 3 sold, 1 refused, 0 left  (run %d of %d)\n", runs, runs))
}

func TestJSONIsOneDocument(t *testing.T) {
	decode := func(t *testing.T, o output) demoDoc {
		t.Helper()
		var doc demoDoc
		d := json.NewDecoder(strings.NewReader(o.stdout))
		d.DisallowUnknownFields()
		if err := d.Decode(&doc); err != nil {
			t.Fatalf("%v in:\n%s", err, o.stdout)
		}
		if d.More() {
			t.Errorf("more than one document:\n%s", o.stdout)
		}
		if doc.Version != 1 {
			t.Errorf("version %d", doc.Version)
		}
		return doc
	}
	t.Run("ok", func(t *testing.T) {
		doc := decode(t, fine(t, "demo", "tickets", "squirrels", "--json", "-v", "--runs", "2", "--processes", "3"))
		if !doc.OK || doc.Error != "" || len(doc.Programs) != 2 {
			t.Fatalf("%+v", doc)
		}
		p := doc.Programs[0]
		if p.Name != "tickets" || p.Processes != 3 || p.Rounds != 1 || !p.Locked || p.Oven != 0 || len(p.Runs) != 2 {
			t.Fatalf("%+v", p)
		}
		r := p.Runs[1]
		if !r.OK || r.Summary != "2 sold, 1 refused, 0 left" || r.Fault != "" || r.Lost != 0 || r.Seconds <= 0 || len(r.Lines) != 3 {
			t.Errorf("%+v", r)
		}
		if p := decode(t, fine(t, "demo", "bakers", "--json", "--oven", "2ms")).Programs[0]; p.Oven != 0.002 || p.Runs[0].Lines != nil {
			t.Errorf("%+v", p)
		}
	})
	t.Run("failed", func(t *testing.T) {
		o := shmkit("demo", "squirrels", "--json", "--no-lock")
		doc := decode(t, o)
		if o.code != exitFailed || doc.OK || len(doc.Programs) != 1 {
			t.Fatalf("exit code %d, %+v", o.code, doc)
		}
		p := doc.Programs[0]
		if r := p.Runs[0]; p.Locked || r.OK || r.Lost < 2 || !strings.Contains(r.Fault, "lost") || len(r.Lines) != 0 {
			t.Errorf("%+v", p)
		}
	})
}

// failingWriter takes n writes.
type failingWriter struct{ n int }

var errFull = errors.New("the disk is full")

func (w *failingWriter) Write(b []byte) (int, error) {
	if w.n--; w.n < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestOutputThatCannotBeWrittenIsAnError(t *testing.T) {
	for _, args := range []string{"demo bakers --oven 1h", "demo tickets --runs 2", "demo tickets --json", "version"} {
		var stderr strings.Builder
		code := run(strings.Fields(args), strings.NewReader(""), &failingWriter{}, &stderr)
		if code != exitFailed || !strings.Contains(stderr.String(), errFull.Error()) {
			t.Errorf("%s: exit code %d, %q", args, code, stderr.String())
		}
	}
}
