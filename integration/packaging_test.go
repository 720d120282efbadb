package integration

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The unit of the service gives it no more than it needs, by systemd's own count, and is
// one that systemd understands in full.
func TestUnitOfTheService(t *testing.T) {
	out := do(t, "systemd-analyze", "security", "--offline=true", "--no-pager", "../packaging/hydrated.service")
	level := regexp.MustCompile(`Overall exposure level for hydrated.service: ([0-9.]+)`).FindStringSubmatch(out)
	if level == nil {
		t.Fatalf("systemd-analyze says %s", out)
	}
	if n, err := strconv.ParseFloat(level[1], 64); err != nil || n > 3.0 {
		t.Errorf("exposure level %s, want 3.0 or less", level[1])
	}
	// In a directory of its own, with the program where it is.
	dir := t.TempDir()
	for _, name := range []string{"hydrated.service", "hydrated.socket"} {
		text, err := os.ReadFile("../packaging/" + name)
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, []byte("/usr/bin/hydrated"), []byte(hydratedPath))
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("systemd-analyze", "verify", "--man=no", filepath.Join(dir, "hydrated.service"), filepath.Join(dir, "hydrated.socket"))
	said, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(said)) {
		if strings.Contains(line, "hydrated") {
			t.Errorf("systemd-analyze verify: %s", line)
		}
	}
	if err != nil {
		t.Errorf("systemd-analyze verify: %v\n%s", err, said)
	}
}

// systemd is told when the service is ready, what it does, that it lives, and when it ends.
func TestServiceTellsSystemd(t *testing.T) {
	s := newSite(t)
	dir, err := os.MkdirTemp("", "notify") //nolint:usetesting // that of the test has too long a name for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, dir) })
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/n", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	cmd := exec.Command(hydratedPath, "--config", os.DevNull, "--state-dir", s.state, "--socket", dir+"/s", "--group=")
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+dir+"/n", "WATCHDOG_USEC=300000")
	daemon := s.launch(cmd)
	var told []string
	await := func(want string) {
		t.Helper()
		for buffer := make([]byte, 4096); !slices.Contains(told, want); {
			if err := notify.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			n, err := notify.Read(buffer)
			if err != nil {
				t.Fatalf("waiting for %s: %v; told %q", want, err, told)
			}
			told = append(told, strings.Split(strings.TrimSpace(string(buffer[:n])), "\n")...)
		}
	}
	await("READY=1")
	await("STATUS=0 running, 0 queued, 0 paused, 0 stopped or failed")
	told = nil
	await("WATCHDOG=1")
	told = nil
	await("WATCHDOG=1")
	daemon.signal(syscall.SIGHUP)
	await("RELOADING=1")
	daemon.signal(syscall.SIGTERM)
	await("STOPPING=1")
	if o := daemon.wait(); o.code != 0 {
		t.Errorf("%v", o)
	}
}

// A socket that systemd has made is used, and is still there when the service has ended.
func TestServiceTakesOverTheSocketOfSystemd(t *testing.T) {
	v := newHydratedSite(t)
	v.daemon.signal(syscall.SIGTERM)
	v.daemon.wait()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: v.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	file, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	// The number of the process that the descriptors are for is known to that one only.
	script := fmt.Sprintf("LISTEN_FDS=1 LISTEN_PID=$$ exec %s --config /dev/null --state-dir %s --socket /nowhere/at/all --group=", hydratedPath, v.state)
	cmd := exec.Command("sh", "-c", script)
	cmd.ExtraFiles = []*os.File{file}
	daemon := v.launch(cmd)
	v.ask(200, "GET", "/healthz", "")
	daemon.signal(syscall.SIGTERM)
	if o := daemon.wait(); o.code != 0 {
		t.Errorf("%v", o)
	}
	if !exists(v.socket) {
		t.Error("the socket of systemd is gone")
	}
}

