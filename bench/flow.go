package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shmkit/shmkit/containers"
	"github.com/shmkit/shmkit/shm"
	"github.com/shmkit/shmkit/shm/proc"
)

// A message is what a flow is made of: it begins with a number.
type message interface {
	[8]byte | [64]byte | [4096]byte
}

// A Flow asks how many messages go through a queue from some processes to others, one at a time or some at once.
type Flow struct {
	By     string // Shmkit; ByPipe; BySocket; or ByChannel, whose parties are goroutines of one process
	Procs  int    // that put, and as many that get
	Size   int    // of a message: 8, 64 or 4096 bytes
	Batch  int    // messages at once
	Window time.Duration
}

// A FlowResult is what came out. CPU and Switches are of Total messages.
type FlowResult struct {
	Elapsed  time.Duration
	Got      int64
	Shares   []int64 // of those that get
	Total    int64
	CPU      time.Duration
	Switches int64
}

const flowCapacity = 1024

// A flowBed is where the processes of a flow meet.
type flowBed struct {
	gate
	stop    atomic.Bool // no more is put
	_       [124]byte
	putting atomic.Int64 // parties that put, and have not ended
	_       [120]byte
	lanes   [maxTakers]struct {
		count    atomic.Int64 // messages put, or got, stored as it goes
		sum      uint64       // of their numbers
		cpu      int64
		switches int64
		_        [96]byte
	}
}

type flower[T message] struct {
	Bed     *shm.Region
	Case    Flow
	Queue   containers.SharedQueue[T]
	Parties []int  // the first Procs put, the others get
	End     string // of a pipe or a socket: what [openEnd] opens
}

var (
	flow8    = proc.Define("bench: pass messages of 8 bytes", flowIn[[8]byte])
	flow64   = proc.Define("bench: pass messages of 64 bytes", flowIn[[64]byte])
	flow4096 = proc.Define("bench: pass messages of 4096 bytes", flowIn[[4096]byte])
)

func flowIn[T message](ctx context.Context, f flower[T]) error {
	bed, err := shm.At[flowBed](f.Bed, f.Bed.Data())
	if err != nil {
		return err
	}
	channel := make(chan T, flowCapacity)
	var putting atomic.Int64 // into the channel: the race detector does not see the count in the region
	for _, party := range f.Parties {
		if party < f.Case.Procs {
			putting.Add(1)
		}
	}
	var end io.ReadWriteCloser
	if f.Case.streamed() {
		if end, err = openEnd(f.Case.By, f.End, f.Parties[0] < f.Case.Procs); err != nil {
			return err
		}
		defer end.Close() // once more: the one who puts has closed it
	}
	errs := make([]error, len(f.Parties))
	var wg sync.WaitGroup
	before := used()
	for i, party := range f.Parties {
		wg.Go(func() {
			bed.pass(2 * f.Case.Procs)
			switch {
			case f.Case.streamed() && party < f.Case.Procs:
				errs[i] = errors.Join(f.Case.write(bed, end, party), end.Close())
			case f.Case.streamed():
				errs[i] = f.Case.read(bed, end, party)
			case party < f.Case.Procs:
				errs[i] = put(ctx, bed, f, channel, &putting, party)
			default:
				errs[i] = get(ctx, bed, f, channel, party)
			}
		})
	}
	wg.Wait()
	cpu, switches := used().since(before)
	l := &bed.lanes[f.Parties[0]]
	l.cpu, l.switches = int64(cpu), switches
	return errors.Join(errs...)
}

