// Package hot makes the compiler write the hot paths of lists, for a test that reads them.
package hot

import "github.com/shmkit/shmkit/containers"

// Append adds to a list of words.
func Append(l containers.SharedList[int64], v int64) error { return l.Append(v) }

// AppendWide adds to a list of what takes several.
func AppendWide(l containers.SharedList[[4]int64], v [4]int64) error { return l.Append(v) }
