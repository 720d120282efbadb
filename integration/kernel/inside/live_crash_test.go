//go:build testkernel

package inside

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"decant/dm"
)

// author writes files and makes each durable, one after the other, until it is stopped.
type author struct {
	l     *lively
	dir   string
	stop  chan struct{}
	ended sync.WaitGroup
	count int
}

func (l *lively) newAuthor(dir string) *author {
	a := &author{l: l, dir: dir, stop: make(chan struct{})}
	a.ended.Go(func() {
		for {
			select {
			case <-a.stop:
				return
			default:
			}
			a.count++
			// The files take the places of one another: there is little room.
			name := filepath.Join(dir, fmt.Sprintf("live%d", a.count%24))
			l.fill(name, 256*kib, uint64(a.count))
		}
	})
	return a
}

// end stops the author, and says how many files it has written.
func (a *author) end() int {
	close(a.stop)
	a.ended.Wait()
	return a.count
}

// fault 84: the process is killed again and again while a file system is mounted and
// written to. Who writes notices nothing but that it takes a while.
func TestLiveCrashWhileMounted(t *testing.T) {
	for kind, bytes := range map[string]int64{"ext4": 96 * mib, "xfs": 304 * mib} {
		t.Run(kind, func(t *testing.T) {
			s := newSite(t)
			l := s.newLively(kind, s.slice(bytes+16*mib).path(), bytes, "--bwlimit=8MiB/s", "--commit-period=200ms")
			r := l.run()
			f := l.mount()
			a := l.newAuthor(f.dir)
			rng := rand.New(rand.NewPCG(84, uint64(len(kind))))
			for range 5 {
				r.awaitCommitted(r.last().Transaction + 1 + rng.Uint64N(3))
				time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond) // some moment
				r.kill()
				r = l.run()
			}
			written := a.count
			s.want(0, r.wait())
			if n := a.end(); n == written {
				t.Error("nothing was written after the last kill")
			} else {
				t.Logf("%d files written", n)
			}
			l.wantEnd()
			l.check(f.dir)
			f.check()
			f.mount()
			l.check(f.dir)
		})
	}
}

// last is the newest event so far.
func (r *running) last() event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.result.last()
}

// block is memory for direct I/O.
func (s *site) block(n int) []byte {
	s.Helper()
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	s.must(err)
	s.Cleanup(func() { s.must(unix.Munmap(p)) })
	return p
}

// fault 84: what was answered before the process was killed is there afterwards, without
// any flush, in whichever state the regions were.
func TestLiveCrashKeepsWhatWasAnswered(t *testing.T) {
	const size = 48 * mib
	s := newSite(t)
	image := newImage(size, 7, mixed)
	path := s.path("image")
	s.write(image, path)
	l := &lively{site: s, name: "answered", image: path, destination: s.slice(size + mib).path(), flags: []string{"--bwlimit=512KiB/s", "--commit-period=10s"}}
	s.Cleanup(l.clear)
	r := l.run()
	rng := rand.New(rand.NewPCG(84, 1))
	dev, err := os.OpenFile(l.path(), os.O_RDWR|unix.O_DIRECT, 0)
	s.must(err)
	p := s.block(int(64 * kib))
	for round := range 6 {
		for range 25 {
			n := 512 * (1 + rng.Int64N(128))
			off := rng.Int64N(size-n) / 512 * 512
			for i := range p[:n] {
				p[i] = byte(rng.Uint32())
			}
			if rng.IntN(6) == 0 {
				clear(p[:n])
				s.must(zeroOut(dev, uint64(off), uint64(n)))
			} else {
				_, err := dev.WriteAt(p[:n], off)
				s.must(err)
			}
			copy(image.bytes[off:], p[:n])
		}
		r.kill()
		if round == 5 {
			l.flags = nil // it has taken long enough
		}
		r = l.run()
		if got := s.read(l.path(), size); !bytes.Equal(got, image.bytes) {
			t.Fatalf("after kill %d: other than what was answered, %s", round+1, difference(got, image.bytes))
		}
	}
	s.must(dev.Close())
	s.want(0, r.wait())
	l.wantEnd()
	s.wantWhole(l.destination, image)
}

// zeroOut is BLKZEROOUT.
func zeroOut(f *os.File, off, n uint64) error {
	return blockRange(f, unix.BLKZEROOUT, off, n)
}

func blockRange(f *os.File, request uint, off, n uint64) error {
	r := [2]uint64{off, n}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(unsafe.Pointer(&r))); errno != 0 {
		return errno
	}
	return nil
}

// fault 50: a device that was left suspended, with a table that never took effect, is
// settled by the next run, also if that table is the one that it shall have at the end.
func TestLiveCrashLeavesItSuspended(t *testing.T) {
	for _, loaded := range []string{"error", "linear"} {
		t.Run(loaded, func(t *testing.T) {
			s := newSite(t)
			destination := s.slice(112 * mib)
			l := s.newLively("ext4", destination.path(), 96*mib, "--bwlimit=16MiB/s")
			r := l.run()
			f := l.mount()
			r.awaitCommitted(2)
			r.kill()
			target := dm.Target{Length: 96 * uint64(mib) / sectorBytes, Type: loaded}
			if loaded == "linear" {
				target.Params = destination.path() + " 0"
			}
			s.must(s.dm.Load(l.name, []dm.Target{target}))
			// Nothing may be under way: nobody would answer it.
			s.must(s.dm.Suspend(l.name, dm.SuspendOptions{NoLockFS: true}))
			r = l.run()
			for i := range 4 {
				l.fill(f.path(fmt.Sprintf("new%d", i)), mib, uint64(200+i))
			}
			s.want(0, r.wait())
			l.wantEnd()
			f.check()
			f.mount()
			l.check(f.dir)
		})
	}
}

