package integration

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nbdServer is a program that serves an image on the socket of a site.
type nbdServer struct {
	*site
	cmd    *exec.Cmd
	stderr bytes.Buffer
	ended  chan struct{}
}

func (s *site) socket() string { return s.path("s") }
func (s *site) uri() string    { return "nbd+unix:///?socket=" + s.socket() }

// serve starts a server and waits until it listens.
func (s *site) serve(program string, args ...string) *nbdServer {
	s.Helper()
	remove(s, s.socket(), s.path("pid"))
	n := &nbdServer{site: s, cmd: exec.Command(program, args...), ended: make(chan struct{})}
	n.cmd.Stderr = &n.stderr
	if err := n.cmd.Start(); err != nil {
		s.Fatal(err)
	}
	go func() {
		_ = n.cmd.Wait() // whoever waits for the end looks at what it has left
		close(n.ended)
	}()
	s.Cleanup(func() { n.end(syscall.SIGKILL) })
	for begun := time.Now(); !exists(s.path("pid")); time.Sleep(5 * time.Millisecond) {
		if n.hasEnded() || time.Since(begun) > patience {
			s.Fatalf("%s serves nothing: %s", n.cmd, n.stderr.String())
		}
	}
	return n
}

func (n *nbdServer) hasEnded() bool {
	select {
	case <-n.ended:
		return true
	default:
		return false
	}
}

// end sends a signal that ends the server, and waits for that.
func (n *nbdServer) end(signal syscall.Signal) {
	_ = n.cmd.Process.Signal(signal) // it may have ended by itself
	<-n.ended
}

// qemuNBD serves an image of a format for any number of clients after one another, and
// frees what is discarded.
func (s *site) qemuNBD(path, format string, args ...string) *nbdServer {
	s.Helper()
	all := []string{"--persistent", "--socket", s.socket(), "--pid-file", s.path("pid"), "--format", format}
	return s.serve("qemu-nbd", append(append(all, args...), path)...)
}

var freeing = []string{"--discard=unmap", "--detect-zeroes=unmap"}

func (s *site) nbdkit(args ...string) *nbdServer {
	s.Helper()
	return s.serve("nbdkit", append([]string{"--foreground", "--unix", s.socket(), "--pidfile", s.path("pid")}, args...)...)
}

// qcow2 is an image of that format with the content of makeImage.
func (s *site) qcow2(name string, bytes int64, seed uint64) image {
	s.Helper()
	raw := s.path(name + ".raw")
	made := makeImage(s, raw, bytes, seed, mixed)
	s.qemuImg("convert", "-f", "raw", "-O", "qcow2", raw, s.path(name))
	remove(s, raw)
	return made
}

