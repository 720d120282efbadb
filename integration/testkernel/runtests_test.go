package testkernel

import (
	"strings"
	"testing"
)

// mark begins the lines that -test.v=test2json wants to be told from a test's own.
const mark = "\x16"

// ended is printed after each test, passed after the last one.
const (
	ended  = mark + "=== NAME  \n"
	passed = mark + "PASS\n"
)

// flatten lists all results below r as "name: problem".
func flatten(r *result, path string) []string {
	var all []string
	for _, child := range r.children {
		all = append(all, path+child.name+": "+child.problem())
		all = append(all, flatten(child, path+child.name+" > ")...)
	}
	return all
}

func TestResults(t *testing.T) {
	const (
		failed  = "failed inside the test kernel"
		skipped = "skipped inside the test kernel, and it runs nowhere else"
		unended = "did not end inside the test kernel"
	)
	tests := map[string]struct {
		output string
		want   []string
	}{
		"pass": {
			mark + "=== RUN   TestA\n" + mark + "--- PASS: TestA (0.00s)\n" + ended + passed,
			[]string{"TestA: "},
		},
		"fail": {
			mark + "=== RUN   TestA\n    a_test.go:3: bad\n" + mark + "--- FAIL: TestA (0.00s)\n" + ended + "FAIL\n",
			[]string{"TestA: " + failed},
		},
		"skip": {
			mark + "=== RUN   TestA\n" + mark + "--- SKIP: TestA (0.00s)\n" + ended + passed,
			[]string{"TestA: " + skipped},
		},
		"cut off": {
			mark + "=== RUN   TestA\n" + mark + "--- PASS: TestA (0.00s)\n" + mark + "=== RUN   TestB\nworking\n",
			[]string{"TestA: ", "TestB: " + unended},
		},
		"subtests": {
			mark + "=== RUN   TestA\n" + mark + "=== RUN   TestA/x\n" + mark + "=== RUN   TestA/y/z\n" +
				mark + "--- FAIL: TestA (0.00s)\n" +
				"    " + mark + "--- PASS: TestA/x (0.00s)\n    " + mark + "--- FAIL: TestA/y/z (0.00s)\n" + ended + "FAIL\n",
			[]string{"TestA: " + failed, "TestA > x: ", "TestA > y/z: " + failed},
		},
		"claims to pass in its output": {
			mark + "=== RUN   TestA\n--- PASS: TestA (0.00s)\n",
			[]string{"TestA: " + unended},
		},
		"nothing": {"", nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			root, err := parseResults(test.output)
			if err != nil {
				t.Fatal(err)
			}
			if got := flatten(root, ""); strings.Join(got, "\n") != strings.Join(test.want, "\n") {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

func TestResultsKeepWhatATestSays(t *testing.T) {
	root, err := parseResults(mark + "=== RUN   TestA\n    a_test.go:3: bad luck\n" + mark + "--- FAIL: TestA (0.00s)\n" + ended + "FAIL\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := root.children[0].output.String(); got != "    a_test.go:3: bad luck\n" {
		t.Errorf("output %q", got)
	}
}
