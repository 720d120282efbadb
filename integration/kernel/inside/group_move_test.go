//go:build testkernel

package inside

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const oddBytes = 6*mib + 12*kib // not a multiple of an extent, nor of a block

// fault 29: LVM makes the volume larger than the source; what is beyond reads as
// zeros, whatever the blocks of the pool held before. fault 44: so do the holes.
func TestGroupToNewVolume(t *testing.T) {
	for name, flags := range map[string][]string{
		"small chunks":                 {"-c", "64k", "--discards", "nopassdown"},
		"large chunks":                 {"-c", "4m", "--discards", "nopassdown"},
		"no zeroing, odd chunks":       {"-c", "192k", "--zero", "n", "--discards", "nopassdown"},
		"no zeroing, large chunks":     {"-c", "4m", "--zero", "n", "--discards", "nopassdown"},
		"no zeroing, discards ignored": {"-c", "1m", "--zero", "n", "--discards", "ignore"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			g := s.newVolumeGroupWithPool("vg", flags...)
			g.soil("pool")
			made, path := s.newImageFile("image", oddBytes, 1)
			s.move(0, path, "vg/vm", "--discard-src", "--verify", "--commit-bytes=1MiB")
			s.wantWhole(g.path("vm"), made)
			s.wantEmptied(path)
			g.wantField("vm", "lv_size", itoa(8*mib))
			s.wantZeros(g.path("vm"), oddBytes, 8*mib)
			g.wantField("vm", "lv_tags", "")
			g.wantSound()
		})
	}
}

// fault 93: a name that is one of LVM, and could not be one of a pool.
func TestGroupToNameWithPlus(t *testing.T) {
	s := newSite(t)
	g := s.newVolumeGroupWithPool("v+g-1")
	made, path := s.newImageFile("image", 6*mib, 2)
	s.move(0, path, "v+g-1/v+m-1", "--discard-src")
	s.wantWhole(g.path("v+m-1"), made)
	s.run("migrate", "verify", s.lastID())
}

// faults 10 and 44: an existing volume with data is taken with --overwrite only, and
// then holds nothing of it.
func TestGroupToOverwrite(t *testing.T) {
	for name, flags := range map[string][]string{
		"plain":                        {},
		"no zeroing, odd chunks":       {"-c", "192k", "--zero", "n", "--discards", "nopassdown"},
		"no zeroing, discards ignored": {"-c", "1m", "--zero", "n", "--discards", "ignore"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			g := s.newVolumeGroupWithPool("vg", flags...)
			g.fill(g.newVolume("pool", "vm", "12m"), 12*mib, 0xaa)
			made, path := s.newImageFile("image", oddBytes, 3)
			s.refused("already holds data", path, "vg/vm", "--discard-src")
			s.move(0, path, "vg/vm", "--discard-src", "--overwrite")
			s.wantWhole(g.path("vm"), made)
			s.wantZeros(g.path("vm"), oddBytes, 12*mib)
			g.wantSound()
		})
	}
}

// An existing volume without data needs no --overwrite, and decides on the pool.
func TestGroupToExistingEmptyVolumeInOneOfTwoPools(t *testing.T) {
	s := newSite(t)
	g := s.newVolumeGroup("vg", 96*mib)
	g.newPool("pool")
	g.newPool("pool2")
	g.newVolume("pool2", "vm", "12m")
	made, path := s.newImageFile("image", oddBytes, 4)
	s.move(0, path, "vg/vm")
	s.wantWhole(g.path("vm"), made)
	s.wantZeros(g.path("vm"), oddBytes, 12*mib)

	s.refused("the group has the thin pools pool, pool2; say which one with --thin-pool", path, "vg/new")
	s.refused("there is no such thin pool", path, "vg/new", "--thin-pool=pool3")
	g.wantField("new", "lv_size", "-")
	s.run("migrate", "reverse", s.lastID())
	s.move(0, path, "vg/new", "--thin-pool=pool2", "--discard-src")
	g.wantField("new", "pool_lv", "pool2")
	s.wantWhole(g.path("new"), made)
	if shown := s.run("migrate", "show", s.lastID()).stdout; !strings.Contains(shown, "--thin-pool pool2") {
		t.Errorf("the journal does not know the pool:\n%s", shown)
	}
}

