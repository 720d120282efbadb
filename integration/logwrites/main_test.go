package logwrites_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	// binariesVariable names a directory with a migrate that is built already.
	binariesVariable = "DECANT_TEST_BINARIES"
	// nightlyVariable asks for the long forms of the tests.
	nightlyVariable = "DECANT_NIGHTLY"
)

func nightly() bool { return os.Getenv(nightlyVariable) != "" }

// migratePath is the program under test, built once for all tests.
var migratePath string

// tools are the programs that look at a state, with the Debian packages that have them.
var tools = map[string]string{
	"debugfs":    "e2fsprogs",
	"e2fsck":     "e2fsprogs",
	"thin_check": "thin-provisioning-tools",
	"thin_dump":  "thin-provisioning-tools",
}

func TestMain(m *testing.M) {
	code, err := prepareAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "the tests of crash states cannot run:", err)
		code = 1
	}
	os.Exit(code)
}

func prepareAndRun(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return 0, fmt.Errorf("they boot a kernel on file systems of their own, which takes root")
	}
	var missing []string
	for tool, debianPackage := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, fmt.Sprintf("%s (Debian package %s)", tool, debianPackage))
		}
	}
	if len(missing) > 0 {
		return 0, fmt.Errorf("missing: %s", strings.Join(missing, ", "))
	}
	dir := os.Getenv(binariesVariable)
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "decant-logwrites-*"); err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir) // a temporary directory at worst stays
		cmd := exec.Command("go", "build", "-buildvcs=false", "-o", dir+"/", "./cmd/migrate")
		cmd.Dir = "../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("build migrate: %w\n%s", err, out)
		}
	}
	migratePath = filepath.Join(dir, "migrate")
	return m.Run(), nil
}
