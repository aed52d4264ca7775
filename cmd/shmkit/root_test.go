package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestMistakesInTheCallEndWith2AndNameTheWayOut(t *testing.T) {
	for _, c := range []struct {
		args string
		says []string
	}{
		{"dmeo", []string{`no command "dmeo"`, "did you mean demo?", "Try 'shmkit --help'"}},
		{"--frobnicate", []string{"--frobnicate", "Try 'shmkit --help'"}},
		{"demo cats", []string{`no program "cats"`, "bakers, squirrels, journalists, tickets, dogs, birds", "Try 'shmkit demo --help'"}},
		{"demo --cats", []string{"--cats", "Try 'shmkit demo --help'"}},
		{"demo squirrels --oven 1s", []string{"squirrels has no --oven", "--processes, --rounds, --no-lock"}},
		{"demo bakers birds --oven 1s", []string{"birds has no --oven", "--processes, --rounds, --no-lock"}},
		{"demo --oven fast", []string{"fast", "--oven"}},
		{"demo --oven -1s", []string{"--oven -1s", "negative"}},
		{"demo --rounds 0", []string{"--rounds 0", "1 to"}},
		{"demo --rounds many", []string{"many", "--rounds"}},
		{"demo --processes -3", []string{"--processes -3", "1 to"}},
		{"demo --processes 251", []string{"--processes 251", "1 to 250"}},
		{"demo --runs 0", []string{"--runs 0", "1 or more"}},
		{"demo --no-lock --processes 1", []string{"--processes 1", "2 or more"}},
		{"version now", []string{"no arguments", `"now"`}},
		{"version --loud", []string{"--loud", "Try 'shmkit version --help'"}},
		{"completion", []string{"which shell", "bash"}},
		{"completion cmd.exe", []string{`"cmd.exe"`, "bash"}},
		{"completion bash zsh", []string{"no arguments", `"zsh"`}},
	} {
		t.Run(c.args, func(t *testing.T) {
			o := shmkit(strings.Fields(c.args)...)
			if o.code != exitUsage {
				t.Errorf("exit code %d, want %d", o.code, exitUsage)
			}
			if o.stdout != "" {
				t.Errorf("standard output is for results, and there are none: %q", o.stdout)
			}
			mustContain(t, o.stderr, c.says...)
		})
	}
}

func TestHelpIsAResultAndNamesEverything(t *testing.T) {
	for args, says := range map[string][]string{
		"":            {"shmkit demo", "completion", "version"},
		"--help":      {"shmkit demo", "completion", "version"},
		"help demo":   {"Examples:", "shmkit demo --oven 50ms --runs 100"},
		"demo --help": {"Examples:", "ok    tickets: 3 sold, 1 refused, 0 left", "FAIL", "Ctrl-C", "--json", "--runs N", "--rounds R", "--processes P", "--oven DURATION", "--no-lock", "(default 2s)"},
	} {
		o := fine(t, strings.Fields(args)...)
		mustContain(t, o.stdout, says...)
		if o.stderr != "" {
			t.Errorf("%q: on standard error: %s", args, o.stderr)
		}
	}
	help := fine(t, "demo", "--help").stdout
	for _, p := range programs() {
		mustContain(t, help, p.title, p.shows, p.means)
	}
	for line := range strings.Lines(help) {
		if len(line) > 110 {
			t.Errorf("too long for a terminal: %q", line)
		}
	}
}

func TestCompletionKnowsTheProgramsAndFlags(t *testing.T) {
	offered := func(args ...string) []string {
		var names []string
		for line := range strings.Lines(fine(t, append([]string{"__complete"}, args...)...).stdout) {
			name, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
			if !strings.HasPrefix(name, ":") {
				names = append(names, name)
			}
		}
		return names
	}
	for _, c := range []struct {
		typed []string
		want  string
	}{
		{[]string{"demo", ""}, "wordcount bakers squirrels journalists tickets dogs birds"},
		{[]string{"demo", "b"}, "bakers birds"},
		{[]string{"demo", "tickets", ""}, "bakers squirrels journalists dogs birds"},
		{[]string{"demo", "--no"}, "--no-lock"},
		{[]string{"version", ""}, ""},
		{[]string{"v"}, "version"},
	} {
		if got := strings.Join(offered(c.typed...), " "); got != c.want {
			t.Errorf("after %q: %q offered, want %q", c.typed, got, c.want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		mustContain(t, fine(t, "completion", shell).stdout, "shmkit")
	}
}

func TestVersionSaysWhatWasBuilt(t *testing.T) {
	mustContain(t, fine(t, "version").stdout, "shmkit ", "go1.")

	var doc versionDoc
	if err := json.Unmarshal([]byte(fine(t, "version", "--json").stdout), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Version != 1 || doc.Go == "" || doc.Platform == "" || doc.Shmkit == "" {
		t.Errorf("%+v", doc)
	}
}
