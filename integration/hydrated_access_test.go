package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// fault 86: members of the group steer from the command line, without a right to the
// journals; other users get no answer, and no file either.
func TestFault86OnlyTheGroupSteersTheService(t *testing.T) {
	const group, nobody = 54321, 65534
	v := newHydratedSite(t)
	v.daemon.signal(syscall.SIGTERM)
	v.daemon.wait()
	place := publicDirectory(t)
	copyFile(t, migratePath, place+"/migrate")
	if err := os.Chmod(place+"/migrate", 0o755); err != nil {
		t.Fatal(err)
	}
	v.socket = place + "/run/s" // its directory is made by the service, for the group
	v.serveBy(exec.Command(hydratedPath, "--config", os.DevNull, "--state-dir", v.state, "--socket", v.socket, fmt.Sprintf("--group=%d", group)))
	made := makeImage(t, v.path("image"), 8*mib, 12, mixed)
	id := v.post(v.path("image"), v.path("moved"), "1MiB/s")

	as := func(gid uint32, args ...string) (code int, text string) {
		cmd := exec.Command(place+"/migrate", append([]string{"--service", v.socket}, args...)...)
		cmd.Dir = "/"
		cmd.Env = []string{"HOME=/nonexistent"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: gid}}
		out, err := cmd.CombinedOutput()
		if _, isExit := err.(*exec.ExitError); err != nil && !isExit { //nolint:errorlint // it is not wrapped
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), string(out)
	}
	if code, text := as(group, "list"); code != 0 || !strings.Contains(text, id) {
		t.Errorf("a member of the group: list ended with %d: %s", code, text)
	}
	if code, text := as(group, "pause", id); code != 0 {
		t.Errorf("a member of the group: pause ended with %d: %s", code, text)
	}
	if m := v.migration(id); m.State != "paused" {
		t.Errorf("it is %s", m.State)
	}
	for _, args := range [][]string{{"list"}, {"resume", id}, {"cancel", id}} {
		if code, text := as(nobody, args...); code == 0 || !strings.Contains(text, "permission denied") {
			t.Errorf("a stranger: %v ended with %d: %s", args, code, text)
		}
	}
	if code, _ := as(nobody, "--service=none", "--state-dir", v.state, "list"); code == 0 {
		t.Error("a stranger can list the journals")
	}
	if m := v.migration(id); m.State != "paused" {
		t.Errorf("after the stranger it is %s", m.State)
	}
	v.ask(200, "PATCH", "/v1/migrations/"+id, `{"bwlimit":0}`)
	if code, text := as(group, "resume", "--progress=plain", id); code != 0 {
		t.Errorf("a member of the group: resume ended with %d: %s", code, text)
	}
	wantWhole(t, v.path("moved"), made)
}

// publicDirectory is one that every user can enter.
func publicDirectory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "decant-public-") //nolint:usetesting // others cannot enter that of the test
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Clean(dir)
}
