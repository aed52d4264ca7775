package shm_test

import (
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The rules of the house, for the whole module.

const (
	module = "github.com/shmkit/shmkit"
	root   = ".." // from this directory
)

// floors are the packages from the ground up. A package imports from its own floor and from those
// below it; parents count with what is under them, the longest name first.
var floors = []struct {
	under string
	level int
}{
	{"shm/internal", 0},
	{"shm/spin", 0},
	{"shm/proc", 2},
	{"shm", 1},
	{"sync", 2},
	{"containers", 3},
	{"bench", 4},
	{"cmd", 5},
}

// outside lists what packages may import from beyond the standard library, outside of tests.
var outside = map[string][]string{
	"shm":        {"github.com/edsrzf/mmap-go", "golang.org/x/sys"},
	"sync":       {"golang.org/x/sys"},
	"containers": {},
	"bench":      {"golang.org/x/sys", "gonum.org/v1/plot"},
	"cmd":        {"github.com/spf13/cobra", "golang.org/x/sys"},
}

// unsafeFiles are the files, outside of tests, that import unsafe. Before adding one, see whether
// shm.At does.
const unsafeFiles = `
containers/copywords.go
containers/internal/heap/heap.go
containers/internal/heap/layout.go
containers/internal/heap/one.go
containers/internal/txn/clear_race.go
containers/internal/txn/lane.go
containers/internal/txn/layout.go
containers/internal/txn/operation.go
containers/internal/txn/store.go
containers/internal/txn/store_atomic.go
containers/internal/txn/store_plain.go
containers/manager.go
containers/object.go
shm/bell_linux.go
shm/file_unix.go
shm/file_windows.go
shm/header.go
shm/heap.go
shm/mapping.go
shm/offset.go
shm/slot.go
sync/barrier.go
sync/cond.go
sync/gate.go
sync/internal/futex/futex_linux.go
sync/once.go
sync/race_on.go
sync/recursive.go
sync/rwmutex.go
sync/semaphore.go
sync/share.go
sync/stakes.go
sync/turn.go
sync/wait.go
sync/waitgroup.go
`

// A source is one Go file of the module.
type source struct {
	path    string // from the module's root
	dir     string
	test    bool
	file    *ast.File
	imports []string
}

func sources(t *testing.T) (all []source) {
	t.Helper()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && p != root && (name[0] == '.' || name[0] == '_' || name == "testdata" || name == "vendor") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		s := source{path: rel, dir: path.Dir(rel), test: strings.HasSuffix(name, "_test.go"), file: f}
		for _, i := range f.Imports {
			s.imports = append(s.imports, strings.Trim(i.Path.Value, `"`))
		}
		all = append(all, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("only %d files under the module's root", len(all))
	}
	return all
}

func under(dir, parent string) bool { return dir == parent || strings.HasPrefix(dir, parent+"/") }

func level(dir string) (int, bool) {
	for _, f := range floors {
		if under(dir, f.under) {
			return f.level, true
		}
	}
	return 0, false
}

func TestImportsPointDownwards(t *testing.T) {
	for _, s := range sources(t) {
		mine, ok := level(s.dir)
		if !ok {
			t.Errorf("%s: package %q is on no floor of the house", s.path, s.dir)
			continue
		}
		for _, i := range s.imports {
			to, ours := strings.CutPrefix(i, module+"/")
			if !ours {
				continue
			}
			theirs, ok := level(to)
			switch {
			case !ok:
				t.Errorf("%s imports %s, which is on no floor of the house", s.path, i)
			case s.test && s.file.Name.Name == path.Base(s.dir)+"_test": // proc starts the processes of all tests
				if under(to, "cmd") && !under(s.dir, "cmd") {
					t.Errorf("%s imports %s", s.path, i)
				}
			case theirs > mine:
				t.Errorf("%s imports %s, which stands above it", s.path, i)
			case under(s.dir, "sync") && under(to, "shm/proc") && !s.test, under(s.dir, "shm/proc") && under(to, "sync"):
				t.Errorf("%s imports %s: they stand beside each other", s.path, i)
			}
			if parent, _, inside := strings.Cut(to, "/internal"); inside && !under(s.dir, parent) {
				t.Errorf("%s imports %s from outside of %s", s.path, i, parent)
			}
		}
	}
}

func TestOnlyAFewModulesAreImported(t *testing.T) {
	for _, s := range sources(t) {
		for _, i := range s.imports {
			first, _, _ := strings.Cut(i, "/")
			if s.test || !strings.Contains(first, ".") || i == module || strings.HasPrefix(i, module+"/") {
				continue
			}
			top, _, _ := strings.Cut(s.dir, "/")
			if !slices.ContainsFunc(outside[top], func(allowed string) bool { return under(i, allowed) }) {
				t.Errorf("%s imports %s", s.path, i)
			}
		}
	}
}

func TestFewFilesImportUnsafe(t *testing.T) {
	var got []string
	for _, s := range sources(t) {
		if !s.test && slices.Contains(s.imports, "unsafe") {
			got = append(got, s.path)
		}
		if slices.Contains(s.imports, "C") {
			t.Errorf("%s imports C", s.path)
		}
	}
	slices.Sort(got)
	want := strings.Fields(unsafeFiles)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files that import unsafe (-listed +found); to accept, make the list\n%s\n%s", strings.Join(got, "\n"), diff)
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	docs := make(map[string]int)
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		docs[s.dir] += 0
		if s.file.Doc == nil {
			continue
		}
		docs[s.dir]++
		begins := "Package " + s.file.Name.Name + " "
		if s.file.Name.Name == "main" {
			begins = strings.ToUpper(path.Base(s.dir)[:1]) + path.Base(s.dir)[1:] + " "
		}
		if text := s.file.Doc.Text(); !strings.HasPrefix(text, begins) && !strings.HasPrefix(text, "Command ") {
			t.Errorf("%s: the package comment begins with %q, want %q", s.path, text[:min(len(text), 30)], begins)
		}
	}
	for dir, n := range docs {
		if n != 1 {
			t.Errorf("package %s has %d package comments, want 1", dir, n)
		}
	}
}

