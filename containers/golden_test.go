package containers

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

var writeGolden = flag.Bool("write-golden", false, "write the golden file of the layout anew, with a new layout version")

const formatChange = "this is a format change: raise the layout version (rootVersion in manager.go, and objectFormat in object.go for what is in objects)," +
	" since programs built before and after it would share regions; then write the golden file anew with: go test ./containers -run Golden -write-golden"

const (
	goldenFile  = "testdata/containers.hex"
	goldenSize  = 256 << 10
	goldenToken = 0x0123456789abcde0 // of the process that made all of it
	headerSize  = 4096
	rootWord    = 2432 // of the region's header
	slotSize    = 128
	lanesWord   = 72   // of a slot
	bootWords   = 2944 // so that the golden region is always from before a restart
)

// onlyHere skips a test of bytes that machines of another kind write differently.
func onlyHere(tb testing.TB) {
	if bits.UintSize != 64 || binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		tb.Skip("the golden file is that of 64-bit little-endian programs; others have formats of their own")
	}
}

// dump shows the lines of 16 bytes of b that are not all zero.
func dump(b []byte, from, to int) string {
	var s strings.Builder
	for at := from; at < to; at += 16 {
		if line := b[at:min(at+16, to)]; len(bytes.Trim(line, "\x00")) != 0 {
			fmt.Fprintf(&s, "%06x % x\n", at, line)
		}
	}
	return s.String()
}

// A golden region is one as it was when the format was decided.
type golden struct {
	file    string
	furnish func(m *Manager) error
	read    func(m *Manager) (string, error)
	text    string // what read returns
}

var (
	goldenContainers = golden{goldenFile, furnish, read, goldenText}
	goldenQueues     = golden{"testdata/queues.hex", furnishQueues, readQueues, goldenQueuesText}
)

// undump makes size bytes of what dump has shown. Lines that begin with # are for people.
func undump(tb testing.TB, file string, size int) []byte {
	tb.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	b := make([]byte, size)
	for line := range strings.Lines(string(text)) {
		if line[0] == '#' {
			continue
		}
		offset, data, _ := strings.Cut(strings.TrimSpace(line), " ")
		at, err := strconv.ParseInt(offset, 16, 64)
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := hex.Decode(b[at:], []byte(strings.ReplaceAll(data, " ", ""))); err != nil {
			tb.Fatal(err)
		}
	}
	return b
}

type goldenPlace struct {
	Count [3]int32
	Rate  float64
	On    bool
}

// furnish makes one of everything.
func furnish(m *Manager) error {
	var errs []error
	check := func(err error) { errs = append(errs, err) }
	n, err := NewSharedInt(m, -5, Name("number"))
	check(err)
	n.With(func(v *int64) { *v++ })
	_, err = NewAtomicInt(m, 1<<40, Name("atomic"))
	check(err)
	lock, err := New[shmsync.Mutex](m, Name("lock"))
	check(err)
	v, err := NewShared(m, goldenPlace{[3]int32{1, 2, 3}, 0.5, true}, Name("value"), WithMutex(lock))
	check(err)
	v.Store(goldenPlace{[3]int32{4, 5, 6}, -2.5, true})
	small, err := NewSharedArrayOf(m, []int16{1, -2, 3}, Name("array"))
	check(err)
	small.Set(2, 33)
	large, err := NewSharedArrayOf(m, []goldenPlace{{Rate: 1}, {Rate: 2}}, Name("large array"))
	check(err)
	large.With(func(p []goldenPlace) { p[1].On = true })
	large.Set(0, goldenPlace{Rate: 11})
	l, err := NewSharedList[int64](m, Name("list"))
	check(err)
	for i := range int64(5) {
		check(l.Append(i * i))
	}
	l.Pop()
	texts, err := NewSharedList[string](m, Name("Bäckerei"))
	check(err)
	for _, s := range []string{"", "short", "long, which is to say of more than fifteen bytes"} {
		check(texts.Append(s))
	}
	place, err := New[goldenPlace](m, Name("place"), Align(512))
	check(err)
	*place.Ptr() = goldenPlace{Count: [3]int32{7, 8, 9}}
	gone, err := NewShared(m, [40]int64{39: 1}, Name("gone"))
	check(err)
	check(gone.Destroy())
	return errors.Join(errs...)
}

