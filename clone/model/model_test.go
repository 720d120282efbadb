// Package model_test searches the model of the clone's protocol, clone.pml, with
// spin: the protocol holds in every state, and each planted mistake is found.
package model_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// everything is every option that adds to what can happen.
const everything = "WITH_READER " + everythingUnread

// everythingUnread is everything but somebody who reads.
const everythingUnread = "WITH_GUEST WITH_SUMS WITH_FAILURES WITH_KILL WITH_JLOSS"

// result is what the search of one form of the model found.
type result struct {
	output    string
	states    int64
	errors    int
	complete  bool // every reachable state was visited
	assertion bool // the error is a failed check, not a deadlock or a fault of the model
}

// fault 53: the journal is lost. fault 54: an older backup of it is restored.
// fault 58: the journal's sync fails. fault 63: killed at any instruction.
// fault 67: a crash, and then another one after the restart. fault 47: the
// destination's flush fails.
func TestModelHolds(t *testing.T) {
	for name, flags := range map[string]string{
		"two_regions_without_reader":       "N=2 LIVES=2 " + everythingUnread,
		"two_regions_with_reader":          "N=2 LIVES=2 WITH_READER WITH_GUEST WITH_JLOSS",
		"everything_one_region_four_lives": "N=1 LIVES=4 " + everything,
		"three_regions_without_guest":      "N=3 LIVES=2 WITH_READER WITH_FAILURES WITH_KILL WITH_JLOSS",
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); requireHolds(t, flags) })
	}
}

// The larger forms take a minute or more each; DECANT_MODEL=full asks for them.
func TestModelHoldsInFull(t *testing.T) {
	full := map[string]string{
		"everything_two_regions_two_lives": "N=2 LIVES=2 " + everything,
		"two_regions_three_lives":          "N=2 LIVES=3 " + everythingUnread,
		"three_regions_with_guest":         "N=3 LIVES=2 WITH_GUEST WITH_JLOSS",
	}
	if os.Getenv("DECANT_MODEL") != "full" {
		t.Logf("%d larger forms are searched only with DECANT_MODEL=full", len(full))
		return
	}
	for name, flags := range full {
		t.Run(name, func(t *testing.T) { t.Parallel(); requireHolds(t, flags) })
	}
}

// A model that holds proves nothing if it cannot fail. Each of these is the
// smallest form in which the mistake can do harm; without the mistake it is part
// of a form of TestModelHolds.
func TestModelFindsPlantedBugs(t *testing.T) {
	for bug, flags := range map[string]string{
		"BUG_SNAP":         "N=2",
		"BUG_EARLY":        "N=1 WITH_GUEST",
		"BUG_NOSYNC":       "N=1",
		"BUG_ACK":          "N=1 WITH_GUEST",
		"BUG_LOCK":         "N=1 WITH_GUEST",
		"BUG_READER":       "N=1 WITH_READER",
		"BUG_RETRY":        "N=1 WITH_FAILURES",
		"BUG_NOFORGET":     "N=1 WITH_FAILURES WITH_READER",
		"BUG_LATESOIL":     "N=2 WITH_FAILURES WITH_READER",
		"BUG_NOMARK":       "N=1 WITH_JLOSS",
		"BUG_MARKLATE":     "N=1 WITH_JLOSS",
		"BUG_OLDJOURNAL":   "N=2 WITH_JLOSS",
		"BUG_MARKBELIEVED": "N=1 LIVES=3 WITH_KILL WITH_JLOSS",
		"BUG_RECOVER":      "N=1",
		"BUG_PARTIAL":      "N=1 WITH_GUEST",
		"BUG_TRIM":         "N=1 WITH_GUEST",
		"BUG_STALE":        "N=1 WITH_GUEST WITH_READER",
		"BUG_OVERTAKEN":    "N=1 WITH_GUEST WITH_READER WITH_FAILURES",
		"BUG_RECOPY":       "N=1 WITH_GUEST",
		"BUG_EMPTYFLUSH":   "N=1 WITH_GUEST",
		"BUG_LAZYSUM":      "N=1 WITH_GUEST WITH_SUMS",
		"BUG_BELIEVE":      "N=1 WITH_KILL",
	} {
		t.Run(bug, func(t *testing.T) { t.Parallel(); requireFails(t, flags, bug) })
	}
}

