package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/shmkit/shmkit/bench"
)

// asCommand makes this test binary behave as the command itself.
const asCommand = "SHMKIT_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	bench.Main() // the demo's processes are this binary again
	if os.Getenv(asCommand) != "" {
		main()
	}
	// A program built with -race sleeps for a second before it exits; hundreds of them are started here.
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")
	os.Exit(m.Run())
}

// output is what one run of the command came to.
type output struct {
	code           int
	stdout, stderr string
}

// shmkit runs the command in this process.
func shmkit(args ...string) output {
	var stdout, stderr bytes.Buffer
	code := run(args, strings.NewReader(""), &stdout, &stderr)
	return output{code, stdout.String(), stderr.String()}
}

// fine runs the command and fails the test unless it ends well.
func fine(t *testing.T, args ...string) output {
	t.Helper()
	o := shmkit(args...)
	if o.code != exitFine {
		t.Fatalf("shmkit %s: exit code %d\n%s%s", strings.Join(args, " "), o.code, o.stdout, o.stderr)
	}
	return o
}

func mustContain(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in:\n%s", part, text)
		}
	}
}
