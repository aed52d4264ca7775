package bench

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/shmkit/shmkit/containers"
	"github.com/shmkit/shmkit/shm"
)

// inManager gives a batch a Manager of its own, in a region that may grow to 1 GiB.
func inManager(make func(m *containers.Manager) (batch, error)) func() (batch, error) {
	return func() (batch, error) {
		r, err := shm.Anonymous(shm.Limit(1 << 30))
		if err != nil {
			return batch{}, err
		}
		m, err := containers.NewManager(r)
		if err != nil {
			return batch{}, errors.Join(err, r.Close())
		}
		b, err := make(m)
		if err != nil {
			return batch{}, errors.Join(err, m.Close())
		}
		inner := b.close
		b.close = func() error {
			if inner != nil {
				return errors.Join(inner(), m.Close())
			}
			return m.Close()
		}
		return b, nil
	}
}

// A guarded is what a Go program has instead of a SharedList, in one process.
type guarded[T any] struct {
	mu     sync.Mutex
	values []T
}

const listed = 1_000_000 // elements of the lists that are read

// appends are the subjects that append value to a list, over and over; it is emptied now and then.
func appends[T any](value T, copied func(T) T) []Subject {
	return []Subject{
		{By: Shmkit, Role: Ours, Run: alone(inManager(func(m *containers.Manager) (batch, error) {
			l, err := containers.NewSharedList[T](m)
			return batch{most: listed, fresh: func() error { l.Clear(); return nil }, calls: func(n int) error {
				for range n {
					if err := l.Append(value); err != nil {
						return err
					}
				}
				if l.Len() != n {
					return fmt.Errorf("bench: %d elements after %d appends", l.Len(), n)
				}
				return nil
			}}, err
		}))},
		{By: "slice+sync.Mutex", Role: Peer, Run: alone(func() (batch, error) {
			l := new(guarded[T])
			return batch{most: listed, fresh: func() error { l.values = nil; return nil }, calls: func(n int) error {
				for range n {
					l.mu.Lock()
					l.values = append(l.values, copied(value))
					l.mu.Unlock()
				}
				return nil
			}}, nil
		})},
	}
}

// filled makes a list of 0, 1, 2, …
func filled(m *containers.Manager, n int) (containers.SharedList[int64], error) {
	l, err := containers.NewSharedList[int64](m)
	if err != nil {
		return l, err
	}
	values := make([]int64, n)
	for i := range values {
		values[i] = int64(i)
	}
	return l, l.AppendN(values...)
}

// checkSum refuses a sum of a walk that is not that of 0 to n-1.
func checkSum(sum int64, n int) error {
	if want := int64(n) * int64(n-1) / 2; sum != want {
		return fmt.Errorf("bench: the elements add up to %d, not %d", sum, want)
	}
	return nil
}

// walks measures what goes over all n elements: an operation is one element.
func walks(n int, walk func() int64) batch {
	return batch{each: int64(n), calls: func(times int) error {
		for range times {
			if err := checkSum(walk(), n); err != nil {
				return err
			}
		}
		return nil
	}}
}