// read returns what stands in a region that furnish has made.
func read(m *Manager) (string, error) {
	number, err1 := Find[SharedInt](m, "number")
	atomic, err2 := Find[AtomicInt](m, "atomic")
	lock, err3 := Find[Ref[shmsync.Mutex]](m, "lock")
	value, err4 := Find[Shared[goldenPlace]](m, "value")
	array, err5 := Find[SharedArray[int16]](m, "array")
	large, err6 := Find[SharedArray[goldenPlace]](m, "large array")
	list, err7 := Find[SharedList[int64]](m, "list")
	texts, err8 := Find[SharedList[string]](m, "Bäckerei")
	place, err9 := Find[Ref[goldenPlace]](m, "place")
	if err := errors.Join(err1, err2, err3, err4, err5, err6, err7, err8, err9); err != nil {
		return "", err
	}
	var s strings.Builder
	value.Lock() // is the lock of the name
	fmt.Fprintln(&s, number.Load(), atomic.Load(), lock.Ptr().TryLock(), value.Load())
	value.Unlock()
	for i, v := range array.All() {
		fmt.Fprint(&s, i, ": ", v, ", ")
	}
	for i, v := range large.All() {
		fmt.Fprint(&s, i, ": ", v, ", ")
	}
	for i, v := range list.All() {
		fmt.Fprint(&s, i, ": ", v, ", ")
	}
	for i, v := range texts.All() {
		fmt.Fprintf(&s, "%d: %q, ", i, v)
	}
	fmt.Fprintln(&s, *place.Ptr())
	return s.String(), nil
}

const goldenText = `-4 1099511627776 false {[4 5 6] -2.5 true}
0: 1, 1: -2, 2: 33, 0: {[0 0 0] 11 false}, 1: {[0 0 0] 2 true}, 0: 0, 1: 1, 2: 4, 3: 9, 0: "", 1: "short", 2: "long, which is to say of more than fifteen bytes", {[7 8 9] 0 false}
`

// openGolden opens a Manager on a file with these bytes.
func openGolden(tb testing.TB, b []byte) (m *Manager, path string) {
	tb.Helper()
	path = filepath.Join(regionDir(tb), "r")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		tb.Fatal(err)
	}
	r, err := shm.OpenFile(path)
	if err == nil {
		m, err = NewManager(r)
	}
	if err != nil {
		tb.Fatalf("%v; %s", err, formatChange)
	}
	tb.Cleanup(func() { m.Close() })
	return m, path
}

// dataStart is where the data area begins, of every region.
func dataStart(tb testing.TB) int {
	r, err := shm.Heap()
	if err != nil {
		tb.Fatal(err)
	}
	defer r.Close()
	return int(r.Data())
}

func TestFreshContainersLookLikeTheGoldenOnes(t *testing.T) {
	for _, g := range []golden{goldenContainers, goldenQueues} {
		t.Run(filepath.Base(g.file), g.looksTheSame)
	}
}

func (g golden) looksTheSame(t *testing.T) {
	onlyHere(t)
	start := dataStart(t)
	var head []byte // of a region: what is random there decides where names and marks stand
	if *writeGolden {
		path := filepath.Join(regionDir(t), "r")
		r, err := shm.CreateFile(path, shm.Size(goldenSize), shm.Limit(1<<20))
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		if head, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		head = head[:headerSize]
		copy(head[bootWords:], "another run of t")
	} else {
		head = undump(t, g.file, start+goldenSize)[:headerSize]
		clear(head[rootWord : rootWord+8])
	}
	m, path := openGolden(t, append(bytes.Clone(head), make([]byte, start+goldenSize-headerSize)...))
	if err := g.furnish(m); err != nil {
		t.Fatal(err)
	}
	b := Must(os.ReadFile(path))
	if got := Must(g.read(m)); got != g.text {
		t.Errorf("it holds\n%s, want\n%s", got, g.text)
	}
	compareGolden(t, g.file, head, b)
}

// compareGolden compares the bytes of a new region, made with head, with those in the file, or writes them there.
func compareGolden(t *testing.T, file string, head, b []byte) {
	t.Helper()
	start := dataStart(t)
	for at := 0; at < len(b); at += 8 { // this process
		if w := binary.LittleEndian.Uint64(b[at:]); w&^15 == uint64(shm.Self()) {
			binary.LittleEndian.PutUint64(b[at:], goldenToken|w&15)
		}
	}
	copy(head[rootWord:rootWord+8], b[rootWord:])
	slots := firstSlotHasLanes(t, b, start)
	got := "# The first slot:\n" + dump(slots, headerSize, len(slots)) + "# The data area:\n" + dump(b, start, len(b))
	if *writeGolden {
		text := "# A region with new containers in it, as a test of golden regions makes it. Offset, then 16 bytes; lines of zeros are left out.\n" +
			"# The region's header:\n" + dump(head, 0, headerSize) + got
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	whole := undump(t, file, start+goldenSize)
	want := "# The first slot:\n" + dump(whole, headerSize, headerSize+slotSize) + "# The data area:\n" + dump(whole, start, start+goldenSize)
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("new containers do not look like those in %s; %s\n(-golden +new):\n%s", file, formatChange, diff)
	}
}

