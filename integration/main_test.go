package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The programs under test, built once for all tests.
var migratePath, thinctlPath, hydratedPath string

const (
	// binariesVariable names a directory with programs that are built already.
	binariesVariable = "DECANT_TEST_BINARIES"
	// directoryVariable names the disk to work on, where /tmp and /var/tmp are none.
	directoryVariable = "DECANT_TEST_DIR"
	// childVariable says what this binary does when a test starts it again.
	childVariable = "DECANT_TEST_CHILD"
	// nightlyVariable asks for the long forms of the tests.
	nightlyVariable = "DECANT_NIGHTLY"
)

func nightly() bool { return os.Getenv(nightlyVariable) != "" }

// tools are the programs that tests call, with the Debian packages that have them.
var tools = map[string]string{
	"addpart":         "util-linux",
	"btrfs":           "btrfs-progs",
	"chattr":          "e2fsprogs",
	"delpart":         "util-linux",
	"dpkg":            "dpkg",
	"fio":             "fio",
	"fusermount3":     "fuse3",
	"losetup":         "mount",
	"mkfs.btrfs":      "btrfs-progs",
	"mkfs.ext2":       "e2fsprogs",
	"mkfs.ext4":       "e2fsprogs",
	"mkfs.xfs":        "xfsprogs",
	"mkswap":          "util-linux",
	"mount":           "mount",
	"nbdcopy":         "libnbd-bin",
	"nbdinfo":         "libnbd-bin",
	"nbdkit":          "nbdkit",
	"nohup":           "coreutils",
	"prometheus":      "prometheus",
	"prlimit":         "util-linux",
	"promtool":        "prometheus",
	"qemu-img":        "qemu-utils",
	"qemu-io":         "qemu-utils",
	"qemu-nbd":        "qemu-utils",
	"rpm":             "rpm",
	"setpriv":         "util-linux",
	"sqlite3":         "sqlite3",
	"strace":          "strace",
	"swapon":          "mount",
	"systemd-analyze": "systemd",
	"umount":          "mount",
}

func TestMain(m *testing.M) {
	if work := os.Getenv(childVariable); work != "" {
		child(work)
		return
	}
	code, err := prepareAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration tests cannot run:", err)
		code = 1
	}
	os.Exit(code)
}

func prepareAndRun(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return 0, fmt.Errorf("they mount file systems, which takes root")
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
	disk, err := diskDirectory()
	if err != nil {
		return 0, err
	}
	scratch, err := os.MkdirTemp(disk, "decant-integration-*")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(scratch) // what is left lies in a temporary directory
	// t.TempDir makes its directories there, so that they are on a disk.
	if err := os.Setenv("TMPDIR", scratch); err != nil {
		return 0, err
	}
	if err := buildPrograms(filepath.Join(scratch, "bin")); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// diskDirectory finds a directory that is neither in memory nor layered: journals
// are refused there, and what a test measures would not be that of a disk.
func diskDirectory() (string, error) {
	candidates := []string{os.Getenv(directoryVariable), os.TempDir(), "/var/tmp"}
	for _, dir := range candidates {
		var st unix.Statfs_t
		if dir == "" || unix.Statfs(dir, &st) != nil {
			continue
		}
		switch st.Type {
		case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
			return dir, nil
		}
	}
	return "", fmt.Errorf("none of %q is on ext4, XFS or btrfs; name a directory that is with %s", candidates, directoryVariable)
}

func buildPrograms(dir string) error {
	if built := os.Getenv(binariesVariable); built != "" {
		dir = built
	} else {
		cmd := exec.Command("go", "build", "-buildvcs=false", "-o", dir+"/", "./cmd/migrate", "./cmd/thinctl", "./cmd/hydrated")
		cmd.Dir = ".."
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build the programs: %w\n%s", err, out)
		}
	}
	migratePath, thinctlPath, hydratedPath = filepath.Join(dir, "migrate"), filepath.Join(dir, "thinctl"), filepath.Join(dir, "hydrated")
	for _, path := range []string{migratePath, thinctlPath, hydratedPath} {
		if err := unix.Access(path, unix.X_OK); err != nil {
			return fmt.Errorf("%s cannot be run: %w", path, err)
		}
	}
	return nil
}
