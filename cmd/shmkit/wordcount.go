package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/shmkit/shmkit/containers"
	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
	"github.com/spf13/cobra"
)

// wordcountFlags are the flags of demo wordcount.
type wordcountFlags struct {
	processes int
	kill      int
	top       int
	json      bool
}

func newWordcount() *cobra.Command {
	var f wordcountFlags
	cmd := &cobra.Command{
		Use:   "wordcount [PATH]...",
		Short: "Count the words of real text with several processes, and check the counts",
		Long: `Count the words of the files named, and of all files in the folders named, with several
processes; without PATH, those of the Go sources of the toolchain installed here.

The paths go through a queue that all processes share, the counts into a map that they
share. A process leases a path from the queue, counts, and in one transaction adds its
counts to the map and tells the queue that the file is done. So a file is counted once,
even if a process is killed in the middle: either the transaction has happened, or the
path is handed to another process. --kill N kills N of them while they work.

In the end one process alone counts everything again, and the counts are compared. A
word is what most languages take for a name: letters, digits and underscores, not
beginning with a digit. A file with a zero byte is no text, and has no words.

It ends with 0 when all counts are right, 1 when one is not or a file cannot be read, 2
for a mistake in the call, 130 when interrupted.`,
		Example: `  shmkit demo wordcount                 the sources of the Go toolchain
  shmkit demo wordcount --kill 20       with 20 processes killed on the way
  shmkit demo wordcount -p 4 ~/notes    your own text, with four processes`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			return wordcount(cmd, args, f)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.IntVarP(&f.processes, "processes", "p", 0, "start `P` processes (default: as many as there are processors)")
	flags.IntVar(&f.kill, "kill", 0, "kill a process `N` times, by SIGKILL, and start another in its place")
	flags.IntVar(&f.top, "top", 20, "print the `N` words that come most often")
	flags.BoolVar(&f.json, "json", false, "print one JSON document instead")
	for _, name := range []string{"processes", "kill", "top"} {
		cobra.CheckErr(cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
	return cmd
}

// check refuses numbers that make no sense.
func (f *wordcountFlags) check(cmd *cobra.Command) error {
	if !cmd.Flags().Changed("processes") {
		f.processes = min(runtime.NumCPU(), mostProcesses)
	}
	switch {
	case f.processes < 1 || f.processes > mostProcesses:
		return usagef("--processes %d is out of range; 1 to %d", f.processes, mostProcesses)
	case f.kill < 0:
		return usagef("--kill %d is out of range; 0 or more", f.kill)
	case f.top < 0:
		return usagef("--top %d is out of range; 0 or more", f.top)
	}
	return nil
}

// A counter is what each of the processes is told.
type counter struct {
	Manager *containers.Manager
	Files   containers.SharedQueue[string]
	Counts  containers.SharedMap[string, int64]
	Tally   containers.Shared[tally]
}

// A tally changes together with the counts.
type tally struct{ Files, Words int64 }

var countTexts = proc.Define("wordcount", func(ctx context.Context, c counter) error {
	for {
		lease, err := c.Files.Lease(ctx)
		if errors.Is(err, containers.ErrQueueClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := c.count(ctx, lease); err != nil {
			return err
		}
	}
})

// count counts the words of one file. A process that dies anywhere in here has counted all of them, or none.
func (c counter) count(ctx context.Context, lease *containers.Lease[string]) error {
	found := map[string]int64{}
	words, err := countWords(lease.Value, found)
	if err != nil {
		return err
	}
	return c.Manager.Update(ctx, func(tx *containers.Tx) error {
		counts, sum := c.Counts.In(tx), c.Tally.In(tx)
		for word, n := range found {
			old, _ := counts.Get(word)
			counts.Put(word, old+n)
		}
		now := sum.Load()
		sum.Store(tally{now.Files + 1, now.Words + words})
		return lease.In(tx).Done()
	})
}

// wordcount is the whole command.
func wordcount(cmd *cobra.Command, paths []string, f wordcountFlags) (err error) {
	ctx := cmd.Context()
	defer func() {
		if ctx.Err() != nil || interrupted(err) {
			err = errInterrupted
		}
	}()
	files, err := texts(ctx, paths)
	if err != nil {
		return err
	}
	if f.kill > len(files) {
		return usagef("--kill %d is more than there are files, %d", f.kill, len(files))
	}
	crew, err := newCrew(f, files)
	if err != nil {
		return err
	}
	if isTerminal(cmd.ErrOrStderr()) {
		crew.progress = cmd.ErrOrStderr()
	}
	doc := wordcountDoc{Version: documentVersion, Files: len(files), Processes: f.processes, Top: []wordDoc{}}
	err = crew.run(ctx, &doc)
	if err = errors.Join(err, crew.Manager.Close()); err != nil {
		return fmt.Errorf("wordcount: %w", err)
	}
	out := cmd.OutOrStdout()
	if f.json {
		err = printJSON(out, doc)
	} else {
		err = doc.print(out)
	}
	if err == nil && !doc.OK {
		err = errors.New("wordcount: the counts are wrong")
	}
	return err
}

// A crew is the processes that count, and what they share.
type crew struct {
	counter
	wordcountFlags
	files    []string
	progress io.Writer // where a person watches; nil if nobody does

	members []*proc.Process
	ends    chan ended
	killed  int
	deaths  chan struct{} // of those killed
}

// ended is the end of one of the processes.
type ended struct {
	*proc.Process
	err error
}

const queueLength = 256 // paths

func newCrew(f wordcountFlags, files []string) (*crew, error) {
	region, err := shm.Anonymous()
	if err != nil {
		return nil, err
	}
	m, err := containers.NewManager(region)
	if err != nil {
		return nil, errors.Join(err, region.Close())
	}
	c := &crew{wordcountFlags: f, files: files, ends: make(chan ended), deaths: make(chan struct{}, f.kill)}
	c.Manager = m
	if c.Files, err = containers.NewSharedQueue[string](m, queueLength); err == nil {
		c.Counts, err = containers.NewSharedMap[string, int64](m)
	}
	if err == nil {
		c.Tally, err = containers.NewShared(m, tally{})
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return c, nil
}

// run lets the processes count, counts alone, and compares.
func (c *crew) run(ctx context.Context, doc *wordcountDoc) error {
	start := time.Now()
	if err := c.work(ctx); err != nil {
		return err
	}
	doc.Seconds, doc.Killed = time.Since(start).Seconds(), c.killed

	c.say("\rwordcount: counting again, alone\x1b[K")
	start = time.Now()
	alone := map[string]int64{}
	words := int64(0)
	for _, path := range c.files {
		n, err := countWords(path, alone)
		if err = cmp.Or(ctx.Err(), err); err != nil {
			return err
		}
		words += n
	}
	doc.Alone = time.Since(start).Seconds()
	c.say("\r\x1b[K")
	doc.judge(c.Tally.Load(), maps.Collect(c.Counts.All()), tally{int64(len(c.files)), words}, alone, c.top)
	return nil
}

// work has all files counted. When one of the processes fails, or ctx ends, the others are ended.
func (c *crew) work(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	fed := make(chan error, 1)
	go func() { fed <- c.feed(ctx) }()
	var failed error
	for range c.processes {
		if failed = c.start(ctx); failed != nil {
			cancel()
			break
		}
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for len(c.members) > 0 {
		select {
		case end := <-c.ends:
			c.members = slices.DeleteFunc(c.members, func(p *proc.Process) bool { return p == end.Process })
			if end.err != nil && failed == nil {
				failed = end.err
				cancel()
			}
		case <-tick.C:
			if failed == nil && ctx.Err() == nil {
				if failed = c.tick(ctx); failed != nil {
					cancel()
				}
			}
		}
	}
	cancel()
	if err := <-fed; failed == nil {
		failed = err
	}
	c.say("\r\x1b[K")
	return failed
}

// due returns how many files are done when the process is killed that is the n-th, counted from 0.
func (c *crew) due(n int) int { return (n + 1) * len(c.files) / (c.kill + 1) }

// feed puts all paths into the queue. It does not get far ahead of a kill that is due: all of them come while there is work.
func (c *crew) feed(ctx context.Context) error {
	dead := 0
	await := func() error {
		select {
		case <-c.deaths:
			dead++
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for i, path := range c.files {
		for dead < c.kill && i >= c.due(dead)+queueLength {
			if err := await(); err != nil {
				return err
			}
		}
		if err := c.Files.Put(ctx, path); err != nil {
			return err
		}
	}
	for dead < c.kill {
		if err := await(); err != nil {
			return err
		}
	}
	return c.Files.Close()
}

// start starts one process. They are daemons: should this one be killed, they end with it.
func (c *crew) start(ctx context.Context) error {
	p, err := countTexts.Start(ctx, c.counter, proc.Daemon(), proc.MaxProcs(1))
	if err != nil {
		return err
	}
	c.members = append(c.members, p)
	go func() { c.ends <- ended{p, p.Wait()} }()
	return nil
}

// tick kills a process, if that is due by the number of files that are done, and says how far the work has come.
func (c *crew) tick(ctx context.Context) error {
	done, all := int(c.Tally.Load().Files), len(c.files)
	if c.killed < c.kill && done >= c.due(c.killed) {
		victim := c.members[rand.IntN(len(c.members))]
		if err := victim.Kill(); err != nil {
			return err
		}
		for end := range c.ends { // others may end meanwhile
			c.members = slices.DeleteFunc(c.members, func(p *proc.Process) bool { return p == end.Process })
			if end.Process == victim {
				break
			}
			if end.err != nil {
				return end.err
			}
		}
		c.killed++
		c.deaths <- struct{}{}
		if err := c.start(ctx); err != nil {
			return err
		}
	}
	const width = 30
	c.say("\rwordcount: [%-*s] %d of %d files, %d killed\x1b[K", width, strings.Repeat("#", done*width/all), done, all, c.killed)
	return nil
}

// say writes to where a person watches.
func (c *crew) say(format string, args ...any) {
	if c.progress != nil {
		fmt.Fprintf(c.progress, format, args...)
	}
}

// wordcountDoc is what demo wordcount --json prints.
type wordcountDoc struct {
	Version   int       `json:"version"`
	OK        bool      `json:"ok"`
	Fault     string    `json:"fault,omitempty"`
	Files     int       `json:"files"`
	Words     int64     `json:"words"`
	Different int       `json:"different_words"`
	Processes int       `json:"processes"`
	Killed    int       `json:"killed"`
	Seconds   float64   `json:"seconds"`       // with all processes, their starts included
	Alone     float64   `json:"seconds_alone"` // of one process, without anything shared
	Top       []wordDoc `json:"top"`
}

type wordDoc struct {
	Word  string `json:"word"`
	Count int64  `json:"count"`
}

// judge compares what the processes have counted with what one alone has.
func (d *wordcountDoc) judge(sum tally, counts map[string]int64, rightSum tally, right map[string]int64, top int) {
	d.Words, d.Different = sum.Words, len(counts)
	for word, n := range counts {
		d.Top = append(d.Top, wordDoc{word, n})
	}
	slices.SortFunc(d.Top, func(a, b wordDoc) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Word, b.Word))
	})
	d.Top = d.Top[:min(top, len(d.Top))]

	wrong := []string{}
	for word, n := range right {
		if counts[word] != n {
			wrong = append(wrong, word)
		}
	}
	for word := range counts {
		if _, ok := right[word]; !ok {
			wrong = append(wrong, word)
		}
	}
	slices.Sort(wrong)
	switch {
	case len(wrong) > 0:
		d.Fault = fmt.Sprintf("%d words are counted wrongly, %q %d times instead of %d among them", len(wrong), wrong[0], counts[wrong[0]], right[wrong[0]])
	case sum != rightSum:
		d.Fault = fmt.Sprintf("%d files and %d words are said to be done; there are %d and %d", sum.Files, sum.Words, rightSum.Files, rightSum.Words)
	}
	d.OK = d.Fault == ""
}

func (d *wordcountDoc) print(w io.Writer) error {
	for _, e := range d.Top {
		if _, err := fmt.Fprintf(w, "%9d  %s\n", e.Count, e.Word); err != nil {
			return err
		}
	}
	verdict := "ok    wordcount: "
	if !d.OK {
		verdict = "FAIL  wordcount: "
	}
	line := fmt.Sprintf("%d words in %d files, %d different; %d processes took %.2fs", d.Words, d.Files, d.Different, d.Processes, d.Seconds)
	if d.Killed > 0 {
		line += fmt.Sprintf(", %d were killed", d.Killed)
	}
	line += fmt.Sprintf("; one alone, sharing nothing, %.2fs", d.Alone)
	if d.Fault != "" {
		line += ": " + d.Fault
	}
	_, err := fmt.Fprintln(w, verdict+line)
	return err
}
