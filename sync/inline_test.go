package sync_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The fast paths are one compare-and-swap in the caller's own code, or they cost a call.
func TestMutexFastPathsAreInlined(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("asks the compiler: ", err)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		cmd := exec.Command("go", "build", "-gcflags=-m", ".")
		cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, method := range []string{"Lock", "Unlock", "TryLock", "TryLockIdle"} {
			if !strings.Contains(string(out), "can inline (*Mutex)."+method+"\n") {
				t.Errorf("%s: (*Mutex).%s is not inlined any more", arch, method)
			}
		}
		if strings.Contains(string(out), "can inline (*Mutex).lockSlow\n") {
			t.Errorf("%s: the slow path is inlined into the fast one", arch)
		}
	}
}
