package proc

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"strings"
	"structs"
	"testing"
	"time"

	"github.com/shmkit/shmkit/shm"
)

type plain struct {
	_    structs.HostLayout
	N    int8
	F    complex128
	S    []string
	A    [2][]byte
	M    map[string][]Tree
	T    time.Time
	P    *time.Time
	Addr netip.Addr
	Big  *big.Int
	R    *shm.Region
	None struct{}
}

type Tree struct {
	Name string
	Kids []Tree
	By   map[string]Tree
}

type list []list

// A Handle is what containers are: a pair of methods, the decoding one of the pointer.
type Handle struct{ n int }

func (h Handle) MarshalBinary() ([]byte, error)  { return []byte{byte(h.n)}, nil }
func (h *Handle) UnmarshalBinary(b []byte) error { h.n = int(b[0]); return nil }

// reluctant has both methods on the pointer.
type reluctant struct{ n int }

func (r *reluctant) MarshalBinary() ([]byte, error) { return []byte{byte(r.n)}, nil }
func (r *reluctant) UnmarshalBinary(b []byte) error { r.n = int(b[0]); return nil }

type half struct{ N int }

func (half) MarshalBinary() ([]byte, error) { return nil, nil }

type mixed struct{ N int }

func (mixed) MarshalBinary() ([]byte, error) { return nil, nil }
func (*mixed) GobDecode([]byte) error        { return nil }

type hidden struct {
	Shown int
	inner int
}

type embedsHandle struct {
	Handle
	Name string
}

type embedsTime struct {
	*time.Time
	N int
}

type generic[T any] struct {
	time.Time
	Value T
}

// ownMethods embeds a time, and says itself how it is encoded.
type ownMethods[T any] struct {
	time.Time
	Value T
}

func (o ownMethods[T]) GobEncode() ([]byte, error) { return nil, nil }
func (o *ownMethods[T]) GobDecode(b []byte) error  { return nil }

type onlyTime struct{ time.Time }

func TestArgumentsThatArriveAsTheyAre(t *testing.T) {
	for _, typ := range []reflect.Type{
		reflect.TypeFor[int](), reflect.TypeFor[struct{}](), reflect.TypeFor[plain](), reflect.TypeFor[Tree](), reflect.TypeFor[list](),
		reflect.TypeFor[time.Time](), reflect.TypeFor[*shm.Region](), reflect.TypeFor[[]*shm.Region](), reflect.TypeFor[map[string]Handle](),
		reflect.TypeFor[*Handle](), reflect.TypeFor[[2]reluctant](), reflect.TypeFor[map[string]*reluctant](), reflect.TypeFor[map[int][]reluctant](),
		reflect.TypeFor[ownMethods[int]](), reflect.TypeFor[onlyTime](), reflect.TypeFor[time.Duration](),
	} {
		if err := checkArgument(typ); err != nil {
			t.Errorf("%v: %v", typ, err)
		}
	}
}

func TestArgumentsThatWouldBeLostAreRefused(t *testing.T) {
	for _, c := range []struct {
		typ  reflect.Type
		path string
		why  string
	}{
		{reflect.TypeFor[hidden](), "proc.hidden.inner", "unexported"},
		{reflect.TypeFor[map[string][]hidden](), "map[string][]proc.hidden[value][].inner", "unexported"},
		{reflect.TypeFor[struct{ Deep [2]struct{ H hidden } }](), ".Deep[].H.inner", "unexported"},
		{reflect.TypeFor[struct{ hidden }](), ".hidden", "unexported"},
		{reflect.TypeFor[*int](), "*int", "pointer"},
		{reflect.TypeFor[struct{ Next *Tree }](), ".Next", "pointer"},
		{reflect.TypeFor[**shm.Region](), "**shm.Region", "pointer"},
		{reflect.TypeFor[struct{ F func() }](), ".F", "function"},
		{reflect.TypeFor[struct{ C <-chan int }](), ".C", "channel"},
		{reflect.TypeFor[any](), "interface {}", "interface"},
		{reflect.TypeFor[struct{ E error }](), ".E", "interface"},
		{reflect.TypeFor[[]gob.GobEncoder](), "[]", "interface"},
		{reflect.TypeFor[struct{ P uintptr }](), ".P", "address"},
		{reflect.TypeOf(reflect.ValueOf(new(int)).UnsafePointer()), "unsafe.Pointer", "address"},
		{reflect.TypeFor[struct{ H half }](), ".H", "one of MarshalBinary and UnmarshalBinary"},
		{reflect.TypeFor[mixed](), "proc.mixed", "one of GobEncode and GobDecode"},
		{reflect.TypeFor[map[string]reluctant](), "[value]", "through a pointer"},
		{reflect.TypeFor[map[string][2]reluctant](), "[value][]", "through a pointer"},
		{reflect.TypeFor[embedsHandle](), "proc.embedsHandle", "embedded Handle alone"},
		{reflect.TypeFor[embedsTime](), "proc.embedsTime", "embedded Time alone"},
		{reflect.TypeFor[struct{ G *generic[int] }](), ".G", "embedded Time alone"},
		{reflect.TypeFor[regexp.Regexp](), "regexp.Regexp.expr", "unexported"}, // has methods for text, which gob does not call
	} {
		err := checkArgument(c.typ)
		var typeError *shm.TypeError
		if !errors.Is(err, shm.ErrNotEncodable) || !errors.As(err, &typeError) {
			t.Errorf("%v: %v", c.typ, err)
			continue
		}
		if !strings.HasSuffix(typeError.Path, c.path) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%v: %v, want %s at %s", c.typ, err, c.why, c.path)
		}
	}
}

