// Package containers has typed values that processes share: numbers, structs, arrays, lists, and locks. They
// live in a region of package shm; there is no server process, and nothing is copied between processes.
//
// Start with [SharedInt] and [SharedList], and pass them to another process as arguments of proc.Start:
//
//	pile, err := containers.NewSharedInt(nil, 0)
//	pile.With(func(nuts *int64) { *nuts++ })
//
// # Handles
//
// [SharedNumber], [Shared], [Ref] and the other types are handles: small values, copied freely, that name an
// object. Encoded, they are references, and decoded in another process they lead to the same object. An object
// lives until Destroy; then its handles answer [shm.ErrStale], and after [Manager.Close] they answer
// [shm.ErrClosed]. Methods with an error result return these, those without panic with them.
//
// # What is promised
//
// A call that changes an object takes the object's lock and is seen as a whole or not at all. A call that reads
// does not wait, and sees what was committed last. Between Lock and Unlock, and inside With and Update, the
// lock is held by the caller; Locked is the view for that time. [Atomic] and [SharedRing] have no lock, and say what they do without.
//
// A process may be killed at any instruction. The object is then as it was before the call that was cut off,
// or as after it, and its lock is free: whoever takes it next brings the object to its committed state first.
// Every change becomes visible by one atomic store:
//
//	number       the value's word
//	value        the count whose lowest bit says which of two cells is current
//	array, list  their sequence word, or the bounds; see there
//	map          a control word of eight slots, or the operation that it takes
//	queue        the number of messages put, or got; or the entry of a lease
//	ring         the same numbers
//	name         the word that links its entry
//	new object   its generation becoming odd
//	destroyed    its generation becoming even
//
// Where several words and blocks change together, they do so in one operation of the storage, whose commit is one store
// too, and which a survivor finishes or undoes: a new object with its memory and its name, for instance. If the process
// dies just behind the commit, those who read without the lock may see what was before until a survivor has finished it: at the latest when somebody takes
// the lock.
//
// No memory is lost either: blocks are taken and freed in the operation that also says who has them. An object that was
// made without a name, and whose maker died before it told anybody, is live like any other, until [Manager.Sweep] destroys
// what nobody can use any more; its header names the process that made it.
//
// # What is not promised
//
// A caller's own lock, given by [WithMutex] or kept in a [Ref], says that its owner died and is the caller's to
// recover. Other machines, word sizes and byte orders are refused, and so are other versions of the formats. A
// hostile process that has the region open can make data wrong and hold locks for ever, but every offset that
// is read from a region is checked before it is used. Power loss is not looked after.
//
// Go's memory model speaks of one program. It carries over to shared pages since the atomic operations are the
// same instructions on the same physical memory: the n'th Unlock in whatever process synchronizes before the
// n+1'th Lock.
package containers
