package heap

// Size classes are part of the format: the class of a span is in its descriptor, and magazines have their places by class.
// They are multiples of 64 bytes up to 512, then four to a doubling, up to 32 KiB; larger blocks are runs of pages. A
// span has as few pages as leave no more than a sixteenth unused, and 64 blocks at most, one bit each.
const (
	sizeClasses = 32
	objectClass = sizeClasses // headers of objects: 128 bytes, whose spans stay what they are
	classCount  = sizeClasses + 1

	maxSmall   = 32 << 10
	objectSize = 128

	magazineBytes = 8 << 10 // about what a magazine holds
	magazineMost  = 32      // blocks
	magazineLarge = 1 << 10 // of blocks above this size it holds 2
	magazineOfObj = 4
)

type class struct {
	size     uint64
	pages    uint64 // of a span
	blocks   uint64 // of a span
	capacity uint64 // of a magazine
	at, end  int    // where a magazine's blocks are in a lane's private memory
	apart    bool   // lanes fill from spans of their own as far as there are some
}

var (
	classTable  [64]class
	classes     = classTable[:classCount]
	classBySize [maxSmall/granule + 1]uint8 // by size in granules, rounded up
)

// full is the mask of a span whose blocks are all free.
func (c *class) full() uint64 { return ^uint64(0) >> (64 - c.blocks) }

func init() {
	at := classCount
	for i := range classes {
		c := &classes[i]
		switch {
		case i == objectClass:
			c.size = objectSize
		case i < 8:
			c.size = granule * uint64(i+1)
		default:
			c.size = granule * uint64(4+i%4+1) << ((i - 8) / 4) * 2
		}
		for c.pages = 1; ; c.pages++ {
			c.blocks = min(64, c.pages*pageSize/c.size)
			if c.blocks > 0 && (c.pages*pageSize-c.blocks*c.size)*16 <= c.pages*pageSize {
				break
			}
		}
		c.capacity = max(2, min(magazineMost, magazineBytes/c.size&^1))
		if c.size > magazineLarge {
			c.capacity = 2
		}
		if i == objectClass {
			c.capacity = magazineOfObj
		}
		c.apart = c.size <= magazineLarge && i != objectClass // several in a page; the spans of objects stay
		c.at = at
		at += int(c.capacity)
		c.end = at
	}
	k := 0
	for g := range classBySize {
		if uint64(g)*granule > classes[k].size {
			k++
		}
		classBySize[g] = uint8(k)
	}
}

// classFor returns the class for n bytes, aligned to align; ok is false for what is larger than all.
func classFor(n, align uint64) (c int, ok bool) {
	if n > maxSmall {
		return 0, false
	}
	c = int(classBySize[(n+granule-1)/granule])
	for ; align > granule && c < sizeClasses; c++ {
		if classes[c].size%align == 0 {
			break
		}
	}
	return c, c < sizeClasses
}
