package heap

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// The machine code of the hot paths has each of their stores to shared memory, in the order of the source, none joined to another and none twice: that is
// all that recovery asks of the compiler. A store is shown by where it goes: a displacement from the lane's memory, byte for the state of a block, line
// for a part of its contents; on arm64 all words are stores with release order.
func TestCompilerKeepsStoresInOrder(t *testing.T) {
	goCmd := filepath.Join(runtime.GOROOT(), "bin", "go")
	if _, err := os.Stat(goCmd); err != nil {
		if goCmd, err = exec.LookPath("go"); err != nil {
			t.Skip("no go command")
		}
	}
	want := map[string]string{ // entry, its value, control word, magazine's count, state, contents, control word
		"amd64 allocOne": "1024 1032 0 4096 byte line line line line 0",
		"amd64 freeOne":  "1024 0 4096 byte 4096 0",                 // entry, control word, magazine's slot, state, count, control word
		"amd64 placeOne": "1024 1032 0 4096 byte 0 1040 1048 0 0 0", // as allocOne, the reference, the second entry, control word, the word, control word
		"arm64 allocOne": "word word word word byte word",
		"arm64 freeOne":  "word word word byte word word",
		"arm64 placeOne": "word word word word byte word word word word word word word", // one more before the reference: what is behind the text
	}
	for _, arch := range []string{"amd64", "arm64"} {
		build := exec.Command(goCmd, "build", "-gcflags=-S", "-o", os.DevNull, ".")
		build.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
		out, err := build.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", arch, err, out)
		}
		for _, name := range []string{"allocOne", "freeOne", "placeOne"} {
			got := stores(string(out), name+"[go.shape.struct {}]")
			if got := strings.Join(got, " "); got != want[arch+" "+name] {
				t.Errorf("%s, %s stores to %q, want %q", arch, name, got, want[arch+" "+name])
			}
		}
	}
}

var (
	function = regexp.MustCompile(`^\S.* STEXT`)
	wordAMD  = regexp.MustCompile(`/store_plain.go:\d+\)\tMOVQ\t[A-Z0-9]+, (\d*)\([A-Z]`)
	byteOf   = regexp.MustCompile(`/store_(plain|atomic).go:\d+\)\tMOVB\t[A-Z0-9]+, \([A-Z]`)
	lineAMD  = regexp.MustCompile(`\tMOVUPS\tX15, \d*\([A-Z]`)
	wordARM  = regexp.MustCompile(`\tSTLR\t(R\d+|ZR), \(R`)
	pairARM  = regexp.MustCompile(`\tF?STP[A-Z]*\t.*, (-?\d*\(R\d)`)
)

// stores returns where the instructions of a function store to.
func stores(assembly, name string) (all []string) {
	in := false
	for line := range strings.Lines(assembly) {
		if function.MatchString(line) {
			in = strings.Contains(line, name)
		}
		if !in || strings.Contains(line, "(SP)") || strings.Contains(line, "(RSP)") {
			continue
		}
		if m := wordAMD.FindStringSubmatch(line); m != nil {
			all = append(all, fmt.Sprint("0"[:max(0, 1-len(m[1]))], m[1]))
		} else if byteOf.MatchString(line) {
			all = append(all, "byte")
		} else if lineAMD.MatchString(line) {
			all = append(all, "line")
		} else if wordARM.MatchString(line) {
			all = append(all, "word")
		} else if pairARM.MatchString(line) && strings.Contains(line, "/store_") {
			all = append(all, "pair")
		}
	}
	return all
}
