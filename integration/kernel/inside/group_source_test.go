//go:build testkernel

package inside

import (
	"encoding/json"
	"strings"
	"testing"
)

// lastID is the newest migration.
func (s *site) lastID() string {
	s.Helper()
	var list []struct {
		ID      string
		Created string
	}
	s.must(json.Unmarshal([]byte(s.run("migrate", "list", "--json").stdout), &list))
	newest := list[0]
	for _, one := range list {
		if one.Created > newest.Created {
			newest = one
		}
	}
	return newest.ID
}

// newFilledVolume makes a volume that holds an image.
func (g *volumeGroup) newFilledVolume(name string, size int64, seed uint64) image {
	g.s.Helper()
	made := newImage(size, seed, mixed)
	g.s.write(made, g.newVolume("pool", name, sizeFlag(size)))
	return made
}

// From one group to another, with chunks of different sizes: the space comes back.
func TestGroupFromOneToAnother(t *testing.T) {
	for name, flags := range map[string][]string{
		"small chunks": {"-c", "64k"},
		"odd chunks":   {"-c", "192k"},
		"large chunks": {"-c", "4m"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			from, to := s.newVolumeGroupWithPool("vg", flags...), s.newVolumeGroupWithPool("vg2")
			made := from.newFilledVolume("vm", 8*mib, 8)
			s.move(0, "vg/vm", "vg2/vm2", "--discard-src", "--verify", "--commit-bytes=1MiB")
			s.wantWhole(to.path("vm2"), made)
			// A last block that the volume does not fill is not given back.
			if left := from.mapped("vm"); left > 192*kib {
				t.Errorf("the source still takes %d bytes", left)
			}
			from.wantSound()
			to.wantSound()
		})
	}
}

func TestGroupFromVolumeToDirectoryPoolAndBack(t *testing.T) {
	s := newSite(t)
	g := s.newVolumeGroupWithPool("vg")
	made := g.newFilledVolume("vm", 8*mib, 9)
	s.run("thinctl", "pool", "create", "files", "--dir", s.path("pool"), "--size", "64MiB")
	s.move(0, "vg/vm", "files/vm", "--discard-src")
	s.wantWhole(s.path("pool/vm.img"), made)
	if left := g.mapped("vm"); left > 0 {
		t.Errorf("the source still takes %d bytes", left)
	}
	s.run("migrate", "reverse", s.lastID())
	s.wantWhole(g.path("vm"), made)
	g.wantSound()
}

// fault 8: what a snapshot shares with the source is not freed, and stays whole; the
// user is told.
func TestGroupFromFault8VolumeWithSnapshot(t *testing.T) {
	s := newSite(t)
	g := s.newVolumeGroupWithPool("vg")
	made := g.newFilledVolume("vm", 8*mib, 10)
	s.do("lvm", "lvcreate", "-q", "-s", "-kn", "-n", "snap", "vg/vm")
	o := s.move(0, "vg/vm", s.path("copy"), "--discard-src")
	if !strings.Contains(o.stdout, "share blocks with its snapshot or origin snap") {
		t.Errorf("there is no warning:\n%s", o.stdout)
	}
	s.wantWhole(s.path("copy"), made)
	s.do("lvm", "lvchange", "-q", "-ay", "vg/snap")
	s.wantWhole(g.path("snap"), made)
	g.wantSound()
}

// A snapshot as the source, which LVM leaves inactive by itself.
func TestGroupFromSnapshot(t *testing.T) {
	s := newSite(t)
	g := s.newVolumeGroupWithPool("vg")
	made := g.newFilledVolume("vm", 8*mib, 11)
	s.do("lvm", "lvcreate", "-q", "-s", "-n", "snap", "vg/vm")
	s.move(0, "vg/snap", s.path("copy"), "--discard-src")
	s.wantWhole(s.path("copy"), made)
	s.wantWhole(g.path("vm"), made)
}

