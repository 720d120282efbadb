//go:build testkernel

package inside

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// runKernel starts the migration with the kernel's engine, and waits until the device is
// there.
func (l *lively) runKernel() *running {
	l.Helper()
	r := l.startMove(l.image, l.destination, append([]string{"--live", l.name, "--engine=kernel", "--discard-src"}, l.flags...)...)
	r.await("the live device", func(e event) bool { return e.Event == "exported" })
	return r
}

// wantTarget fails the test unless that target serves the live device.
func (l *lively) wantTarget(target string) {
	l.Helper()
	table, err := l.dm.Table(l.name)
	l.must(err)
	if len(table) != 1 || table[0].Type != target {
		l.Errorf("the live device has the table %v, want %s", table, target)
	}
}

// wantNoMetadata fails the test if the kernel's metadata is left in the state directory,
// or a loop device that was made for the migration.
func (l *lively) wantNoMetadata() {
	l.Helper()
	left, err := filepath.Glob(filepath.Join(l.state, "*.clone"))
	l.must(err)
	if len(left) > 0 {
		l.Errorf("%v is left", left)
	}
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	l.must(err)
	for _, path := range backing {
		text, _ := os.ReadFile(path)
		l.Errorf("a loop device is left on %s", text)
	}
}

// A guest who flushes after every write has the kernel commit all the time, and copy in
// between only. The migration comes to its end, and what was written is there.
func TestEngineConstantCommits(t *testing.T) {
	s := newSite(t)
	const size, blockBytes = 48 * mib, 4 * kib
	made := newImage(size, 5, solid)
	s.write(made, s.path("image"))
	l := s.newLiveOn(s.path("image"), s.slice(size).path())
	l.flags = []string{"--commit-bytes=1MiB", "--region-size=64KiB", "--commit-period=20ms", "--threshold=4", "--batch=1"}
	r := l.runKernel()
	d, err := os.OpenFile(l.path(), os.O_RDWR|unix.O_DIRECT|unix.O_DSYNC, 0)
	s.must(err)
	defer d.Close()
	rng := rand.New(rand.NewPCG(5, 5))
	p := aligned(blockBytes)
	writes := 0
	for ended := false; !ended; writes++ {
		off := rng.Int64N(size/blockBytes) * blockBytes
		binary.NativeEndian.PutUint64(p, uint64(writes))
		_, err := d.WriteAt(p, off)
		s.must(err)
		copy(made.bytes[off:], p)
		select {
		case <-r.ended:
			ended = true
		default:
		}
	}
	t.Logf("%d writes", writes)
	s.want(0, r.wait())
	l.wantEnd()
	s.wantWhole(l.path(), made)
}

// A part of a file, as a loop device shows it, is the source: it alone is emptied. The
// process is killed on the way.
func TestEngineLoopSource(t *testing.T) {
	s := newSite(t)
	const size, before = 16 * mib, 3*mib + 4*kib
	made := newImage(size, 17, solid)
	file := slices.Concat(bytes.Repeat([]byte{1}, int(before)), made.bytes, bytes.Repeat([]byte{2}, int(mib)))
	s.must(os.WriteFile(s.path("file"), file, 0o600))
	node := strings.TrimSpace(s.do("losetup", "--find", "--show", "--offset", itoa(before), "--sizelimit", itoa(size), s.path("file")))
	s.Cleanup(func() { s.do("losetup", "--detach", node) })
	l := s.newLiveOn(node, s.slice(size).path())
	l.flags = []string{"--commit-bytes=1MiB", "--region-size=64KiB", "--bwlimit=4MiB/s"}
	r := l.runKernel()
	r.awaitCommitted(2)
	s.must(r.cmd.Process.Kill())
	r.wait()
	s.want(0, l.runKernel().wait())
	l.wantTarget("linear")
	s.wantWhole(l.path(), made)
	clear(file[before:][:size])
	left, err := os.ReadFile(s.path("file"))
	s.must(err)
	if !bytes.Equal(left, file) {
		t.Error("the file is not empty where the loop device was, and as before elsewhere")
	}
}

// A file system is mounted from the first moment on, written to while the kernel
// hydrates it, and still mounted when the migration has ended.
func TestEngineInUse(t *testing.T) {
	for kind, bytes := range map[string]int64{"ext4": 96 * mib, "xfs": 304 * mib} {
		t.Run(kind, func(t *testing.T) {
			s := newSite(t)
			l := s.newLively(kind, s.slice(bytes+16*mib).path(), bytes, "--bwlimit=12MiB/s", "--commit-bytes=8MiB", "--region-size=64KiB")
			r := l.runKernel()
			l.wantTarget("clone")
			f := l.mount()
			l.check(f.dir)
			for i := range 20 {
				l.fill(f.path(fmt.Sprintf("new%d", i)), mib, uint64(100+i))
			}
			if phase := l.show(r.id()).Phase; phase != "running" {
				t.Fatalf("the migration was %s before the files were written", phase)
			}
			s.must(os.Remove(f.path("old0")))
			delete(l.sums, "old0")
			s.want(0, r.wait())
			l.wantEnd()
			l.wantNoMetadata()
			l.fill(f.path("after"), mib, 99)
			f.check()
			f.mount()
			l.check(f.dir)
		})
	}
}
