package nbd

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// fault 86: the kernel says who connects, and the one who may not is not even greeted.
func TestFault86PeersAreAdmittedByTheirUser(t *testing.T) {
	var asked []Peer
	s := serve(t, Config{
		Exports: []Export{{Device: newMemory(mib)}},
		Admit:   func(p Peer) error { asked = append(asked, p); return errors.New("nobody is") },
	})
	connect(t, s).gone()
	s.wait(t)
	if len(asked) != 1 || !asked[0].Local || int(asked[0].UID) != os.Getuid() || int(asked[0].PID) != os.Getpid() {
		t.Errorf("asked about %+v", asked)
	}
	uid := uint32(os.Geteuid())
	for _, c := range []struct {
		p  Peer
		in bool
	}{
		{Peer{Local: true, UID: 0}, true},
		{Peer{Local: true, UID: uid}, true},
		{Peer{Local: true, UID: uid + 1000}, false},
		{Peer{Address: "192.0.2.1"}, true},
	} {
		if err := AdmitOwner(c.p); (err == nil) != c.in || err != nil && !errors.Is(err, ErrNotAdmitted) {
			t.Errorf("%v: %v", c.p, err)
		}
	}
}

// fault 86: another user cannot connect, though the socket lies in a directory where he
// may look.
func TestFault86AnotherUserIsKeptOut(t *testing.T) {
	dir, err := os.MkdirTemp("", "nbd") //nolint:usetesting // nobody else can enter the one of the test
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	open := serveAt(t, path, Config{Exports: []Export{{Device: newMemory(mib)}}})
	nobody := func() string {
		cmd := exec.Command("nbdinfo", "--size", open.uri(""))
		cmd.Env = append(os.Environ(), "HOME=/")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Errorf("another user got in: %s", out)
		}
		return string(out)
	}
	if out := nobody(); !strings.Contains(out, "Permission denied") {
		t.Errorf("the mode of the socket has not kept him out: %s", out)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	nobody()
}

// leaveStale leaves a socket behind, as a process does that dies.
func leaveStale(t *testing.T, path string) {
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
}

// socketPaths are the states of a path, and why it is refused; empty if it is not.
var socketPaths = map[string]struct {
	prepare func(t *testing.T, path string)
	refused string
}{
	"nothing":     {func(*testing.T, string) {}, ""},
	"left behind": {leaveStale, ""},
	"in use": {func(t *testing.T, path string) {
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}, "another program listens"},
	"one of ours in use": {func(t *testing.T, path string) {
		l, err := ListenUnix(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}, "another process listens"},
	"somebody else's": {func(t *testing.T, path string) {
		leaveStale(t, path)
		if err := os.Lchown(path, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}, "belongs to user 65534"},
	"a file": {func(t *testing.T, path string) {
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
	}, "something else than a socket"},
	"a symlink to a stale socket": {func(t *testing.T, path string) {
		leaveStale(t, path+"2")
		if err := os.Symlink(path+"2", path); err != nil {
			t.Fatal(err)
		}
	}, "something else than a socket"},
	"a symlink where the lock is to be": {func(t *testing.T, path string) {
		if err := os.Symlink("/nonexistent", path+".lock"); err != nil {
			t.Fatal(err)
		}
	}, "too many levels"},
	"a directory for all": {func(t *testing.T, path string) {
		if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
	}, "others may write"},
	"a directory for all, sticky": {func(t *testing.T, path string) {
		if err := os.Chmod(filepath.Dir(path), 0o777|os.ModeSticky); err != nil {
			t.Fatal(err)
		}
	}, ""},
	"a directory of somebody else": {func(t *testing.T, path string) {
		if err := os.Chown(filepath.Dir(path), 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}, "others may write"},
}

// fault 87: what is at the path of a socket.
func TestFault87SocketReplacesOnlyWhatIsStaleAndOurs(t *testing.T) {
	for name, c := range socketPaths {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "s")
			c.prepare(t, path)
			before, beforeErr := os.Lstat(path)
			listed, _ := os.ReadDir(dir) // also a directory of somebody else can be read by root
			if err := CheckUnix(path); (err == nil) != (c.refused == "") ||
				err != nil && (!errors.Is(err, ErrSocket) || !strings.Contains(err.Error(), c.refused)) {
				t.Errorf("CheckUnix: %v, want %q", err, c.refused)
			}
			if again, _ := os.ReadDir(dir); len(again) != len(listed) {
				t.Errorf("CheckUnix has left %v, where there was %v", again, listed)
			}
			l, err := ListenUnix(path)
			if c.refused == "" {
				if err != nil {
					t.Fatal(err)
				}
				l.Close()
				if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
					t.Errorf("%v is left, %v", left, err)
				}
				return
			}
			if !errors.Is(err, ErrSocket) || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("ListenUnix: %v, want %q", err, c.refused)
			}
			after, afterErr := os.Lstat(path)
			if (beforeErr == nil) != (afterErr == nil) || beforeErr == nil && !os.SameFile(before, after) {
				t.Errorf("the path was %v and is %v", before, after)
			}
		})
	}
}

// fault 87: the mode is there from the first moment, whatever the mask of the process.
func TestFault87SocketIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if l.Addr().String() != path {
		t.Errorf("the address is %v", l.Addr())
	}
}

// fault 87: a socket that somebody else has put there meanwhile is not removed.
func TestFault87CloseRemovesOnlyTheOwnSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the other socket is gone: %v", err)
	}
}

// fault 87: what comes to be at the path while the socket is made stays there.
func TestFault87SocketNeverReplacesAnything(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	path := filepath.Join(dir.Name(), "s")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := bindPrivately(dir, "s"); err == nil {
		l.Close()
		t.Error("no error")
	}
	if b, err := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("%q, %v", b, err)
	}
	if left, err := os.ReadDir(dir.Name()); err != nil || len(left) != 1 {
		t.Errorf("%v is left, %v", left, err)
	}
}

// fault 87: a path that no client could use is refused before anything is made.
func TestFault87PathsTooLongAreRefused(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, strings.Repeat("x", 120)), "/", "", dir + "/none/s"} {
		if _, err := ListenUnix(path); !errors.Is(err, ErrSocket) {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestServeOverTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var peers []Peer
	server, err := NewServer(Config{
		Exports: []Export{{Name: "x", Device: randomMemory(mib)}},
		Admit:   func(p Peer) error { peers = append(peers, p); return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, l) }()
	c, err := Dial(ctx, "nbd://"+l.Addr().String()+"/x", Options{Connections: 1})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 100)
	if _, err := c.ReadAt(p, 0); err != nil {
		t.Error(err)
	}
	c.Close()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if len(peers) != 1 || peers[0].Local || peers[0].Address != "127.0.0.1" {
		t.Errorf("peers are %+v", peers)
	}
}
