package shm_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// closedRegion makes a region's file that no process has attached.
func closedRegion(tb testing.TB) (path string) {
	tb.Helper()
	path = filepath.Join(memoryDir(tb), "r")
	succeed(tb, start(tb, makeAndEnd, path))
	return path
}

var makeAndEnd = proc.Define("makeAndEnd", func(_ context.Context, path string) error {
	_, err := shm.CreateFile(path, shm.Size(5000), shm.Limit(1<<20))
	return err
})

func patch(tb testing.TB, path string, off int64, b []byte) {
	tb.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		tb.Fatal(err)
	}
}

func contents(tb testing.TB, path string) []byte {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// use does with an open region what can be done without knowing what is in it. It reads every byte.
func use(r *shm.Region) error {
	b, err := r.Bytes(r.Data(), r.Size())
	if err != nil {
		return err
	}
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	_, err = shm.At[uint64](r, shm.Offset(r.Root().Load()))
	if err != nil && !errors.Is(err, shm.ErrCorrupt) {
		return err
	}
	r.Scan()
	r.Settled(shm.Token(16))
	// Whatever is noted as given back, it can be had again.
	if _, err := r.Release(r.Data()+100, r.Size()-100); err != nil && !errors.Is(err, shm.ErrNoSpace) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if err := r.Reserve(r.Data(), r.Size()); err != nil {
		return err
	}
	clear(b)
	err = r.Grow(r.Size() + 4096)
	if errors.Is(err, shm.ErrNoSpace) { // its limit
		err = nil
	}
	return errors.Join(err, r.Exclusive(func() error { return nil }), r.Close())
}

func TestEveryBitOfTheImmutableHeaderIsGuarded(t *testing.T) {
	path := closedRegion(t)
	head := contents(t, path)[:4096]
	for i := range shm.ImmutableEnd {
		b := head[i] ^ 1<<(rand.IntN(8))
		patch(t, path, i, []byte{b})
		r, err := shm.OpenFile(path)
		if !errors.Is(err, shm.ErrCorrupt) && !errors.Is(err, shm.ErrVersion) {
			t.Errorf("byte %d is %#x instead of %#x: %v, %v, want ErrCorrupt or ErrVersion", i, b, head[i], r, err)
		}
		patch(t, path, i, head[i:i+1])
	}
	r, err := shm.OpenFile(path)
	if err := use(must(t, r, err)); err != nil {
		t.Errorf("the header as it was: %v", err)
	}
}

// The words of the header that change, and the slots, hold anything at all.
func TestScribbledWordsAtRest(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	dir := memoryDir(t)
	opened := 0
	for i := range 200 {
		name := fmt.Sprint("r", i)
		path := filepath.Join(dir, name)
		r, err := shm.CreateFile(path, shm.Size(5000), shm.Limit(1<<20))
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		for range 1 + rnd.IntN(20) {
			off := shm.MutableStart + rnd.Int64N(shm.SlotsStart+128*128-shm.MutableStart)/8*8
			switch i % 4 {
			case 0: // only words of the header
				off = shm.MutableStart + rnd.Int64N(shm.SlotsStart-shm.MutableStart)/8*8
			case 1:
				off = shm.SizeOffset
			}
			v := rnd.Uint64() >> rnd.IntN(64)
			patch(t, path, off, binary.NativeEndian.AppendUint64(nil, v))
		}
		if r, err = shm.OpenFile(path); err == nil {
			opened++
			err = use(r)
			r.Close()
		}
		if err != nil && !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("seed %d, turn %d: %v, want nil or ErrCorrupt", seed, i, err)
		}
		if err := shm.Remove(name, shm.Dir(dir)); err != nil {
			t.Fatal(err)
		}
	}
	if opened == 0 || opened == 200 {
		t.Errorf("%d of 200 could be opened: the test shows nothing", opened)
	}
}

func TestScribbledWordsWhileOpen(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	for i := range 60 {
		r := anonymous(t, shm.Size(5000), shm.Limit(1<<20))
		words := shm.Words(r)
		for range 50 {
			words[rnd.IntN(len(words))].Store(rnd.Uint64() >> rnd.IntN(64))
			shm.SizeWord(r).Store(rnd.Uint64() >> rnd.IntN(64))
			b, err := r.Bytes(r.Data(), r.Size())
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			for j := 0; j < len(b); j += 512 {
				b[j]++
			}
			r.Scan()
		}
		if err := use(r); err != nil {
			t.Errorf("seed %d, turn %d: %v", seed, i, err)
		}
	}
}