// harmless are what package-level variables and functions named init may call: nothing that asks the system for
// something. A program that only links a package must run where there is no /proc, no /dev/shm and a strict filter.
var harmless = map[string]bool{
	"errors.New": true, "fmt.Errorf": true, "crc64.MakeTable": true, "rand.Uint64": true, "flag.Bool": true,
	"reflect.TypeFor": true, "reflect.TypeOf": true, "unsafe.Sizeof": true, "unsafe.Offsetof": true, "unsafe.Alignof": true, "unsafe.Pointer": true,
	"sync.OnceValue": true, "stdsync.OnceValue": true, "stdsync.OnceValues": true, "stdsync.OnceFunc": true,
	"runtime.NumCPU": true, "uint64": true, "uint8": true, "int": true, "min": true, "max": true, "newToken": true, "new": true, "make": true, "len": true, "string": true,
	"regexp.MustCompile": true, "namedLayout": true, "shm.Self": true, "shm.SetCheck": true, "shm.SetWaker": true, "shm.SetForgetter": true, "shm.SetRecoverer": true, "proc.Define": true,
}

func TestImportingAPackageAsksNothingOfTheSystem(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || !under(s.dir, "shm") && !under(s.dir, "sync") && !under(s.dir, "containers") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, s.path), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		var look func(in ast.Node)
		look = func(in ast.Node) {
			ast.Inspect(in, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncLit: // runs later
					return false
				case *ast.CallExpr:
					fun := n.Fun
					switch generic := fun.(type) {
					case *ast.IndexExpr:
						fun = generic.X
					case *ast.FuncLit: // runs now
						look(generic.Body)
						return true
					case *ast.ParenExpr, *ast.ArrayType: // a conversion
						return true
					}
					name := "?"
					switch fun := fun.(type) {
					case *ast.Ident:
						name = fun.Name
					case *ast.SelectorExpr:
						if x, ok := fun.X.(*ast.Ident); ok {
							name = x.Name + "." + fun.Sel.Name
						} else {
							name = "?." + fun.Sel.Name
						}
					}
					if !harmless[name] {
						t.Errorf("%s calls %s when it is imported", s.path, name)
					}
				}
				return true
			})
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.GenDecl:
				if d.Tok == token.VAR {
					look(d)
				}
			case *ast.FuncDecl:
				if d.Name.Name == "init" && d.Recv == nil {
					look(d.Body)
				}
			}
		}
	}
}

func TestFilesAreNamedForWhatTheyHold(t *testing.T) {
	for _, s := range sources(t) {
		stem := strings.TrimSuffix(strings.TrimSuffix(path.Base(s.path), ".go"), "_test")
		for _, part := range strings.Split(stem, "_") {
			if slices.Contains([]string{"util", "utils", "common", "types", "helper", "helpers", "misc", "base"}, part) {
				t.Errorf("%s is named for nothing", s.path)
			}
		}
	}
}

// Fallbacks that nobody compiles stop compiling: each platform finds files for itself in every package.
func TestEveryPlatformHasItsFiles(t *testing.T) {
	dirs := make(map[string]bool)
	for _, s := range sources(t) {
		if !s.test {
			dirs[s.dir] = true
		}
	}
	for dir := range dirs {
		for _, system := range []string{"linux", "darwin", "windows", "freebsd", "openbsd", "netbsd"} {
			c := build.Default
			c.GOOS, c.GOARCH, c.CgoEnabled = system, "amd64", false
			if p, err := c.ImportDir(filepath.Join(root, dir), 0); err != nil || len(p.GoFiles) == 0 {
				t.Errorf("%s has no files for %s: %v", dir, system, err)
			}
		}
	}
}
