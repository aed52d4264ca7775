// Package txn makes operations on words of a region atomic against the death of their process: whatever
// instruction a process is killed at, each of its operations has happened, or has not.
//
// # What a kill leaves
//
// A killed process stops between two instructions. Caches and store buffers live on, so what a survivor sees,
// once the kernel has told it of the death, is what the dead one's instructions up to there have stored: a
// prefix of its stores. No flush, fence or checksum is needed for recovery, only that the compiler emits the
// stores that are written here, each of them and in this order. That is store.go's business alone.
//
// A lock freezes what it guards from the death to the recovery: its word carries the dead process' token, and
// nobody takes it before [Undo] has run for that process (see shm). So recovery is replay, not guesswork.
//
// # Lanes
//
// An operation runs in a lane: a control line, and memory with its logs and its magazines. A process has up to 64
// lanes in each region, an operation has one of them to itself from [Lanes.Enter] to [Lane.Leave], and which one
// is decided among the goroutines of the process, in its own memory. The control lines of a slot are one dense
// array of 128-byte lines; the memory of a lane lies apart, comes when the lane is first used, and is really
// reserved. Both stay with the slot: the next process in it finds them.
//
//	slot.lanes ──> | line 0 | line 1 | ... line 63 |
//	                   │ memory
//	                   ├──> | inner log | outer log, 192 entries | private to the heap: magazines |
//	                   └──> more of the outer log, when an operation needs it: | 256 entries | 512 | ... | 32768 |
//
// A bitmap of busy lanes in the slot, which the first design had, would cost each operation two locked instructions
// on one line of all goroutines; looking at the lines of the lanes that have memory costs recovery a microsecond.
//
// # The outer log
//
// The operation's own. The control word says what it is good for, and one store of it is the commit:
//
//		63      40       24        8       3     0
//		| turn   | cursor | entries |       | phase |
//
//		              Log, Alloc, Later, Free             Commit                             last one given back
//		IDLE ────────────────────────────────> ACTIVE ──────────────> REDOING ──> FREEING ───────────> IDLE
//		                                          └── Rollback, Undo ───────────> RETURNING ─────────>
//
//	  - ACTIVE: entries are appended: the entry first, then the count in the control word, then what the entry
//	    stands for. [Lane.Set] notes a word's old value; [Lane.Later] one that is stored after the commit;
//	    [Lane.Took] a block that the operation has taken from its lane; [Lane.Free] one that goes back after the commit.
//	  - REDOING: committed. The later words are stored; to store them twice does no harm, since the operation's
//	    locks are still held.
//	  - FREEING: locks may be released. The blocks freed go back, one at a time; the cursor says which is next.
//	  - RETURNING: rolled back. The blocks taken go back likewise.
//
// A kill between any two stores leaves one of the phases and a prefix of its work:
//
//	killed after                     | recovery finds            | and does
//	an entry's words                 | ACTIVE, count without it  | undoes the others
//	the count                        | ACTIVE, count with it     | stores the old value over itself
//	the word                         | the same                  | stores the old value
//	the commit                       | REDOING or FREEING        | stores the later words; gives back what is to be freed
//	some old values restored         | ACTIVE                    | restores all of them again
//	a block's return, half done      | FREEING, RETURNING        | finishes that one ([Blocks.Given]), then the others
//
// Old values may be logged only of words that nobody else writes before the commit: those that a lock guards
// which the operation holds, and those of the lane. A block that was taken is not put back by old values: what it was
// taken from may have been refilled since. It is freed, as after a commit.
//
// The log has room for 192 entries in the lane's memory, which is what ordinary calls need, and for 65,472 in all. An operation with more
// takes extensions, each twice as long as the one before, and goes on: they are taken as the lane's memory is, under
// the heap's page lock, and are not part of the operation, so that a kill leaves an extension free, or the lane's for the next
// operation. A lane keeps them for life, a megabyte at most: what long operations need once they need again, and
// recovery, which may take nothing and give nothing back, finds them where they were. There is no chain of blocks (as in
// PMDK's ulogs), but one word in the control line for each: recovery, to which they are foreign input, has
// nothing to follow, and cannot go round in circles.
//
// # The inner log
//
// Work inside an operation that ends before the operation does, because the locks it needs are released: the heap
// fills a magazine, or lays out pages. It has a log of its own, whose count is its control word: 0 is idle, and storing
// 0 commits. Recovery undoes the inner log first: what it covers may include the outer control word, which is
// how a large block is taken, or given back, together with the entry that says so.
//
// # Recovery
//
// It has three phases, which shm runs through a [shm.Recoverer]:
//
//  1. Undo: the inner log, then the outer one, of each lane of the dead process. It takes no lock and
//     allocates nothing. What it stores are values out of the logs, and the logs stay as they are until it is through
//     with a lane, so that it may die anywhere and be run again.
//  2. shm marks the slot: from here on the dead process' locks may be taken over.
//  3. Drain: blocks that are still to go back, and those in the magazines, go back by ordinary operations in a lane
//     of the recoverer. They change words of the dead lane under their own log. So a drainer that died must be
//     undone before the next one begins: it leaves its token in the first line, and the next one waits until that
//     token is settled.
//
// A slot may become free without having been drained, when there is no memory for the recoverer's own lanes. The
// next process in it finds lanes that are not idle, and finishes them before it uses them.
//
// Nobody needs to know the types of what is stored: an entry is an offset and a word.
//
// # No lane notes a lock
//
// The first design had a few words in the control line for the locks that an operation holds, so that recovery gives them back, and a caller's mutex
// that a transaction held comes back without a word of the death. Neither is needed. A lock keeps the dead one's token until somebody
// wants it, who takes it over by the word itself when the slot is undone: a container's lock is repaired then, and clean, and a caller's is
// inconsistent. That is right for it also when a transaction had it, all of whose words are before or after: it guards what else its
// caller keeps under it, of which the storage knows nothing, so only the caller can say that all is well. And a note can lie. One that is written before
// the lock is taken, as an intent, stands also while the process waits for the lock, and one that is cleared after the release stands a
// moment too long: another goroutine of the process may have the lock meanwhile, for something that is not logged, and who gives back what is noted
// would pass on what that has left half done. The tests' model of marks finds both.
//
// # Panics
//
// An operation that ends without Commit is rolled back by [Lane.Leave], with the code that recovery uses. It is meant to
// be deferred, so a panic rolls back too.
//
// # Sources
//
// The undo log of words in shared memory that a survivor replays is that of Lightning (Zhuo et al., VLDB 2022);
// lanes are those of PMDK's libpmemobj, whose checksums guard against power loss, which is not promised here. Blocks
// freed after the commit, as operations of their own, are those of its redo logs. Persistent caches as the model
// of a kill: JUSTDO logging (Izraelevitz et al., ASPLOS 2016).
package txn
