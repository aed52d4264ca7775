package heap

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
)

// layout says where everything of the heap is that another program looks for: it is one text on all architectures.
func layout() string {
	var b strings.Builder
	row := func(what string, at, size uintptr) { fmt.Fprintf(&b, "%-18s %5d %5d\n", what, at, size) }
	var h header
	row("header", 0, unsafe.Sizeof(h))
	row("header.magic", unsafe.Offsetof(h.magic), unsafe.Sizeof(h.magic))
	row("header.clean", unsafe.Offsetof(h.clean), unsafe.Sizeof(h.clean))
	row("header.pages", unsafe.Offsetof(h.pages), unsafe.Sizeof(h.pages))
	row("header.classes", unsafe.Offsetof(h.classes), unsafe.Sizeof(h.classes))
	var p pageLine
	row("pages.mu", unsafe.Offsetof(p.mu), unsafe.Sizeof(p.mu))
	row("pages.count", unsafe.Offsetof(p.count), unsafe.Sizeof(p.count))
	row("pages.low", unsafe.Offsetof(p.low), unsafe.Sizeof(p.low))
	row("pages.virgin", unsafe.Offsetof(p.virgin), unsafe.Sizeof(p.virgin))
	row("pages.boot", unsafe.Offsetof(p.boot), unsafe.Sizeof(p.boot))
	row("pages.segments", unsafe.Offsetof(p.segments), unsafe.Sizeof(p.segments))
	var c classLine
	row("class", 0, unsafe.Sizeof(c))
	row("class.mu", unsafe.Offsetof(c.mu), unsafe.Sizeof(c.mu))
	row("class.head", unsafe.Offsetof(c.head), unsafe.Sizeof(c.head))
	var d descriptor
	row("descriptor", 0, unsafe.Sizeof(d))
	row("descriptor.kind", unsafe.Offsetof(d.kind), unsafe.Sizeof(d.kind))
	row("descriptor.mask", unsafe.Offsetof(d.mask), unsafe.Sizeof(d.mask))
	row("descriptor.link", unsafe.Offsetof(d.link), unsafe.Sizeof(d.link))
	row("descriptor.filler", unsafe.Offsetof(d.filler), unsafe.Sizeof(d.filler))
	var o objectHead
	row("object", 0, unsafe.Sizeof(o))
	row("object.gen", unsafe.Offsetof(o.gen), unsafe.Sizeof(o.gen))
	row("object.creator", unsafe.Offsetof(o.creator), unsafe.Sizeof(o.creator))
	fmt.Fprintf(&b, "magic %#x, page %d, granule %d, alignment %d\n", uint64(heapMagic), pageSize, granule, MaxAlign)
	fmt.Fprintf(&b, "kinds %d %d %d %d %d %d, word %#x, lines %#x\n", pageFree, pageSpan, pageBody, pageRun, pageMeta, pageLane,
		kindWord(pageBody, 0x12, 0x3456), laneLines)
	fmt.Fprintf(&b, "states: live %#x, run %#x, mask %#x\n", stateLive, stateRun, stateMask)
	for _, most := range []uint64{10, 1 << 20} {
		for k := range 4 {
			first, n := segmentRange(k, most)
			pages, states, size := segmentSize(n)
			fmt.Fprintf(&b, "segment %d of a heap of %d: from %d on %d; descriptors at %d, states at %d, %d bytes\n", k, most, first, n, pages, states, size)
		}
	}
	for i, c := range classes {
		fmt.Fprintf(&b, "class %2d: %5d bytes, %2d in %2d pages, magazine %d to %d\n", i, c.size, c.blocks, c.pages, c.at, c.end)
	}
	return b.String()
}

// The layout of the heap is a format: a text file has it, and 32-bit programs agree with it too.
func TestLayoutOfTheHeap(t *testing.T) {
	golden := filepath.Join("testdata", "layout.txt")
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), layout()); diff != "" {
		t.Errorf("the layout has changed: regions of other versions of this package are not readable any more; raise the layout version and take this over into %s (-want +got):\n%s\n%s", golden, diff, layout())
	}
}
