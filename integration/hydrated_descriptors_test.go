package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fault 94: what the parent of the service has left open, and what it opens itself, is
// not passed on to the programs that it starts.
func TestFault94ServicePassesNoDescriptorOn(t *testing.T) {
	v := newHydratedSite(t)
	v.daemon.signal(unix.SIGTERM)
	v.daemon.wait()
	inherited, err := os.Open(v.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer inherited.Close()
	cmd := exec.Command(hydratedPath, "--config", os.DevNull, "--state-dir", v.state, "--socket", v.socket, "--group=")
	cmd.ExtraFiles = []*os.File{inherited} // as descriptor 3, which stays open in children
	v.serveBy(cmd)
	makeImage(t, v.path("image"), mib, 2, solid)
	id := v.post(v.path("image"), v.path("moved"), "0")
	v.until(id, "it is done", func(m migrationState) bool { return m.State == "done" })
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", cmd.Process.Pid))
	if err != nil || len(infos) < 5 {
		t.Fatalf("%d descriptors, %v", len(infos), err)
	}
	isProof := false
	for _, path := range infos {
		number, err := strconv.Atoi(filepath.Base(path))
		text, readErr := os.ReadFile(path)
		if err != nil || readErr != nil || number < 3 {
			continue // a standard one, or closed by now
		}
		_, rest, _ := strings.Cut(string(text), "flags:")
		flags, err := strconv.ParseUint(strings.Fields(rest)[0], 8, 64)
		if err != nil || flags&unix.O_CLOEXEC == 0 {
			target, _ := os.Readlink(strings.Replace(path, "fdinfo", "fd", 1)) // for the message
			t.Errorf("descriptor %d (%s) would be passed on: flags %o, %v", number, target, flags, err)
		}
		isProof = isProof || number == 3
	}
	if !isProof {
		t.Error("the descriptor of the test is not there: this proves nothing")
	}
}
