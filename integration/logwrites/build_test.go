package logwrites_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// binariesVariable names a directory with a migrate that is built already.
const binariesVariable = "DECANT_TEST_BINARIES"

// plantedBug is a mistake to be built into the program: texts of one of its files,
// each followed by what to put in its place.
type plantedBug struct {
	name, file string
	texts      []string
	keep       float64 // of what was not flushed, when it shows
	found      string  // in one of the messages
}

// bugs are planted in the real program. In their order it does its work as always.
var bugs = []plantedBug{
	{
		"destination not flushed", "clone/commit.go",
		[]string{"err := c.Destination.Flush();", "err := error(nil);"},
		0, "is owned by the destination, which has not got it",
	},
	{
		"source not marked", "clone/discard.go",
		[]string{"err := c.Marker.Mark(c.marked);", "err := error(nil);"},
		0, "and has no mark",
	},
	{
		"journal not synced", "journal/connection.go",
		[]string{
			`"PRAGMA synchronous = "+level`, `"PRAGMA synchronous = OFF"`,
			"_synchronous=EXTRA", "_synchronous=OFF",
			"got != want {", "false && want > 0 {",
			`{"synchronous", 2, 3}`, `{"synchronous", 0, 3}`,
		},
		0, "is owned by the source, which has not got it",
	},
}

// Bugs in the real program are found, each for what it does.
func TestPowerCutsOnAllMediaFindPlantedBugs(t *testing.T) {
	var list []migration
	for _, bug := range bugs {
		list = append(list, migration{name: bug.name, flags: "--discard-src", bug: bug})
	}
	for i, r := range record(t, list) {
		t.Run(r.name, func(t *testing.T) { r.wantFound(t, bugs[i].keep, bugs[i].found) })
	}
}

// buildMigrate is the path of the program under test, with the bug if it has a file.
func buildMigrate(t *testing.T, bug plantedBug) string {
	t.Helper()
	dir := t.TempDir()
	args := []string{"build", "-buildvcs=false", "-o", filepath.Join(dir, "migrate")}
	if bug.file != "" {
		args = append(args, "-overlay="+bug.plant(t, dir))
	} else if built := os.Getenv(binariesVariable); built != "" {
		return filepath.Join(built, "migrate")
	}
	cmd := exec.Command("go", append(args, "./cmd/migrate")...)
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build migrate: %v\n%s", err, out)
	}
	return filepath.Join(dir, "migrate")
}

// plant writes what makes the compiler take another file, and returns its path.
func (b plantedBug) plant(t *testing.T, dir string) string {
	t.Helper()
	original, err := filepath.Abs(filepath.Join("../..", b.file))
	if err != nil {
		t.Fatal(err)
	}
	code, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(b.texts); i += 2 {
		if n := strings.Count(string(code), b.texts[i]); n != 1 {
			t.Fatalf("%s has the text %q %d times, want 1: bring the bugs in step with the code", b.file, b.texts[i], n)
		}
	}
	changed, overlay := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(changed, []byte(strings.NewReplacer(b.texts...).Replace(string(code))), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(overlay, list, 0o600); err != nil {
		t.Fatal(err)
	}
	return overlay
}
