//go:build testkernel

package inside

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/dm/clonetarget"
)

// cloneStatus is what the dm-clone says of itself, without a commit.
func (l *lively) cloneStatus() clonetarget.Status {
	l.Helper()
	targets, err := l.dm.StatusNoFlush(l.name)
	l.must(err)
	s, err := clonetarget.ParseStatus(targets[0].Params)
	l.must(err)
	return s
}

// An image of 96 MiB, and 64 MiB of holes, on a file system on a thin volume moves into
// a new volume of the same pool, which has no room for a second one, while it is in use.
func TestEngineWithinAPool(t *testing.T) {
	s := newSite(t)
	const data, size, written = 96 * mib, 160 * mib, mib
	g := s.newGroup(200 * mib)
	g.thinPool("pool", 160*mib)
	f := s.newFilesystem("ext4", g.thinDevice("pool", "source", 200*mib), "discard")
	s.stream(f.path("image"), data, 1)
	s.must(os.Truncate(f.path("image"), size))
	unix.Sync()
	l := s.newLiveOn(f.path("image"), g.path("new"))
	want, err := os.ReadFile(f.path("image"))
	s.must(err)

	w := s.watch(g.poolDevice("pool"))
	l.destination = g.name + "/new"
	l.flags = []string{"--commit-bytes=8MiB", "--region-size=256KiB"}
	r := l.runKernel()
	noise := bytes.Repeat([]byte("written "), int(written/8))
	for _, off := range []int64{3*mib + 4096, data + 30*mib + 512, data - written/2} { // data, hole, both
		l.write(off, noise)
		copy(want[off:], noise)
	}
	o := s.want(0, r.wait())
	rise := s.rise(w) * 64 * kib
	t.Logf("the pool rose by %d KiB, peak_extra_bytes are %d KiB", rise>>10, o.last().PeakExtraBytes>>10)
	if rise > 40*mib || o.last().PeakExtraBytes > 40*mib {
		t.Errorf("the pool rose by %d bytes", rise)
	}
	got, err := os.ReadFile(g.path("new"))
	s.must(err)
	if !bytes.Equal(got, want) {
		t.Error("the volume is not what the source was, with what was written")
	}
	l.wantTarget("linear")
	s.wantEmptied(f.path("image"))
	s.wantMode(g.poolStatus("pool"), "rw")
	l.clear()
	f.check()
}

// newLiveOn is for an image that there is.
func (s *site) newLiveOn(image, destination string) *lively {
	s.Helper()
	made++
	l := &lively{site: s, name: fmt.Sprintf("live%d", made), image: image, destination: destination, sums: map[string][32]byte{}}
	s.Cleanup(l.clear)
	return l
}

// write writes through the live device, and makes it durable.
func (l *lively) write(off int64, p []byte) {
	l.Helper()
	d, err := os.OpenFile(l.path(), os.O_WRONLY, 0)
	l.must(err)
	_, err = d.WriteAt(p, off)
	l.must(errors.Join(err, d.Sync(), d.Close()))
}

// fault 63: the process is killed while the volume is mounted. Its users go on as if
// nothing had happened, the kernel copies nothing in the background that nobody watches,
// and the same command goes on.
func TestEngineFault63Killed(t *testing.T) {
	s := newSite(t)
	const size = 96 * mib
	l := s.newLively("ext4", s.slice(size).path(), size, "--bwlimit=8MiB/s", "--commit-bytes=2MiB", "--region-size=64KiB", "--commit-period=50ms")
	r := l.runKernel()
	f := l.mount()
	for round := range 4 {
		r.awaitCommitted(uint64(2 + round))
		s.must(r.cmd.Process.Kill())
		r.wait()
		l.fill(f.path(fmt.Sprintf("killed%d", round)), mib, uint64(200+round))
		l.check(f.dir)
		unix.Sync()
		l.settle()
		before := l.cloneStatus()
		time.Sleep(1500 * time.Millisecond) // longer than the kernel waits before it looks for work
		if after := l.cloneStatus(); after.HydratedRegions != before.HydratedRegions || after.HydratingRegions != 0 || !after.HydrationDisabled {
			t.Errorf("the kernel goes on by itself: from %+v to %+v", before, after)
		}
		r = l.runKernel()
	}
	s.want(0, r.wait())
	l.wantEnd()
	l.wantNoMetadata()
	f.check()
	f.mount()
	l.check(f.dir)
}