// What the check lets through has to survive gob.
func TestWhatTheCheckLetsThroughSurvives(t *testing.T) {
	now := time.Now().Round(0)
	survives(t, plain{
		N: -1, F: 2i, S: []string{"", "b"}, A: [2][]byte{{1}, {0}}, M: map[string][]Tree{"x": {{Kids: []Tree{{}}}}, "y": nil},
		P: new(time.Time), Addr: netip.MustParseAddr("::1"), Big: big.NewInt(0),
	})
	survives(t, struct{}{})
	survives(t, plain{})
	survives[*shm.Region](t, nil)
	survives[*time.Time](t, &now)
	survives(t, []Handle{{0}, {1}})
	survives(t, map[string]Handle{"a": {2}, "zero": {}})
	survives(t, map[string]*reluctant{"a": {2}})
	survives(t, [2]reluctant{{1}, {0}})
	survives(t, list{nil, {nil}})
	survives(t, map[string]int{})
	survives(t, url.Values{"a": {""}})
}

func survives[A any](t *testing.T, a A) {
	t.Helper()
	if err := checkArgument(reflect.TypeFor[A]()); err != nil {
		t.Errorf("%T: %v", a, err)
	}
	b, err := (&Func[A]{}).encode(a)
	if err != nil {
		t.Errorf("%T: %v", a, err)
		return
	}
	var e envelope[A]
	if err := gob.NewDecoder(bytes.NewReader(b)).Decode(&e); err != nil {
		t.Errorf("%T: %v", a, err)
	} else if !reflect.DeepEqual(a, e.Argument) {
		t.Errorf("sent %+v, got %+v", a, e.Argument)
	}
}

var (
	refused = Define("refused", func(context.Context, hidden) error { return nil })
	taken   = Define("taken", func(context.Context, int) error { return nil })
)

func TestDefineRemembersWhatItRefuses(t *testing.T) {
	_, err := refused.Start(t.Context(), hidden{})
	want := []string{"proc: start refused: ", "argument_test.go:", "proc.hidden.inner is unexported", "export it"}
	for _, w := range want {
		if !errors.Is(err, shm.ErrNotEncodable) || !strings.Contains(err.Error(), w) {
			t.Errorf("Start() = %v, want %q in it", err, w)
		}
	}
	if err := refused.Run(t.Context(), hidden{}); !errors.Is(err, shm.ErrNotEncodable) {
		t.Errorf("Run() = %v", err)
	}
}

func TestDefinePanics(t *testing.T) {
	panics := func(f func()) (text string) {
		defer func() { text = fmt.Sprint(recover()) }()
		f()
		return ""
	}
	twice := panics(func() { Define("taken", func(context.Context, string) error { return nil }) })
	if strings.Count(twice, "argument_test.go:") != 2 || !strings.Contains(twice, taken.place) || !strings.Contains(twice, `"taken"`) {
		t.Errorf("a second function of a name: %s", twice)
	}
	if got := panics(func() { Define("", func(context.Context, string) error { return nil }) }); !strings.Contains(got, "without a name") {
		t.Errorf("no name: %s", got)
	}
	if got := panics(func() { Define[int]("nil", nil) }); !strings.Contains(got, "without a function") {
		t.Errorf("no function: %s", got)
	}
}

func TestFunctionDefinedTooLateIsRefused(t *testing.T) {
	f := Define(t.Name(), func(context.Context, int) error { return nil })
	defer func() {
		definitions.mu.Lock()
		defer definitions.mu.Unlock()
		delete(definitions.byName, t.Name())
	}()
	if _, err := f.Start(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "after proc.Main") || !strings.Contains(err.Error(), "argument_test.go:") {
		t.Errorf("Start() = %v", err)
	}
}

func TestMessage(t *testing.T) {
	m := &message{Function: "f", Name: "n", Daemon: true, Graceful: 3, MaxProcs: 4, Regions: []string{"a", ""}, Argument: make([]byte, 100_000)}
	frame, err := m.frame()
	if err != nil {
		t.Fatal(err)
	}
	got, err := readMessage(bytes.NewReader(frame))
	if err != nil || !reflect.DeepEqual(m, got) {
		t.Errorf("sent %+v, got %+v, %v", m, got, err)
	}
	for _, n := range []int{0, 1, 8, 15, 16, 17, len(frame) - 1} {
		if _, err := readMessage(bytes.NewReader(frame[:n])); err == nil {
			t.Errorf("%d of %d bytes were read without an error", n, len(frame))
		}
	}
	copy(frame, "shmproc9")
	if _, err := readMessage(bytes.NewReader(frame)); err == nil || !strings.Contains(err.Error(), "shmproc9") {
		t.Errorf("another version: %v", err)
	}
}