// firstSlotHasLanes makes the lanes in the region b those of its first slot, whichever this process had, and returns the region's beginning with
// nothing in it but that.
func firstSlotHasLanes(tb testing.TB, b []byte, start int) []byte {
	slots := make([]byte, headerSize+slotSize)
	for at := headerSize; at < start; at += slotSize {
		lanes := b[at+lanesWord : at+lanesWord+8]
		if binary.LittleEndian.Uint64(lanes) == 0 {
			continue
		}
		copy(slots[headerSize+lanesWord:], lanes)
		slot := uint64(at-headerSize) / slotSize
		// Two pages with control lines, and two with the memory of a lane: see the kinds of pages in package heap.
		for _, lane := range []uint64{0, 0xff} {
			for w := start; w < len(b); w += 8 {
				if binary.LittleEndian.Uint64(b[w:]) == 5|2<<16|slot<<32|lane<<48 {
					binary.LittleEndian.PutUint64(b[w:], 5|2<<16|lane<<48)
				}
			}
		}
		// Descriptors of pages, behind their bits, name the lane that has filled from them last: slot*64 + lane + 1.
		for w := start + 8192 + 64 + 24; w < start+8192+64+256*32; w += 32 {
			if filler := binary.LittleEndian.Uint64(b[w:]); filler != 0 {
				binary.LittleEndian.PutUint64(b[w:], filler-slot*64)
			}
		}
		return slots
	}
	tb.Fatal("no slot has lanes")
	return nil
}

// readRight opens and reads the golden region.
func (g golden) readRight(t *testing.T) *Manager {
	m, _ := openGolden(t, undump(t, g.file, dataStart(t)+goldenSize))
	got, err := g.read(m)
	if err != nil || got != g.text {
		t.Errorf("%s is read as\n%s%v, want\n%s; %s", g.file, got, err, g.text, formatChange)
	}
	if err := m.Check(); err != nil {
		t.Errorf("%v; %s", err, formatChange)
	}
	return m
}

func TestGoldenQueuesAreReadRight(t *testing.T) {
	onlyHere(t)
	goldenQueues.readRight(t)
}

func TestGoldenContainersAreReadRight(t *testing.T) {
	onlyHere(t)
	m := goldenContainers.readRight(t)
	if _, err := Find[Shared[[40]int64]](m, "gone"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was destroyed: %v; %s", err, formatChange)
	}
	if _, err := NewShared(m, [40]int64{}, Name("new")); err != nil { // in the memory that is free there
		t.Error(err)
	}
	list := Must(Find[SharedList[string]](m, "Bäckerei"))
	for i := range 500 {
		if err := list.Append(strings.Repeat("more ", i%10)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Check(); err != nil {
		t.Error(err)
	}
}

// tellsRestarts skips a test where the system does not tell that the machine was restarted: there the header
// of a new region names no run of the machine.
func tellsRestarts(tb testing.TB) {
	tb.Helper()
	path := filepath.Join(regionDir(tb), "r")
	r, err := shm.CreateFile(path, shm.Size(goldenSize), shm.Limit(1<<20))
	if err != nil {
		tb.Fatal(err)
	}
	r.Close()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	if bytes.Equal(b[bootWords:bootWords+16], make([]byte, 16)) {
		tb.Skip("this system does not tell whether the machine was restarted")
	}
}

// A region that is damaged, and from before a restart of the machine, is not opened: repair is named.
func TestDamagedContainersFromBeforeARestartAreRefused(t *testing.T) {
	onlyHere(t)
	tellsRestarts(t)
	start := dataStart(t)
	whole := undump(t, goldenContainers.file, start+goldenSize) // of another run of the machine
	damaged := bytes.Clone(whole)
	damaged[start+8192] ^= 0xff // the first page has the map of those that are free
	for i, b := range [][]byte{whole, damaged} {
		path := filepath.Join(regionDir(t), "r")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := shm.OpenFile(path)
		if i == 0 {
			if err != nil {
				t.Error(err)
			} else {
				r.Close()
			}
			continue
		}
		if !errors.Is(err, shm.ErrCorrupt) || !strings.Contains(err.Error(), "repair") {
			t.Errorf("open a damaged region: %v, want ErrCorrupt that names repair", err)
		}
	}
}
