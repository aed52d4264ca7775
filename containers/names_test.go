package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	shmsync "github.com/shmkit/shmkit/sync"
)

func TestNamesSayWhatTheyName(t *testing.T) {
	ownDir(t)
	m := Must(OpenManager("names"))
	defer m.Close()
	if all := Must(m.Names()); len(all) != 0 {
		t.Errorf("%v in a new region", all)
	}
	Must(NewSharedMap[string, int64](m, Name("zoo")))
	Must(NewSharedInt(m, 1, Name("Bär")))
	Must(NewSharedList[string](m, Name("a list")))
	Must(New[shmsync.Mutex](m, Name("lock")))
	Must(NewSharedQueue[int64](m, 4, Name("queue")))
	gone := Must(NewSharedInt(m, 1, Name("gone")))
	Must(NewSharedInt(m, 1))
	unlinked := Must(NewSharedInt(m, 1, Name("unlinked")))
	if err := errors.Join(gone.Destroy(), m.Unlink("unlinked")); err != nil {
		t.Fatal(err)
	}
	want := []NamedObject{
		{"Bär", "number", "int64"},
		{"a list", "list", "string"},
		{"lock", "reference", "sync.Mutex"},
		{"queue", "queue", ""},
		{"zoo", "map", "map of string to int64"},
	}
	got := Must(m.Names())
	for i, n := range got {
		if n.Kind == "queue" || n.Kind == "reference" { // their text is not this test's affair
			if n.Type == "" {
				t.Errorf("%v has no type", n)
			}
			got[i].Type = want[i].Type
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if err := errors.Join(unlinked.Destroy(), m.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Names(); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := m.Sweep(t.Context()); !errors.Is(err, shm.ErrClosed) {
		t.Errorf("Sweep after Close: %v", err)
	}
	r, err := shm.Open("names", shm.ReadOnly())
	if err != nil {
		t.Fatal(err)
	}
	readOnly := Must(NewManager(r))
	defer readOnly.Close()
	if all, err := readOnly.Names(); err != nil || len(all) != len(want) {
		t.Errorf("of a region open for reading only: %v, %v", all, err)
	}
	if _, err := readOnly.Sweep(t.Context()); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Sweep of a region open for reading only: %v", err)
	}
}

// Names that others have written over are an error, and never a loop.
func TestDamagedNamesAreRefused(t *testing.T) {
	for what, damage := range map[string]func(s *space, link, entry addr){
		"ring":          func(s *space, link, entry addr) { word(entry, entryNext).Store(word(link, 0).Load()) },
		"length":        func(s *space, link, entry addr) { word(entry, entryLength).Store(1 << 40) },
		"other name":    func(s *space, link, entry addr) { word(entry, entryName).Store('x') },
		"other object":  func(s *space, link, entry addr) { word(entry, entryObject).Store(1 << 60) },
		"another life":  func(s *space, link, entry addr) { word(entry, entryGen).Add(2) },
		"nowhere":       func(s *space, link, entry addr) { word(link, 0).Store(1 << 50) },
		"not an object": func(s *space, link, entry addr) { word(entry, entryObject).Add(8) },
	} {
		m := briefManager(t)
		Must(NewSharedInt(m, 1, Name("name")))
		s := Must(m.space())
		link, entry, err := s.search("name")
		if err != nil {
			t.Fatal(err)
		}
		damage(s, addr(link), entry)
		if all, err := m.Names(); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("%s: %v, %v", what, all, err)
		}
		m.Close()
	}
}

// Without the lock, names may change while they are read: one that is no more is left out, and what cannot be is looked at again; it is damage
// only if it stays.
func TestNamesReadWithoutTheLockMayChange(t *testing.T) {
	m := briefManager(t)
	defer m.Close()
	s := Must(m.space())
	at := s.hash("older") % rootBuckets
	younger := ""
	for i := 0; younger == "" || s.hash(younger)%rootBuckets != at; i++ {
		younger = fmt.Sprint("younger ", i)
	}
	Must(NewSharedInt(m, 1, Name("older")))
	Must(NewSharedInt(m, 1, Name(younger)))
	_, first, err1 := s.search(younger)
	link, second, err2 := s.search("older")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if link != word(first, entryNext) {
		first, second = second, first
	}
	s.readOnly = true // as in a process that has the region open for reading only
	defer func() { s.readOnly = false }()
	both := Must(m.Names())
	if len(both) != 2 {
		t.Fatalf("names %v", both)
	}

	gen := word(second, entryGen)
	gen.Add(2)
	if all, err := m.Names(); err != nil || len(all) != 1 {
		t.Errorf("a name of an object that is no more: %v, %v", all, err)
	}
	gen.Add(^uint64(1))

	onOneProcessor(t)
	next := word(first, entryNext)
	was := next.Load()
	next.Store(1 << 50)
	if all, err := m.Names(); !errors.Is(err, shm.ErrCorrupt) {
		t.Errorf("a name that is nowhere: %v, %v", all, err)
	}
	for range 5 {
		next.Store(1 << 50)
		go next.Store(was) // when it is let
		if all, err := m.Names(); err != nil || !slices.Equal(all, both) {
			t.Errorf("a name that was nowhere at first: %v, %v", all, err)
		}
	}
}

type naming struct {
	M    *Manager
	Done AtomicInt
}

// One after the other gets a name before the last one loses its.
var namesForEver = proc.Define("gives and takes names for ever", func(_ context.Context, n naming) error {
	for i := n.Done.Load(); ; i++ {
		if _, err := NewSharedInt(n.M, i, Name(fmt.Sprint("number ", i)), OrOpen()); err != nil {
			return err
		}
		n.Done.Store(i)
		last, err := Find[SharedInt](n.M, fmt.Sprint("number ", i-1))
		if err == nil {
			err = last.Destroy()
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
})

// Names are those of one moment, and each is there whole, whatever is killed when.
func TestNamesAreThoseOfOneMoment(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector does not look into mapped memory, and makes processes start slowly")
	}
	m := newManager(t)
	n := naming{m, Must(NewAtomicInt(m, 1, Name("counter")))}
	look := func() int64 {
		at := n.Done.Load() // first: what it says is there is there then
		all := Must(m.Names())
		if len(all) < 1 || all[0].Name != "counter" || all[0].Kind != "atomic number" {
			t.Fatalf("names %v", all)
		}
		var numbers []int64
		for _, o := range all[1:] {
			var i int64
			if _, err := fmt.Sscanf(o.Name, "number %d", &i); err != nil || o.Kind != "number" || o.Type != "int64" {
				t.Fatalf("name %v", o)
			}
			numbers = append(numbers, i)
		}
		slices.Sort(numbers)
		if len(numbers) > 2 || len(numbers) == 2 && numbers[1] != numbers[0]+1 || len(numbers) == 0 && at > 1 {
			t.Fatalf("numbers %v at one moment, at step %d", numbers, at)
		}
		return at
	}
	looks := 0
	round := func(k int64) {
		p, err := namesForEver.Start(deadline(t), n)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Kill()
		for was := n.Done.Load(); look() < was+50+k*13 && p.Alive(); {
			looks++
		}
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
		wantKilled(t, p.Wait())
		look()
		if err := m.Check(); err != nil {
			t.Fatal(err)
		}
	}
	for k := range int64(4) {
		round(k)
	}
	t.Logf("%d looks", looks)
}

func TestErrorsOfNamesNameTheRegion(t *testing.T) {
	m := briefManager(t)
	defer m.Close()
	Must(NewSharedInt(m, 1, Name("name")))
	s := Must(m.space())
	link, _, err := s.search("name")
	if err != nil {
		t.Fatal(err)
	}
	was := link.Load()
	link.Store(1 << 50)
	_, err = m.Names()
	link.Store(was)
	if err == nil || !strings.Contains(err.Error(), "names of region") || !strings.Contains(err.Error(), "bucket") {
		t.Error(err)
	}
}
