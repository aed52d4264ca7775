// Package heap allocates blocks in a region's data area for all processes that share it. A process may be killed at any
// instruction: every block is then live or free, as before or as after what it was in, and none is lost.
package heap
