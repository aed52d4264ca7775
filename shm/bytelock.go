package shm

// The kernel keeps locks on byte ranges of a region's file, far behind its end, where neither data
// nor other programs' locks lie. They cost no memory in the region, and no process can forget to
// release them. Each platform says how: lockByte, unlockByte, byteHeld.
const (
	growthByte    = 1<<62 - 1 // held while the region grows
	exclusiveByte = 1<<62 - 2 // held during Exclusive
	restartByte   = 1<<62 - 3 // held while one process clears up after a restart of the machine
	slotBytes     = 1 << 62   // first of the bytes that processes hold for life
)

func slotByte(i int) int64 { return slotBytes + int64(i) }
