package containers

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// In the machine code of an append the element is stored before the word that says that it is there, and each once: plain stores, whose order
// the processor keeps, if the compiler does. Elsewhere than on amd64 the word is stored with release order.
func TestCompilerStoresElementsBeforeTheyCount(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("there is nothing for the compiler to confuse")
	}
	goCmd := filepath.Join(runtime.GOROOT(), "bin", "go")
	if _, err := os.Stat(goCmd); err != nil {
		if goCmd, err = exec.LookPath("go"); err != nil {
			t.Skip("no go command")
		}
	}
	build := exec.Command(goCmd, "build", "-gcflags=-S", "-o", os.DevNull, "./testdata/hot")
	build.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	out, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, want := range map[string]string{
		"quickAppend[go.shape.int64]":    "element last",
		"quickAppend[go.shape.[4]int64]": "element last",
	} {
		if got := strings.Join(storesOf(string(out), "containers."+name), " "); got != want {
			t.Errorf("%s stores to %q, want %q", name, got, want)
		}
	}
}

var (
	anyFunction  = regexp.MustCompile(`^\S.* STEXT`)
	elementStore = regexp.MustCompile(`/copywords.go:\d+\)\t(MOVQ\t[A-Z0-9]+, \(|CALL\truntime.memmove)`)
	wordStore    = regexp.MustCompile(`/store_plain.go:\d+\)\tMOVQ\t[A-Z0-9]+, 64\([A-Z]`)
)

// storesOf returns what the instructions of a function store.
func storesOf(assembly, name string) (all []string) {
	in := false
	for line := range strings.Lines(assembly) {
		switch {
		case anyFunction.MatchString(line):
			in = strings.Contains(line, name)
		case !in || strings.Contains(line, "(SP)"):
		case elementStore.MatchString(line):
			all = append(all, "element")
		case wordStore.MatchString(line):
			all = append(all, "last")
		}
	}
	return all
}
