//go:build testkernel

package inside

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
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
