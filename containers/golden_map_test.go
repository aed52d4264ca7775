package containers

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const goldenMapFile = "testdata/map.hex"

// goldenMaps are the contents of two maps: one of words, in a segment that has grown, and one of strings, some of them long.
func goldenMaps() (words map[int64]int64, texts map[string]string) {
	words, texts = map[int64]int64{}, map[string]string{"": "empty", "a key of more than fifteen bytes": "short", "short": "a value of more than fifteen bytes"}
	for i := range int64(20) {
		words[i-10] = i * i
	}
	delete(words, 3)
	return words, texts
}

// furnishMaps makes them, in an order that is always the same.
func furnishMaps(m *Manager) error {
	words, texts := goldenMaps()
	h, err1 := NewSharedMap[int64, int64](m, Name("words"))
	g, err2 := NewSharedMap[string, string](m, Name("texts"))
	err := errors.Join(err1, err2, h.Put(3, 1))
	for i := int64(-10); i < 10; i++ {
		if v, ok := words[i]; ok {
			err = errors.Join(err, h.Put(i, v))
		}
	}
	h.Delete(3)
	for _, k := range []string{"", "a key of more than fifteen bytes", "short"} {
		err = errors.Join(err, g.Put(k, "x"), g.Put(k, texts[k])) // replaced
	}
	return err
}

func wantGoldenMaps(t *testing.T, m *Manager) {
	t.Helper()
	words, texts := goldenMaps()
	h, err1 := Find[SharedMap[int64, int64]](m, "words")
	g, err2 := Find[SharedMap[string, string]](m, "texts")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatalf("%v; %s", err, formatChange)
	}
	if diff := cmp.Diff(words, maps.Collect(h.All())); diff != "" {
		t.Errorf("%s (-want +got):\n%s", formatChange, diff)
	}
	if diff := cmp.Diff(texts, maps.Collect(g.All())); diff != "" {
		t.Errorf("%s (-want +got):\n%s", formatChange, diff)
	}
	for k, want := range words { // by its hash
		if v, ok := h.Get(k); v != want || !ok {
			t.Errorf("key %d has %d, %v; %s", k, v, ok, formatChange)
		}
	}
	if err := errors.Join(h.Check(), g.Check(), m.Check()); err != nil {
		t.Errorf("%v; %s", err, formatChange)
	}
}

func TestFreshMapsLookLikeTheGoldenOnes(t *testing.T) {
	onlyHere(t)
	start := dataStart(t)
	head := undump(t, goldenFile, start+goldenSize)[:headerSize] // with the seed of the hashes
	clear(head[rootWord : rootWord+8])
	m, path := openGolden(t, append(bytes.Clone(head), make([]byte, start+goldenSize-headerSize)...))
	if err := furnishMaps(m); err != nil {
		t.Fatal(err)
	}
	wantGoldenMaps(t, m)
	compareGolden(t, goldenMapFile, head, Must(os.ReadFile(path)))
}

func TestGoldenMapsAreReadRight(t *testing.T) {
	onlyHere(t)
	m, _ := openGolden(t, undump(t, goldenMapFile, dataStart(t)+goldenSize))
	wantGoldenMaps(t, m)
	h := Must(Find[SharedMap[int64, int64]](m, "words"))
	for i := range int64(300) { // in the memory that is free there
		if err := h.Put(i, i); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(h.Check(), m.Check()); err != nil {
		t.Error(err)
	}
}
