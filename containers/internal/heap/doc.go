// Package heap allocates blocks in a region's data area for all processes that share it. A process may be killed at any
// instruction: every block is then live or free, as before or as after what it was in, and none is lost.
//
// # Pages, spans, blocks
//
// The data area is pages of 4 KiB. A size class takes its blocks from spans of some pages; what is larger is a run of
// pages, and one block. What a page is, and the state of every block, stands in the page table, apart from the blocks: a
// descriptor for each page, a bit that says whether it is free, and a byte for each 64 bytes, where a block begins. So
// nothing of the heap lies in what its users write to, free runs are joined by being next to each other in the bits, and
// an offset that is none, or is freed twice, is refused by what the table says of it. The table grows in segments, each
// as large as all before.
//
// # The largest run
//
// A run may cross segments, and be as large as what is free in a row. The memory of a segment, 2.4 % of what it describes, lies in front of
// the pages that made it necessary, and divides what is free. So the largest run of an empty heap, and the largest block there can be, is
//
//	made as large as it is, or grown for one block | all but the tables: 97 % from 1 MiB on
//	grown little by little to 2^n MiB              | the last segment: nearly half
//	grown little by little to in between           | the last segment or the one before: at least a third
//
// [Usage] says how large it is at the moment, without what the region may still grow by. A heap that may grow by enough to hold a block
// behind its last page grows. What does not fit is refused with the region's size and limit.
//
// # Magazines
//
// A lane (package txn) keeps some blocks of each class in a magazine. Taking a block from there, or giving one back, is
// a few words of the lane and the state byte, without a lock. A magazine is filled from the class' spans, and emptied into
// them, under the lock of the class, by an inner operation that ends before the outer one does.
//
// The states of a page's blocks are one cache line, so two lanes that fill from the same span slow each other down with every block: two processes
// that allocated and freed blocks of 64 bytes got 0.4 to 0.6 of what two independent loops do, and 1.0 with blocks of other pages. So the
// descriptor of a span says which lane has filled from it last, and a fill passes by up to eight spans of others before it takes a new one, as long
// as fewer are listed and there are pages without growth, or shares the one with the most free blocks. Where blocks are so large that few
// are in a page it takes the first. That is a hint: it is looked at under the lock of the class, and any value will do. Of a process that is
// gone it counts for nothing. Eight lanes have 1 to 2 % more pages for 10,000 blocks of 16 to 1024 bytes than they had without.
//
// # What a kill leaves
//
// All stores go through package txn, which undoes them, or finishes them, before anybody may take a lock of the dead
// process. The magazines of its lanes are given back when its slot is drained. The region grows by one store, after its
// memory was reserved.
//
// No lane notes the locks of the heap, neither as an intent before they are taken nor afterwards. A note is for who releases a dead
// process' locks, and nobody does: a lock stays with its dead holder's token until somebody wants it, and takes it over by the word itself,
// after the lanes of that token are undone. With an intent, who gave a lock back because of it could give back one that the process never had,
// or that another of its goroutines holds.
//
// # What it costs
//
// Measured on two shared cores (AMD EPYC, Go 1.26), beside what the C library needs in the same run for blocks that are cleared (calloc) and
// for such that are not (malloc). The first figure is the best of many short rounds, the second one the median, of which half is the other users
// of the machine. See figures_test.go.
//
//	block of 64 bytes allocated and freed    | 33 to 35 ns | 35 to 55 ns   | 1.9 × calloc, 2.9 × malloc
//	the same of 16 to 1024, 10,000 are live  | 115 to 135  | 180 to 300    | 1.2 to 1.4 × calloc; pages have 24 % more than was asked for
//	two processes at once                    | 1.0 × what two independent loops get on
//	one open operation undone                | 0.2 µs; of 64 lanes 13 µs; with the drain 0.9 and 72 µs
//
// Of the 33 ns a fifth is the lane's one locked instruction, the rest a chain of loads that depend on each other: magazine, offset, segment, state.
// Of the mixture a fifth is the clearing of blocks, as much the load's own misses, a tenth filling and emptying magazines, and most of the others the states of blocks
// that are in no cache. What was tried, and is not here:
//
//   - A lane taken without a locked instruction, which is wrong, to see what it would bring: nothing that can be measured.
//   - A look at the state of the next block in the magazine, to have its line: 4 ns more for 64 bytes, nothing for the mixture.
//   - The last segment of the page table remembered, to find the next one without its number: nothing.
//   - A free that believes the state alone, and not the descriptor too: a nanosecond less, and what is wrong in the states would go on.
//   - Magazines of twice the size: a tenth less for the mixture, nothing for 64 bytes. It is another format, and each lane keeps twice as much.
//
// # Sources
//
// Superblocks with descriptors apart from them follow LRMalloc and Ralloc; magazines are those of Bonwick and Adams
// ("Magazines and Vmem"); the free pages are a bitmap, not PostgreSQL's tree of runs, since a bit can be set back.
package heap
