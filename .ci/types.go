//go:build ignore

// Types checks the types of all packages, tests included, for the systems that are named to it as GOOS/GOARCH.
// It compiles nothing: go vet would compile the standard library for each of them first, which takes a minute.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// listed is what go list tells of a package.
type listed struct {
	ImportPath, Dir, ForTest string
	GoFiles                  []string
	ImportMap                map[string]string
	Module                   *struct {
		Main      bool
		GoVersion string
	}
}

var (
	fset   = token.NewFileSet()
	parsed = map[string]*ast.File{}
)

func parse(name string) (*ast.File, error) {
	if f := parsed[name]; f != nil {
		return f, nil
	}
	f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
	parsed[name] = f
	return f, err
}

// importer finds packages that were checked before.
type importer struct {
	names map[string]string // of imports that mean another path
	known map[string]*types.Package
}

func (im importer) Import(path string) (*types.Package, error) {
	if other, ok := im.names[path]; ok {
		path = other
	}
	if p := im.known[path]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("package %s was not checked", path)
}

func check(target string) (errs error) {
	goos, goarch, _ := strings.Cut(target, "/")
	list := exec.Command("go", "list", "-deps", "-test", "-json=ImportPath,Dir,ForTest,GoFiles,ImportMap,Module", "./...")
	list.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0")
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		return err
	}
	known := map[string]*types.Package{"unsafe": types.Unsafe}
	ours := 0
	for in := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := in.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		own := p.Module != nil && p.Module.Main
		if p.ImportPath == "unsafe" || own && strings.HasSuffix(p.ImportPath, ".test") { // a test's own main is generated
			continue
		}
		var files []*ast.File
		for _, name := range p.GoFiles {
			if !filepath.IsAbs(name) {
				name = filepath.Join(p.Dir, name)
			}
			f, err := parse(name)
			if err != nil {
				return err
			}
			files = append(files, f)
		}
		config := types.Config{
			Importer: importer{p.ImportMap, known}, Sizes: types.SizesFor("gc", goarch), IgnoreFuncBodies: !own,
			Error: func(err error) { errs = errors.Join(errs, fmt.Errorf("%s: %w", target, err)) },
		}
		if p.Module != nil && p.Module.GoVersion != "" {
			config.GoVersion = "go" + p.Module.GoVersion
		}
		path, _, _ := strings.Cut(p.ImportPath, " ")
		if known[p.ImportPath], _ = config.Check(path, fset, files, nil); own {
			ours++
		}
	}
	if errs == nil && ours == 0 {
		errs = fmt.Errorf("%s: no package was checked", target)
	}
	fmt.Printf("%s: %d packages\n", target, ours)
	return errs
}

func main() {
	failed := false
	for _, target := range os.Args[1:] {
		if err := check(target); err != nil {
			fmt.Fprintln(os.Stderr, err)
			failed = true
		}
	}
	if failed {
		os.Exit(1)
	}
}
