package shm_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

func TestAReferenceFindsTheOpenRegion(t *testing.T) {
	heap, err := shm.Heap()
	for kind, r := range map[string]*shm.Region{"anonymous": anonymous(t), "heap": must(t, heap, err)} {
		data, err := r.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		found := new(shm.Region)
		if err := found.UnmarshalBinary(data); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if found.ID() != r.ID() || word(found, 0) != word(r, 0) {
			t.Errorf("%s: another region was found", kind)
		}
		r.Close()
		if found.Closed() {
			t.Errorf("%s: the decoded handle is not one of its own", kind)
		}
		found.Close()
		if err := found.UnmarshalBinary(data); !errors.Is(err, shm.ErrNotAttached) {
			t.Errorf("%s: after the last Close: %v, want ErrNotAttached", kind, err)
		}
	}
}

func TestAReferenceAsText(t *testing.T) {
	r := anonymous(t)
	text, err := json.Marshal(map[string]*shm.Region{"Region": r})
	if err != nil {
		t.Fatal(err)
	}
	var back map[string]*shm.Region
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if must(t, back["Region"], nil).ID() != r.ID() {
		t.Errorf("%s leads to another region", text)
	}
	if err := new(shm.Region).UnmarshalText([]byte("not base64!")); !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("bad text: %v, want ErrCorrupt", err)
	}
	if err := new(shm.Region).UnmarshalText([]byte(base64.RawURLEncoding.EncodeToString([]byte("short")))); !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("short text: %v, want ErrCorrupt", err)
	}
}

func TestAReferenceFindsARegionByItsPath(t *testing.T) {
	dir := memoryDir(t)
	r, err := shm.Create("r", shm.Dir(dir))
	must(t, r, err)
	fill(t, r, "by path")
	data, err := r.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	succeed(t, start(t, decodeByPath, reference{data, "", nil}))
	if err := os.Rename(filepath.Join(dir, "r"), filepath.Join(dir, "moved")); err != nil {
		t.Fatal(err)
	}
	succeed(t, start(t, decodeByPath, reference{data, "it was moved", nil}))
	second, err := shm.Create("r", shm.Dir(dir))
	must(t, second, err)
	succeed(t, start(t, decodeByPath, reference{data, "another region has its name", nil}))
	succeed(t, start(t, decodeByPath, reference{data, "another is open here", second}))
	if n := occupied(second); n > 2 { // those who looked at it have not attached; one had it open
		t.Errorf("%d slots of the wrong region were taken", n)
	}
}

type reference struct {
	Data    []byte
	Missing string // why it must not be found
	Other   *shm.Region
}

var decodeByPath = proc.Define("decodeByPath", func(_ context.Context, ref reference) error {
	r := new(shm.Region)
	err := r.UnmarshalBinary(ref.Data)
	switch {
	case ref.Missing == "" && err == nil:
		return errors.Join(expect(r, "by path"), r.Close())
	case ref.Missing == "":
		return err
	case !errors.Is(err, shm.ErrNotAttached):
		return errors.Join(errors.New(ref.Missing+": want ErrNotAttached"), err)
	}
	return nil
})

func TestAReferenceToNothing(t *testing.T) {
	var none shm.Region
	data, err := none.MarshalBinary()
	if err != nil || len(data) != 0 {
		t.Errorf("the zero Region is encoded as %v, %v", data, err)
	}
	r := new(shm.Region)
	if err := r.UnmarshalBinary(nil); err != nil {
		t.Errorf("decode nothing: %v", err)
	}
	if err := r.UnmarshalBinary(make([]byte, 15)); !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("15 bytes: %v, want ErrCorrupt", err)
	}
	if err := r.UnmarshalBinary(make([]byte, 16)); !errors.Is(err, shm.ErrNotAttached) {
		t.Errorf("an unknown region: %v, want ErrNotAttached", err)
	}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no region"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.UnmarshalBinary(append(make([]byte, 16), text...)); !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("a path that leads to a text: %v, want ErrCorrupt", err)
	}
}

// One who has a region open for reading and for writing gets the one that can do both.
func TestAReferencePrefersWhatCanBeWritten(t *testing.T) {
	dir := named(t)
	r, err := shm.Create("r", dir)
	must(t, r, err).Close()
	reader, err := shm.Open("r", dir, shm.ReadOnly())
	must(t, reader, err)
	writer, err := shm.Open("r", dir)
	must(t, writer, err)
	data, err := reader.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	found := new(shm.Region)
	if err := found.UnmarshalBinary(data); err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	if err := found.Grow(1 << 20); err != nil {
		t.Errorf("the decoded region cannot grow: %v", err)
	}
}
