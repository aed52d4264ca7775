package shm_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
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
)

var writeGolden = flag.Bool("write-golden", false, "write the golden file of the layout anew, with a new layout version")

const formatChange = "this is a format change: raise the layout version (layoutVersion in header.go), since programs built before and after it would share regions;" +
	" then write the golden file anew with: go test ./shm -run Golden -write-golden"

const goldenRegion = "testdata/region.hex"

// dump shows the lines of 16 bytes of b that are not all zero.
func dump(b []byte, from, to int64) string {
	var s strings.Builder
	for at := from; at < to; at += 16 {
		if line := b[at:min(at+16, to)]; len(bytes.Trim(line, "\x00")) != 0 {
			fmt.Fprintf(&s, "%06x % x\n", at, line)
		}
	}
	return s.String()
}

// undump makes size bytes of what dump has shown. Lines that begin with # are for people.
func undump(tb testing.TB, file string, size int64) []byte {
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

// onlyHere skips a test of bytes that machines of another kind write differently.
func onlyHere(tb testing.TB) {
	if bits.UintSize != 64 || binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		tb.Skip("the golden file is that of 64-bit little-endian programs; others have formats of their own")
	}
}

// The region of the golden file, and of the fresh one that must look the same.
const (
	goldenName  = "golden.region-1"
	goldenSize  = 8192
	goldenLimit = 1 << 20
	goldenSlot  = 5
	goldenToken = 0x0123456789abcde0
)

// freshRegion returns the bytes of a new region that this process has opened, with the slot of this process as
// slot goldenSlot. What is random, or tells of this machine and this moment, is made the same everywhere.
func freshRegion(tb testing.TB) []byte {
	tb.Helper()
	dir := memoryDir(tb)
	r, err := shm.Create(goldenName, shm.Dir(dir), shm.Size(goldenSize), shm.Limit(goldenLimit), shm.ContinueAfterDeath())
	must(tb, r, err)
	fill(tb, r, "the data area begins here")
	r.Root().Store(uint64(r.Data()) + 64)
	b := contents(tb, r.Path())
	mine := int64(shm.SlotsStart + shm.SlotOf(r)*128)
	slot := bytes.Clone(b[mine : mine+128])
	clear(b[mine : mine+128])
	copy(b[shm.SlotsStart+goldenSlot*128:], slot)
	freeze(b)
	return b
}

// freeze makes what differs from region to region the same.
func freeze(b []byte) {
	put := func(at int64, words ...uint64) {
		for i, w := range words {
			binary.LittleEndian.PutUint64(b[at+int64(8*i):], w)
		}
	}
	for _, f := range shm.Fields() {
		at := int64(f.Offset)
		switch f.Name {
		case "header.pageSize":
			binary.LittleEndian.PutUint32(b[at:], 4096)
		case "header.id":
			put(at, 0x1716151413121110, 0x1f1e1d1c1b1a1918)
		case "header.hashSeed":
			put(at, 0x2726252423222120)
		case "header.created":
			put(at, 1_700_000_000_000_000_000)
		case "header.creator":
			put(at, goldenToken)
		case "header.boot":
			put(at, 0x3736353433323130, 0x3f3e3d3c3b3a3938)
		}
		at += shm.SlotsStart + goldenSlot*128
		switch f.Name {
		case "slot.token":
			put(at, goldenToken)
		case "slot.state":
			put(at, goldenToken|binary.LittleEndian.Uint64(b[at:])&15)
		case "slot.pid":
			binary.LittleEndian.PutUint32(b[at:], 4711)
		case "slot.started", "slot.pidns", "slot.attached":
			put(at, 1_000_000)
		case "slot.bell":
			binary.LittleEndian.PutUint32(b[at:], 0)
		case "slot.bellNode":
			put(at, 0, 0)
		}
	}
	shm.Seal(b)
}

func TestFreshRegionLooksLikeTheGoldenOne(t *testing.T) {
	onlyHere(t)
	b := freshRegion(t)
	got := dump(b, 0, shm.SlotsStart+shm.SlotCount*128) + dump(b, shm.DataStart, shm.DataStart+goldenSize)
	if *writeGolden {
		head := "# A region of " + strconv.Itoa(goldenSize) + " bytes, with what is random made the same everywhere. Offset, then 16 bytes; lines of zeros are left out.\n"
		if err := os.WriteFile(goldenRegion, []byte(head+got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g := undump(t, goldenRegion, shm.DataStart+goldenSize)
	want := dump(g, 0, shm.SlotsStart+shm.SlotCount*128) + dump(g, shm.DataStart, shm.DataStart+goldenSize)
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("a new region does not look like the golden one; %s\n(-golden +new):\n%s", formatChange, diff)
	}
}

func TestGoldenRegionIsReadRight(t *testing.T) {
	onlyHere(t)
	path := filepath.Join(memoryDir(t), "r")
	if err := os.WriteFile(path, undump(t, goldenRegion, shm.DataStart+goldenSize), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := shm.OpenFile(path)
	if err != nil {
		t.Fatalf("%v; %s", err, formatChange)
	}
	defer r.Close()
	pid, settled := r.Settled(goldenToken) // of a process of another run of the machine
	got := fmt.Sprintln(r.Name(), r.ID(), r.Size(), r.Limit(), r.HashSeed(), r.ContinuesAfterDeath(), r.Root().Load()-uint64(r.Data()), pid, settled)
	want := fmt.Sprintln(goldenName, "101112131415161718191a1b1c1d1e1f", goldenSize, goldenLimit, uint64(0x2726252423222120), true, 64, 4711, true)
	if got != want {
		t.Errorf("the golden region is read as\n%swant\n%s%s", got, want, formatChange)
	}
	if err := expect(r, "the data area begins here"); err != nil {
		t.Errorf("%v; %s", err, formatChange)
	}
	if token, state, _ := shm.Slot(r, goldenSlot); token != 0 || state != shm.SlotFree {
		t.Errorf("the slot of the golden process has token %v and state %d after its recovery; %s", token, state, formatChange)
	}
}
