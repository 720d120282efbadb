//go:build testkernel

package inside

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"decant/dm"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
)

// site is what one test works in. Tests are not parallel: there is one processor,
// and what a test takes of the disk is given back in the opposite order.
type site struct {
	testing.TB
	dm    *dm.Control
	dir   string // empty, on ext4
	state string // --state-dir of the programs, below dir
}

func newSite(t testing.TB) *site {
	t.Helper()
	home, err := home()
	if err != nil {
		t.Fatalf("make a file system on the first disk: %v", err)
	}
	s := &site{TB: t}
	if s.dir, err = os.MkdirTemp(home, "test"); err != nil { //nolint:usetesting // TempDir is in memory, where journals are refused
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(s.dir); err != nil {
			t.Error(err)
		}
	})
	s.state = s.path("state")
	if s.dm, err = dm.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.dm.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// path is a path in the directory of the test.
func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// disk is a node of the test kernel's disks.
func disk(i int) string { return strings.Fields(os.Getenv("DECANT_TEST_DISKS"))[i] }

// home is a directory on the first disk, one for all tests.
var home = sync.OnceValues(func() (string, error) {
	const dir = "/mnt/home"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if err := exec.Command("mkfs.ext4", "-q", "-F", disk(0)).Run(); err != nil {
		return "", err
	}
	return dir, unix.Mount(disk(0), dir, "ext4", 0, "")
})

// do runs a program that must succeed, and returns what it says.
func (s *site) do(program string, args ...string) string {
	s.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		s.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (s *site) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}