// fault 50: the process is killed where it has suspended the device, to wait for reads. A
// process that it has started for this lets I/O go on.
func TestEngineFault50KilledWhileSuspended(t *testing.T) {
	s := newSite(t)
	const size = 48 * mib
	l := s.newLively("ext4", s.slice(size).path(), size, "--bwlimit=1MiB/s", "--region-size=64KiB")
	r := l.runKernel()
	f := l.mount()
	s.must(r.cmd.Process.Signal(syscall.SIGSTOP))
	s.must(s.dm.Suspend(l.name, dm.SuspendOptions{NoLockFS: true}))
	_, err := s.dm.Message(l.name, 0, clonetarget.Enable) // as in the middle of it
	s.must(err)
	s.must(r.cmd.Process.Kill())
	r.wait()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		info, err := s.dm.Info(l.name)
		s.must(err)
		if !info.Suspended && l.cloneStatus().HydrationDisabled {
			break
		}
		if time.Now().After(deadline) {
			s.must(s.dm.Resume(l.name))
			t.Fatal("the device stays suspended, or copies by itself")
		}
	}
	l.fill(f.path("killed"), mib, 1)
	l.flags[0] = "--bwlimit=0"
	s.want(0, l.runKernel().wait())
	l.wantEnd()
	f.check()
	f.mount()
	l.check(f.dir)
}

// fault 63: the same with volumes of pools, which the device holds when the next process
// opens them.
func TestEngineFault63KilledOnVolumes(t *testing.T) {
	for _, kind := range []string{"thinctl", "lvm"} {
		t.Run(kind, func(t *testing.T) {
			s := newSite(t)
			s.slice(mib) // at the start of the disk LVM would find a label twice
			p := placesFor(kind, s, "p", s.slice)
			made := newImage(24*mib, 63, mixed)
			s.write(made, s.path("image"))
			l := s.newLiveOn(s.path("image"), p.volume("vol"))
			l.flags = []string{"--commit-bytes=1MiB", "--region-size=64KiB", "--bwlimit=4MiB/s"}
			for round := range 3 {
				r := l.runKernel()
				r.awaitCommitted(uint64(2 + 2*round))
				s.must(r.cmd.Process.Kill())
				r.wait()
				s.wantWhole(l.path(), made)
			}
			o := s.want(0, l.runKernel().wait())
			l.wantTarget("linear")
			s.wantWhole(p.path("vol"), made)
			s.wantEmptied(s.path("image"))
			s.run("migrate", "reverse", o.last().ID) // the device is taken away first
			s.wantWhole(s.path("image"), made)
		})
	}
}

// settle waits until what the kernel has begun to copy is done. What was begun goes on
// when its process dies.
func (l *lively) settle() {
	l.Helper()
	for deadline := time.Now().Add(time.Minute); l.cloneStatus().HydratingRegions > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.Fatal("the kernel does not end what it copies")
		}
	}
}