// Killed at the end, anywhere between the last region and the last word: the same command
// brings it to its end, or finds that nothing is left to do.
func TestLiveCrashAtTheEnd(t *testing.T) {
	s := newSite(t)
	const size = 24 * mib
	destination := s.slice(size + mib)
	moved := 0
	for i := range 6 {
		image := newImage(size, uint64(i), mixed)
		path := s.path(fmt.Sprintf("image%d", i))
		s.write(image, path)
		l := &lively{site: s, name: fmt.Sprintf("end%d", i), image: path, destination: destination.path(), flags: []string{"--overwrite"}}
		r := l.run()
		dev, err := os.OpenFile(l.path(), os.O_RDWR|unix.O_DIRECT, 0)
		s.must(err)
		r.await("the end of hydration", func(e event) bool { return e.Event == "hydrated" })
		time.Sleep(time.Duration(i*i) * time.Millisecond) // some moment
		_ = r.cmd.Process.Signal(syscall.SIGKILL)         // it may have ended
		<-r.ended
		table, err := s.dm.Table(l.name)
		s.must(err)
		if !strings.HasPrefix(table[0].Params, "43:") { // of network block devices
			moved++
		}
		r = l.run()
		p := s.block(int(4 * kib))
		copy(p, "written at the end")
		_, err = dev.WriteAt(p, 8*mib)
		s.must(err)
		copy(image.bytes[8*mib:], p)
		s.want(0, r.wait())
		l.wantEnd()
		s.must(dev.Close())
		s.wantWhole(l.destination, image)
		// Once more with the device in place, and once without it, as after a start of the
		// host.
		s.want(0, l.run().wait())
		s.wantWhole(l.path(), image)
		l.clear()
		s.want(0, l.run().wait())
		l.wantEnd()
		s.wantWhole(l.path(), image)
		l.clear()
	}
	t.Logf("%d of 6 were killed after the exchange of the tables", moved)
}

// fault 47: the destination fails under a mounted live device. Its users get errors, and
// nothing that they had been told was durable is lost: once the destination is whole again
// and they have left, the same command goes on.
func TestLiveCrashFault47DestinationFails(t *testing.T) {
	s := newSite(t)
	below := s.slice(112 * mib)
	destination := s.newDevice(below.whole(below.linear())...)
	l := s.newLively("ext4", destination.path(), 96*mib, "--bwlimit=4MiB/s")
	r := l.run()
	f := l.mount()
	l.fill(f.path("new"), mib, 1)
	destination.exchange(below.whole(broken)...)
	if err := os.WriteFile(f.path("failing"), bytes.Repeat([]byte("x"), int(mib)), 0o600); err == nil {
		if file, err := os.Open(f.path("failing")); err == nil {
			if file.Sync() == nil {
				t.Error("a file was made durable on a destination that fails")
			}
			_ = file.Close()
		}
	}
	r.await("the failure", func(e event) bool { return e.Event == "warning" })
	f.unmount()
	s.want(3, r.wait())
	destination.exchange(below.whole(below.linear())...)
	l.flags = nil
	r = l.run()
	f.mount()
	s.want(0, r.wait())
	_ = os.Remove(f.path("failing"))
	l.wantEnd()
	l.check(f.dir)
	f.check()
}

// Killed in the middle of the exchange of tables, which waits for a read that takes long:
// the migration is done in the journal, and the device still over this process. The next
// run answers the read, and puts the device over the destination.
func TestLiveCrashInTheExchange(t *testing.T) {
	const size = 16 * mib
	s := newSite(t)
	below := s.slice(size)
	slow := func(off, n int64) target {
		return target{
			Start: uint64(off / sectorBytes), Length: uint64(n / sectorBytes), Type: "delay",
			Params: fmt.Sprintf("%s %d 4000 %[1]s %[2]d 0", below.path(), off/sectorBytes), // reads take 4 s, writes do not
		}
	}
	destination := s.newDevice(below.with(8*mib, mib, slow)...)
	image := newImage(size, 3, solid)
	path := s.path("image")
	s.write(image, path)
	l := &lively{site: s, name: "exchange", image: path, destination: destination.path(), flags: []string{"--bwlimit=8MiB/s"}}
	s.Cleanup(l.clear)
	r := l.run()
	dev, err := os.OpenFile(l.path(), os.O_RDWR|unix.O_DIRECT, 0)
	s.must(err)
	stop, ended := make(chan struct{}), make(chan error, 1)
	p := s.block(int(4 * kib))
	go func() {
		for {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			if _, err := dev.ReadAt(p, 8*mib+4096); err != nil || !bytes.Equal(p, image.bytes[8*mib+4096:][:4096]) {
				ended <- fmt.Errorf("a read has failed, or shows something else: %w", err)
				return
			}
		}
	}()
	r.await("the end of hydration", func(e event) bool { return e.Event == "hydrated" })
	id := r.id()
	for s.show(id).Phase != "done" {
		time.Sleep(20 * time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond) // it is at the exchange by then, or not: the end is the same
	r.kill()
	table, err := s.dm.Table(l.name)
	s.must(err)
	if !strings.HasPrefix(table[0].Params, "43:") {
		t.Errorf("the exchange did not wait for the read: %v", table)
	}
	r = l.run()
	s.want(0, r.wait())
	close(stop)
	s.must(<-ended)
	l.wantEnd()
	s.must(dev.Close())
	s.wantWhole(below.path(), image)
}