// packages makes the packages as make does, in a directory of their own.
func packages(t *testing.T) (deb, rpm string) {
	t.Helper()
	dir := t.TempDir()
	nfpm := filepath.Join(dir, "nfpm")
	build := exec.Command("go", "build", "-modfile=tools.mod", "-o", nfpm, "github.com/goreleaser/nfpm/v2/cmd/nfpm")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build nfpm: %v\n%s", err, out)
	}
	do(t, "cp", "-r", "../packaging", "../man", "../README.md", "../CHANGELOG.md", "../LICENSE", dir)
	do(t, "cp", "-r", filepath.Dir(hydratedPath), filepath.Join(dir, "bin"))
	do(t, filepath.Join(dir, "packaging", "stage.sh"))
	for _, packager := range []string{"deb", "rpm"} {
		cmd := exec.Command(nfpm, "package", "--config", "packaging/nfpm.yaml", "--packager", packager, "--target", "dist/")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PACKAGE_VERSION=1.2.3", "PACKAGE_ARCH=amd64")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("nfpm: %v\n%s", err, out)
		}
	}
	return filepath.Join(dir, "dist", "decant_1.2.3_amd64.deb"), filepath.Join(dir, "dist", "decant-1.2.3-1.x86_64.rpm")
}

// packaged are the files that both packages have.
var packaged = []string{
	"/etc/decant/hydrated.conf",
	"/usr/bin/hydrated", "/usr/bin/migrate", "/usr/bin/thinctl",
	"/usr/lib/systemd/system/hydrated.service", "/usr/lib/systemd/system/hydrated.socket",
	"/usr/lib/sysusers.d/decant.conf", "/usr/lib/tmpfiles.d/decant.conf",
	"/usr/share/bash-completion/completions/hydrated", "/usr/share/bash-completion/completions/migrate",
	"/usr/share/doc/decant/copyright",
	"/usr/share/fish/vendor_completions.d/thinctl.fish",
	"/usr/share/man/man1/migrate.1.gz", "/usr/share/man/man1/thinctl.1.gz", "/usr/share/man/man8/hydrated.8.gz",
}

// The packages are installed into an empty system, work there, and leave nothing but
// journals and the group when they are removed.
func TestPackagesAreInstalledAndRemoved(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles nfpm")
	}
	deb, rpm := packages(t)
	listed := strings.Fields(do(t, "rpm", "-qpl", rpm))
	for _, name := range packaged {
		if !slices.Contains(listed, name) {
			t.Errorf("the rpm has no %s", name)
		}
	}
	if scripts := do(t, "rpm", "-qp", "--scripts", rpm); !strings.Contains(scripts, "systemd-sysusers") {
		t.Errorf("scripts of the rpm: %s", scripts)
	}

	root := t.TempDir()
	for _, dir := range []string{"var/lib/dpkg", "var/lib/decant", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "var/lib/dpkg/status"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "var/lib/decant/0123.db"), []byte("a journal"), 0o600); err != nil {
		t.Fatal(err)
	}
	dpkg := func(args ...string) {
		t.Helper()
		do(t, "dpkg", append([]string{"--root=" + root, "--force-script-chrootless", "--force-depends"}, args...)...)
	}
	dpkg("--install", deb)
	for _, name := range packaged {
		if !exists(filepath.Join(root, name)) {
			t.Errorf("the deb has no %s", name)
		}
	}
	if out := do(t, filepath.Join(root, "usr/bin/hydrated"), "--check", "--config", filepath.Join(root, "etc/decant/hydrated.conf")); out != "" {
		t.Errorf("hydrated --check: %s", out)
	}
	group, err := os.ReadFile(filepath.Join(root, "etc/group"))
	if err != nil || !strings.Contains(string(group), "decant:") {
		t.Errorf("the group: %s %v", group, err)
	}
	enabled := filepath.Join(root, "etc/systemd/system/sockets.target.wants/hydrated.socket")
	if _, err := os.Lstat(enabled); err != nil {
		t.Errorf("the socket is not enabled: %v", err)
	}
	dpkg("--install", deb) // an upgrade
	dpkg("--purge", "decant")
	for _, name := range append(packaged, "/etc/systemd/system/sockets.target.wants/hydrated.socket", "/etc/decant") {
		if _, err := os.Lstat(filepath.Join(root, name)); !os.IsNotExist(err) {
			t.Errorf("%s is left behind: %v", name, err)
		}
	}
	if !exists(filepath.Join(root, "var/lib/decant/0123.db")) {
		t.Error("a journal was removed with the package")
	}
}
