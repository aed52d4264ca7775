package txn

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// The machine code of the operations has each of their stores, in the order of the source, and none is joined to another: that is all that
// recovery asks of the compiler.
func TestCompilerKeepsStoresInOrder(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs")
	}
	goCmd := filepath.Join(runtime.GOROOT(), "bin", "go")
	if _, err := os.Stat(goCmd); err != nil {
		if goCmd, err = exec.LookPath("go"); err != nil {
			t.Skip("no go command")
		}
	}
	dir := t.TempDir()
	for _, arch := range []string{"amd64", "arm64"} {
		// The test binary itself has these functions; it is only read.
		bin := filepath.Join(dir, arch+".test")
		build := exec.Command(goCmd, "test", "-c", "-o", bin, ".")
		build.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", arch, err, out)
		}
		for _, f := range []struct {
			name string
			want []string // fields of the lane that are stored to, in order, without those of the process' own memory
		}{
			{`\(\*Lane\)\.note$`, []string{"entry.at", "entry.val", "line.word"}},
			{`\(\*Lane\)\.TakeOne$`, []string{"entry.at", "entry.val", "line.word"}},
			{`\(\*Lane\)\.FreeOne$`, []string{"entry.at", "line.word"}},
			{`\(\*Lane\)\.noteInner$`, []string{"entry.at", "entry.val", "line.inner"}},
			{`txn\.sixStores$`, []string{"0", "1", "2", "0", "1", "2"}},
		} {
			out, err := exec.Command(goCmd, "tool", "objdump", "-s", f.name, bin).CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v\n%s", arch, err, out)
			}
			got := stores(arch, string(out))
			if len(got) < len(f.want) {
				t.Errorf("%s, %s: %d stores of words, want at least %d\n%s", arch, f.name, len(got), len(f.want), out)
				continue
			}
			if joined.MatchString(string(out)) {
				t.Errorf("%s, %s: stores are joined\n%s", arch, f.name, out)
			}
			if f.name == `txn\.sixStores$` && strings.Join(got, " ") != sixStoresIn[arch] {
				t.Errorf("%s: six stores to three words became %q, want %q\n%s", arch, strings.Join(got, " "), sixStoresIn[arch], out)
			}
		}
	}
}

// sixStores stores to three neighbouring words, twice each, with nothing in between: what a compiler would join, leave out or turn around if it could.
//
//go:noinline
func sixStores(e *[3]entry, v uint64) {
	Put(&e[0].at, v)
	Put(&e[0].val, v+1)
	Put(&e[1].at, v+2)
	Put(&e[0].at, v+3)
	Put(&e[0].val, v+4)
	Put(&e[1].at, v+5)
}

var sixStoresIn = map[string]string{
	"amd64": "0 8 16 0 8 16",
	"arm64": "0 8 16 0 8 16",
}

// joined are instructions that store more than a word: pairs on arm64 but those of the frame, vectors on amd64.
var joined = regexp.MustCompile(`STP \([^)]*\), (\(R[0-9]|[0-9]+\(R[0-9])|MOVUPS|MOVDQU`)

// stores returns the displacements of the word stores of a function that go through a register that is not the stack pointer.
func stores(arch, dump string) (all []string) {
	amd := regexp.MustCompile(`\tMOVQ ([A-Z0-9]+), (0x[0-9a-f]+|)\(([A-Z0-9]+)\)\s*$`)
	arm := regexp.MustCompile(`\tSTLR (R[0-9]+), \((R[0-9]+)\)\s*$`)
	add := regexp.MustCompile(`\tADD \$([0-9]+), (R[0-9]+), (R[0-9]+)\s*$`)
	at := map[string]string{}
	for line := range strings.Lines(dump) {
		line = strings.TrimRight(line, "\n")
		switch arch {
		case "amd64":
			if m := amd.FindStringSubmatch(line); m != nil && m[3] != "SP" && m[3] != "BP" {
				all = append(all, displacement[m[2]])
			}
		case "arm64":
			if m := add.FindStringSubmatch(line); m != nil {
				at[m[3]] = m[1]
			}
			if m := arm.FindStringSubmatch(line); m != nil {
				d := at[m[2]]
				if d == "" {
					d = "0"
				}
				all = append(all, d)
			}
		}
	}
	return all
}

var displacement = map[string]string{"": "0", "0x8": "8", "0x10": "16"}
