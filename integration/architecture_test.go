// Package integration tests the programs as a whole, and the shape of the code.
package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// mayImport is the architecture: for each package the packages of this module
// that it may import. What is not listed may not exist.
var mayImport = map[string][]string{
	"region":                    {},
	"units":                     {},
	"journal":                   {"region"},
	"clone":                     {"region", "journal"},
	"clone/clonetest":           {"region", "journal", "clone"},
	"clone/model":               {},
	"hydrate":                   {"region", "clone"},
	"loopdev":                   {},
	"dm":                        {},
	"dm/persistent":             {},
	"dm/clonetarget":            {"dm", "dm/persistent"},
	"nbd":                       {},
	"thin":                      {"dm", "loopdev", "thin/metadata"},
	"thin/metadata":             {"dm/persistent"},
	"integration/testkernel":    {},
	"integration/kernel":        {"integration/testkernel"},
	"integration/kernel/inside": {},
	"integration/faultfs":       {},
	"integration/logwrites":     {},
	"service":                   {"region", "journal", "clone", "hydrate", "loopdev", "dm", "dm/clonetarget", "dm/persistent", "thin", "nbd", "units"},
	"api/client":                {"service", "units"},
	"api":                       {"service", "api/client"},
	"web":                       {},
	"cmd/migrate":               {"service", "api/client", "units"},
	"cmd/hydrated":              {"service", "api", "units", "web"},
	"cmd/thinctl":               {"thin", "units"},
	"bench":                     {},
	"integration":               {"region", "journal", "clone", "clone/clonetest", "hydrate", "loopdev", "thin", "nbd", "service", "units"},
}

type goPackage struct {
	ImportPath   string
	GoFiles      []string
	Dir          string
	Imports      []string
	TestGoFiles  []string
	XTestGoFiles []string
}

func listPackages(t *testing.T) map[string]goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,GoFiles,Dir,Imports,TestGoFiles,XTestGoFiles", "decant/...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	packages := map[string]goPackage{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages[strings.TrimPrefix(p.ImportPath, "decant/")] = p
	}
}

func TestImportsRunOneWay(t *testing.T) {
	for name, p := range listPackages(t) {
		allowed, known := mayImport[name]
		if !known {
			t.Errorf("package %s has no place in the architecture", name)
			continue
		}
		for _, imported := range p.Imports {
			short, ours := strings.CutPrefix(imported, "decant/")
			if ours && !slices.Contains(allowed, short) {
				t.Errorf("%s imports %s", name, short)
			}
			if imported == "database/sql" && name != "journal" && name != "thin" {
				t.Errorf("%s imports database/sql", name)
			}
			if name == "region" && strings.Contains(imported, ".") {
				t.Errorf("%s imports %s; it is arithmetic on the standard library alone", name, imported)
			}
			if name == "api/client" && !ours && strings.Contains(imported, ".") && imported != "golang.org/x/sys/unix" {
				t.Errorf("%s imports %s, which every start of a command would pay for", name, imported)
			}
		}
	}
}

func TestNoPackageIsADrawer(t *testing.T) {
	for name := range listPackages(t) {
		switch filepath.Base(name) {
		case "util", "utils", "common", "helpers", "types", "misc", "internal":
			t.Errorf("package %s is named for nothing", name)
		}
	}
}

// eachLine calls f for every line of every Go file of the module.
func eachLine(t *testing.T, f func(path string, line int, text string)) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }() // only read
		scanner := bufio.NewScanner(file)
		for n := 1; scanner.Scan(); n++ {
			f(strings.TrimPrefix(path, "../"), n, scanner.Text())
		}
		return scanner.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOnlyCloneDiscardsTheSource(t *testing.T) {
	discard := regexp.MustCompile(`(?i)(source|src)\w*\.Discard\(`)
	eachLine(t, func(path string, line int, text string) {
		if discard.MatchString(text) && filepath.Dir(path) != "clone" && !strings.HasSuffix(path, "_test.go") {
			t.Errorf("%s:%d discards a source: %s", path, line, text)
		}
	})
}

func TestNothingRegistersInInit(t *testing.T) {
	eachLine(t, func(path string, line int, text string) {
		if strings.HasPrefix(text, "func init()") {
			t.Errorf("%s:%d has an init function", path, line)
		}
	})
}

func TestFilesAndFunctionsStayShort(t *testing.T) {
	const maxFileLines, maxFunctionLines = 500, 75
	start, name := 0, ""
	eachLine(t, func(path string, line int, text string) {
		if line == 1 {
			start = 0
		}
		if line == maxFileLines+1 {
			t.Errorf("%s has more than %d lines", path, maxFileLines)
		}
		if strings.HasPrefix(text, "func ") {
			start, name = line, text
		}
		if text == "}" && start > 0 {
			if line-start > maxFunctionLines {
				t.Errorf("%s:%d has %d lines: %s", path, start, line-start, name)
			}
			start = 0
		}
	})
}
