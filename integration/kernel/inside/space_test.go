//go:build testkernel

package inside

import (
	"errors"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stream writes size bytes of noise, which is the same for the same seed, into a file
// or onto a device, and returns their sum. It is for images that are too large to keep.
func (s *site) stream(path string, size int64, seed uint64) uint64 {
	s.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	s.must(err)
	sum := fnv.New64a()
	noise := rand.NewChaCha8([32]byte{byte(seed)})
	_, err = io.CopyN(io.MultiWriter(f, sum), noise, size)
	s.must(errors.Join(err, f.Sync(), f.Close()))
	return sum.Sum64()
}

// sumOf is the sum of what path holds, past the page cache.
func (s *site) sumOf(path string, size int64) uint64 {
	s.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	s.must(err)
	defer f.Close() //nolint:errcheck // only read
	const pieceBytes = 4 * mib
	piece, err := unix.Mmap(-1, 0, int(pieceBytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	s.must(err)
	defer unix.Munmap(piece) //nolint:errcheck // memory of this process
	sum := fnv.New64a()
	for off := int64(0); off < size; {
		n, err := f.ReadAt(piece, off)
		if n == 0 {
			s.Fatalf("read %s at byte %d of %d: %v", path, off, size, err)
		}
		n = int(min(int64(n), size-off))
		_, _ = sum.Write(piece[:n]) // never fails
		off += int64(n)
	}
	return sum.Sum64()
}

// watcher samples how many blocks of a pool are used, from a goroutine.
type watcher struct {
	stop    chan struct{}
	stopped sync.WaitGroup
	before  int64
	most    int64
	err     error
}

// watch begins to sample a pool by the name of its device.
func (s *site) watch(pool string) *watcher {
	s.Helper()
	w := &watcher{stop: make(chan struct{})}
	s.do("sync")
	if _, err := s.dm.Status(pool); err != nil { // so that all that was freed counts
		s.Fatal(err)
	}
	w.before, w.err = s.usedBlocks(pool)
	s.must(w.err)
	w.stopped.Go(func() {
		for w.err == nil {
			select {
			case <-w.stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			var used int64
			used, w.err = s.usedBlocks(pool)
			w.most = max(w.most, used)
		}
	})
	return w
}

// rise is by how many blocks the use was higher at its highest than in the beginning.
func (s *site) rise(w *watcher) int64 {
	s.Helper()
	close(w.stop)
	w.stopped.Wait()
	s.must(w.err)
	return max(0, w.most-w.before)
}

// usedBlocks does not make the pool commit: that would help the program under test.
func (s *site) usedBlocks(pool string) (int64, error) {
	targets, err := s.dm.StatusNoFlush(pool)
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(targets[0].Params)
	if len(fields) < 3 {
		return 0, errors.New("status of the pool: " + targets[0].Params)
	}
	return parseUsed(fields[2])
}

// The flagship: an image of 580 MiB on a file system on a thin volume, moved into
// another volume of the same pool, which has 700 MiB.
func TestKernelSpaceWithinAPool(t *testing.T) {
	for name, options := range map[string][]string{"mounted with discard": {"discard"}, "mounted without discard": nil} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			g := s.newGroup(740 * mib)
			g.thinPool("pool", 700*mib)
			f := s.newFilesystem("ext4", g.thinDevice("pool", "source", 680*mib), options...)
			const size = 580 * mib
			sum := s.stream(f.path("image"), size, 1)
			destination := g.thinVolume("pool", "destination", size)

			w := s.watch(g.poolDevice("pool"))
			o := s.move(0, f.path("image"), destination, "--discard-src", "--commit-bytes=16MiB")
			rise := s.rise(w) * 64 * kib
			t.Logf("the pool rose by %d KiB, peak_extra_bytes are %d KiB", rise>>10, o.last().PeakExtraBytes>>10)
			if rise > 64*mib {
				t.Errorf("the pool rose by %d bytes", rise)
			}
			if peak := o.last().PeakExtraBytes; peak > 64*mib || peak < rise/2 {
				t.Errorf("peak_extra_bytes are %d, the pool rose by %d", peak, rise)
			}
			if got := s.sumOf(destination, size); got != sum {
				t.Error("the destination is not what the source was")
			}
			s.wantEmptied(f.path("image"))
		})
	}
}
