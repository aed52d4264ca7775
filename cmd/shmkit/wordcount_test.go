package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// folder writes n texts into a folder, in which word i of 200 comes a known number of times, and returns it with these numbers.
func folder(t *testing.T, n int) (string, map[string]int64) {
	t.Helper()
	dir, counts := t.TempDir(), map[string]int64{}
	for i := range n {
		var text bytes.Buffer
		for w := range 200 {
			for range (i*w)%7 + w%2 {
				word := fmt.Sprintf("word_%d", w)
				counts[word]++
				fmt.Fprintf(&text, "%s, 12x (%d)\n", word, w)
			}
		}
		if err := os.MkdirAll(filepath.Join(dir, fmt.Sprint(i%5)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i%5), fmt.Sprintf("%d.txt", i)), text.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, counts
}

func countsOf(t *testing.T, args ...string) wordcountDoc {
	t.Helper()
	o := fine(t, append([]string{"demo", "wordcount", "--json", "--top", "1000"}, args...)...)
	var doc wordcountDoc
	if err := json.Unmarshal([]byte(o.stdout), &doc); err != nil {
		t.Fatalf("%v in %s", err, o.stdout)
	}
	return doc
}

func TestWordcountIsExactAlsoWhenProcessesAreKilled(t *testing.T) {
	dir, want := folder(t, 60)
	for _, args := range [][]string{{"-p", "1"}, {"-p", "3"}, {"-p", "3", "--kill", "12"}} {
		doc := countsOf(t, append(args, dir)...)
		got := map[string]int64{}
		for _, w := range doc.Top {
			got[w.Word] = w.Count
		}
		for word, n := range want {
			if got[word] != n {
				t.Errorf("%v: %s %d times, want %d", args, word, got[word], n)
			}
		}
		if len(got) != len(want) || !doc.OK || doc.Files != 60 {
			t.Errorf("%v: %d words, want %d; ok %v, %d files", args, len(got), len(want), doc.OK, doc.Files)
		}
		if len(args) > 2 && doc.Killed != 12 {
			t.Errorf("%d were killed, want 12", doc.Killed)
		}
	}
}

func TestWordcountPrintsTheWordsThatComeMostOften(t *testing.T) {
	file := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(file, []byte("to be or not to be: größer, 2nd _x1\xff_x1"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := fine(t, "demo", "wordcount", "--top", "4", file)
	lines := strings.Split(o.stdout, "\n")
	mustEqual(t, "top", lines[:4], []string{"        2  _x1", "        2  be", "        2  to", "        1  größer"})
	mustContain(t, lines[4], "ok    wordcount: 9 words in 1 files, 6 different")
}

// A wrong count, a missing and an invented word, and a wrong sum must each be found.
func TestWordcountFindsWrongCounts(t *testing.T) {
	right := map[string]int64{"a": 2, "b": 1}
	for _, c := range []struct {
		counts map[string]int64
		sum    tally
		fault  string
	}{
		{map[string]int64{"a": 2, "b": 1}, tally{1, 3}, ""},
		{map[string]int64{"a": 3, "b": 1}, tally{1, 3}, `"a" 3 times instead of 2`},
		{map[string]int64{"a": 2}, tally{1, 3}, `"b" 0 times instead of 1`},
		{map[string]int64{"a": 2, "b": 1, "c": 1}, tally{1, 3}, `"c" 1 times instead of 0`},
		{map[string]int64{"a": 2, "b": 1}, tally{2, 3}, "2 files"},
	} {
		var doc wordcountDoc
		doc.judge(c.sum, c.counts, tally{1, 3}, right, 20)
		if doc.OK != (c.fault == "") || !strings.Contains(doc.Fault, c.fault) {
			t.Errorf("%v, %v: %q, want %q", c.counts, c.sum, doc.Fault, c.fault)
		}
	}
}

func TestWordcountSaysWhatIsWrongWithTheCall(t *testing.T) {
	dir, _ := folder(t, 2)
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{filepath.Join(dir, "none")}, exitFailed, "no such file"},
		{[]string{t.TempDir()}, exitFailed, "no file in"},
		{[]string{"--processes", "0", dir}, exitUsage, "1 to 250"},
		{[]string{"--kill", "3", dir}, exitUsage, "more than there are files, 2"},
		{[]string{"--kill", "-1", dir}, exitUsage, "0 or more"},
		{[]string{"--rounds", "3", dir}, exitUsage, "unknown flag"},
	} {
		o := shmkit(append([]string{"demo", "wordcount"}, c.args...)...)
		if o.code != c.code || !strings.Contains(o.stderr, c.says) {
			t.Errorf("%v: exit code %d, %q; want %d, %q", c.args, o.code, o.stderr, c.code, c.says)
		}
	}
}
