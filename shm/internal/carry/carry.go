// Package carry tells the starter of a process which regions its arguments refer to.
//
// A region's encoding names the region, it does not contain it. Whoever sends the encoding to a new
// process must send the region's descriptor along. Encoders have no context to report through, so
// they report here: [Collect] runs an encoding and gathers what it noted.
package carry

import "sync"

var (
	collecting sync.Mutex // one Collect at a time

	mu    sync.Mutex // guards noted
	noted *[]any     // where notes go; nil while nobody collects
)

// Note records that r was encoded. It does nothing while nobody collects.
func Note(r any) {
	mu.Lock()
	defer mu.Unlock()
	if noted != nil {
		*noted = append(*noted, r)
	}
}

// Collect runs encode and returns what was noted meanwhile, by any goroutine: more than encode's own
// notes at worst, never less. Calls run one after the other; encode must not call Collect.
func Collect(encode func() error) ([]any, error) {
	collecting.Lock()
	defer collecting.Unlock()
	swap(new([]any))
	defer swap(nil) // also when encode panics
	err := encode()
	return *swap(nil), err
}

// swap makes notes go to next and returns where they went before, or an empty list.
func swap(next *[]any) *[]any {
	mu.Lock()
	defer mu.Unlock()
	last := noted
	noted = next
	if last == nil {
		last = new([]any)
	}
	return last
}
