package proc

import (
	"os"
	"path/filepath"
)

// program returns what a child executes: this very program, even if its file was replaced or removed.
func program() (string, error) {
	const self = "/proc/self/exe"
	if _, err := os.Stat(self); err == nil {
		return self, nil
	}
	return os.Executable()
}

// showName gives a child the name that the program has in ps and top. Having executed /proc/self/exe,
// it would be "exe" there.
func showName() {
	if f, err := os.OpenFile("/proc/self/comm", os.O_WRONLY, 0); err == nil {
		f.WriteString(filepath.Base(commandName()))
		f.Close()
	}
}

// keep decides about the descriptor of a region that is attached: it is not needed any more.
func keep(f *os.File) { f.Close() }
