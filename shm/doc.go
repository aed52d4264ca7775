// Package shm gives processes memory to share: regions, offsets that stand for pointers in them, and
// the proof that a process is dead.
//
// A [Region] is a file that every process maps: a named one ([Create], [Open], [OpenOrCreate]), one of
// any path ([CreateFile], [OpenFile]), or one without a name that goes from process to process as a
// descriptor ([Anonymous], [FromFile]; package proc does that for regions in arguments). [Heap] makes
// one of Go memory, for tests. Most programs start above this package: with containers, whose values
// live in a region, with package sync, whose locks do, and with package proc, which starts processes.
// What they are made of is here: [Region.Bytes], [At], [Region.Grow], [Region.Exclusive] for set-up, and
// [Region.Settled] for whoever waits for a process that may be dead.
//
// # What is promised
//
// A process may be killed at any instruction. A region that can be seen is complete; growing, attaching
// and recovering can be cut off between any two stores, and the next one to come along finishes or
// repeats them. A live process is never taken for a dead one, stopped, swapped out or
// blocked as it may be; a dead one is found by the kernel's word, not by a time that has run out.
//
// What stands in a region is outside input. A file that is cut, of another version, or damaged where
// it must not change is refused with an error when it is opened; and whatever the words say that do
// change, an offset becomes a pointer only if the file has memory behind it. [ErrCorrupt] and
// [ErrVersion] are the two answers, a fault is none.
//
// # What is not
//
//   - Hostile peers. Who can write to a region can write anything to it, cut its file under those who
//     have it mapped (unless it is anonymous: that is sealed; see [Region.Guard]), or hold a lock for
//     ever. The permissions of the file are the border: 0600 unless told, in a directory of this user
//     alone.
//   - Mixed versions. Every program that has a region open knows its layout version; an older or newer
//     one is refused. Features can be added without a new version: a program refuses those that it must
//     know and does not.
//   - Other byte orders and word sizes. A region is for the programs of one machine, and 32-bit programs
//     have regions of their own.
//   - Power loss. A region in a file on a disk outlives a restart if the file system wrote its pages, and
//     is put right and checked before it is used again (see below); pages that were torn are not promised. The
//     usual place is memory, which a restart empties.
//   - File systems whose byte locks are not those of the kernel: network file systems above all.
//   - Descriptors closed behind this package's back. A program that closes numbers it does not own may
//     close the one that proves that it lives. To others it is dead from then on, and its locks can be
//     taken over in the middle of what it does under them. It notices when it next waits for a lock or unlocks one
//     that is another's by then, in [Region.Scan], [Region.Settled], [Region.Grow], [Region.Exclusive] and
//     [Region.Close]: then the region is closed in this process, for good; calls answer an error that is
//     [ErrClosed] and says why, Unlock panics with ErrClosed, and pointers lead to private memory. Until then
//     it may write to what is another's. A number that leads to another file meanwhile is neither
//     locked nor closed. Where locks belong to processes, not to descriptions, a process cannot see its own: it
//     notices when another one holds its byte.
//   - Kernel work on behalf of the dead: direct I/O into a region that is under way when its process is
//     killed may write later.
//
// # Layout
//
//	0        4096      36864               40960      1089536       3182592
//	| header | slots   | owners of spares  | holdings | spare pages | data area, grows up to limit ...
//
// The header's first half never changes, has a checksum, and is copied before it is believed. Its
// second half is words that change, on cache lines of their own. A slot, and a page of holdings, stands
// for each attached process, 256 at most. The data area belongs to the caller. Integers are in host
// byte order; offsets count bytes from the start, so that they mean the same wherever a process has the
// region mapped. The layout is a format, held by a test.
//
// Memory is really reserved before it is used: a hole in a mapped file on a full file system answers
// with a signal that ends the program, where a failed reservation is [ErrNoSpace]. Only the holdings
// of slots that nobody has had yet are holes, the spare pages for processes with more of them, and what was
// given back. Opening a copied file fills its other holes.
//
// # Memory given back
//
// A region never becomes shorter. What its owner does not need it gives back page by page
// ([Region.Release], on Linux), and has to reserve again before it is used ([Region.Reserve]): on a file
// system that is full by then that is ErrNoSpace, not a signal. The header notes up to 63 such ranges: the
// range is noted, then its memory goes; memory is reserved, then the note is removed. So a process that is
// killed in between leaves a note too many, which costs nothing.
//
// Who reads memory without a lock, and finds out afterwards that it was freed, may come when it was given back.
// On a disk the read yields zeros, and so it does in anonymous regions. In a file system in memory that
// has a size, such as /dev/shm, it takes a page, and if there is none it ends its program: there
// [Region.ReadableHoles] is false, and containers give nothing back without being told.
//
// # Growth and address space
//
// A process maps a region's whole limit, 64 GiB unless told, and the file is shorter: addresses are
// not memory. So growth moves nothing, a pointer stays valid, and others need no telling: the end of
// the data area is a word in the header, believed as far as the file's length bears it out. One process
// at a time moves it. A process has 2^47 bytes of addresses on amd64: 2,046 regions of the usual limit,
// or 7 of the largest. Regions that a process makes by the thousand should say a [Limit].
//
// # Slots, and death in two stages
//
// A process has a random [Token], never 0, and the lock words of its region carry it. It takes one slot
// of each region, publishes the token there before its first lock, and keeps a lock on a byte that
// belongs to the slot, far behind the end of the file. The kernel releases that lock when the last
// thread of the process has run its last instruction, and not before. These are locks of an open
// file description (F_OFD_SETLK), held through a descriptor that nobody else has and that is closed on
// exec; on systems without them they are those of the process.
//
// A dead process may have left operations half done. So death has two stages: first one survivor, the
// one that gets the byte, undoes them ([Recoverer]); only then is the process settled ([Region.Settled])
// and may its locks be taken over. What it kept in reserve is given back later, and the slot is free.
// A survivor that dies over it loses the byte, and another one goes on. Nobody watches
// for deaths: those who wait look ([Region.Scan]), and a process that attaches does when more than half
// of the slots are taken. An orderly end and a kill are the same here; who held no lock is not missed.
//
// # After a restart of the machine
//
// No process of before lives, and its kernel's word is not needed: every slot's byte is free. The header says
// in which run of the machine the region was last opened. The first process to open it in another one undoes
// what all of the dead left half done, and has the contents checked ([SetCheck]; containers do), before
// anybody gets a handle; others wait. If something is wrong, opening it for writing is an error that names
// the command repair, for everybody, until it is put right. [ReadOnly] shows what is there. A file that was
// copied from another machine is treated the same.
//
// # Close
//
// After the last [Region.Close] of a process nothing faults: private memory is laid over the range, up
// to the end that this process has used, and the addresses are given back when the collector finds that
// no handle is left. Calls answer [ErrClosed]. Pointers and slices got before lead to the private memory
// as long as some handle lives, even a closed one: who keeps a pointer keeps a handle.
//
// Locks that the process holds stay held, since it lives. So it keeps its slot, and the descriptor that
// proves its life, until it ends, or until the region has no name and nobody has it open. It gets
// the slot back when it opens the region again. Whoever finds an anonymous region's last
// descriptor under way to a process that has not attached yet must not close it while holding locks.
//
// # The memory model
//
// Go's memory model speaks of the goroutines of one program. It carries over to shared pages because of
// what it is made of: sync/atomic compiles to the instructions by which the processor orders accesses
// to physical memory, whichever address they come through, and the compiler may neither leave out nor
// reorder the atomics around which it arranges plain accesses; that another process is at the other end
// it could not know either way. So an atomic store here that an atomic load there observes is
// synchronized before it, in another process as in another goroutine. Plain accesses to a region need
// such an edge between them, as everywhere. The race detector does not look into mapped memory, which
// is why every algorithm also runs over [Heap].
//
// Atomics in a region must be aligned: the data area begins on a page, [At] checks the alignment of its type,
// also where a 32-bit compiler aligns less than the processor needs.
//
// # Roads not taken
//
//   - Pids and start times as proof: pids are reused and differ between namespaces, and a process that is
//     being killed goes on writing after kill has returned. They are kept in the slots for people.
//   - The kernel's robust futex list: it speaks per thread, goroutines change threads, and it announced
//     a death 30 to 43 ms before the last write of the dying process in every one of 4 runs.
//   - Heartbeats: a machine that sleeps or swaps kills the living.
//   - POSIX shm_open: it is a file in /dev/shm with fewer ways to name it, and needs C elsewhere.
//   - Mapping more when a region grows: pointers move, or a region becomes a list of pieces and an
//     offset no addition.
//   - Unmapping in Close: a method that runs at that moment in another goroutine faults, and no count of
//     users is as cheap as no count.
//   - A second slot after Close and Open: one token in two slots, of which one is without its byte,
//     proves the death of a live process.
//
// # Cost
//
// On 2 processors of an AMD EPYC under Linux 6.18, Go 1.26, files in memory, next to other work, so
// magnitudes: create with 256 KiB 0.3 to 0.5 ms, most of it the kernel's, for memory; open a region that
// was closed and close it, 0.07 to 0.2 ms; one more handle on an open one, 4 µs; grow by 64 KiB, 30 to
// 40 µs; [Region.Exclusive], 4 µs; a look at all slots for deaths, 0.7 µs and some 2 µs more for each other
// process; [At], 7 ns. BenchmarkRegion measures them.
//
// # Sources
//
// fcntl(2) on open file description locks; memfd_create(2) and F_SEAL_SHRINK; fallocate(2); futex(2) on
// robust lists. LMDB and its descendant libmdbx have long run with a table of reader slots in a mapped file,
// one per process or thread, whose owners' deaths are found by locks on bytes of the file or by pids;
// the fixed map of a file that grows inside it is theirs as well.
package shm
