//go:build testkernel

package inside

import (
	"bytes"
	"math/rand/v2"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"decant/journal"
	"decant/region"
)

// image is the contents of a source, and where they are to be holes.
type image struct {
	bytes []byte
	holes [][2]int64 // from, to
}

// mixture says which of a hundred pieces of an image are data and which are holes;
// the rest are zeros that take space.
type mixture struct{ data, holes int }

var (
	mixed = mixture{data: 60, holes: 20}
	solid = mixture{data: 100}
)

// newImage makes contents of pieces from 4 KiB to 1 MiB, always the same for the same
// seed.
func newImage(size int64, seed uint64, m mixture) image {
	rng := rand.New(rand.NewPCG(seed, 0))
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	made := image{bytes: make([]byte, size)}
	for off := int64(0); off < size; {
		n := min(4*kib<<rng.IntN(9), size-off)
		switch kind := rng.IntN(100); {
		case kind < m.data:
			_, _ = random.Read(made.bytes[off : off+n]) // never fails
		case kind < m.data+m.holes:
			made.holes = append(made.holes, [2]int64{off, off + n})
		}
		off += n
	}
	return made
}

func (m image) size() int64 { return int64(len(m.bytes)) }

// write puts the image into a new file, or onto a device that is blank.
func (s *site) write(m image, path string) {
	s.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	s.must(err)
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		s.must(f.Truncate(m.size()))
	}
	at := int64(0)
	for _, hole := range append(m.holes, [2]int64{m.size(), m.size()}) {
		_, err := f.WriteAt(m.bytes[at:hole[0]], at)
		s.must(err)
		at = hole[1]
	}
	s.must(f.Sync())
	s.must(f.Close())
}

// read is what the medium holds behind a path, past the page cache.
func (s *site) read(path string, size int64) []byte {
	s.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	s.must(err)
	defer f.Close()
	const pieceBytes = mib
	piece, err := unix.Mmap(-1, 0, int(pieceBytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	s.must(err)
	defer unix.Munmap(piece)
	all := make([]byte, 0, size)
	for int64(len(all)) < size {
		n, err := f.ReadAt(piece, int64(len(all)))
		if n == 0 {
			s.Fatalf("read %s at byte %d of %d: %v", path, len(all), size, err)
		}
		all = append(all, piece[:min(int64(n), size-int64(len(all)))]...)
	}
	return all
}

// wantWhole fails the test unless path holds the image.
func (s *site) wantWhole(path string, want image) {
	s.Helper()
	got := s.read(path, want.size())
	if !bytes.Equal(got, want.bytes) {
		s.Fatalf("%s is not what the source was, %s", path, difference(got, want.bytes))
	}
}

// difference says where two contents differ.
func difference(got, want []byte) string {
	const unit = 4096
	first, count := -1, 0
	for off := 0; off < len(want); off += unit {
		end := min(off+unit, len(want))
		if !bytes.Equal(got[off:end], want[off:end]) {
			if count++; first < 0 {
				first = off
			}
		}
	}
	return "in " + itoa(int64(count)) + " blocks of 4 KiB, the first at " + itoa(int64(first))
}

// wantEmptied fails the test unless a file takes no more space than a few blocks.
func (s *site) wantEmptied(path string) {
	s.Helper()
	info, err := os.Stat(path)
	s.must(err)
	if got := info.Sys().(*syscall.Stat_t).Blocks * 512; got > 64*kib {
		s.Errorf("the source still takes %d bytes", got)
	}
}

// owned is what the journal says the destination holds.
func (s *site) owned(id string) (*region.Set, region.Geometry) {
	s.Helper()
	j, err := journal.OpenReadOnly(s.show(id).Journal)
	s.must(err)
	state, err := j.Load()
	s.must(err)
	geometry := j.Superblock().Geometry
	s.must(j.Close())
	return state.Hydrated, geometry
}

// wantNothingLost fails the test unless every region is whole at the end that the
// journal says owns it. Nothing may be at work on either end, and both must be
// readable.
func (s *site) wantNothingLost(id string, want image, source, destination string) {
	s.Helper()
	hydrated, geometry := s.owned(id)
	from, to := s.read(source, want.size()), s.read(destination, want.size())
	lost := 0
	for nr := region.Nr(0); uint64(nr) < geometry.Regions(); nr++ {
		off, n := geometry.Bytes(region.Range{First: nr, Count: 1})
		end, name := from, "source"
		if hydrated.Has(nr) {
			end, name = to, "destination"
		}
		if !bytes.Equal(end[off:off+n], want.bytes[off:off+n]) {
			if lost++; lost <= 3 {
				s.Errorf("the region at %d belongs to the %s and is not whole there", off, name)
			}
		}
	}
	if lost > 0 {
		s.Fatalf("%d of %d regions are lost", lost, geometry.Regions())
	}
}

// scribble overwrites every region of the destination that the journal does not
// count as hydrated: a resume must not believe anything there.
func (s *site) scribble(id, destination string) {
	s.Helper()
	hydrated, geometry := s.owned(id)
	f, err := os.OpenFile(destination, os.O_WRONLY, 0)
	s.must(err)
	for run, ok := hydrated.MissingRange(geometry.All()); ok; run, ok = hydrated.MissingRange(region.Between(run.End(), geometry.All().End())) {
		off, n := geometry.Bytes(run)
		_, err := f.WriteAt(bytes.Repeat([]byte("not hydrated! "), int(n/14+1))[:n], off)
		s.must(err)
	}
	s.must(f.Sync())
	s.must(f.Close())
}