var _ = Register(func() (cases []Case) {
	same := func(v int64) int64 { return v }
	cases = append(cases,
		Case{Name: "append/of=int64", Asks: "Append to a list", Quick: true, Subjects: append(appends(int64(7), same),
			peerBoost("Boost", "append-int64"), peerPython("Python-Manager", "append-int64"), peerRedis("Redis", "RPUSH", "7"))},
		Case{Name: "append/of=string32", Asks: "Append of a string of 32 bytes, which is copied", Quick: true, Subjects: append(appends(strings.Repeat("s", 32), strings.Clone),
			peerBoost("Boost", "append-string"), peerPython("Python-Manager", "append-string"), peerRedis("Redis", "RPUSH", strings.Repeat("s", 32)))},
	)
	at := func(i int, n int) int { return int(uint64(i) * 0x9E3779B97F4A7C15 >> 32 % uint64(n)) }
	cases = append(cases, Case{
		Name: "read/of=int64", Asks: "At of a list of 1 M elements, in no order; the slice without a lock", Quick: true,
		Subjects: []Subject{
			{By: Shmkit, Role: Ours, Run: alone(inManager(func(m *containers.Manager) (batch, error) {
				l, err := filled(m, listed)
				return batch{calls: func(n int) error {
					for i := range n {
						if j := at(i, listed); l.At(j) != int64(j) {
							return fmt.Errorf("bench: element %d is another one", j)
						}
					}
					return nil
				}}, err
			}))},
			{By: "slice", Role: Floor, Run: alone(func() (batch, error) {
				values := make([]int64, listed)
				for i := range values {
					values[i] = int64(i)
				}
				return batch{calls: func(n int) error {
					for i := range n {
						if j := at(i, listed); values[j] != int64(j) {
							return fmt.Errorf("bench: element %d is another one", j)
						}
					}
					return nil
				}}, nil
			})},
		},
	})
	for _, n := range []int{1000, listed} {
		cases = append(cases, Case{
			Name: fmt.Sprintf("iterate/size=%d", n), Asks: "a walk over int64: an operation is one element", Quick: n == listed,
			Subjects: []Subject{
				{By: Shmkit, Role: Ours, Run: alone(inManager(func(m *containers.Manager) (batch, error) {
					l, err := filled(m, n)
					return walks(n, func() (sum int64) {
						for v := range l.Values() {
							sum += v
						}
						return sum
					}), err
				}))},
				{By: "shmkit-view", Role: Ours, Run: alone(inManager(func(m *containers.Manager) (batch, error) {
					l, err := filled(m, n)
					return walks(n, func() (sum int64) {
						l.With(func(v containers.ListView[int64]) {
							for _, x := range v.All() {
								sum += x
							}
						})
						return sum
					}), err
				}))},
				{By: "slice", Role: Floor, Run: alone(func() (batch, error) {
					values := make([]int64, n)
					for i := range values {
						values[i] = int64(i)
					}
					return walks(n, func() (sum int64) {
						for _, v := range values {
							sum += v
						}
						return sum
					}), nil
				})},
				peerPython("Python-Array", "array", strconv.Itoa(n)),
			},
		})
	}
	cases = append(cases, Case{
		Name: "value/call=Add", Asks: "a shared number is added to", Quick: true,
		Subjects: []Subject{
			{By: Shmkit, Role: Ours, Run: alone(inManager(func(m *containers.Manager) (batch, error) {
				v, err := containers.NewSharedInt(m, 0)
				return batch{calls: func(n int) error {
					for range n {
						v.Add(1)
					}
					return nil
				}}, err
			}))},
			{By: "int+sync.Mutex", Role: Peer, Run: alone(func() (batch, error) {
				var v struct {
					mu sync.Mutex
					n  int64
				}
				return batch{calls: func(n int) error {
					for range n {
						v.mu.Lock()
						v.n++
						v.mu.Unlock()
					}
					return nil
				}}, nil
			})},
			peerPython("Python-Value", "value"),
			peerRedis("Redis", "INCR"),
		},
	})
	for _, size := range []int{1 << 10, 1 << 16, 1 << 20} {
		cases = append(cases, Case{
			Name: fmt.Sprintf("copy/size=%d", size), Asks: "CopyIn of bytes into an array; the floor: copy from heap to heap", Quick: size == 1<<16,
			Subjects: []Subject{
				{By: Shmkit, Role: Ours, Run: alone(inManager(func(m *containers.Manager) (batch, error) {
					a, err := containers.NewSharedArray[byte](m, size)
					from := make([]byte, size)
					return batch{bytes: int64(size), calls: func(n int) error {
						for range n {
							a.CopyIn(0, from)
						}
						return nil
					}}, err
				}))},
				{By: "copy", Role: Floor, Run: alone(func() (batch, error) {
					to, from := make([]byte, size), make([]byte, size)
					return batch{bytes: int64(size), calls: func(n int) error {
						for range n {
							copy(to, from)
						}
						return nil
					}}, nil
				})},
			},
		})
	}
	return cases
})
