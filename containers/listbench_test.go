package containers

import (
	"fmt"
	"testing"
)

// What does an operation cost, by the length of the list? At either end, and At, the same at every length; in the middle, as much as it takes to move half of the
// elements.
func BenchmarkListByLength(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000, 1_000_000} {
		l := Must(NewSharedList[int64](newManager(b)))
		if err := l.AppendN(make([]int64, n)...); err != nil {
			b.Fatal(err)
		}
		for name, op := range map[string]func(i int) error{
			"append and pop":  func(int) error { err := l.Append(7); l.Pop(); return err },
			"at":              func(i int) error { l.At(i * 7919 % n); return nil },
			"insert and take": func(int) error { err := l.Insert(n/2, 7); l.PopAt(n / 2); return err },
		} {
			b.Run(fmt.Sprintf("op=%s/of=%d", name, n), func(b *testing.B) {
				for i := range b.N {
					if err := op(i); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
