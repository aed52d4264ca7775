package shm_test

import (
	"errors"
	"reflect"
	"strings"
	stdsync "sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

type person struct {
	Name string
}

type account struct {
	Balance int64
	Owner   struct {
		ID   uint32
		Pets [3]person
	}
}

func layout[T any](t *testing.T) *shm.Layout {
	t.Helper()
	l, err := shm.LayoutOf(reflect.TypeFor[T]())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLayoutDescribesPlainData(t *testing.T) {
	type inner struct {
		X int8
		_ [3]byte
		Y float32
	}
	type outer struct {
		A int64
		B [4]int32
		C inner
		d bool
	}
	l := layout[outer](t)
	want := "struct{A int64 @0; B [4]int32 @8; C struct{X int8 @0; _ [3]uint8 @1; Y float32 @4} @24; d bool @32} size 40 align 8"
	if unsafe.Sizeof(uintptr(0)) == 4 {
		want = strings.Replace(want, "size 40 align 8", "size 36 align 4", 1)
	}
	if l.Text != want {
		t.Errorf("text is\n%s, want\n%s", l.Text, want)
	}
	if l.Size != uint64(unsafe.Sizeof(outer{})) || l.Align != uint64(unsafe.Alignof(outer{})) {
		t.Errorf("size %d align %d", l.Size, l.Align)
	}
	if l.HasLock {
		t.Error("HasLock without a lock")
	}
	if again := layout[outer](t); again != l {
		t.Error("the second call made a second layout")
	}
}

func TestFingerprintTellsLayoutsApart(t *testing.T) {
	type a struct{ X, Y int32 }
	type renamed struct{ X, Y int32 }
	type swapped struct{ Y, X int32 }
	type unsigned struct {
		X int32
		Y uint32
	}
	type narrow struct{ X int32 }
	same := layout[a](t).Fingerprint
	if layout[renamed](t).Fingerprint != same {
		t.Error("the name of a type counts; it should not")
	}
	for name, other := range map[string]uint64{
		"swapped fields": layout[swapped](t).Fingerprint,
		"other type":     layout[unsigned](t).Fingerprint,
		"field missing":  layout[narrow](t).Fingerprint,
		"array":          layout[[2]int32](t).Fingerprint,
		"number":         layout[int64](t).Fingerprint,
	} {
		if other == same {
			t.Errorf("%s: same fingerprint", name)
		}
	}
	if layout[int](t).Fingerprint == layout[int64](t).Fingerprint {
		t.Error("int, of the machine's width, is taken for int64")
	}
}

// The fingerprints are stored in regions: they must not change between versions.
func TestFingerprintsAreAFormat(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 || *(*byte)(unsafe.Pointer(&[]uint16{1}[0])) != 1 {
		t.Skip("the figures are for 64 bits, little-endian")
	}
	type point struct {
		X, Y float64
		Hits [2]uint16
	}
	for _, c := range []struct {
		l    *shm.Layout
		want uint64
	}{
		{layout[int64](t), 0x46b4441bced6780f},
		{layout[point](t), 0x3497f01095fcfd40},
	} {
		if c.l.Fingerprint != c.want {
			t.Errorf("%s: fingerprint %#x, want %#x", c.l.Text, c.l.Fingerprint, c.want)
		}
	}
}

func TestLocksAndAtomicsAreMarked(t *testing.T) {
	type guarded struct {
		N    int64
		Deep [2]struct{ Mu shmsync.Mutex }
	}
	type counting struct{ Hits atomic.Uint64 }
	if l := layout[guarded](t); !l.HasLock || !strings.Contains(l.Text, "Mu shmsync.Mutex @0") {
		t.Errorf("HasLock %v in %s", l.HasLock, l.Text)
	}
	if l := layout[counting](t); !l.HasLock || !strings.Contains(l.Text, "Hits atomic.Uint64 @0") {
		t.Errorf("HasLock %v in %s", l.HasLock, l.Text)
	}
}

func TestLayoutRefusesWhatMeansNothingElsewhere(t *testing.T) {
	for _, c := range []struct {
		of               reflect.Type
		path, substitute string
		is               error
	}{
		{reflect.TypeFor[account](), "shm_test.account.Owner.Pets[].Name", "PutText", shm.ErrNotPlain},
		{reflect.TypeFor[struct{ Next *int }](), "struct { Next *int }.Next", "Link", shm.ErrNotPlain},
		{reflect.TypeFor[*int](), "*int", "Link", shm.ErrNotPlain},
		{reflect.TypeFor[struct{ M map[int]int }](), ".M", "Link", shm.ErrNotPlain},
		{reflect.TypeFor[struct{ S []int32 }](), ".S", "[N]int32", shm.ErrNotPlain},
		{reflect.TypeFor[struct{ S []byte }](), ".S", "[N]byte", shm.ErrNotPlain},
		{reflect.TypeFor[struct{ E error }](), ".E", "data", shm.ErrNotPlain},
		{reflect.TypeFor[struct{ F func() }](), ".F", "data", shm.ErrNotPlain},
		{reflect.TypeFor[struct{ C chan int }](), ".C", "data", shm.ErrNotPlain},
		{reflect.TypeFor[struct{ P unsafe.Pointer }](), ".P", "Offset", shm.ErrNotPlain},
		{reflect.TypeFor[struct{ P uintptr }](), ".P", "Offset", shm.ErrNotPlain},
		{reflect.TypeFor[struct{ At time.Time }](), ".At", "UnixNano", shm.ErrNotPlain},
		{reflect.TypeFor[struct{ P atomic.Pointer[int] }](), ".P", "atomic.Uint64", shm.ErrNotPlain},
		{reflect.TypeFor[struct{ V atomic.Value }](), ".V", "atomic.Uint64", shm.ErrNotPlain},
		{reflect.TypeFor[struct{ Z [0]*int }](), ".Z[]", "Link", shm.ErrNotPlain},
		{reflect.TypeFor[struct{ mu stdsync.Mutex }](), ".mu", syncImport, shm.ErrStandardSync},
		{reflect.TypeFor[struct{ mu stdsync.RWMutex }](), ".mu", syncImport, shm.ErrStandardSync},
		{reflect.TypeFor[struct{ w stdsync.WaitGroup }](), ".w", syncImport, shm.ErrStandardSync},
		{reflect.TypeFor[struct{ o [2]stdsync.Once }](), ".o[]", syncImport, shm.ErrStandardSync},
		{reflect.TypeFor[struct{ c stdsync.Cond }](), ".c", syncImport, shm.ErrStandardSync},
		{reflect.TypeFor[struct{ m stdsync.Map }](), ".m", syncImport, shm.ErrStandardSync},
		{reflect.TypeFor[struct{ p stdsync.Pool }](), ".p", syncImport, shm.ErrStandardSync},
		{nil, "T", "", shm.ErrNotPlain},
	} {
		_, err := shm.LayoutOf(c.of)
		var te *shm.TypeError
		if !errors.As(err, &te) || !errors.Is(err, c.is) {
			t.Errorf("%v: error %v, want a TypeError that is %v", c.of, err, c.is)
			continue
		}
		if !strings.HasSuffix(te.Path, c.path) {
			t.Errorf("%v: path %q, want it to end with %q", c.of, te.Path, c.path)
		}
		if !strings.Contains(te.Want, c.substitute) {
			t.Errorf("%v: %q does not name %q", c.of, te.Want, c.substitute)
		}
	}
}

const syncImport = `import shmsync "github.com/shmkit/shmkit/sync"`

func TestStandardMutexIsRefusedWithTheWayOut(t *testing.T) {
	type T struct{ mu stdsync.Mutex }
	_, err := shm.LayoutOf(reflect.TypeFor[T]())
	want := "T.mu is the standard sync.Mutex, which works in one process only; " + syncImport
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error is\n%v, want it to say\n%s", err, want)
	}
}