// fault 53, fault 54: the kernel's metadata is gone, or is an old copy, after users have
// written and the source was discarded in part. Nothing is done; with the right one the
// same command goes on.
func TestEngineFault54OldMetadata(t *testing.T) {
	s := newSite(t)
	const size = 96 * mib
	l := s.newLively("ext4", s.slice(size).path(), size, "--bwlimit=8MiB/s", "--commit-bytes=2MiB", "--region-size=64KiB")
	r := l.runKernel()
	f := l.mount()
	old := s.path("old metadata")
	r.awaitCommitted(1)
	metadata, err := filepath.Glob(filepath.Join(s.state, "*.clone"))
	if err != nil || len(metadata) != 1 {
		t.Fatalf("the metadata is %v, %v", metadata, err)
	}
	s.do("cp", metadata[0], old)
	l.fill(f.path("new"), mib, 1)
	r.awaitCommitted(4)
	s.must(r.cmd.Process.Signal(syscall.SIGTERM))
	s.want(3, r.wait())
	f.unmount()
	l.clear() // as a restart of the machine would

	command := append([]string{"--live", l.name, "--discard-src"}, l.flags...)
	s.must(os.Rename(metadata[0], metadata[0]+".aside"))
	o := s.move(3, l.image, l.destination, command...)
	s.wantText(o, "the metadata of the dm-clone is gone")
	s.do("cp", old, metadata[0])
	o = s.move(3, l.image, l.destination, command...)
	s.wantText(o, "regions that the journal knows to be at the destination")
	if _, err := s.dm.Info(l.name); !errors.Is(err, unix.ENXIO) {
		t.Errorf("a device is left: %v", err)
	}
	o = s.move(4, l.image, l.destination, append([]string{"--discard-src"}, l.flags...)...)
	s.wantText(o, "while the kernel hydrated it")
	o = s.move(4, l.image, l.destination, append([]string{"--discard-src", "--live", l.name, "--engine=user"}, l.flags...)...)
	s.wantText(o, "was begun with --engine kernel")
	s.want(4, s.start("migrate", "reverse", r.id()).wait())

	s.must(os.Rename(metadata[0]+".aside", metadata[0]))
	s.move(0, l.image, l.destination, command...)
	l.wantEnd()
	l.wantNoMetadata()
	f.mount()
	l.check(f.dir)
	f.check()
}

// fault 82: a guest's read of the source is in flight while its region is overwritten,
// committed, and due to be discarded. The source keeps it until the read has ended.
func TestEngineFault82ReadOfTheSource(t *testing.T) {
	s := newSite(t)
	const size, regionBytes = 16 * mib, 64 * kib
	below := s.slice(size)
	made := newImage(size, 82, solid)
	s.write(made, below.path())
	source := s.newDevice(below.whole(below.linear())...)
	l := s.newLiveOn(source.path(), s.slice(size).path())
	l.flags = []string{"--bwlimit=128KiB/s", "--commit-period=100ms", "--region-size=64KiB"}
	r := l.runKernel()
	const delay = 4 * time.Second
	source.exchange(target{
		Length: uint64(size / sectorBytes), Type: "delay",
		Params: fmt.Sprintf("%s 0 %d %s 0 0", below.path(), delay.Milliseconds(), below.path()), // reads only
	})
	const off = size - 20*regionBytes
	d, err := os.OpenFile(l.path(), os.O_RDWR|unix.O_DIRECT, 0)
	s.must(err)
	defer d.Close()
	begun, read := time.Now(), make(chan []byte, 1)
	go func() {
		p := aligned(regionBytes)
		_, err := d.ReadAt(p, off)
		if err != nil {
			t.Error(err)
		}
		read <- p
	}()
	l.awaitInFlight()
	_, err = d.WriteAt(aligned(regionBytes), off)
	s.must(err)
	if took := time.Since(begun); took > delay/2 {
		t.Fatalf("the write took %v, and the read may be over", took)
	}
	got := <-read
	if !bytes.Equal(got, made.bytes[off:][:regionBytes]) {
		t.Errorf("the read did not return what the source held: %d bytes of zeros", bytes.Count(got, []byte{0}))
	}
	source.exchange(below.whole(below.linear())...)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		p := aligned(regionBytes)
		b, err := os.OpenFile(below.path(), os.O_RDONLY|unix.O_DIRECT, 0)
		s.must(err)
		_, err = b.ReadAt(p, off)
		s.must(errors.Join(err, b.Close()))
		if len(bytes.Trim(p, "\x00")) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the source was not discarded")
		}
	}
	s.must(r.cmd.Process.Signal(syscall.SIGTERM))
	s.want(3, r.wait())
}

