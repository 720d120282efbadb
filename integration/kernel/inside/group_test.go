//go:build testkernel

package inside

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"decant/dm"
)

// volumeGroup is a volume group of LVM on a slice.
type volumeGroup struct {
	s    *site
	name string
}

// newVolumeGroup makes a volume group that is removed after the test.
func (s *site) newVolumeGroup(name string, bytes int64) *volumeGroup {
	s.Helper()
	s.slice(mib) // so that no label of LVM is at the start of the disk, where it would be found twice
	g := &volumeGroup{s: s, name: name}
	disk := s.slice(bytes)
	s.Cleanup(func() {
		s.do("lvm", "vgremove", "-q", "-ff", "-y", name)
	})
	s.do("lvm", "vgcreate", "-q", name, disk.path())
	return g
}

// newVolumeGroupWithPool makes a volume group with one thin pool.
func (s *site) newVolumeGroupWithPool(name string, flags ...string) *volumeGroup {
	s.Helper()
	g := s.newVolumeGroup(name, 56*mib)
	g.newPool("pool", flags...)
	return g
}

// newPool makes a thin pool of 36 MiB; flags are those of lvcreate. Its blocks hold
// something of the past.
func (g *volumeGroup) newPool(name string, flags ...string) {
	g.s.Helper()
	args := append([]string{"lvcreate", "-q", "--type", "thin-pool", "-L", "36m", "-n", name}, flags...)
	g.s.do("lvm", append(args, g.name)...)
}

// soil fills every block of the pool's data, and gives it back.
func (g *volumeGroup) soil(pool string) {
	g.s.Helper()
	v := g.newVolume(pool, "past", "36m")
	g.fill(v, 36*mib, 0xee)
	g.s.do("lvm", "lvremove", "-q", "-f", g.name+"/past")
}

// newVolume makes a thin volume and returns its path.
func (g *volumeGroup) newVolume(pool, name, size string) string {
	g.s.Helper()
	g.s.do("lvm", "lvcreate", "-q", "-V", size, "-n", name, "--thinpool", g.name+"/"+pool)
	return g.path(name)
}

func (g *volumeGroup) path(volume string) string { return "/dev/" + g.name + "/" + volume }

// fill writes the byte all over the start of a device.
func (g *volumeGroup) fill(path string, size int64, fill byte) {
	g.s.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	g.s.must(err)
	piece := bytes.Repeat([]byte{fill}, int(mib))
	for off := int64(0); off < size; off += mib {
		_, err := f.WriteAt(piece, off)
		g.s.must(err)
	}
	g.s.must(f.Sync())
	g.s.must(f.Close())
}

// field is what LVM says of a volume, or "-" if there is no such volume.
func (g *volumeGroup) field(volume, field string) string {
	g.s.Helper()
	var report struct {
		Report []struct{ LV []map[string]string }
	}
	text, err := exec.Command("lvm", "lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", "lv_name,"+field, g.name).Output()
	g.s.must(err)
	g.s.must(json.Unmarshal(text, &report))
	for _, lv := range report.Report[0].LV {
		if lv["lv_name"] == volume {
			return lv[field]
		}
	}
	return "-"
}

// wantField fails the test if LVM says something else of a volume.
func (g *volumeGroup) wantField(volume, field, want string) {
	g.s.Helper()
	if got := g.field(volume, field); got != want {
		g.s.Errorf("%s of %s/%s is %q, want %q", field, g.name, volume, got, want)
	}
}

// wantSound fails the test unless LVM finds the pool sound.
func (g *volumeGroup) wantSound() {
	g.s.Helper()
	g.s.do("lvm", "vgck", "-q", g.name)
	g.wantField("pool", "lv_health_status", "")
}

// mapped is how much of the pool a volume takes, which must be active.
func (g *volumeGroup) mapped(volume string) int64 {
	g.s.Helper()
	name := strings.ReplaceAll(g.name, "-", "--") + "-" + strings.ReplaceAll(volume, "-", "--")
	targets, err := g.s.dm.Status(name)
	g.s.must(err)
	sectors, err := strconv.ParseInt(strings.Fields(targets[0].Params)[0], 10, 64)
	g.s.must(err)
	return sectors * dm.SectorBytes
}

// refused fails the test unless migrate refuses, with these words.
func (s *site) refused(words, source, destination string, flags ...string) {
	s.Helper()
	o := s.move(4, source, destination, flags...)
	if !strings.Contains(o.stderr, words) {
		s.Errorf("the refusal does not say %q:\n%s", words, o.stderr)
	}
}

// wantZeros fails the test unless the rest of a device reads as zeros.
func (s *site) wantZeros(path string, from, to int64) {
	s.Helper()
	rest := s.read(path, to)[from:]
	if len(bytes.Trim(rest, "\x00")) > 0 {
		s.Errorf("%s is not zero from byte %d on, %s", path, from, difference(rest, make([]byte, len(rest))))
	}
}

// image writes an image to a file and returns both.
func (s *site) newImageFile(name string, size int64, seed uint64) (image, string) {
	s.Helper()
	made := newImage(size, seed, mixed)
	s.write(made, s.path(name))
	return made, s.path(name)
}

// startSlowMove starts a move that is far from its end when it has committed some
// transactions.
func (s *site) startSlowMove(source, destination string, regionBytes int64) *running {
	s.Helper()
	r := s.startMove(source, destination, "--discard-src", "--bwlimit=1MiB", "--commit-bytes=256KiB", "--commit-period=100ms", "--region-size="+itoa(regionBytes))
	r.awaitCommitted(2)
	return r
}

// kill ends a program at once.
func (r *running) kill() event {
	r.s.Helper()
	r.s.must(r.cmd.Process.Kill())
	select {
	case <-r.ended:
	case <-time.After(patience):
		r.s.Fatal("a killed program does not end")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.result.last()
}

func sizeFlag(bytes int64) string { return itoa(bytes) + "b" }
