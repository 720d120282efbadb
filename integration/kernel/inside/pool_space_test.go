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
	defer f.Close()
	const pieceBytes = 4 * mib
	piece, err := unix.Mmap(-1, 0, int(pieceBytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	s.must(err)
	defer unix.Munmap(piece)
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