// fault 45: a pool that takes no discards frees nothing. That is known beforehand.
func TestGroupFromFault45PoolThatIgnoresDiscards(t *testing.T) {
	s := newSite(t)
	g := s.newVolumeGroupWithPool("vg", "--discards", "ignore")
	made := g.newFilledVolume("vm", 8*mib, 12)
	s.refused("its pool ignores discards", "vg/vm", s.path("copy"), "--discard-src")
	s.move(0, "vg/vm", s.path("copy"))
	s.wantWhole(s.path("copy"), made)
	s.wantWhole(g.path("vm"), made)
}

// fault 63: a run that was killed goes on where it was, also under the other name of
// the same volume.
func TestGroupFromFault63ResumeAfterKill(t *testing.T) {
	for name, test := range map[string]struct {
		chunkBytes int64
		flags      []string
	}{
		"plain":      {64 * kib, nil},
		"no zeroing": {mib, []string{"--zero", "n", "--discards", "nopassdown"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			g := s.newVolumeGroupWithPool("vg", append(test.flags, "-c", sizeFlag(test.chunkBytes))...)
			g.soil("pool")
			made, path := s.newImageFile("image", oddBytes, 13)
			id := s.startSlowMove(path, "vg/vm", test.chunkBytes).kill().ID
			s.wantNothingLost(id, made, path, g.path("vm"))
			s.refused("is being migrated to vg/vm", path, "vg/other", "--discard-src")
			o := s.move(0, path, g.path("vm"), "--discard-src")
			if o.last().ID != id {
				t.Errorf("another migration was begun: %v", o)
			}
			s.wantWhole(g.path("vm"), made)
			s.wantZeros(g.path("vm"), oddBytes, 8*mib)
			s.wantEmptied(path)
			g.wantSound()
		})
	}
}

// Reversed in the middle and after the end: the volume that was made is gone.
func TestGroupFromReverse(t *testing.T) {
	for name, flags := range map[string][]string{
		"plain":            {},
		"discards ignored": {"--discards", "ignore"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			g := s.newVolumeGroupWithPool("vg", flags...)
			made, path := s.newImageFile("image", oddBytes, 14)
			id := s.startSlowMove(path, "vg/vm", 64*kib).kill().ID
			g.wantField("vm", "lv_tags", "")
			s.run("migrate", "reverse", id)
			s.wantWhole(path, made)
			g.wantField("vm", "lv_size", "-")

			s.move(0, path, "vg/vm", "--discard-src")
			s.run("migrate", "reverse", s.lastID())
			s.wantWhole(path, made)
			g.wantField("vm", "lv_size", "-")
			g.wantSound()
		})
	}
}

// A volume that the migration has not made stays when it is reversed, empty.
func TestGroupFromReverseKeepsVolumeOfOthers(t *testing.T) {
	s := newSite(t)
	g := s.newVolumeGroupWithPool("vg")
	g.newVolume("pool", "vm", "8m")
	made, path := s.newImageFile("image", oddBytes, 15)
	s.move(0, path, "vg/vm", "--discard-src")
	s.run("migrate", "reverse", s.lastID())
	s.wantWhole(path, made)
	if left := g.mapped("vm"); left > 64*kib {
		t.Errorf("the volume still takes %d bytes", left)
	}
}

// A volume that a run has made and that died before it had a journal is its to delete.
func TestGroupFromVolumeOfRunWithoutJournal(t *testing.T) {
	s := newSite(t)
	g := s.newVolumeGroupWithPool("vg")
	g.newVolume("pool", "vm", "8m")
	s.do("lvm", "lvchange", "-q", "--addtag", "decant", "vg/vm")
	_, path := s.newImageFile("image", oddBytes, 16)
	s.move(0, path, "vg/vm", "--discard-src")
	g.wantField("vm", "lv_tags", "")
	s.run("migrate", "reverse", s.lastID())
	g.wantField("vm", "lv_size", "-")
}