// aligned is memory for direct I/O.
func aligned(n int64) []byte {
	p, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		panic(err)
	}
	return p
}

// awaitInFlight waits until somebody's I/O to the live device is under way.
func (l *lively) awaitInFlight() {
	l.Helper()
	info, err := l.dm.Info(l.name)
	l.must(err)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%v/inflight", info.Device))
		l.must(err)
		if strings.Fields(string(text))[0] != "0" {
			return
		}
		if time.Now().After(deadline) {
			l.Fatal("nothing is in flight")
		}
	}
}

// fault 80: what a file system says it does not need is not copied.
func TestEngineFault80Trim(t *testing.T) {
	s := newSite(t)
	const size = 96 * mib
	g := s.newGroup(120 * mib)
	g.thinPool("pool", 100*mib)
	l := s.newLively("ext4", g.path("new"), size, "--bwlimit=4MiB/s", "--region-size=64KiB")
	l.stale(48 * mib)
	destination := l.destination
	l.destination = g.name + "/new"
	r := l.runKernel()
	f := l.mount()
	s.do("fstrim", f.dir)
	o := s.want(0, r.wait())
	if used := g.poolStatus("pool").dataUsedBlocks * 64 * kib; used > 44*mib {
		t.Errorf("the destination takes %d bytes", used)
	}
	if o.last().Event != "done" {
		t.Errorf("%v", o)
	}
	l.destination = destination
	s.wantEmptied(l.image)
	f.check()
	f.mount()
	l.check(f.dir)
}

// stale leaves so many bytes in the image that its file system does not use any more.
func (l *lively) stale(n int64) {
	l.Helper()
	dir, err := os.MkdirTemp("/mnt", "image")
	l.must(err)
	l.do("mount", "-o", "loop", l.image, dir)
	l.stream(filepath.Join(dir, "stale"), n, 9)
	l.must(os.Remove(filepath.Join(dir, "stale")))
	l.must(unix.Unmount(dir, 0))
}

// awaitQuiet waits until nothing is copied in the background, nor can be.
func (l *lively) awaitQuiet() {
	l.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if s := l.cloneStatus(); s.HydrationDisabled && s.HydratingRegions == 0 {
			return
		}
		if time.Now().After(deadline) {
			l.Fatal("the kernel goes on to copy")
		}
	}
}

// fault 65: the process is stopped at any moment, for long. The kernel does not go on to
// copy with nobody to watch.
func TestEngineFault65Stopped(t *testing.T) {
	s := newSite(t)
	const size = 64 * mib
	made := newImage(size, 65, solid)
	s.write(made, s.path("image"))
	below := s.slice(size)
	slow := s.newDevice(target{ // so that not everything can be copied in a moment
		Length: uint64(size / sectorBytes), Type: "delay", Params: fmt.Sprintf("%s 0 0 %s 0 100", below.path(), below.path()),
	})
	l := s.newLiveOn(s.path("image"), slow.path())
	l.flags = []string{"--commit-bytes=2MiB", "--region-size=64KiB", "--threshold=16"}
	r := l.runKernel()
	r.awaitCommitted(1)
	s.must(r.cmd.Process.Signal(syscall.SIGSTOP))
	_, err := s.dm.Message(l.name, 0, clonetarget.Enable) // as in the middle of it
	s.must(err)
	l.awaitQuiet()
	if l.cloneStatus().Done() {
		t.Error("the kernel has copied everything")
	}
	slow.exchange(below.whole(below.linear())...)
	s.must(r.cmd.Process.Signal(syscall.SIGCONT))
	s.want(0, r.wait())
	s.wantWhole(dm.Path(l.name), made)
	s.wantEmptied(s.path("image"))
}