func (s *site) qemuImg(args ...string) string {
	s.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		s.Fatalf("qemu-img %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// mappedBytes is how much of a qcow2 image is data.
func (s *site) mappedBytes(path string) (bytes int64) {
	s.Helper()
	var extents []struct {
		Length int64 `json:"length"`
		Data   bool  `json:"data"`
	}
	out := s.qemuImg("map", "-f", "qcow2", "--output=json", path)
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		s.Fatal(err)
	}
	for _, e := range extents {
		if e.Data {
			bytes += e.Length
		}
	}
	return bytes
}

func TestNBDSourceQcow2(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source := s.path("q")
	made := s.qcow2("q", 128*mib, 71)
	before := allocated(t, source)
	server := s.qemuNBD(source, "qcow2", freeing...)
	s.want(0, s.run("--dry-run", "--discard-src", s.uri(), s.path("moved")))
	o := s.want(0, s.move(s.uri(), s.path("moved"), "--discard-src", "--verify", "--commit-bytes=8MiB"))
	wantWhole(t, s.path("moved"), made)
	wantEvents(t, o, "done")
	e := o.last()
	if e.BytesData >= made.bytes*9/10 || *e.SourceFreedBytes < made.dataBytes {
		t.Errorf("%d bytes of %d were data, %d freed", e.BytesData, made.bytes, *e.SourceFreedBytes)
	}
	if e.PeakExtraBytes > 48*mib {
		t.Errorf("%d bytes existed twice", e.PeakExtraBytes)
	}
	s.wantMessage(s.wantMoveRefused(s.uri(), s.path("other"), "--discard-src"), "was emptied by migration")
	server.end(syscall.SIGTERM)
	if n := s.mappedBytes(source); n > 0 {
		t.Errorf("the source still maps %d bytes", n)
	}
	if after := allocated(t, source); after > before/20 {
		t.Errorf("the source still takes %d bytes of %d", after, before)
	}
	// And back.
	server = s.qemuNBD(source, "qcow2", freeing...)
	s.want(0, s.run("reverse", e.ID))
	server.end(syscall.SIGTERM)
	s.qemuImg("convert", "-f", "qcow2", "-O", "raw", source, s.path("back"))
	wantWhole(t, s.path("back"), made)
	if exists(s.path("moved")) {
		t.Error("the destination is still there")
	}
}

// The program is killed again and again, and so is the server.
func TestNBDSourceKilled(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source := s.path("q")
	made := s.qcow2("q", 112*mib, 72)
	before := allocated(t, source)
	server := s.qemuNBD(source, "qcow2", freeing...)
	killAtRandom(t, s, s.uri(), s.path("moved"), 12)
	r := s.startMove(s.uri(), s.path("moved"), slowly...)
	for i := range uint64(3) {
		e := r.await("more commits", func(e event) bool { return e.Event == "committed" })
		r.awaitCommitted(e.Transaction + 2 + 2*i)
		server.end(syscall.SIGKILL)
		server = s.qemuNBD(source, "qcow2", freeing...)
	}
	o := s.want(0, r.wait())
	wantEvents(t, o, "done")
	wantWhole(t, s.path("moved"), made)
	server.end(syscall.SIGTERM)
	if n := s.mappedBytes(source); n > 0 {
		t.Errorf("the source still maps %d bytes", n)
	}
	t.Logf("the source took %d bytes and takes %d", before, allocated(t, source))
}

// A server that is gone does not keep the program from ending when it is told to, and when
// the server is back the same command goes on.
func TestNBDSourceServerGone(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source := s.path("q")
	made := s.qcow2("q", 64*mib, 73)
	server := s.qemuNBD(source, "qcow2", freeing...)
	r := s.startMove(s.uri(), s.path("moved"), slowly...)
	r.awaitDiscarded()
	server.end(syscall.SIGKILL)
	r.signal(syscall.SIGINT)
	begun := time.Now()
	o := s.want(3, r.wait())
	t.Logf("it ended %v after it was told to: %s", time.Since(begun).Round(time.Millisecond), o.last().Reason)
	s.wantMessage(s.wantMoveRefused(s.uri(), s.path("moved"), "--discard-src"), "no connection", "start the server")
	s.qemuNBD(source, "qcow2", freeing...)
	s.want(0, s.move(s.uri(), s.path("moved"), "--discard-src"))
	wantWhole(t, s.path("moved"), made)
}

// Behind the same name there is another image, or none that can be used in that way.
func TestNBDSourceOtherImages(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source := s.path("q")
	made := s.qcow2("q", 64*mib, 74)
	s.qcow2("same-size", 64*mib, 75)
	s.qcow2("other-size", 65*mib, 74)
	s.qcow2("read-only", mib, 1)
	server := s.qemuNBD(source, "qcow2", freeing...)
	r := s.startMove(s.uri(), s.path("moved"), slowly...)
	r.awaitDiscarded()
	r.signal(syscall.SIGSTOP) // so that it does not end meanwhile
	waitStopped(t, r)
	s.wantMessage(s.want(4, s.move(s.uri(), s.path("second"))), "another migration")
	r.signal(syscall.SIGINT)
	r.signal(syscall.SIGCONT)
	id := s.want(3, r.wait()).last().ID
	server.end(syscall.SIGTERM)
	for name, words := range map[string]string{
		"same-size": "does not hold what it held", "other-size": "another object",
	} {
		server := s.qemuNBD(s.path(name), "qcow2", freeing...)
		s.wantMessage(s.wantMoveRefused(s.uri(), s.path("moved"), "--discard-src"), words)
		s.wantRefused("resume", id)
		s.wantRefused("reverse", id)
		server.end(syscall.SIGTERM)
	}
	server = s.qemuNBD(source, "qcow2", "--read-only")
	s.wantMessage(s.wantMoveRefused(s.uri(), s.path("moved"), "--discard-src"), "read-only")
	s.wantMessage(s.wantRefused("reverse", id), "read-only")
	server.end(syscall.SIGTERM)
	server = s.qemuNBD(source, "qcow2", freeing...)
	s.want(0, s.run("resume", id))
	wantWhole(t, s.path("moved"), made)
	server.end(syscall.SIGTERM)
	// After the end the name is free for another image.
	s.qemuNBD(s.path("same-size"), "qcow2", freeing...)
	s.want(0, s.move(s.uri(), s.path("second"), "--discard-src"))
}

// The end of a server in the middle of a run, and another image on its socket.
func TestNBDSourceReplaced(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	made := s.qcow2("q", 64*mib, 76)
	s.qcow2("other", 64*mib, 77)
	sum := sumOf(t, s.path("other"), sizeOf(t, s.path("other")))
	server := s.qemuNBD(s.path("q"), "qcow2", freeing...)
	r := s.startMove(s.uri(), s.path("moved"), slowly...)
	r.awaitDiscarded()
	server.end(syscall.SIGKILL)
	server = s.qemuNBD(s.path("other"), "qcow2", freeing...)
	s.wantMessage(s.want(3, r.wait()), "another image", "start it again")
	server.end(syscall.SIGTERM)
	if got := sumOf(t, s.path("other"), sizeOf(t, s.path("other"))); got != sum {
		t.Error("the other image was changed")
	}
	s.qemuNBD(s.path("q"), "qcow2", freeing...)
	s.want(0, s.move(s.uri(), s.path("moved"), "--discard-src"))
	wantWhole(t, s.path("moved"), made)
}

func TestNBDSourceOverTCP(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	made := makeImage(t, s.path("image"), 48*mib, 78, mixed)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.serve("nbdkit", "--foreground", "--pidfile", s.path("pid"), "--ipaddr=127.0.0.1", "--port="+port, "file", s.path("image"))
	s.want(0, s.move("nbd://127.0.0.1:"+port, s.path("moved"), "--discard-src"))
	wantWhole(t, s.path("moved"), made)
	wantEmptied(t, s.path("image"), made)
	if _, err := os.Stat(s.path("moved")); err != nil {
		t.Error(err)
	}
}
