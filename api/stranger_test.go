package api

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// beStranger is this test binary as another user: it says what a request to the
// socket was answered with.
func beStranger() int {
	conn, err := net.Dial("unix", os.Getenv("DECANT_API_STRANGER"))
	if err != nil {
		fmt.Println("no connection:", err)
		return 0
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	// The server may have closed it already; what counts is what comes back.
	_, _ = io.WriteString(conn, "POST /v1/migrations/aa11/pause HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	answer, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		fmt.Println("error:", err)
	}
	line, _, _ := strings.Cut(string(answer), "\r\n")
	fmt.Println("answer:", line)
	return 0
}

// asUser runs beStranger with these ids; the binary is put where others can run it.
func asUser(t *testing.T, socket string, uid, gid uint32, groups ...uint32) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "decant-api-stranger-") //nolint:usetesting // others cannot enter that of the test
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "stranger")
	if err := os.WriteFile(program, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Dir = "/"
	cmd.Env = []string{"DECANT_API_STRANGER=" + socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// openSocket serves on a socket to which every user could connect, if only the modes
// of files kept them off.
func openSocket(t *testing.T, f *fakeManager, group string) *served {
	t.Helper()
	s, log := newServer(t, fakeConfig(f))
	dir, err := os.MkdirTemp("/tmp", "decant-api-socket-") //nolint:usetesting // as above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	listener, err := ListenUnix(SocketConfig{Path: socket, Group: group, Log: s.log})
	if err != nil {
		t.Fatal(err)
	}
	v := &served{Server: s, t: t, socket: socket, log: log}
	v.client = clientOf(socket)
	v.run(listener)
	return v
}

// fault 86: another local user connects to the socket.
func TestStrangersGetNoByte(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be other users")
	}
	const group = 54321
	f := newFake()
	v := openSocket(t, f, "54321")

	// The modes of files keep strangers off to begin with.
	if got := asUser(t, v.socket, 65534, 65534); !strings.Contains(got, "permission denied") {
		t.Errorf("a stranger got: %s", got)
	}
	// And where they do not, the peer's credentials do.
	if err := os.Chmod(v.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	if got := asUser(t, v.socket, 65534, 65534, 65533); got != "answer:" {
		t.Errorf("a stranger got: %s", got)
	}
	if calls := f.noted(); len(calls) > 0 {
		t.Errorf("a stranger had the service do %q", calls)
	}
	if !strings.Contains(v.log.String(), "connection refused") || !strings.Contains(v.log.String(), "uid=65534") {
		t.Errorf("the log does not tell of the stranger: %s", v.log)
	}
	for _, member := range []string{
		asUser(t, v.socket, 65534, group),
		asUser(t, v.socket, 65534, 65534, 1, 2, group),
		asUser(t, v.socket, 0, 0),
	} {
		if member != "answer: HTTP/1.1 200 OK" {
			t.Errorf("somebody who may got: %s", member)
		}
	}
}

// fault 86: without a group nobody but root and the service's own user may.
func TestWithoutAGroupTheSocketIsPrivate(t *testing.T) {
	v := openSocket(t, newFake(), "")
	stat, err := os.Stat(v.socket)
	if err != nil {
		t.Fatal(err)
	}
	if stat.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", stat.Mode())
	}
	if os.Geteuid() != 0 {
		return
	}
	if err := os.Chmod(v.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	if got := asUser(t, v.socket, 65534, 0); got != "answer:" {
		t.Errorf("a stranger in the group of root got: %s", got)
	}
}
