//go:build testkernel

package inside

import "testing"

// Without faults: a file of each kind of file system into volumes of pools with
// small and with large blocks.
func TestKernelMoveIntoThinVolume(t *testing.T) {
	for name, test := range map[string]struct {
		filesystem string
		diskBytes  int64
		blockBytes int64
	}{
		"ext4, small blocks": {"ext4", 64 * mib, 64 * kib},
		"xfs, large blocks":  {"xfs", 320 * mib, 4 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			f := s.newFilesystem(test.filesystem, s.slice(test.diskBytes))
			made := newImage(24*mib, 1, mixed)
			s.write(made, f.path("image"))
			p := s.newPool(poolOptions{blockBytes: test.blockBytes})
			v := p.newVolume(1, 32*mib)
			s.move(0, f.path("image"), v.path(), "--discard-src", "--verify", "--commit-bytes=2MiB")
			s.wantWhole(v.path(), made)
			s.wantEmptied(f.path("image"))
			p.check()
			f.check()
		})
	}
}
