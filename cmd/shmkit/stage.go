package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/shmkit/shmkit/containers"
	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// stage is where a program is played once: its size, its Manager, and what its processes said.
type stage struct {
	*program
	size
	quiet    bool      // the processes say nothing
	shows    bool      // their lines go to out
	out      io.Writer // standard output
	progress io.Writer // where a person watches; nil if nobody does
	manager  *containers.Manager
	done     func() int64 // turns taken until now, as far as it is known; may be nil

	said []string      // what was said, in order
	took time.Duration // from the first process' start to the last one's end
}

// run plays the program once, in a region of its own that is gone afterwards.
func (s *stage) run(ctx context.Context) (result, error) {
	region, err := shm.Anonymous()
	if err != nil {
		return result{}, err
	}
	m, err := containers.NewManager(region)
	if err != nil {
		return result{}, errors.Join(err, region.Close())
	}
	s.manager = m
	start := time.Now()
	o, err := s.play(ctx, s)
	if err := errors.Join(err, m.Close()); err != nil {
		return result{}, err
	}
	if o.Fault == nil && !s.quiet {
		o.Fault = s.check(s)
	}
	return o.result(time.Since(start)), nil
}

// cast starts one process per part and waits for all. Their lines pass through one pipe, so they are
// recorded and shown in the order in which they were written. When one fails or ctx ends, the others
// are ended. They are daemons: should this process be killed, they end with it.
func cast[A any](ctx context.Context, s *stage, f *proc.Func[A], arg func(Part) A) (err error) {
	gates, err := containers.New[gates](s.manager)
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var heard sync.WaitGroup
	var listenErr error
	heard.Go(func() { listenErr = s.listen(r, cancel) })
	stopWatching := s.watch()
	start := time.Now()

	var processes []*proc.Process
	for i := range s.Processes {
		part := Part{Name: s.name(i), Index: i, Processes: s.Processes, Rounds: s.Rounds, NoLock: s.NoLock, Quiet: s.quiet, Gates: gates}
		p, startErr := f.Start(ctx, arg(part), proc.Name(part.Name), proc.Stdout(w), proc.Daemon())
		if startErr != nil {
			err = startErr
			cancel()
			break
		}
		processes = append(processes, p)
	}
	_ = w.Close()

	ends := make(chan error)
	for _, p := range processes {
		go func() { ends <- p.Wait() }()
	}
	for range processes {
		if end := <-ends; end != nil && err == nil {
			err = end // the others end because of it
			cancel()
		}
	}
	s.took = time.Since(start)
	heard.Wait()
	cancel()
	stopWatching()
	_ = r.Close()
	if listenErr != nil {
		return listenErr
	}
	return err
}

// listen takes down and shows what comes through r, line by line, until nobody can write to it any more.
// If a line cannot be shown it calls cancel; it goes on reading, so that nobody is stuck in a write.
func (s *stage) listen(r io.Reader, cancel func()) error {
	var failed error
	for in := bufio.NewReader(r); ; {
		line, err := in.ReadString('\n')
		if line != "" && failed == nil {
			if failed = s.tell(line); failed != nil {
				cancel()
			}
		}
		if err == io.EOF {
			return failed
		}
		if err != nil {
			return errors.Join(failed, err)
		}
	}
}

// tell takes line down and shows it.
func (s *stage) tell(line string) error {
	s.said = append(s.said, strings.TrimSuffix(line, "\n"))
	if !s.shows {
		return nil
	}
	_, err := io.WriteString(s.out, line)
	return err
}

// watch says from time to time how far a silent program has come, if a person watches and it is
// known. The function it returns ends that.
func (s *stage) watch() func() {
	if s.progress == nil || !s.quiet || s.done == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() {
		for tick := time.NewTicker(200 * time.Millisecond); ; {
			select {
			case <-tick.C:
				fmt.Fprintf(s.progress, "\r%s: %d of %d turns (-v prints their lines)\x1b[K", s.title, s.done(), s.turns())
			case <-ctx.Done():
				tick.Stop()
				fmt.Fprint(s.progress, "\r\x1b[K")
				return
			}
		}
	})
	return func() { cancel(); ended.Wait() }
}
