//go:build !unix

package bench

// kernel returns "": it is not asked.
func kernel() string { return "" }
