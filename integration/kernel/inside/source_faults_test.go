//go:build testkernel

package inside

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// badBytes are offsets of bytes that cannot be read, in the first, an inner and the
// last region.
var badBytes = []int64{4 * kib, faultAt + 64*kib, faultImageBytes - 4*kib}

// faultRegionBytes is the region size in faultFlags.
const faultRegionBytes = 256 * kib

// fault 24: some blocks under the source cannot be read. The rest is moved, the bad
// regions are listed with their offsets and never discarded, and the migration ends
// once they can be read again.
func TestKernelFault24BadSectors(t *testing.T) {
	for name, newSource := range map[string]func(*site, image) (path string, dust *device, where func(int64) int64){
		"file on ext4": func(s *site, made image) (string, *device, func(int64) int64) {
			return badFile(s, "ext4", 64*mib, made)
		},
		"file on xfs": func(s *site, made image) (string, *device, func(int64) int64) {
			return badFile(s, "xfs", 320*mib, made)
		},
		"block device": func(s *site, made image) (string, *device, func(int64) int64) {
			below := s.slice(faultImageBytes)
			d := s.newDevice(below.whole(below.dust())...)
			s.write(made, d.path())
			return d.path(), d, func(off int64) int64 { return off }
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			made := newImage(faultImageBytes, 24, solid)
			source, dust, where := newSource(s, made)
			to := s.slice(16 * mib)
			for _, off := range badBytes {
				dust.message(0, fmt.Sprintf("addbadblock %d", where(off)/(4*kib)))
			}
			dust.message(0, "enable")
			o := s.move(3, source, to.path(), faultFlags...)
			s.wantReason(o, "3 regions of the source cannot be read")
			s.wantBad(o.last().ID, badBytes)
			if hydrated, g := s.owned(o.last().ID); hydrated.Count() != g.Regions()-3 {
				t.Errorf("%d of %d regions are hydrated", hydrated.Count(), g.Regions())
			}
			dust.message(0, "disable")
			s.wantNothingLost(o.last().ID, made, source, to.path())
			s.scribble(o.last().ID, to.path())
			s.move(0, source, to.path(), faultFlags...)
			s.wantBad(o.last().ID, nil)
			s.wantWhole(to.path(), made)
		})
	}
}

// badFile is an image on a file system whose device can be given bad blocks.
func badFile(s *site, kind string, bytes int64, made image) (path string, dust *device, where func(int64) int64) {
	s.Helper()
	below := s.slice(bytes)
	d := s.newDevice(below.whole(below.dust())...)
	f := s.newFilesystem(kind, d)
	s.write(made, f.path("image"))
	unix.Sync()
	return f.path("image"), d, func(off int64) int64 { return f.blockOf(f.path("image"), off) }
}

// wantBad fails the test unless show lists the regions with these bytes, and no
// others.
func (s *site) wantBad(id string, want []int64) {
	s.Helper()
	listed := map[int64]bool{}
	for _, b := range s.show(id).Bad {
		if b.Error == "" {
			s.Errorf("listed without a reason: %+v", b)
		}
		for off := b.Offset; off < b.Offset+b.Bytes; off += faultRegionBytes {
			listed[off] = true
		}
	}
	var regions []int64
	for _, off := range want {
		regions = append(regions, off-off%faultRegionBytes)
	}
	if got := slices.Sorted(maps.Keys(listed)); !slices.Equal(got, regions) {
		s.Errorf("bad regions at %v, want %v", got, regions)
	}
}

// fault 51: the source goes away in the middle, for good or until it is back.
func TestKernelFault51SourceGone(t *testing.T) {
	s := newSite(t)
	made := newImage(faultImageBytes, 52, solid)
	below, to := s.slice(faultImageBytes), s.slice(16*mib)
	s.write(made, below.path())
	from := s.newDevice(below.with(faultAt, faultAt, below.heldReads())...)
	r := s.startMove(from.path(), to.path(), faultFlags...)
	r.awaitCommitted(2)
	from.exchange(below.whole(broken)...)
	o := s.want(3, r.wait())
	from.exchange(below.whole(below.linear())...)
	s.wantNothingLost(o.last().ID, made, from.path(), to.path())
	s.scribble(o.last().ID, to.path())
	s.move(0, from.path(), to.path(), faultFlags...)
	s.wantWhole(to.path(), made)
}

// fault 51: the disk under the source's file system goes away in the middle, and the
// file system gives up. It takes back discards that it had not made durable.
func TestKernelFault51SourceFilesystemGone(t *testing.T) {
	for kind, diskBytes := range map[string]int64{"ext4": 64 * mib, "xfs": 320 * mib} {
		t.Run(kind, func(t *testing.T) {
			s := newSite(t)
			made := newImage(faultImageBytes, 53, solid)
			below, to := s.slice(diskBytes), s.slice(16*mib)
			disk := s.newDevice(below.whole(below.linear())...)
			f := s.newFilesystem(kind, disk)
			s.write(made, f.path("image"))
			unix.Sync()
			gate := s.newDevice(to.with(faultAt, faultAt, to.held())...)
			r := s.startMove(f.path("image"), gate.path(), faultFlags...)
			r.awaitCommitted(2)
			disk.exchange(below.whole(broken)...)
			gate.exchange(to.whole(to.linear())...)
			o := s.want(3, r.wait())
			f.unmount()
			disk.exchange(below.whole(below.linear())...)
			f.mount()
			s.wantNothingLost(o.last().ID, made, f.path("image"), gate.path())
			s.scribble(o.last().ID, gate.path())
			s.move(0, f.path("image"), gate.path(), faultFlags...)
			s.wantWhole(gate.path(), made)
			s.wantEmptied(f.path("image"))
			f.check()
		})
	}
}