// Nothing is changed by a refusal.
func TestGroupToRefusals(t *testing.T) {
	s := newSite(t)
	g := s.newVolumeGroup("vg", 96*mib)
	_, path := s.newImageFile("image", 8*mib, 5)
	s.refused("the group has no thin pool", path, "vg/vm")
	g.newPool("pool")
	s.refused("no volume group of that name", path, "nope/vm")
	s.refused("contains _tdata", path, "vg/vm_tdata")
	s.refused("begins with snapshot", path, "vg/snapshot1")
	s.refused("is a thin pool and no volume", path, "vg/pool")
	s.move(2, path, s.path("file"), "--thin-pool=pool")
	s.move(2, path, "vg/vm", "--thin-pool=-f")

	s.do("lvm", "lvcreate", "-q", "-y", "-L", "16m", "-n", "thick", "vg")
	s.refused("use it as a block device: /dev/vg/thick", path, "vg/thick")
	g.newVolume("pool", "small", "4m")
	s.refused("has 4194304 bytes, the source has 8388608", path, "vg/small")
	g.newVolume("pool", "readonly", "12m")
	s.do("lvm", "lvchange", "-q", "-pr", "vg/readonly")
	s.refused("is read-only", path, "vg/readonly")

	for _, volume := range []string{"vm", "vm_tdata", "snapshot1"} {
		g.wantField(volume, "lv_size", "-")
	}
}

// fault 30: a volume that is mounted is no destination, and no source.
func TestGroupToFault30VolumeInUse(t *testing.T) {
	s := newSite(t)
	g := s.newVolumeGroupWithPool("vg")
	volume := g.newVolume("pool", "vm", "12m")
	s.do("mkfs.ext4", "-q", volume)
	s.must(os.MkdirAll("/mnt/used", 0o755))
	s.must(unix.Mount(volume, "/mnt/used", "ext4", 0, ""))
	_, path := s.newImageFile("image", 6*mib, 6)
	s.refused("is in use", path, "vg/vm", "--overwrite")
	s.refused("is in use", "vg/vm", s.path("copy"))
	s.must(unix.Unmount("/mnt/used", 0))
	s.move(0, path, "vg/vm", "--overwrite")
}

// A volume that is inactive is active for as long as it is needed.
func TestGroupToInactiveVolume(t *testing.T) {
	s := newSite(t)
	g := s.newVolumeGroupWithPool("vg")
	g.newVolume("pool", "vm", "12m")
	s.do("lvm", "vgchange", "-q", "-an", "vg")
	made, path := s.newImageFile("image", oddBytes, 7)
	s.run("migrate", "--dry-run", path, "vg/vm")
	g.wantField("vm", "lv_active", "")
	s.move(0, path, "vg/vm", "--discard-src")
	g.wantField("vm", "lv_active", "")
	s.run("migrate", "verify", s.lastID())
	s.do("lvm", "lvchange", "-q", "-ay", "vg/vm")
	s.wantWhole(g.path("vm"), made)
}

// A snapshot as the destination: its origin keeps its bytes.
func TestGroupToSnapshot(t *testing.T) {
	s := newSite(t)
	g := s.newVolumeGroupWithPool("vg")
	origin := g.newFilledVolume("vm", 8*mib, 17)
	s.do("lvm", "lvcreate", "-q", "-s", "-kn", "-n", "snap", "vg/vm")
	made, path := s.newImageFile("image", oddBytes, 18)
	s.refused("already holds data", path, "vg/snap")
	s.move(0, path, "vg/snap", "--overwrite", "--discard-src")
	s.do("lvm", "lvchange", "-q", "-ay", "vg/snap")
	s.wantWhole(g.path("snap"), made)
	s.wantZeros(g.path("snap"), oddBytes, 8*mib)
	s.wantWhole(g.path("vm"), origin)
}
