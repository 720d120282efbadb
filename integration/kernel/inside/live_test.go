//go:build testkernel

package inside

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"decant/dm"
	"decant/nbd"
)

// lively is a migration whose volume is in use as a live device.
type lively struct {
	*site
	name        string
	kind        string // of the file system in the image
	image       string // a file
	destination string
	flags       []string
	sums        map[string][32]byte // of the files that must be there
}

// newLively makes an image with a file system that holds some files.
func (s *site) newLively(kind, destination string, imageBytes int64, flags ...string) *lively {
	s.Helper()
	made++
	l := &lively{
		site: s, name: fmt.Sprintf("live%d", made), kind: kind, image: s.path("image"), destination: destination,
		flags: flags, sums: map[string][32]byte{},
	}
	f, err := os.Create(l.image)
	s.must(err)
	s.must(f.Truncate(imageBytes))
	s.must(f.Close())
	make := map[string][]string{"ext4": {"-q", "-F", "-b", "4096"}, "xfs": {"-q", "-f"}}[kind]
	s.do("mkfs."+kind, append(make, l.image)...)
	dir, err := os.MkdirTemp("/mnt", "image")
	s.must(err)
	s.do("mount", "-o", "loop", l.image, dir)
	for i := range min(12, int(imageBytes/(6*mib))) {
		l.fill(filepath.Join(dir, fmt.Sprintf("old%d", i)), 2*mib, uint64(i))
	}
	s.must(unix.Unmount(dir, 0))
	s.Cleanup(l.clear)
	return l
}

// fill writes a file, and remembers what is in it once it is durable.
func (l *lively) fill(path string, n int64, seed uint64) {
	l.Helper()
	p := make([]byte, n)
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	_, _ = random.Read(p) // never fails
	f, err := os.Create(path)
	l.must(err)
	_, err = f.Write(p)
	l.must(err)
	l.must(f.Sync())
	l.must(f.Close())
	l.sums[filepath.Base(path)] = sha256.Sum256(p)
}

// check fails the test unless every file that was durable is as it was.
func (l *lively) check(dir string) {
	l.Helper()
	for name, want := range l.sums {
		p, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			l.Errorf("%v", err)
		} else if got := sha256.Sum256(p); !bytes.Equal(got[:], want[:]) {
			l.Errorf("%s has other contents", name)
		}
	}
}

func (l *lively) path() string { return dm.Path(l.name) }

// run starts the migration, and waits until the device is there.
func (l *lively) run() *running {
	l.Helper()
	// A test that fails is not to wait for a device that nobody serves any more.
	flags := append([]string{"--live", l.name, "--engine=user", "--live-timeout=40s", "--discard-src"}, l.flags...)
	r := l.startMove(l.image, l.destination, flags...)
	r.await("the live device", func(e event) bool { return e.Event == "exported" })
	return r
}

// id is that of the migration.
func (r *running) id() string { return r.await("its id", func(e event) bool { return e.ID != "" }).ID }

func (l *lively) mount() *filesystem {
	l.Helper()
	f := &filesystem{s: l.site, dev: l.path(), kind: l.kind}
	var err error
	f.dir, err = os.MkdirTemp("/mnt", "live")
	l.must(err)
	f.mount()
	l.Cleanup(f.unmount)
	return f
}

// wantEnd fails the test unless the device lies over the destination, and nothing else is
// left of the migration.
func (l *lively) wantEnd() {
	l.Helper()
	var stat unix.Stat_t
	l.must(unix.Stat(l.destination, &stat))
	if stat.Mode&unix.S_IFMT == unix.S_IFBLK {
		table, err := l.dm.Table(l.name)
		l.must(err)
		want := fmt.Sprintf("%d:%d 0", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
		if len(table) != 1 || table[0].Type != "linear" || table[0].Params != want {
			l.Errorf("the live device has the table %v, want linear %s", table, want)
		}
	}
	l.wantNoClients()
	l.wantEmptied(l.image)
}

func (l *lively) wantNoClients() {
	l.Helper()
	uses, err := nbd.KernelUses()
	l.must(err)
	if len(uses) > 0 {
		l.Errorf("network block devices are left: %v", uses)
	}
}

// clear takes the device away.
func (l *lively) clear() {
	info, err := l.dm.Info(l.name)
	if err == nil && info.Suspended {
		_ = l.dm.Resume(l.name) // a test that has failed
	}
	d := &device{s: l.site, name: l.name}
	d.remove()
	uses, err := nbd.KernelUses()
	if err != nil {
		l.Error(err)
	}
	for _, u := range uses {
		if err := nbd.DisconnectKernel(u.Index); err != nil {
			l.Error(err)
		}
	}
}

// A file system is mounted from the first moment on, written to while it hydrates, and
// still mounted when the migration has ended.
func TestLiveInUse(t *testing.T) {
	for kind, bytes := range map[string]int64{"ext4": 96 * mib, "xfs": 304 * mib} {
		t.Run(kind, func(t *testing.T) {
			s := newSite(t)
			l := s.newLively(kind, s.slice(bytes+16*mib).path(), bytes, "--bwlimit=1MiB/s")
			r := l.run()
			f := l.mount()
			l.check(f.dir)
			for i := range 20 {
				l.fill(f.path(fmt.Sprintf("new%d", i)), mib, uint64(100+i))
			}
			if phase := l.show(r.id()).Phase; phase != "running" {
				t.Fatalf("the migration was %s before the files were written", phase)
			}
			s.must(r.cmd.Process.Signal(syscall.SIGTERM))
			s.want(3, r.wait())
			l.flags = nil // it has taken long enough
			r = l.run()
			s.must(os.Remove(f.path("old0")))
			delete(l.sums, "old0")
			s.want(0, r.wait())
			l.wantEnd()
			l.fill(f.path("after"), mib, 99)
			f.check()
			f.mount()
			l.check(f.dir)
			f.unmount()
			f.dev = l.destination // a plain device
			l.clear()
			f.mount()
			l.check(f.dir)
		})
	}
}
