package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// fault 31: destinations that nobody uses at the moment, and that are swap, a physical
// volume of LVM, or a member of an array all the same. They are taken with --overwrite
// only.
func TestFault31DestinationsWithSignatures(t *testing.T) {
	const diskBytes = 32 * mib
	mdMagic := []byte{0xfc, 0x4e, 0x2b, 0xa9}
	for name, sign := range map[string]func(s *site, device string){
		"swap":                     func(s *site, device string) { do(s, "mkswap", device) },
		"physical volume of LVM":   func(s *site, device string) { stamp(s, device, 512, []byte("LABELONE")) },
		"member of an array, 1.2":  func(s *site, device string) { stamp(s, device, 4096, mdMagic) },
		"member of an array, 1.0":  func(s *site, device string) { stamp(s, device, diskBytes-8192, mdMagic) },
		"member of an array, 0.90": func(s *site, device string) { stamp(s, device, diskBytes-65536, mdMagic) },
		"file system":              func(s *site, device string) { do(s, "mkfs.ext4", "-q", "-F", device) },
		"partition table":          func(s *site, device string) { stamp(s, device, 510, []byte{0x55, 0xaa}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			makeImage(t, s.path("image"), 8*mib, 110, mixed)
			sum := sumOf(t, s.path("image"), 8*mib)
			below := attach(t, sparse(t, s.path("disk"), diskBytes))
			device := attach(t, below) // a block device, which is not looked through as a loop device is
			sign(s, device)
			before := sumOf(t, device, diskBytes)
			o := s.wantMoveRefused(s.path("image"), device, "--discard-src")
			s.wantMessage(o, "already holds data", "--overwrite")
			if sumOf(t, device, diskBytes) != before {
				t.Error("the destination has changed")
			}
			s.want(0, s.move(s.path("image"), device, "--discard-src", "--overwrite"))
			if sumOf(t, device, 8*mib) != sum {
				t.Error("the destination is not what the source was")
			}
		})
	}
}

// stamp writes to a device, past its cache.
func stamp(s *site, device string, off int64, text []byte) {
	s.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		s.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(text, off); err != nil {
		s.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		s.Fatal(err)
	}
}

// fault 37: the running program has its destination open past the page cache, and in
// no other way.
func TestFault37DestinationIsOpenPastTheCache(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	makeImage(t, s.path("image"), 48*mib, 111, solid)
	device := attach(t, attach(t, sparse(t, s.path("disk"), 48*mib)))
	r := s.startMove(s.path("image"), device, slowly...)
	r.awaitCommitted(1)
	r.signal(syscall.SIGSTOP) // so that it does not end meanwhile
	waitStopped(t, r)
	open := openFlags(t, r.cmd.Process.Pid, device)
	r.signal(syscall.SIGKILL)
	writers := 0
	for fd, flags := range open {
		switch {
		case flags&syscall.O_ACCMODE == syscall.O_RDONLY:
		case flags&syscall.O_DIRECT == 0:
			t.Errorf("descriptor %s writes through the cache, flags %#o", fd, flags)
		default:
			writers++
		}
	}
	if writers == 0 {
		t.Errorf("nothing is open to write to %s: %v", device, open)
	}
}

// openFlags are the flags of what a process has open under a path.
func openFlags(t *testing.T, pid int, path string) map[string]int {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d", pid)
	fds, err := filepath.Glob(dir + "/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err != nil || to != path {
			continue // closed meanwhile, or another
		}
		info, err := os.ReadFile(filepath.Join(dir, "fdinfo", filepath.Base(fd)))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(info)) {
			var flags int
			if _, err := fmt.Sscanf(line, "flags: %o", &flags); err == nil {
				found[filepath.Base(fd)] = flags
			}
		}
	}
	return found
}
