// Package proc starts processes that share regions with the one that started them.
//
// A [Func] is a function that can run as a process of its own. [Define] makes one from a name and a Go
// function, in a package variable; [Func.Start] runs it in a new process, [Func.Run] in one process
// per argument and waits for all. The new process is this same program: it starts from its beginning,
// and the call of [Main] or [Run] at the top of its main function finds out that it is a child, runs
// the function and never returns. So
//
//	var greet = proc.Define("greet", func(_ context.Context, whom string) error {
//		fmt.Println("hello,", whom)
//		return nil
//	})
//
//	func main() {
//		proc.Run(func(ctx context.Context) error {
//			return greet.Run(ctx, "George", "Fred", "Hermione")
//		})
//	}
//
// is a whole program of four processes. Package initialisation runs in every one of them; what main
// does before [Main] does too, so [Main] comes first, before flags are read. A process can only be
// started after [Main] was called: initialisation that starts a process gets [ErrNoMain], in the
// program and in its children, and nothing multiplies.
//
// # Arguments
//
// An argument is encoded with encoding/gob. Its type is checked by [Define]: what gob would drop or
// change in silence (unexported fields, functions, channels, pointers, a type whose only encoding is
// that of something embedded in it) is refused with the field's path, and so are interfaces and
// addresses. Types with a pair of gob or binary encoding methods are taken at their word. An empty
// slice may arrive as nil.
//
// Regions, and handles on what lives in them, may stand anywhere in an argument. Their descriptors are
// handed to the child, which has attached them before the argument is decoded, and keeps them for its
// life. They need no name. A region of [shm.Heap] cannot leave its process and is refused.
//
// # What a child gets
//
// Its standard input is empty; standard output and error are those of its parent, unless [Stdout] or
// [Stderr] say otherwise. It inherits the environment, the working directory, the regions in its
// argument and two pipes: the argument comes through one, which stays open for as long as the parent
// lives; through the other the child says once that it has reached [Main]. Other descriptors that the parent
// has opened it does not get. Its command line is the program's name alone.
//
// # How a process ends
//
// A function that returns nil ends its process with code 0. One that returns an error ends it with 1,
// after the name and the whole text of the error were written to standard error in one piece. A panic
// is Go's own, with its trace and code 2; os.Exit(n) gives n. A process that a signal ended has the
// negative number of the signal as its code: −15, −9.
//
// A child waits for its own ordinary children before it ends, as [Run] does in the program, and ends
// its daemons. A [Daemon] also ends when its parent does, however that happened; it may not start processes.
//
// SIGTERM has its default action. With [Graceful] it ends the context of the function first.
//
// # What is not promised
//
// An ordinary child survives its parent if that is killed. It sees that in [ParentDone] and goes on.
//
// The end of the parent is noticed at the end of a pipe, not through the kernel's parent-death signal:
// that one follows the thread that started the child, threads of a Go program end while it lives, and
// it was seen killing the daemons of a living parent. The end of the pipe arrives within moments, not
// instantly, and a child that is stopped notices it when it goes on.
//
// A kill leaves nothing behind that this package made: pipes vanish with the processes, an anonymous
// region with the last process that has it. What it leaves inside a region is told where the data is
// described. A killed child's children that were ordinary go on.
//
// On Windows there is no SIGTERM: [Process.Terminate] kills, and [Graceful] changes nothing. There and
// on systems other than Linux the child runs the file that the program was started from, which may have been
// replaced; on Linux it is the running program itself.
package proc
