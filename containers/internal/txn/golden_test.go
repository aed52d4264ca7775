package txn

import (
	"fmt"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
)

// The layout of lanes is a format: the same on all architectures.
func TestLayoutOfLanes(t *testing.T) {
	var b strings.Builder
	row := func(what string, at, size uintptr) { fmt.Fprintf(&b, "%-16s %5d %5d\n", what, at, size) }
	var l line
	row("line", 0, unsafe.Sizeof(l))
	row("line.word", unsafe.Offsetof(l.word), unsafe.Sizeof(l.word))
	row("line.inner", unsafe.Offsetof(l.inner), unsafe.Sizeof(l.inner))
	row("line.memory", unsafe.Offsetof(l.memory), unsafe.Sizeof(l.memory))
	row("line.drainer", unsafe.Offsetof(l.drainer), unsafe.Sizeof(l.drainer))
	row("line.more", unsafe.Offsetof(l.more), unsafe.Sizeof(l.more))
	var m memory
	row("memory", 0, unsafe.Sizeof(m))
	row("memory.inner", unsafe.Offsetof(m.inner), unsafe.Sizeof(m.inner))
	row("memory.outer", unsafe.Offsetof(m.outer), unsafe.Sizeof(m.outer))
	row("memory.private", unsafe.Offsetof(m.private), unsafe.Sizeof(m.private))
	var e entry
	row("entry.at", unsafe.Offsetof(e.at), unsafe.Sizeof(e.at))
	row("entry.val", unsafe.Offsetof(e.val), unsafe.Sizeof(e.val))
	for k := range extensions {
		row(fmt.Sprintf("extension %d", k), 0, uintptr(extensionSize(k)))
	}
	fmt.Fprintf(&b, "control word: %#x\n", control(0xabcdef, phaseReturning, 0x123, 0x45))
	fmt.Fprintf(&b, "phases %d %d %d %d %d, kinds %d %d %d %d %d %d\n", phaseIdle, phaseActive, phaseRedoing, phaseFreeing, phaseReturning,
		kindWord, kindLater, kindTook, kindFree, kindSet, kindClear)
	if diff := cmp.Diff(golden, b.String()); diff != "" {
		t.Errorf("the layout has changed: regions of other versions of this package are not readable any more; raise the layout version and take this over (-want +got):\n%s\n%s", diff, b.String())
	}
}

const golden = `line                 0   128
line.word            0     8
line.inner           8     8
line.memory         16     8
line.drainer        56     8
line.more           64    64
memory               0  8192
memory.inner         0  1024
memory.outer      1024  3072
memory.private    4096  4096
entry.at             0     8
entry.val            8     8
extension 0          0  4096
extension 1          0  8192
extension 2          0 16384
extension 3          0 32768
extension 4          0 65536
extension 5          0 131072
extension 6          0 262144
extension 7          0 524288
control word: 0xabcdef0045012304
phases 0 1 2 3 4, kinds 0 1 2 3 4 5
`

// Each entry of a long log is in one place, and they follow each other.
func TestEntriesOfExtensionsFollowEachOther(t *testing.T) {
	k, at := 0, -1
	for i := outerEntries; i < maxEntries; i++ {
		wantK, wantAt := k, at+1
		if at+1 == int(extensionSize(k)/entrySize) {
			wantK, wantAt = k+1, 0
		}
		if k, at = extensionOf(i); k != wantK || at != wantAt {
			t.Fatalf("entry %d is number %d of extension %d, want %d of %d", i, at, k, wantAt, wantK)
		}
	}
	if k != extensions-1 || at != int(extensionSize(k)/entrySize)-1 {
		t.Errorf("the last entry is number %d of extension %d", at, k)
	}
	if maxEntries != 65472 {
		t.Errorf("%d entries, the documentation says 65,472", maxEntries)
	}
}