// The forms that hold do get to the places that matter.
func TestModelReaches(t *testing.T) {
	for place, flags := range map[string]string{
		"REACH_DONE":     "N=2",
		"REACH_REFUSED":  "N=1 WITH_JLOSS",
		"REACH_RESTORED": "N=2 WITH_JLOSS",
	} {
		t.Run(place, func(t *testing.T) { t.Parallel(); requireFails(t, flags, place) })
	}
}

// No mistake that the model knows is left out above.
func TestModelPlantsNoOtherBugs(t *testing.T) {
	text, err := os.ReadFile("clone.pml")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("model_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, flag := range regexp.MustCompile(`\b(BUG|REACH)_[A-Z]+\b`).FindAllString(string(text), -1) {
		if !strings.Contains(string(source), `"`+flag+`":`) {
			t.Errorf("clone.pml has %s, which no test sets", flag)
		}
	}
}

func requireHolds(t *testing.T, flags string) {
	t.Helper()
	r := search(t, flags, "-O2")
	if r.errors != 0 || !r.complete {
		t.Fatalf("%s: %d errors, complete: %v\n%s", flags, r.errors, r.complete, r.output)
	}
	t.Logf("%s: %d states", flags, r.states)
	if !strings.Contains(flags, everythingUnread) {
		return
	}
	for _, m := range regexp.MustCompile(`(?s)unreached in (\S+(?: \S+)?)\n(.*?)\((\d+) of`).FindAllStringSubmatch(r.output, -1) {
		absent := m[1] == "proctype reader" && !strings.Contains(flags, "WITH_READER")
		// With one region the choices among several are not there.
		if m[3] != "0" && !absent && !strings.Contains(flags, "N=1 ") {
			t.Errorf("%s: statements of %s that nothing reaches:\n%s", flags, m[1], m[2])
		}
	}
}

func requireFails(t *testing.T, flags, flag string) {
	t.Helper()
	if r := search(t, flags+" "+flag, "-O0"); r.errors != 1 || !r.assertion {
		t.Fatalf("%s %s: %d errors, a check that failed: %v; it has to be found\n%s", flags, flag, r.errors, r.assertion, r.output)
	}
}

var (
	errorsFound  = regexp.MustCompile(`errors: (\d+)\n`)
	statesStored = regexp.MustCompile(`(\d+) states, stored`)
	cutShort     = regexp.MustCompile(`max search depth too small|not completed|truncat|out of memory|memory limit|aborted`)
)

// search makes the verifier of one form of the model and runs it. How far gcc
// optimizes decides whether making it or running it takes the time.
func search(t *testing.T, flags, optimize string) result {
	t.Helper()
	model, err := filepath.Abs("clone.pml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	generate := []string{"-a"}
	for _, flag := range strings.Fields(flags) {
		generate = append(generate, "-D"+flag)
	}
	run(t, dir, "spin", append(generate, model)...)
	// Partial order reduction finds nothing to leave out here; without it there
	// is one assumption less.
	run(t, dir, "gcc", "-w", optimize, "-DSAFETY", "-DCOLLAPSE", "-DNOREDUCE", "-DMEMLIM=8000", "-o", "pan", "pan.c")
	return read(t, run(t, dir, "./pan", "-m10000"))
}

// read takes the verifier's report apart.
func read(t *testing.T, output string) result {
	t.Helper()
	found, stored := errorsFound.FindStringSubmatch(output), statesStored.FindStringSubmatch(output)
	if found == nil || stored == nil {
		t.Fatalf("the verifier did not report:\n%s", output)
	}
	r := result{
		output:    output,
		complete:  strings.Contains(output, "Full statespace search") && !cutShort.MatchString(output),
		assertion: strings.Contains(output, "assertion violated"),
	}
	var err error
	if r.errors, err = strconv.Atoi(found[1]); err != nil {
		t.Fatal(err)
	}
	if r.states, err = strconv.ParseInt(stored[1], 10, 64); err != nil {
		t.Fatal(err)
	}
	return r
}

// run runs one command in dir and gives what it wrote.
func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	if !strings.Contains(name, "/") {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("%s is missing (Debian package %q): the model cannot be checked", name, name)
		}
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return string(output)
}
