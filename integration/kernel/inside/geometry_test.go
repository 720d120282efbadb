//go:build testkernel

package inside

import (
	"bytes"
	"strings"
	"testing"
)

// newLoop attaches a file, with blocks of that size.
func (s *site) newLoop(path string, blockBytes int64) (node string) {
	s.Helper()
	node = strings.TrimSpace(s.do("losetup", "--find", "--show", "--sector-size", itoa(blockBytes), path))
	s.Cleanup(func() { s.do("losetup", "--detach", node) })
	return node
}

// newFile makes a file of zeros.
func (s *site) newFile(name string, size int64) string {
	s.Helper()
	path := s.path(name)
	s.do("truncate", "--size", itoa(size), path)
	return path
}

// fault 19: blocks of 4 KiB at the source, at the destination, and under a pool, for
// images that end inside of a block as well.
func TestKernelFault19BlocksOf4KiB(t *testing.T) {
	const blockBytes = 4096
	for name, test := range map[string]struct {
		imageBytes int64
		ends       func(s *site, image string) (source, destination string)
	}{
		"source": {3*mib + blockBytes, func(s *site, image string) (string, string) {
			return s.newLoop(image, blockBytes), s.slice(4 * mib).path()
		}},
		"destination": {3*mib + 512, func(s *site, image string) (string, string) {
			return image, s.newLoopDevice(4*mib, blockBytes).path()
		}},
		"pool": {3*mib + 1536, func(s *site, image string) (string, string) {
			p := s.newPool(poolOptions{data: s.newLoopDevice(8*mib, blockBytes)})
			return image, p.newVolume(1, 4*mib).path()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			made := newImage(test.imageBytes, 19, mixed)
			s.write(made, s.path("image"))
			source, destination := test.ends(s, s.path("image"))
			s.move(0, source, destination, "--discard-src", "--verify", "--region-size=64KiB", "--commit-bytes=1MiB")
			s.wantWhole(destination, made)
			s.wantEmptied(s.path("image"))
		})
	}
}

// newLoopDevice is a device-mapper device over a loop device with blocks of that size.
func (s *site) newLoopDevice(size, blockBytes int64) *device {
	s.Helper()
	node := s.newLoop(s.newFile("loop of "+itoa(size), size), blockBytes)
	return s.newDevice(target{Length: uint64(size / sectorBytes), Type: "linear", Params: node + " 0"})
}

// fault 44, fault 10: blocks of the pool that others have used before are given out
// as they are. Holes and zeros of the source read as zeros all the same, and so does
// what a larger volume has beyond it. Blocks are written in part where the image ends,
// and where they are no power of two in each region.
func TestKernelFault44BlocksAreNotZeroed(t *testing.T) {
	for name, test := range map[string]struct {
		features   string
		blockBytes int64
		regionSize string
	}{
		"as they were":         {"skip_block_zeroing", mib, "1MiB"},
		"as they were, uneven": {"skip_block_zeroing", 192 * kib, "256KiB"},
		"zeroed":               {"", mib, "1MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			made := newImage(5*mib+5*512, 44, mixture{data: 30, holes: 35})
			s.write(made, s.path("image"))
			data := s.slice(32 * mib)
			s.write(image{bytes: bytes.Repeat([]byte("somebody else's secret! "), 32<<20/24)}, data.path())
			p := s.newPool(poolOptions{data: data, blockBytes: test.blockBytes, features: test.features})
			v := p.newVolume(1, 8*mib)
			s.move(0, s.path("image"), v.path(), "--discard-src", "--region-size="+test.regionSize, "--commit-bytes=1MiB")
			s.wantWhole(v.path(), made)
			s.wantZeros(v.path(), made.size(), 8*mib)
		})
	}
}

// fault 10: a volume that was in use before.
func TestKernelFault10UsedVolume(t *testing.T) {
	s := newSite(t)
	made := newImage(5*mib+5*512, 10, mixture{data: 30, holes: 35})
	s.write(made, s.path("image"))
	p := s.newPool(poolOptions{blockBytes: mib})
	v := p.newVolume(1, 8*mib)
	s.write(image{bytes: bytes.Repeat([]byte("what was here before... "), 8<<20/24)}, v.path())
	flags := []string{"--discard-src", "--region-size=1MiB"}
	s.want(4, s.startMove(s.path("image"), v.path(), flags...).wait())
	s.wantWhole(s.path("image"), made)
	s.move(0, s.path("image"), v.path(), append(flags, "--overwrite")...)
	s.wantWhole(v.path(), made)
	s.wantZeros(v.path(), made.size(), 8*mib)
}

// fault 45: pools that pass discards on to the disk, that keep them, and that ignore
// them. A source in the last cannot be freed; that is refused beforehand.
func TestKernelFault45Discards(t *testing.T) {
	for name, test := range map[string]struct {
		features string
		passed   bool
		ignored  bool
	}{
		"passed down": {"", true, false},
		"kept":        {"no_discard_passdown", false, false},
		"ignored":     {"ignore_discard", false, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			made := newImage(4*mib, 45, solid)
			p := s.newPool(poolOptions{data: s.newLoopDevice(16*mib, 512), features: test.features})
			from, to := p.newVolume(1, 4*mib), p.newVolume(2, 4*mib)
			s.write(made, from.path())
			before := p.poolStatus()
			if before.passesDiscards != test.passed {
				t.Fatalf("status %+v", before)
			}
			flags := []string{"--region-size=64KiB", "--commit-bytes=1MiB"}
			if test.ignored {
				s.refused("its pool ignores discards", from.path(), to.path(), append(flags, "--discard-src")...)
				if after := p.poolStatus(); after != before {
					t.Errorf("the pool is %+v, and was %+v before the refusal", after, before)
				}
				s.wantWhole(from.path(), made)
				s.move(0, from.path(), to.path(), flags...)
			} else {
				s.move(0, from.path(), to.path(), append(flags, "--discard-src")...)
				if after := p.poolStatus(); after.dataUsedBlocks != before.dataUsedBlocks {
					t.Errorf("%d blocks used, %d before: the source was not freed", after.dataUsedBlocks, before.dataUsedBlocks)
				}
			}
			s.wantWhole(to.path(), made)
			p.check()
		})
	}
}
