package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shmkit/shmkit/bench"
)

func TestBenchListsWhatItWouldRun(t *testing.T) {
	o := fine(t, "bench", "--list", "procs=8$")
	mustContain(t, o.stdout, "contended/inside=200ns/outside=0s/procs=8  shmkit futex")
	if strings.Contains(o.stdout, "procs=4") || strings.Contains(o.stdout, "append") {
		t.Errorf("the expression chose too much:\n%s", o.stdout)
	}
	all, quick := fine(t, "bench", "--list").stdout, fine(t, "bench", "--list", "--quick").stdout
	if n, m := strings.Count(all, "\n"), strings.Count(quick, "\n"); m == 0 || m >= n {
		t.Errorf("%d lines, %d with --quick", n, m)
	}
	var doc listDoc
	if err := json.Unmarshal([]byte(fine(t, "bench", "--list", "--json", "^uncontended$").stdout), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Version != 1 || len(doc.Cases) != 1 || doc.Cases[0].By[0].Name != bench.Shmkit || doc.Cases[0].By[0].Role != bench.Ours {
		t.Errorf("%+v", doc)
	}
}

func TestBenchTellsMistakesInTheCall(t *testing.T) {
	for _, c := range []struct{ call, says string }{
		{"bench nothing-of-this-name", "no case matches"},
		{"bench [", "missing closing ]"},
		{"bench --json --markdown", "one of them"},
		{"bench --rounds -1", "negative"},
		{"bench --window soon", "soon"},
	} {
		if o := shmkit(strings.Fields(c.call)...); o.code != exitUsage || !strings.Contains(o.stderr, c.says) {
			t.Errorf("%s: exit code %d, %s", c.call, o.code, o.stderr)
		}
	}
	missing := filepath.Join(t.TempDir(), "none.json")
	if o := shmkit("bench", "^uncontended$", "--compare", missing); o.code != exitFailed || !strings.Contains(o.stderr, missing) {
		t.Errorf("a baseline that is not there: exit code %d, %s", o.code, o.stderr)
	}
}

func TestBenchWritesEveryForm(t *testing.T) {
	dir := t.TempDir()
	page, base := filepath.Join(dir, "page.html"), filepath.Join(dir, "base.json")
	// Python and Boost have no part in this one: they take seconds to begin.
	const name = "contended/inside=0s/outside=200ns/procs=1"
	short := []string{"bench", "^" + name + "$", "--rounds", "2", "--window", "2ms"}
	o := fine(t, append(short, "--report", page, "--baseline", base)...)
	mustContain(t, o.stdout, name+"\n", "sync.Mutex", "÷ shmkit", "1.00×")
	html, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	mustContain(t, string(html), "<svg", "GOMAXPROCS=", name, "Command")
	for _, outside := range []string{"<script", "<link", "src=", "url(", "@import"} {
		if strings.Contains(string(html), outside) {
			t.Errorf("the page needs something else: %s", outside)
		}
	}
	var doc bench.Report
	if err := json.Unmarshal([]byte(fine(t, append(short, "--json")...).stdout), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Version != 1 || len(doc.Results) != 1 || doc.Results[0].Entries[0].NsPerOp <= 0 || doc.Machine.MaxProcs < 1 || doc.Command == "" {
		t.Errorf("%+v", doc)
	}
	mustContain(t, fine(t, append(short, "--markdown")...).stdout, "| "+name+" | ", "| case | shmkit |")

	// Everything has become far slower than this, however short and disturbed the rounds are.
	var was bench.Baseline
	if err := readJSON(base, &was); err != nil {
		t.Fatal(err)
	}
	for name, row := range was.Ratios {
		row.Ratio = 1e-9
		row.Noise = 0
		was.Ratios[name] = row
	}
	text, err := json.Marshal(was)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(base, text, 0o600); err != nil {
		t.Fatal(err)
	}
	compared := shmkit(append(short, "--compare", base)...)
	mustContain(t, compared.stdout, name+"/by=shmkit is slower", "ratios moved by more than the noise")
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("%d files left, %v", len(left), err)
	}
}

func TestCommandLineCanBeTypedAgain(t *testing.T) {
	if got, want := commandLine([]string{"/tmp/x/shmkit", "bench", "a$", "it's", "procs=8"}), `shmkit bench 'a$' 'it'\''s' procs=8`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
