package integration

import (
	"strings"
	"syscall"
	"testing"
)

// What servers can do and cannot.
func TestNBDSourceServers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		args  []string // of nbdkit, with @ for the image
		flags []string
		frees bool
		says  string
	}{
		{name: "file", args: []string{"file", "@"}, flags: []string{"--discard-src"}, frees: true},
		{name: "slow", args: []string{"--filter=delay", "file", "@", "delay-read=2ms", "delay-extents=5ms", "delay-trim=5ms"}, flags: []string{"--discard-src"}, frees: true},
		{name: "one-connection", args: []string{"--filter=noparallel", "file", "@", "serialize=connections"}, flags: []string{"--discard-src"}, frees: true},
		{name: "ends-with-its-client", args: []string{"--filter=exitlast", "file", "@"}, flags: []string{"--discard-src"}, frees: true},
		{name: "no-extents", args: []string{"--filter=noextents", "file", "@"}, flags: []string{"--discard-src"}, frees: true},
		{name: "blocks", args: []string{"--filter=blocksize-policy", "file", "@", "blocksize-minimum=4096", "blocksize-preferred=64K", "blocksize-maximum=256K", "blocksize-error-policy=error"}, flags: []string{"--discard-src"}, frees: true},
		{name: "large-blocks", args: []string{"--filter=blocksize-policy", "file", "@", "blocksize-minimum=64K", "blocksize-preferred=64K", "blocksize-maximum=1M", "blocksize-error-policy=error"}, flags: []string{"--discard-src", "--region-size=16KiB"}},
		{name: "read-only", args: []string{"--readonly", "file", "@"}},
		{name: "old-style-requests", args: []string{"--no-sr", "file", "@"}, flags: []string{"--discard-src"}, frees: true, says: "does not tell where the image has holes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			made := makeImage(t, s.path("image"), 24*mib, 80, mixed)
			for i := range c.args {
				c.args[i] = strings.ReplaceAll(c.args[i], "@", s.path("image"))
			}
			s.nbdkit(c.args...)
			o := s.want(0, s.move(s.uri(), s.path("moved"), append([]string{"--commit-bytes=4MiB"}, c.flags...)...))
			wantWhole(t, s.path("moved"), made)
			wantEvents(t, o, "done")
			if c.frees {
				wantEmptied(t, s.path("image"), made)
				if freed := *o.last().SourceFreedBytes; freed < made.dataBytes {
					t.Errorf("%d bytes were freed of %d", freed, made.dataBytes)
				}
				if strings.Contains(o.stdout, "frees nothing") || strings.Contains(o.stdout, "could not be freed") {
					t.Errorf("it says that something was not freed: %s", o.stdout)
				}
			}
			if c.says != "" && !strings.Contains(o.stdout, c.says) {
				t.Errorf("nothing says %q: %v", c.says, o)
			}
		})
	}
}

// A server that cannot free anything is refused, or, if it says that it can, found out.
func TestNBDSourceNotFreed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	made := makeImage(t, s.path("image"), 16*mib, 81, mixed)
	server := s.nbdkit("eval", "get_size=echo 1048576", "pread=dd if=/dev/zero bs=$3 count=1 status=none")
	s.wantMessage(s.wantMoveRefused(s.uri(), s.path("moved"), "--discard-src"), "read-only")
	server.end(syscall.SIGTERM)
	server = s.nbdkit("eval", "get_size=echo 1048576", "pread=dd if=/dev/zero bs=$3 count=1 status=none", "pwrite=cat >/dev/null")
	s.wantMessage(s.wantMoveRefused(s.uri(), s.path("moved"), "--discard-src"), "TRIM", "--discard=unmap")
	server.end(syscall.SIGTERM)
	s.qemuNBD(s.path("image"), "raw")
	o := s.want(0, s.move(s.uri(), s.path("moved"), "--discard-src"))
	wantWhole(t, s.path("moved"), made)
	if !strings.Contains(o.stdout, "frees nothing; qemu-nbd needs --discard=unmap") {
		t.Errorf("nothing says that nothing was freed: %v", o)
	}
}

// What a server cannot read is left out and listed; when it can, the rest follows.
func TestNBDSourceBadSectors(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	made := makeImage(t, s.path("image"), 24*mib, 82, solid)
	server := s.nbdkit("--filter=error", "file", s.path("image"), "error=EIO", "error-pread-rate=25%")
	o := s.want(3, s.move(s.uri(), s.path("moved"), "--discard-src", "--region-size=256KiB"))
	s.wantMessage(o, "incomplete", "migrate show")
	if bad := badBytesOf(s, o.last().ID); len(bad) == 0 {
		t.Error("nothing is listed as bad")
	}
	server.end(syscall.SIGTERM)
	s.nbdkit("file", s.path("image"))
	s.want(0, s.move(s.uri(), s.path("moved"), "--discard-src"))
	wantWhole(t, s.path("moved"), made)
	wantEmptied(t, s.path("image"), made)
}

// fault 32, as far as it can be known: the server has the destination open, or the image
// is mounted here.
func TestFault32NBDSourceOverlaps(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	makeImage(t, s.path("image"), 16*mib, 83, mixed)
	server := s.qemuNBD(s.path("image"), "raw", freeing...)
	s.wantMessage(s.wantMoveRefused(s.uri(), s.path("image"), "--discard-src", "--overwrite"), "open")
	loop := attach(t, s.path("image"))
	s.wantMessage(s.wantMoveRefused(s.uri(), loop, "--discard-src", "--overwrite"), "open")
	server.end(syscall.SIGTERM)
}

func TestNBDSourceUsage(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	makeImage(t, s.path("image"), mib, 84, mixed)
	s.nbdkit("file", s.path("image"))
	for _, c := range []struct {
		args  []string
		words string
	}{
		{[]string{"--discard-src", "--remove-src", s.uri(), s.path("moved")}, "--remove-src is for files"},
		{[]string{s.path("image"), s.uri()}, "not its destination"},
		{[]string{"nbd://", s.path("moved")}, "no URI of an NBD export"},
		{[]string{"nbd+unix:///x", s.path("moved")}, "socket=PATH"},
		{[]string{"nbd+ssh://host/x", s.path("moved")}, "nbd://"},
	} {
		s.wantMessage(s.want(2, s.run(c.args...)), c.words)
	}
	s.wantMessage(s.wantMoveRefused("nbd+unix:///?socket="+s.path("nobody"), s.path("moved")), "no connection")
}

// A file that is half empty is no more a source when it is served than by itself: with its
// journal, with another state directory, and read-only.
func TestFault53NBDSourceServesAMarkedFile(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	made := makeImage(t, s.path("image"), 32*mib, 85, mixed)
	r := s.startMove(s.path("image"), s.path("moved"), slowly...)
	r.awaitDiscarded()
	r.signal(syscall.SIGINT)
	s.want(3, r.wait())
	for _, args := range [][]string{freeing, {"--read-only"}} {
		server := s.qemuNBD(s.path("image"), "raw", args...)
		s.wantMessage(s.wantMoveRefused(s.uri(), s.path("other")), "belongs to the unfinished migration", "migrate resume")
		other := s.at(s.path("other-state"))
		other.wantMessage(other.wantMoveRefused(s.uri(), s.path("other")), "half-moved source")
		server.end(syscall.SIGTERM)
	}
	s.want(0, s.move(s.path("image"), s.path("moved"), "--discard-src"))
	wantWhole(t, s.path("moved"), made)
}
