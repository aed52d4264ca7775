package containers_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/shmkit/shmkit/containers"
)

func ExampleManager_Update() {
	a := containers.Must(containers.NewSharedInt(nil, 100))
	b := containers.Must(containers.NewSharedInt(nil, 0))
	var m *containers.Manager // this process' own
	transfer := func(n int64) error {
		return m.Update(context.Background(), func(tx *containers.Tx) error {
			if b.In(tx).Add(n); a.In(tx).Add(-n) < 0 {
				return errors.New("not enough money")
			}
			return nil
		})
	}
	fmt.Println(transfer(70), a.Load(), b.Load())
	fmt.Println(transfer(70), a.Load(), b.Load())
	// Output:
	// <nil> 30 70
	// not enough money 30 70
}
