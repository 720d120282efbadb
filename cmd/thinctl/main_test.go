package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"decant/thin"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"thinctl": main})
}

// TestScripts runs the real program. UPDATE_SCRIPTS=1 writes its output into the
// golden files; read the difference before it is kept.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

// exits runs a program that has to end with a certain code: exits CODE PROGRAM ARG...
func exits(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	code := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if code != want {
		ts.Fatalf("it ended with code %d, want %d", code, want)
	}
}

// thinctl runs a command line in this process, with the state under dir.
func thinctl(t *testing.T, dir string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(append(args, "--state-dir", filepath.Join(dir, "state")), &out, &errs)
	return out.String(), errs.String(), code
}

func mustRun(t *testing.T, dir string, args ...string) string {
	t.Helper()
	stdout, stderr, code := thinctl(t, dir, args...)
	if code != 0 {
		t.Fatalf("thinctl %q ended with code %d: %s", args, code, stderr)
	}
	return stdout
}

// Every command prints one JSON object or array, with exactly the promised keys.
func TestJSONKeys(t *testing.T) {
	pool := []string{
		"name", "kind", "block_bytes", "data_blocks", "data_used_blocks", "metadata_blocks", "metadata_used_blocks", "reserved_blocks",
		"transaction_id", "mode", "volumes",
	}
	volume := []string{
		"pool", "name", "id", "thin_id", "origin", "size_bytes", "mapped_bytes", "exclusive_bytes", "reserved_bytes", "blob", "state", "created", "path",
	}
	dir := t.TempDir()
	poolDir := filepath.Join(dir, "pool")
	for _, c := range []struct {
		args []string
		list bool
		keys []string
	}{
		{[]string{"pool", "create", "p", "--dir", poolDir, "--size", "1M"}, false, pool},
		{[]string{"pool", "open", "--dir", poolDir}, false, pool},
		{[]string{"pool", "show", "p"}, false, pool},
		{[]string{"pool", "list"}, true, pool},
		{[]string{"create", "p/v", "--size", "1M"}, false, volume},
		{[]string{"show", "p/v"}, false, volume},
		{[]string{"list"}, true, volume},
		{[]string{"list", "p"}, true, volume},
		{[]string{"delete", "p/v"}, false, []string{"pool", "name"}},
		{[]string{"pool", "destroy", "p"}, false, []string{"name"}},
	} {
		text := mustRun(t, dir, append(c.args, "--json")...)
		objects := make([]map[string]any, 1)
		var into any = &objects[0]
		if c.list {
			into = &objects
		}
		if err := json.Unmarshal([]byte(text), into); err != nil || len(objects) != 1 {
			t.Errorf("%q printed %q: %v", c.args, text, err)
			continue
		}
		var got []string
		for key := range objects[0] {
			got = append(got, key)
		}
		slices.Sort(got)
		if want := slices.Sorted(slices.Values(c.keys)); !slices.Equal(got, want) {
			t.Errorf("%q has the keys %q, want %q", c.args, got, want)
		}
	}
}

func TestEmptyListsAreEmptyArrays(t *testing.T) {
	for _, args := range [][]string{{"pool", "list"}, {"list"}} {
		if text := mustRun(t, t.TempDir(), append(args, "--json")...); text != "[]\n" {
			t.Errorf("%q printed %q", args, text)
		}
	}
}

func TestDeleteNamesTheUser(t *testing.T) {
	dir := t.TempDir()
	mustRun(t, dir, "pool", "create", "p", "--dir", filepath.Join(dir, "pool"), "--size", "1M")
	mustRun(t, dir, "create", "p/v", "--size", "1M")
	p, err := thin.NewRegistry(filepath.Join(dir, "state")).Open("p")
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.OpenVolume("v", true)
	if err != nil {
		t.Fatal(err)
	}
	_, stderr, code := thinctl(t, dir, "delete", "p/v")
	if who := fmt.Sprintf("p/v: is in use by process %d", os.Getpid()); code != exitRefused || !strings.Contains(stderr, who) {
		t.Errorf("ended with code %d and %q, want %d and %q", code, stderr, exitRefused, who)
	}
	if _, _, code := thinctl(t, dir, "pool", "close", "p"); code != exitRefused {
		t.Errorf("pool close ended with code %d, want %d", code, exitRefused)
	}
	if err := errors.Join(v.Close(), p.Close()); err != nil {
		t.Error(err)
	}
	mustRun(t, dir, "delete", "p/v")
}

// One pool that cannot be opened does not hide the others.
func TestListGoesOnAfterABrokenPool(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		mustRun(t, dir, "pool", "create", name, "--dir", filepath.Join(dir, name), "--size", "1M")
		mustRun(t, dir, "create", name+"/v", "--size", "1M")
	}
	if err := os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "moved")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"pool", "list"}, {"list"}} {
		stdout, stderr, code := thinctl(t, dir, args...)
		if code != exitFailed || !strings.Contains(stdout, "\nb") || !strings.Contains(stderr, "open pool: a: ") {
			t.Errorf("%q ended with code %d, %q and %q", args, code, stdout, stderr)
		}
	}
}

// fault 89: what comes from outside does not reach the terminal as it is.
func TestMessagesHaveNoControlCharacters(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{
		{"show", "p/\x1b[31m"}, {"pool", "show", "\n"}, {"\x1b"}, {"pool", "open", "--dir", "/a\x1b\nb"}, {"create", "p/v", "--size", "\x07"},
	} {
		_, stderr, code := thinctl(t, dir, args...)
		if code == 0 || strings.ContainsAny(strings.ReplaceAll(stderr, "\nthinctl: ", ""), "\x1b\x07") || strings.Count(stderr, "\n") > 2 {
			t.Errorf("%q ended with code %d and %q", args, code, stderr)
		}
	}
}
