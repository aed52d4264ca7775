package sync_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A copy of a lock is another lock, so go vet has to tell of every way to make one.
const copies = `package copies

import shmsync "github.com/shmkit/shmkit/sync"

type account struct {
	mu      shmsync.Mutex
	balance int64
}

func assign(a *account) {
	b := *a // copied
	b.mu.Lock()
}

func parameter(m shmsync.Mutex) { // copied
	m.Lock()
}

func (a account) method() { // copied
	a.mu.Lock()
}

func element(all []account) {
	for _, a := range all { // copied
		a.mu.Lock()
	}
}

func result(a *account) account {
	return *a // copied
}

func argument(a *account) {
	sink(a.mu) // copied
}

func sink(any) {}

func pointers(a *account, all []account) {
	p := &a.mu
	p.Lock()
	p.Unlock()
	for i := range all {
		all[i].mu.Lock()
	}
	var fresh account
	fresh.mu.Lock()
}
`

func TestVetFindsCopiedMutexes(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("runs go vet: ", err)
	}
	dir := t.TempDir()
	run := func(args ...string) (string, error) {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOWORK=off", "GOTOOLCHAIN=local")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	module, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	// The module's own requirements and sums: what was loaded for this test is all there is to load.
	requirements, err := os.ReadFile(filepath.Join(module, "go.mod"))
	if err != nil {
		t.Skip("needs the module's source: ", err)
	}
	sums, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	mod := regexp.MustCompile(`(?m)^module .*$`).ReplaceAllString(string(requirements), "module copies")
	mod += fmt.Sprintf("\nrequire github.com/shmkit/shmkit v0.0.0\nreplace github.com/shmkit/shmkit => %q\n", module)
	for name, text := range map[string]string{"go.mod": mod, "go.sum": string(sums), "copies.go": copies} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := run("build", "github.com/shmkit/shmkit/sync"); err != nil {
		t.Skipf("the go command does not work here: %v\n%s", err, out)
	}
	out, err := run("vet", "-copylocks", "./...")
	if err == nil {
		t.Error("vet found nothing")
	}
	for i, line := range strings.Split(copies, "\n") {
		place := fmt.Sprintf("copies.go:%d:", i+1)
		if wanted := strings.Contains(line, "// copied"); strings.Contains(out, place) != wanted {
			t.Errorf("line %d: reported %v, want %v: %s", i+1, !wanted, wanted, line)
		}
	}
	if t.Failed() {
		t.Logf("vet said:\n%s", out)
	}
}
