//go:build testkernel

package inside

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"decant/dm"
)

// What fstrim gives back is not copied.
func TestLiveTrim(t *testing.T) {
	s := newSite(t)
	l := s.newLively("ext4", s.slice(112*mib).path(), 96*mib, "--bwlimit=1MiB/s")
	dir, err := os.MkdirTemp("/mnt", "image")
	s.must(err)
	s.do("mount", "-o", "loop", l.image, dir)
	junk := filepath.Join(dir, "junk")
	l.fill(junk, 40*mib, 9)
	delete(l.sums, "junk")
	s.must(os.Remove(junk))
	s.must(unix.Unmount(dir, 0))

	r := l.run()
	before := r.last()
	if before.BytesData < 60*mib {
		t.Fatalf("%d bytes are to be copied, without trimming", before.BytesData)
	}
	f := l.mount()
	s.do("fstrim", f.dir)
	// A kill could take the trims back, a pause commits them.
	s.must(r.cmd.Process.Signal(syscall.SIGTERM))
	s.want(3, r.wait())
	l.flags = nil
	end := s.want(0, l.run().wait()).last()
	if end.BytesCopied > before.BytesData-38*mib {
		t.Errorf("%d of %d bytes were copied, though 40 MiB had been trimmed", end.BytesCopied, before.BytesData)
	}
	l.wantEnd()
	l.check(f.dir)
	f.check()
}

// A pause leaves the device, whose users wait; it can be neither reversed nor cancelled
// then. When they have gone, a reversal takes the device away, and brings back what they
// have written.
func TestLivePause(t *testing.T) {
	s := newSite(t)
	l := s.newLively("ext4", s.slice(112*mib).path(), 96*mib, "--bwlimit=4MiB/s")
	r := l.run()
	id := r.id()
	f := l.mount()
	l.fill(f.path("new"), mib, 1)
	s.must(r.cmd.Process.Signal(syscall.SIGTERM))
	o := s.want(3, r.wait())
	if !strings.Contains(o.stderr, "the I/O of "+l.path()+" waits") {
		t.Errorf("it does not say that the device waits: %s", o.stderr)
	}
	for _, command := range []string{"reverse", "cancel"} {
		if o := s.want(4, s.start("migrate", command, id).wait()); !strings.Contains(o.stderr, l.path()+": is in use") {
			t.Errorf("%s does not say what is in use: %s", command, o.stderr)
		}
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		l.fill(f.path("while nobody serves"), mib, 2)
	}()
	r = s.start("migrate", "resume", "--progress=json", id)
	<-written
	s.must(r.cmd.Process.Signal(syscall.SIGTERM))
	s.want(3, r.wait())

	r = s.start("migrate", "resume", "--progress=json", id)
	r.await("the live device", func(e event) bool { return e.Event == "exported" })
	f.unmount()
	s.must(r.cmd.Process.Signal(syscall.SIGTERM))
	s.want(3, r.wait())
	s.want(4, s.start("migrate", "cancel", id).wait()) // it was used
	s.run("migrate", "reverse", id)
	l.wantNoClients()
	if _, err := s.dm.Info(l.name); err == nil {
		t.Error("the device is still there")
	}
	s.do("e2fsck", "-fn", l.image)
	s.do("mount", "-o", "loop", l.image, f.dir)
	l.check(f.dir)
	s.must(unix.Unmount(f.dir, 0))
}

// A file as destination is shown by a loop device, which goes with the live device.
func TestLiveOntoFile(t *testing.T) {
	s := newSite(t)
	l := s.newLively("ext4", s.path("moved"), 48*mib, "--bwlimit=12MiB/s")
	r := l.run()
	f := l.mount()
	l.fill(f.path("new"), 4*mib, 1)
	r.kill()
	r = l.run()
	s.want(0, r.wait())
	l.wantEnd()
	l.fill(f.path("after"), 4*mib, 2)
	f.check()
	f.mount()
	l.check(f.dir)
	f.unmount()
	l.clear()
	s.do("mount", "-o", "loop", l.destination, f.dir)
	l.check(f.dir)
	s.must(unix.Unmount(f.dir, 0))
	if loops := strings.TrimSpace(s.do("losetup", "-l", "-n", "-O", "BACK-FILE")); strings.Contains(loops, "moved") {
		t.Errorf("a loop device is left: %s", loops)
	}
}

// A volume of LVM as destination: its commands do not wait for the device that nobody
// serves yet.
func TestLiveOntoLVM(t *testing.T) {
	s := newSite(t)
	g := s.newVolumeGroupWithPool("vg")
	l := s.newLively("ext4", "vg/live", 32*mib, "--bwlimit=4MiB/s")
	r := l.run()
	l.destination = g.path("live")
	f := l.mount()
	l.fill(f.path("new"), mib, 1)
	r.kill()
	l.destination = "vg/live"
	r = l.run()
	l.fill(f.path("more"), mib, 2)
	s.want(0, r.wait())
	l.destination = g.path("live")
	l.wantEnd()
	f.check()
	f.mount()
	l.check(f.dir)
	f.unmount()
	l.clear()
}

// fault 52, and what else a live device could not be made for: refused, and nothing is
// changed.
func TestLiveRefusals(t *testing.T) {
	s := newSite(t)
	image := newImage(4*mib, 1, mixed)
	path := s.path("image")
	s.write(image, path)
	destination := s.slice(4 * mib)
	other := s.newDevice(target{Length: 8, Type: "zero"})
	loop := strings.TrimSpace(s.do("losetup", "-f", "--show", s.blank(s.path("file"), 8*mib)))
	s.Cleanup(func() { s.do("losetup", "-d", loop) })
	blocks := strings.TrimSpace(s.do("losetup", "-f", "--show", "--sector-size", "4096", s.blank(s.path("blocks"), 8*mib)))
	s.Cleanup(func() { s.do("losetup", "-d", blocks) })
	// A block device with large blocks that is no loop device.
	large := s.newDevice(target{Length: uint64(8 * mib / sectorBytes), Type: "linear", Params: blocks + " 0"})
	odd := s.path("odd")
	s.write(newImage(4*mib+512, 1, mixed), odd)

	for name, c := range map[string]struct {
		source, destination, name, why string
	}{
		"name":   {path, destination.path(), other.name, "there is a device of that name"},
		"loop":   {path, loop, "vm", "is a loop device of"},
		"blocks": {odd, large.path(), "vm", "has blocks of 4096 bytes"},
	} {
		for _, flags := range [][]string{{"--live", c.name}, {"--live", c.name, "--dry-run"}} {
			o := s.want(4, s.start("migrate", append(flags, c.source, c.destination)...).wait())
			if !strings.Contains(o.stderr, c.why) || !strings.Contains(o.stderr, "hint: ") {
				t.Errorf("%s %v: %s", name, flags, o.stderr)
			}
		}
	}
	for _, name := range []string{"a/b", "control", "-x", strings.Repeat("x", 128), "a\nb"} {
		s.want(2, s.start("migrate", "--live="+name, path, destination.path()).wait())
	}
	s.wantWhole(path, image)
	if _, err := s.dm.Info("vm"); err == nil {
		t.Error("a device was made")
	}
	if _, err := os.Stat(dm.Path("vm")); err == nil {
		t.Error("a node was made")
	}
}
