package integration

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// The work of children, and the variable that says where.
const (
	journalWork       = "journal workload"
	childPathVariable = "DECANT_TEST_CHILD_PATH"
)

// child is what this binary does instead of tests when one of them starts it.
func child(work string) {
	err := fmt.Errorf("no such work: %q", work)
	if work == journalWork {
		err = journalWorkload(os.Getenv(childPathVariable), tellParent(bufio.NewReader(os.Stdin)))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// tellParent says something to the test and waits until it has noted that.
func tellParent(answers *bufio.Reader) func(string) error {
	return func(label string) error {
		fmt.Println(label)
		_, err := answers.ReadString('\n')
		return err
	}
}

// runChild starts this binary for some work and calls noted for every line that it
// says, before it goes on.
func runChild(t testing.TB, work, path string, noted func(label string)) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+work, childPathVariable+"="+path)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		noted(lines.Text())
		if _, err := fmt.Fprintln(stdin); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v", work, err)
	}
}