// The end of the data area is a word that everybody can write to. What it says is believed as far as
// there is a file, and it never shrinks what this process has used.
func TestAWrongSizeMakesNoPointerThatFaults(t *testing.T) {
	opts := []shm.Option{shm.Size(8192)}
	if wholeFiles {
		opts = append(opts, shm.Limit(8192)) // there is a file as far as the limit
	}
	r := anonymous(t, opts...)
	for _, said := range []uint64{0, 1, shm.DataStart, shm.DataStart + 1, shm.DataStart + 8193, 1 << 30, 64 << 30, 1 << 63, 1<<64 - 1} {
		shm.SizeWord(r).Store(said)
		if r.Size() != 8192 {
			t.Errorf("with %d in the word: size %d, want 8192", said, r.Size())
		}
		if _, err := shm.At[uint64](r, r.Data()+8192-8); err != nil {
			t.Errorf("with %d in the word: %v", said, err)
		}
		if _, err := shm.At[uint64](r, r.Data()+8192); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("with %d in the word: behind the end: %v, want ErrCorrupt", said, err)
		}
		if _, err := r.Bytes(r.Data(), 8193); !errors.Is(err, shm.ErrCorrupt) {
			t.Errorf("with %d in the word: behind the end: %v, want ErrCorrupt", said, err)
		}
	}
	if wholeFiles {
		return
	}
	if err := r.Grow(16384); err != nil || r.Size() != 16384 {
		t.Errorf("Grow: %v, size %d, want 16384", err, r.Size())
	}
	b, err := r.Bytes(r.Data(), 16384)
	if err != nil {
		t.Fatal(err)
	}
	clear(b)
}

func TestFilesThatAreNoRegions(t *testing.T) {
	dir := diskDir(t)
	whole := contents(t, closedRegion(t))
	for name, c := range map[string]struct {
		data []byte
		says string
	}{
		"empty":       {nil, "has 0 bytes"},
		"short":       {whole[:100], "has 100 bytes"},
		"header only": {whole[:4096], "it was cut"},
		"cut":         {whole[:shm.DataStart+4999], "it was cut"},
		"no data":     {whole[:shm.DataStart], "it was cut"},
		"text":        {[]byte(strings.Repeat("hello world ", 1000)), "not with the mark of a region"},
		"zeros":       {make([]byte, len(whole)), "not with the mark of a region"},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, opts := range [][]shm.Option{nil, {shm.ReadOnly()}} {
			_, err := shm.OpenFile(path, opts...)
			if !errors.Is(err, shm.ErrCorrupt) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: %v, want ErrCorrupt with the path and %q", name, err, c.says)
			}
		}
		if after := contents(t, path); string(after) != string(c.data) {
			t.Errorf("%s: the file was changed", name)
		}
	}
}

