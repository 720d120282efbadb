package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decant/nbd"
)

// client runs a program that nobody here has written, in a directory of its own, since
// some leave things behind. A hanging one fails the test.
func client(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// qemuIO runs commands of qemu-io, which says of failures with code 0.
func qemuIO(t testing.TB, uri string, commands ...string) {
	t.Helper()
	args := []string{"-f", "raw", "-t", "none", "-d", "unmap"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out := client(t, "qemu-io", append(args, uri)...)
	if low := strings.ToLower(out); strings.Contains(low, "failed") || strings.Contains(low, "error") {
		t.Fatal(out)
	}
}

// What nbdinfo, nbdcopy, qemu-img and qemu-io see and do while a volume hydrates.
func TestOtherPeoplesClients(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination, kept := s.path("image"), s.path("moved"), s.path("kept")
	made := makeImage(t, source, 48*mib, 74, mixed)
	copyFile(t, source, kept)
	r, uri := s.startExport(source, destination, served...)
	stay := s.connect(uri) // so that the run does not end in between
	named := strings.Replace(uri, "nbd+unix:///", "nbd+unix:///moved", 1)

	var info struct {
		Exports []struct {
			Contexts []string
			Size     int64 `json:"export-size"`
			Multi    bool  `json:"can_multi_conn"`
			Trim     bool  `json:"can_trim"`
			FUA      bool  `json:"can_fua"`
			Min      int64 `json:"block_size_minimum"`
		}
	}
	if err := json.Unmarshal([]byte(client(t, "nbdinfo", "--json", named)), &info); err != nil || len(info.Exports) != 1 {
		t.Fatalf("nbdinfo: %v, %+v", err, info)
	}
	if e := info.Exports[0]; e.Size != made.bytes || !e.Multi || !e.Trim || !e.FUA || e.Min < 512 ||
		strings.Join(e.Contexts, " ") != "base:allocation decant:hydrated" {
		t.Errorf("%+v", e)
	}
	// Whole while it hydrates, also by the holes that are told of.
	client(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", kept, uri)
	copied := s.path("copied")
	client(t, "nbdcopy", "--connections=2", uri, copied)
	wantWhole(t, copied, made)
	// A disk of a virtual machine.
	qemuIO(t, uri, "write -P 1 1M 64k", "write -f -P 2 5M 192k", "aio_write -P 3 9M 1M", "aio_flush", "write -z 20M 1M",
		"discard 30M 2M", "flush", "read -P 1 1M 64k", "read -P 2 5M 192k", "read -P 3 9M 1M", "read -P 0 20M 1M", "read -P 0 30M 2M",
		"write -P 4 40M 512", "read -P 4 40M 512")
	client(t, "qemu-img", "bench", "-f", "raw", "-w", "-c", "300", "-d", "16", "-s", "4096", "-S", "8192", "--pattern=7", "--flush-interval=50", "-o", "41943040", uri)
	r.await("the end of hydration", func(e event) bool { return e.Event == "hydrated" })
	if text := client(t, "nbdinfo", "--map=decant:hydrated", uri); len(strings.Fields(text)) < 3 || strings.Fields(text)[1] != itoa(made.bytes) {
		t.Errorf("hydrated is only\n%s", text)
	}
	want := s.path("want")
	client(t, "nbdcopy", uri, want)
	stay.Close()
	o := s.want(0, r.wait())
	client(t, "cmp", want, destination)
	if e := o.last(); e.Event != "done" || e.BytesCopied != e.BytesData {
		t.Errorf("the end is %v", e)
	}
	wantEmptied(t, source, made)
	s.want(0, s.run("verify", o.last().ID))
}

// fio writes and verifies through the export while the migration is slow; what it wrote
// is at the destination when it is done.
func TestFioVerifiesWhileItHydrates(t *testing.T) {
	seeds := 2
	if nightly() {
		seeds = 10
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			source, destination := s.path("image"), s.path("moved")
			made := makeImage(t, source, 32*mib, 80+uint64(seed), mixed)
			r, uri := s.startExport(source, destination, served...)
			job := func(extra ...string) []string {
				return append([]string{
					"--name=verify", "--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=0", "--blockalign=512", "--size=32m", "--io_size=12m",
					"--randseed=" + fmt.Sprint(seed+1), "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--output=/dev/null", "--norandommap=0",
				}, extra...)
			}
			client(t, "fio", job("--ioengine=nbd", "--uri="+uri, "--iodepth=8", "--fsync=50")...)
			s.want(0, r.wait())
			client(t, "fio", job("--ioengine=psync", "--filename="+destination, "--verify_only")...)
			wantEmptied(t, source, made)
		})
	}
}

// fault 80: trimming makes regions need no copy, and nothing of the source comes back.
func TestFault80TrimmedRegionsAreNotCopied(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	made := makeImage(t, source, 48*mib, 75, solid)
	r, uri := s.startExport(source, destination, uncommitted...)
	qemuIO(t, uri, "discard 16M 32M", "flush")
	r.kill() // a crash right after the flush
	r, uri = s.startExport(source, destination, served...)
	stay := s.connect(uri)
	qemuIO(t, uri, "read -P 0 16M 32M")
	stay.Close()
	o := s.want(0, r.wait())
	if e := o.last(); e.BytesCopied > 18*mib || e.BytesData != e.BytesCopied {
		t.Errorf("%d bytes of %d were copied, 16 MiB were left to copy", e.BytesCopied, e.BytesData)
	}
	if p := readAt(t, destination, 16*mib, int(32*mib)); strings.Trim(p, "\x00") != "" {
		t.Error("the source's bytes came back")
	}
	if n := allocated(t, destination); n > 17*mib {
		t.Errorf("the destination takes %d bytes", n)
	}
	wantEmptied(t, source, made)
}

// faults 79, 84: a flush on one connection covers what was answered on another one whose
// client was killed; and what it was answered is seen by the next client.
func TestFault84ClientsComeAndGo(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	makeImage(t, source, 16*mib, 76, mixed)
	d := newDisk(t, source)
	r, uri := s.startExport(source, destination, uncommitted...)
	var wires []net.Conn
	dial := func(ctx context.Context) (net.Conn, error) {
		var dialer net.Dialer
		c, err := dialer.DialContext(ctx, "unix", s.exportSocket())
		wires = append(wires, c)
		return c, err
	}
	a, err := nbd.Dial(context.Background(), uri, nbd.Options{Connections: 1, Dial: dial, TotalTime: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < 16*mib; off += mib {
		if err := d.change(a, "write", off+512, 1024); err != nil {
			t.Fatal(err)
		}
	}
	b := s.connect(uri)
	wires[0].Close() // without a word, as the kernel does for a process that was killed
	a.Close()
	for off := int64(0); off < 16*mib; off += mib {
		got := make([]byte, 1024)
		if _, err := b.ReadAt(got, off+512); err != nil || !bytes.Equal(got, d.newest(off+512, 1024)) {
			t.Fatalf("what an earlier client was answered is not there at %d: %v", off, err)
		}
	}
	if err := d.flush(b); err != nil {
		t.Fatal(err)
	}
	r.kill()
	b.Close()
	r, uri = s.startExport(source, destination, served...)
	c := s.connect(uri)
	d.settle(c)
	c.Close()
	s.want(0, r.wait())
	d.wantFile(destination)
}

// cutter cuts a connection in the middle of a write that is larger than a header.
type cutter struct {
	net.Conn
	armed bool
}

func (c *cutter) Write(p []byte) (int, error) {
	if !c.armed || len(p) < 4096 {
		return c.Conn.Write(p)
	}
	n, _ := c.Conn.Write(p[:len(p)/2])
	c.Conn.Close()
	return n, net.ErrClosed
}

// fault 83: a client that goes in the middle of a payload has changed nothing.
func TestFault83HalfAPayloadChangesNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	made := makeImage(t, source, 16*mib, 77, solid)
	r, uri := s.startExport(source, destination, served...)
	stay := s.connect(uri)
	for _, off := range []int64{0, 3*mib + 512, 15 * mib} {
		var c *cutter
		dial := func(ctx context.Context) (net.Conn, error) {
			var dialer net.Dialer
			stream, err := dialer.DialContext(ctx, "unix", s.exportSocket())
			c = &cutter{Conn: stream}
			return c, err
		}
		half, err := nbd.Dial(context.Background(), uri, nbd.Options{Connections: 1, Dial: dial, TotalTime: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		c.armed = true
		if _, err := half.WriteAt(bytes.Repeat([]byte{0xaa}, 256<<10), off); err == nil {
			t.Error("half a write has succeeded")
		}
		half.Close()
	}
	stay.Close()
	s.want(0, r.wait())
	wantWhole(t, destination, made)
}

// faults 85, 86, 87: names are looked up and lead nowhere, the socket is its owner's
// alone, what is in its place stays, and what a killed run has left is replaced.
func TestFault87SocketOfAnExport(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	made := makeImage(t, source, 16*mib, 78, mixed)
	if err := os.WriteFile(s.exportSocket(), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused := s.want(4, s.move(source, destination, "--export", s.exportSocket()))
	if !strings.Contains(refused.stderr, "something else than a socket") || exists(destination) || readFile(t, s.exportSocket()) != "mine" {
		t.Errorf("refused with %s", refused.stderr)
	}
	s.want(4, s.run("--dry-run", "--export", s.exportSocket(), source, destination))
	remove(t, s.exportSocket())

	r, uri := s.startExport(source, destination, served...)
	stay := s.connect(uri)
	if st := statOf(t, s.exportSocket()); st.Mode != unix.S_IFSOCK|0o600 {
		t.Errorf("the socket has mode %o", st.Mode)
	}
	for _, name := range []string{"../moved", "/etc/passwd", "image", "%0a"} {
		out, err := exec.Command("nbdinfo", strings.Replace(uri, "nbd+unix:///", "nbd+unix:///"+name, 1)).CombinedOutput()
		if err == nil {
			t.Errorf("there is an export %q: %s", name, out)
		}
	}
	if out, err := exec.Command("setpriv", "--reuid=65534", "--clear-groups", "nbdinfo", uri).CombinedOutput(); err == nil {
		t.Errorf("another user is let in: %s", out)
	}
	other := s.at(filepath.Join(s.dir, "other"))
	makeImage(t, s.path("image2"), mib, 79, mixed)
	busy := other.want(4, other.move(s.path("image2"), s.path("moved2"), "--export", s.exportSocket()))
	if !strings.Contains(busy.stderr, "listens there") {
		t.Errorf("a second one at the same socket: %s", busy.stderr)
	}
	r.kill()
	stay.Close()
	r, uri = s.startExport(source, destination, served...)
	stay = s.connect(uri)
	client(t, "nbdinfo", uri)
	stay.Close()
	s.want(0, r.wait())
	wantWhole(t, destination, made)
	if left, err := os.ReadDir(filepath.Dir(s.exportSocket())); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