// fault 1: somebody truncates the source while the kernel copies it, which may read zeros
// where there is nothing any more. None of that is recorded, or discarded.
func TestEngineFault1Truncated(t *testing.T) {
	s := newSite(t)
	const size = 32 * mib
	made := newImage(size, 1, solid)
	s.write(made, s.path("image"))
	l := s.newLiveOn(s.path("image"), s.slice(size).path())
	l.flags = []string{"--commit-bytes=2MiB", "--region-size=64KiB", "--bwlimit=8MiB/s"}
	r := l.runKernel()
	r.awaitCommitted(1)
	s.must(os.Truncate(s.path("image"), size/2))
	o := s.want(3, r.wait())
	s.wantReason(o, "the source changed")
	hydrated, g := s.owned(r.id())
	got, err := os.ReadFile(l.destination)
	s.must(err)
	for run := range hydrated.Ranges() {
		off, n := g.Bytes(run)
		if !bytes.Equal(got[off:off+n], made.bytes[off:off+n]) {
			t.Errorf("%d bytes at %d count as hydrated, and are not what the source held", n, off)
		}
	}
}

// fault 43: others take the room in the pool while the volume is in use. The kernel is let
// copy no more, the pool stays in order, and the volume can be read; once the pool was
// grown, the same command goes on.
func TestEngineFault43PoolFilledByOthers(t *testing.T) {
	s := newSite(t)
	g := s.newGroup(200 * mib)
	g.thinPool("pool", 96*mib)
	made := newImage(64*mib, 43, solid)
	s.write(made, s.path("image"))
	other := g.thinVolume("pool", "other", 96*mib)
	l := s.newLiveOn(s.path("image"), g.name+"/new")
	l.flags = []string{"--commit-bytes=2MiB", "--region-size=256KiB", "--bwlimit=8MiB/s"}
	r := l.runKernel()
	r.awaitCommitted(2)
	// What others write shows in the pool only when it is written back.
	s.must(r.cmd.Process.Signal(syscall.SIGSTOP))
	l.awaitQuiet()
	st := g.poolStatus("pool")
	s.stream(other, (st.dataBlocks-st.dataUsedBlocks)*64*kib-12*mib, 22)
	s.must(r.cmd.Process.Signal(syscall.SIGCONT))
	r.await("a pause", func(e event) bool { return e.Event == "paused" })
	s.must(r.cmd.Process.Signal(interrupt))
	o := s.want(3, r.wait())
	s.wantMode(g.poolStatus("pool"), "rw")
	if !strings.Contains(o.stderr, "can go on") {
		t.Errorf("nothing is said of the device: %v", o)
	}
	l.wantTarget("clone")
	s.wantWhole(dm.Path(l.name), made)

	g.extend("pool", 64*mib)
	s.want(0, l.runKernel().wait())
	l.wantTarget("linear")
	s.wantWhole(dm.Path(l.name), made)
	s.wantMode(g.poolStatus("pool"), "rw")
	s.wantEmptied(s.path("image"))
}

// fault 24: some blocks under the source cannot be read. The kernel copies the rest, they
// are listed, and the migration ends once they can be read again.
func TestEngineFault24BadSectors(t *testing.T) {
	s := newSite(t)
	const size = 16 * mib
	below := s.slice(size)
	source := s.newDevice(below.whole(below.dust())...)
	made := newImage(size, 24, solid)
	s.write(made, source.path())
	l := s.newLiveOn(source.path(), s.slice(size).path())
	l.flags = []string{"--region-size=" + itoa(faultRegionBytes)}
	bad := []int64{5 * mib, size - 4*kib}
	for _, off := range bad {
		source.message(0, fmt.Sprintf("addbadblock %d", off/(4*kib)))
	}
	source.message(0, "enable")
	r := l.runKernel()
	o := s.want(3, r.wait())
	s.wantReason(o, "2 regions of the source cannot be read")
	s.wantBad(r.id(), bad)
	source.message(0, "disable")
	s.want(0, l.runKernel().wait())
	s.wantBad(r.id(), nil)
	l.wantTarget("linear")
	s.wantWhole(dm.Path(l.name), made)
}