func TestRegionsOfOtherPrograms(t *testing.T) {
	whole := contents(t, closedRegion(t))
	u32 := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	u64 := func(v uint64) []byte { return binary.NativeEndian.AppendUint64(nil, v) }
	word := uint32(unsafe.Sizeof(uintptr(0)))
	reversed := slices.Clone(whole[:8])
	slices.Reverse(reversed)
	for name, c := range map[string]struct {
		off  int64
		data []byte
		err  error
		says string
	}{
		"newer layout":      {shm.VersionOffset, u32(3), shm.ErrVersion, "layout version 3, this program knows 2"},
		"older layout":      {shm.VersionOffset, u32(1), shm.ErrVersion, "layout version 1, this program knows 2"},
		"other word size":   {shm.WordSizeOffset, u32(12 - word), shm.ErrVersion, fmt.Sprintf("made by a %d-bit program, this one is a %d-bit one", 8*(12-word), 8*word)},
		"other byte order":  {shm.MagicOffset, reversed, shm.ErrVersion, "another byte order"},
		"unknown feature":   {shm.FeaturesOffset, u64(1 << 40), shm.ErrVersion, "needs features 0x10000000000"},
		"limit of 0":        {shm.LimitOffset, u64(0), shm.ErrCorrupt, "limit 0"},
		"limit too large":   {shm.LimitOffset, u64(1 << 62), shm.ErrCorrupt, "limit 4611686018427387904"},
		"limit below size":  {shm.LimitOffset, u64(shm.DataStart + 1), shm.ErrCorrupt, "bytes long"},
		"not ready":         {shm.MutableStart, u32(0), shm.ErrCorrupt, "state 0"},
		"size of nothing":   {shm.SizeOffset, u64(0), shm.ErrCorrupt, "it was cut"},
		"size above limit":  {shm.SizeOffset, u64(1<<64 - 1), shm.ErrCorrupt, "it was cut"},
		"larger pages":      {shm.PageSizeOffset, u32(65536), nil, ""},
		"smaller pages":     {shm.PageSizeOffset, u32(512), nil, ""},
		"nothing but valid": {0, nil, nil, ""},
	} {
		data := slices.Clone(whole)
		copy(data[c.off:], c.data)
		shm.Seal(data)
		path := filepath.Join(diskDir(t), "r")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := shm.OpenFile(path)
		if c.err == nil {
			if err := use(must(t, r, err)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %v with the path and %q", name, err, c.err, c.says)
		}
		if both := errors.Is(err, shm.ErrVersion) && errors.Is(err, shm.ErrCorrupt); both {
			t.Errorf("%s: %v is two errors", name, err)
		}
	}
}

// A copied file has holes where nothing was written yet. Open fills them, or a full disk would answer
// an access with a signal.
func TestTheHolesOfACopyAreFilled(t *testing.T) {
	from, to := filepath.Join(memoryDir(t), "r"), filepath.Join(memoryDir(t), "copy")
	r, err := shm.CreateFile(from, shm.Size(1<<20))
	must(t, r, err).Close()
	whole := contents(t, from)
	if err := os.WriteFile(to, whole[:8192], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(to, int64(len(whole))); err != nil {
		t.Fatal(err)
	}
	before := blocks(t, to)
	r, err = shm.OpenFile(to)
	must(t, r, err)
	if after := blocks(t, to); after*512 < 1<<20 || before*512 >= 1<<20 {
		t.Errorf("%d blocks of 512 bytes after Open, %d before", after, before)
	}
	if n := shm.SlotsOf(r, shm.Self()); n != 1 {
		t.Errorf("this process stands in %d slots of the copy", n)
	}
}

// With -fuzz, say -fuzzminimizetime 1x: what is new here depends on chance too, and Go would spend its
// first minute on making one input shorter.
func FuzzOpen(f *testing.F) {
	path := filepath.Join(diskDir(f), "seed")
	r, err := shm.CreateFile(path, shm.Size(5000), shm.Limit(1<<20))
	if err != nil {
		f.Fatal(err)
	}
	r.Close()
	whole := contents(f, path)
	head := whole[:shm.SlotsStart+512]
	f.Add(head, uint32(len(whole)), false)
	f.Add(head, uint32(len(whole)-1), false)
	f.Add(head[:4096], uint32(4096), true)
	f.Add(head[:0], uint32(0), false)
	f.Add([]byte("hello"), uint32(5), false)
	for _, off := range []int64{shm.VersionOffset, shm.WordSizeOffset, shm.LimitOffset, shm.LimitOffset + 5, shm.FeaturesOffset, shm.SizeOffset, shm.SizeOffset + 2, shm.MutableStart, shm.SlotsStart, shm.SlotsStart + 8} {
		broken := slices.Clone(head)
		broken[off] ^= 0x81
		f.Add(broken, uint32(len(whole)), true)
	}
	f.Fuzz(func(t *testing.T, head []byte, size uint32, seal bool) {
		if len(head) > shm.DataStart {
			return
		}
		if seal && len(head) >= 4096 {
			shm.Seal(head)
		}
		path := filepath.Join(memoryDir(t), "r")
		if err := os.WriteFile(path, head, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, int64(size%(4<<20))); err != nil {
			t.Fatal(err)
		}
		r, err := shm.OpenFile(path)
		if err == nil {
			err = use(r)
			r.Close()
		}
		if err != nil && !errors.Is(err, shm.ErrCorrupt) && !errors.Is(err, shm.ErrVersion) && !errors.Is(err, shm.ErrNoSpace) {
			t.Errorf("%v: want nil, ErrCorrupt, ErrVersion or ErrNoSpace", err)
		}
		os.Remove(path)
	})
}

// The layout is a format: programs of different builds share regions. If this test fails the change
// needs a new layoutVersion.
func TestTheLayoutIsAFormat(t *testing.T) {
	var got []string
	for _, f := range shm.Fields() {
		got = append(got, fmt.Sprintf("%-28s %5d %5d", f.Name, f.Offset, f.Size))
	}
	for _, name := range slices.Sorted(maps.Keys(shm.Constants())) {
		got = append(got, fmt.Sprintf("%-28s %#x", name, shm.Constants()[name]))
	}
	if diff := cmp.Diff(strings.Split(strings.TrimSpace(goldenLayout), "\n"), got); diff != "" {
		t.Errorf("the format of regions has changed (-want +got):\n%s", diff)
	}
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		if head := contents(t, closedRegion(t)); string(head[:8]) != "shmkit\r\n" {
			t.Errorf("a region begins with %q", head[:8])
		}
	}
}

const goldenLayout = `
header                           0  4096
header.magic                     0     8
header.version                   8     4
header.byteOrder                12     4
header.wordSize                 16     4
header.pageSize                 20     4
header.incompatible             24     8
header.compatible               32     8
header.flags                    40     8
header.id                       48    16
header.limit                    64     8
header.hashSeed                 72     8
header.created                  80     8
header.creator                  88     8
header.slotCount                96     4
header.slotSize                100     4
header.holdingSize             104     4
header.nameLen                 108     4
header.name                    112   200
header.checksum               2048     8
header.state                  2176     4
header.size                   2304     8
header.root                   2432     8
header.deaths                 2560     4
header.scanned                2688     8
header.press                  2816     8
header.boot                   2944    16
header.died                   3072   512
header.died[1]                3088    16
header.died[0].token          3072     8
header.died[0].pid            3080     8
header.holes                  3584   512
slot                             0   128
slot.token                       0     8
slot.state                       8     8
slot.pid                        16     4
slot.gen                        20     4
slot.started                    24     8
slot.pidns                      32     8
slot.attached                   40     8
slot.bell                       48     4
slot.flags                      52     4
slot.lanes                      72     8
slot.leases                     80     8
slot.busy                       88     8
slot.overflow                   96     8
slot.pressed                   104     8
holdings                         0  4096
holdings.waiting                 0    64
holdings.waiting[1]             16    16
holdings.waiting[0].lock         0     8
holdings.waiting[0].since        8     8
holdings.held                   64  2048
holdings.held[1]               128    64
holdings.held[0].Word           64     8
holdings.held[0].Words          72    56
holdings.total                2112    64
holdings.tallies              2176  1920
holdings.tallies[1]           2240    64
holdings.tallies[0].lock      2176     8
holdings.tallies[0].waits     2184     8
holdings.tallies[0].waited    2192     8
holdings.tallies[0].longest   2200     8
holdings.tallies[0].takeovers  2208     8
holdings.tallies[0].took      2216     8
spareTable                       0  4096
spareTable.owners                0  4088
spareTable.used               4088     8
sparePage                        0  4096
sparePage.next                   0     8
sparePage.held                  64  4032
sparePage.held[1]              128    64
sparePage.held[0].Word          64     8
sparePage.held[0].Words         72    56
ATTACHED                     0x1
DRAINING                     0x4
UNDOING                      0x2
UNDONE                       0x3
checksum of 1..9             0x995dc9bbdf1939fa
data                         0x309000
exclusive byte               0x3ffffffffffffffe
first slot byte              0x4000000000000000
growth byte                  0x3fffffffffffffff
holdings                     0xa000
magic                        0xa0d74696b6d6873
owners of spares             0x9000
restart byte                 0x3ffffffffffffffd
slot count                   0x100
slots                        0x1000
spares                       0x10a000
version                      0x2
`
