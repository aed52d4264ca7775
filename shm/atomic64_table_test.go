//go:build mips || mipsle || (arm && !arm.7)

package shm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestRegionsAreNotSharedWhere64BitAtomicsAreOneProcess(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r")
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, call := range map[string]func() (*Region, error){
		"Anonymous":    func() (*Region, error) { return Anonymous() },
		"Create":       func() (*Region, error) { return Create("r", Dir(dir)) },
		"OpenOrCreate": func() (*Region, error) { return OpenOrCreate("r", Dir(dir)) },
		"CreateFile":   func() (*Region, error) { return CreateFile(path) },
		"OpenFile":     func() (*Region, error) { return OpenFile(f.Name()) },
		"FromFile":     func() (*Region, error) { return FromFile(f) },
	} {
		if r, err := call(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v, %v; want an error that is errors.ErrUnsupported", name, r, err)
		}
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the refused region has left a file")
	}
	r, err := Heap()
	if err != nil {
		t.Fatalf("Heap: %v", err)
	}
	r.Close()
}
