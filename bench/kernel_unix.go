//go:build unix

package bench

import "golang.org/x/sys/unix"

// kernel names the running kernel; "" if it does not say.
func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
}
