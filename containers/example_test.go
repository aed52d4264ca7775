package containers_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/shmkit/shmkit/containers"
	"github.com/shmkit/shmkit/shm"
	shmsync "github.com/shmkit/shmkit/sync"
)

func ExampleManager() {
	r, err := shm.Anonymous() // or shm.OpenOrCreate("nuts"), to be found by name
	if err != nil {
		log.Fatal(err)
	}
	m, err := containers.NewManager(r)
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	if _, err := containers.NewSharedInt(m, 5, containers.Name("pile"), containers.OrOpen()); err != nil {
		log.Fatal(err)
	}
	pile, err := containers.Find[containers.SharedInt](m, "pile") // in whatever process
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(pile.Load())
	// Output: 5
}

func ExampleSharedInt() {
	n, err := containers.NewSharedInt(nil, 0) // nil: this process' own Manager
	if err != nil {
		log.Fatal(err)
	}
	n.Add(2)
	fmt.Println(n.Add(3))
	// Output: 5
}

func ExampleSharedNumber() {
	tickets := containers.Must(containers.NewSharedNumber[uint8](nil, 1))
	for range 2 {
		tickets.With(func(left *uint8) { // the tickets' own lock is held here
			if *left == 0 {
				fmt.Println("sold out")
				return
			}
			*left--
			fmt.Println("sold, left:", *left)
		})
	}
	// Output:
	// sold, left: 0
	// sold out
}

func ExampleLockedNumber() {
	n := containers.Must(containers.NewSharedInt(nil, 1))
	n.Lock()
	l := n.Locked() // n's own Add would wait for the lock
	if l.Load() == 1 {
		l.Add(41)
	}
	n.Unlock()
	fmt.Println(n.Load())
	// Output: 42
}

func ExampleShared() {
	type account struct {
		Owner   [16]byte
		Balance int64
	}
	a := containers.Must(containers.NewShared(nil, account{Balance: 10}))
	a.With(func(v *account) { containers.PutText(v.Owner[:], "Harry") })

	noMoney := errors.New("not enough money")
	err := a.Update(context.Background(), func(v *account) error {
		v.Balance -= 20
		if v.Balance < 0 {
			return noMoney // nothing of this is seen
		}
		return nil
	})
	v := a.Load()
	fmt.Println(containers.Text(v.Owner[:]), v.Balance, err)
	// Output: Harry 10 not enough money
}

func ExampleLockedShared() {
	s := containers.Must(containers.NewShared(nil, [2]int{1, 2}))
	s.Lock()
	v := s.Locked().Load()
	v[0], v[1] = v[1], v[0]
	s.Locked().Store(v)
	s.Unlock()
	fmt.Println(s.Load())
	// Output: [2 1]
}

func ExampleAtomicInt() {
	n := containers.Must(containers.NewAtomicInt(nil, 1))
	fmt.Println(n.Add(1), n.CompareAndSwap(2, 5), n.Load())
	// Output: 2 true 5
}

func ExampleAtomic() {
	mean := containers.Must(containers.NewAtomic(nil, 0.5))
	fmt.Println(mean.Add(0.25))
	// Output: 0.75
}

func ExampleRef() {
	type account struct {
		Mu      shmsync.Mutex // guards Balance, in all processes
		Balance int64
	}
	a := containers.Must(containers.New[account](nil))
	p := a.Ptr()
	p.Mu.Lock()
	p.Balance += 10
	p.Mu.Unlock()
	fmt.Println(p.Balance)
	// Output: 10
}

func ExampleWithMutex() {
	lock := containers.Must(containers.New[shmsync.Mutex](nil))
	a := containers.Must(containers.NewSharedInt(nil, 10, containers.WithMutex(lock)))
	b := containers.Must(containers.NewSharedInt(nil, 0, containers.WithMutex(lock)))
	lock.Ptr().Lock() // of both
	a.Locked().Add(-3)
	b.Locked().Add(3)
	lock.Ptr().Unlock()
	fmt.Println(a.Load(), b.Load())
	// Output: 7 3
}

func ExampleLink() {
	type person struct {
		Age   int32
		Purse containers.Link[containers.SharedInt]
	}
	purse := containers.Must(containers.NewSharedInt(nil, 100))
	p := containers.Must(containers.NewShared(nil, person{37, containers.LinkTo(purse)}))
	found := containers.Must(p.Load().Purse.In(nil))
	fmt.Println(found.Load())
	// Output: 100
}
