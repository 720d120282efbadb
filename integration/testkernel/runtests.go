package testkernel

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// BuildTag guards tests that exist for the inside of the test kernel only.
const BuildTag = "testkernel"

// RunTests compiles the tests of the package in a directory with the build tag, boots
// once with these disks, runs all tests inside that match the regular expression, and
// reports each as a subtest of t, with its subtests. Nothing counts as a pass but a
// pass: a test that was skipped or did not end fails, and so does a run without tests.
func RunTests(t *testing.T, packageDir, run string, disks ...string) {
	t.Helper()
	RunTestsOn(t, Config{Disks: disks}, packageDir, run)
}

// RunTestsOn is RunTests on a machine with that Config, but for its command, its
// directory and its timeout.
func RunTestsOn(t *testing.T, c Config, packageDir, run string) {
	t.Helper()
	// A machine hung up by a suspended device is killed; a test that merely waits
	// says where it does, because its own timeout comes first.
	const inside, outside = 9 * time.Minute, 10 * time.Minute
	dir, err := filepath.Abs(packageDir)
	if err != nil {
		t.Fatal(err)
	}
	c.Dir, c.Timeout = dir, outside
	c.Command = []string{
		Build(t, dir), "-test.v=test2json", "-test.count=1", "-test.run=" + run, "-test.timeout=" + inside.String(),
	}
	if testing.Short() {
		c.Command = append(c.Command, "-test.short")
	}
	m := Boot(t, c)
	v, died := m.wait()
	root, err := parseResults(v.Output)
	if err != nil {
		t.Fatalf("read the results of the tests inside: %v", err)
	}
	t.Logf("test kernel: booted in %v, powered off after %v", v.Boot.Round(time.Millisecond), v.Total.Round(time.Millisecond))
	if len(root.children) == 0 {
		t.Errorf("no test inside matches %q; output:\n%s", run, tail(v.Output))
	}
	for _, child := range root.children {
		child.replay(t)
	}
	if died != nil { // the tests that ended before that have had their say
		t.Errorf("%v; end of its output:\n%s", died, tail(v.Output))
	} else if v.ExitCode != 0 && !t.Failed() {
		t.Errorf("the tests passed, yet their program ended with code %d; output:\n%s", v.ExitCode, tail(v.Output))
	}
}

// Build compiles the tests of the package in a directory, with the build tag, and
// returns the program. It may use shared libraries: the inside has the host's.
func Build(t testing.TB, packageDir string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), filepath.Base(packageDir)+".test")
	cmd := exec.Command("go", "test", "-c", "-tags="+BuildTag, "-o", program, ".")
	cmd.Dir = packageDir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("compile the tests of %s: %v\n%s", packageDir, err, out)
	}
	return program
}

// result is a test inside.
type result struct {
	name     string // without the parent's
	action   string // its last: pass, fail, skip; anything else did not end
	seconds  float64
	output   strings.Builder
	children []*result
}

// parseResults reads what a test program printed, as a tree. The root has no name.
func parseResults(output string) (*result, error) {
	cmd := exec.Command("go", "tool", "test2json", "-t") // else it does not tell how long they took
	cmd.Stdin = strings.NewReader(output)
	var messages bytes.Buffer
	cmd.Stderr = &messages
	events, err := cmd.Output()
	if err != nil {
		return nil, errors.Join(err, errors.New(messages.String()))
	}
	root := &result{}
	known := map[string]*result{"": root}
	for dec := json.NewDecoder(bytes.NewReader(events)); ; {
		var e struct {
			Action, Test, Output string
			Elapsed              float64 // seconds
		}
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return root, nil
		} else if err != nil {
			return nil, err
		}
		r := known[e.Test]
		if r == nil {
			parent, name := parentOf(known, e.Test)
			r = &result{name: name}
			parent.children = append(parent.children, r)
			known[e.Test] = r
		}
		r.seconds = max(r.seconds, e.Elapsed)
		r.add(e.Action, e.Output)
	}
}

// parentOf is the test of which a test is a part. Names may contain slashes of their
// own, so it is the longest one that there is.
func parentOf(known map[string]*result, test string) (parent *result, name string) {
	for end := len(test); ; {
		end = strings.LastIndexByte(test[:end], '/')
		if end < 0 {
			return known[""], test
		}
		if parent := known[test[:end]]; parent != nil {
			return parent, test[end+1:]
		}
	}
}

func (r *result) add(action, output string) {
	switch action {
	case "pass", "fail", "skip":
		r.action = action
	case "output":
		if trimmed := strings.TrimSpace(output); !strings.HasPrefix(trimmed, "=== ") && !strings.HasPrefix(trimmed, "--- ") {
			r.output.WriteString(output)
		}
	}
}

func (r *result) replay(t *testing.T) {
	t.Run(r.name, func(t *testing.T) {
		for _, child := range r.children {
			child.replay(t)
		}
		if r.seconds > 0 {
			t.Logf("%.1f s inside", r.seconds)
		}
		if r.output.Len() > 0 {
			t.Logf("inside:\n%s", r.output.String())
		}
		if problem := r.problem(); problem != "" {
			t.Error(problem)
		}
	})
}

// problem is empty for a test that passed.
func (r *result) problem() string {
	switch r.action {
	case "pass":
		return ""
	case "fail":
		return "failed inside the test kernel"
	case "skip":
		return "skipped inside the test kernel, and it runs nowhere else"
	default:
		return "did not end inside the test kernel"
	}
}