func put[T message](ctx context.Context, bed *flowBed, f flower[T], channel chan T, putting *atomic.Int64, party int) error {
	l, batch := &bed.lanes[party], make([]T, f.Case.Batch)
	sum, count := uint64(0), int64(0)
	for count == 0 || !bed.stop.Load() { // once even if it comes to run too late
		for i := range batch {
			count++
			number := uint64(party)<<48 | uint64(count)
			sum += number
			writeNumber(&batch[i], number)
		}
		switch {
		case f.Case.By == ByChannel:
			for _, m := range batch {
				channel <- m
			}
		case len(batch) == 1:
			if err := f.Queue.Put(ctx, batch[0]); err != nil {
				return err
			}
		default:
			if n, err := f.Queue.PutN(ctx, batch...); err != nil || n != len(batch) {
				return fmt.Errorf("bench: put %d of %d: %w", n, len(batch), err)
			}
		}
		l.count.Store(count)
	}
	l.sum = sum
	if f.Case.By == ByChannel {
		if putting.Add(-1) == 0 {
			close(channel)
		}
		return nil
	}
	if bed.putting.Add(-1) > 0 {
		return nil
	}
	return f.Queue.Close()
}

func get[T message](ctx context.Context, bed *flowBed, f flower[T], channel chan T, party int) error {
	l, batch := &bed.lanes[party], make([]T, f.Case.Batch)
	for {
		n, err := 1, error(nil)
		switch {
		case f.Case.By == ByChannel:
			m, open := <-channel
			if !open {
				return nil
			}
			batch[0] = m
		case len(batch) == 1:
			batch[0], err = f.Queue.Get(ctx)
		default:
			n, err = f.Queue.GetN(ctx, batch)
		}
		if errors.Is(err, containers.ErrQueueClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range batch[:n] {
			l.sum += readNumber(&batch[i])
		}
		l.count.Store(l.count.Load() + int64(n))
	}
}

func writeNumber[T message](m *T, number uint64) {
	switch m := any(m).(type) {
	case *[8]byte:
		binary.NativeEndian.PutUint64(m[:], number)
	case *[64]byte:
		binary.NativeEndian.PutUint64(m[:], number)
	case *[4096]byte:
		binary.NativeEndian.PutUint64(m[:], number)
	}
}

func readNumber[T message](m *T) uint64 {
	switch m := any(m).(type) {
	case *[8]byte:
		return binary.NativeEndian.Uint64(m[:])
	case *[64]byte:
		return binary.NativeEndian.Uint64(m[:])
	case *[4096]byte:
		return binary.NativeEndian.Uint64(m[:])
	}
	return 0
}

// Run runs the case.
func (c Flow) Run(ctx context.Context) (*FlowResult, error) {
	switch {
	case c.Procs < 1 || 2*c.Procs > maxTakers || c.Batch < 1 || c.Batch > flowCapacity || c.Window <= 0 || c.By != Shmkit && c.By != ByChannel && !c.streamed():
		return nil, fmt.Errorf("bench: %d processes put, %d at once, by %s for %v: nothing to do", c.Procs, c.Batch, c.By, c.Window)
	case c.streamed() && !c.whole():
		return nil, fmt.Errorf("bench: %d messages of %d bytes at once by %s, %d processes that get: they would get pieces", c.Batch, c.Size, c.By, c.Procs)
	case c.Size == 8:
		return runFlow(ctx, c, flow8)
	case c.Size == 64:
		return runFlow(ctx, c, flow64)
	case c.Size == 4096:
		return runFlow(ctx, c, flow4096)
	}
	return nil, fmt.Errorf("bench: messages of %d bytes: 8, 64 or 4096, please", c.Size)
}

func runFlow[T message](ctx context.Context, c Flow, start *proc.Func[flower[T]]) (_ *FlowResult, err error) {
	r, bed, err := newShared[flowBed](1 << 16)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	qr, err := shm.Anonymous(shm.Limit(1 << 28))
	if err != nil {
		return nil, err
	}
	m, err := containers.NewManager(qr)
	if err != nil {
		return nil, errors.Join(err, qr.Close())
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	queue, err := containers.NewSharedQueue[T](m, flowCapacity)
	if err != nil {
		return nil, err
	}
	ways := new(streams)
	if c.streamed() {
		if ways, err = newStreams(c.By); err != nil {
			return nil, err
		}
	}
	opened := sync.OnceValue(ways.close)
	defer func() { err = errors.Join(err, opened()) }()
	bed.putting.Store(int64(c.Procs))
	all := []flower[T]{{Bed: r, Case: c, Queue: queue}}
	for party := range 2 * c.Procs {
		if c.By == ByChannel {
			all[0].Parties = append(all[0].Parties, party)
			continue
		}
		end := ways.reads[1]
		if party < c.Procs && c.By == ByPipe {
			end = ways.writes[0]
		}
		all = append(all, flower[T]{r, c, queue, []int{party}, end})
	}
	if c.By != ByChannel {
		all = all[1:]
	}
	crew, err := hire(ctx, start, all...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, crew.dismiss()) }()
	if err := crew.until("the gate opened", func() bool { return bed.ready.Load() == int64(2*c.Procs) }); err != nil {
		return nil, err
	}
	// All have their ends: from now on a pipe ends when those who put have closed theirs.
	if err := opened(); err != nil {
		return nil, err
	}
	bed.open.Store(1)
	res := &FlowResult{}
	res.Elapsed, res.Shares, err = inWindow(ctx, c.Window, func() (counts []int64) {
		for j := range c.Procs {
			counts = append(counts, bed.lanes[c.Procs+j].count.Load())
		}
		return counts
	})
	if err != nil {
		return nil, err
	}
	res.Got = total(res.Shares)
	bed.stop.Store(true)
	if err := crew.wait(); err != nil {
		return nil, err
	}
	var put, putSum, gotSum uint64
	for i := range 2 * c.Procs {
		l := &bed.lanes[i]
		if i < c.Procs {
			put, putSum = put+uint64(l.count.Load()), putSum+l.sum
		} else {
			res.Total, gotSum = res.Total+l.count.Load(), gotSum+l.sum
		}
		if l.cpu < 0 || res.CPU < 0 {
			res.CPU, res.Switches = -1, -1
			continue
		}
		res.CPU, res.Switches = res.CPU+time.Duration(l.cpu), res.Switches+l.switches
	}
	if put != uint64(res.Total) || putSum != gotSum {
		return nil, fmt.Errorf("bench: %d messages put by %s, %d got, their numbers add up to %d and %d", put, c.By, res.Total, putSum, gotSum)
	}
	return res, nil
}

func (c Flow) subject(role Role) Subject {
	return Subject{By: c.By, Role: role, Run: func(ctx context.Context, window time.Duration) (*Sample, error) {
		c := c
		c.Window = window
		res, err := c.Run(ctx)
		if err != nil {
			return nil, err
		}
		return &Sample{
			Ops: res.Got, Elapsed: res.Elapsed, Shares: res.Shares, Total: res.Total,
			CPU: res.CPU, Switches: res.Switches, Bytes: int64(c.Size),
		}, nil
	}}
}

// others are who passes the same messages in other ways. A ring in C passes one at a time, however many there are.
func (c Flow) others() (all []Subject) {
	for _, way := range []string{ByChannel, ByPipe, BySocket} {
		o := c
		if o.By = way; !o.streamed() || o.whole() {
			all = append(all, o.subject(Peer))
		}
	}
	procs, size := strconv.Itoa(c.Procs), strconv.Itoa(c.Size)
	all = append(all, peerC("C-ring", Peer, "flow", procs, size))
	if c.Batch == 1 {
		all = append(all, peerBoost("Boost", "queue", procs, size))
	}
	if c.Batch == 1 && c.Procs == 1 {
		all = append(all, peerPython("Python", "queue", size), peerRedis("Redis", "BRPOP", size))
	}
	return all
}

var _ = Register(func() (cases []Case) {
	for _, batch := range []int{1, 64} {
		for _, size := range []int{8, 64, 4096} {
			for _, procs := range []int{1, 2, 4} {
				c := Flow{By: Shmkit, Procs: procs, Size: size, Batch: batch}
				cases = append(cases, Case{
					Name:     fmt.Sprintf("queue/batch=%d/size=%d/procs=%d", batch, size, procs),
					Asks:     "messages through a queue, from so many processes to as many others; a channel between goroutines",
					Quick:    size == 8 && procs == 1,
					Subjects: append([]Subject{c.subject(Ours)}, c.others()...),
				})
			}
		}
	}
	return cases
})
