//go:build testkernel

package inside

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const interrupt = syscall.SIGINT

// thinPools is a place for volumes that is made by a user's commands: a pool of thinctl
// or a volume group.
type thinPools interface {
	volume(name string) string // as it is given to migrate
	path(name string) string   // the device
	usedBlocks() int64         // of the pool's data
	ofItsOwn() int64           // blocks that no volume of the user has
}

// ownPool is a pool that thinctl has made.
type ownPool struct {
	s    *site
	name string
}

// newOwnPool makes a pool on two devices, and closes it after the test.
func (s *site) newOwnPool(name string, data, metadata *device) *ownPool {
	s.Helper()
	s.run("thinctl", "pool", "create", name, "--data", data.path(), "--metadata", metadata.path())
	s.Cleanup(func() {
		s.do(filepath.Join(os.Getenv(programsVariable), "thinctl"), "--state-dir", s.state, "pool", "close", name)
	})
	return &ownPool{s, name}
}

func (p *ownPool) volume(name string) string { return p.name + "/" + name }
func (p *ownPool) path(name string) string   { return "/dev/mapper/" + p.name + "-" + name }
func (p *ownPool) usedBlocks() int64 {
	p.s.Helper()
	return p.s.numberOf("data_used_blocks", "pool", "show", p.name)
}

// ofItsOwn is the catalog's one block, as long as there are few volumes.
func (p *ownPool) ofItsOwn() int64 { return 1 }

// numberOf is a field of what thinctl answers with --json.
func (s *site) numberOf(field string, args ...string) int64 {
	s.Helper()
	var object map[string]any
	s.must(json.Unmarshal([]byte(s.run("thinctl", append(args, "--json")...).stdout), &object))
	number, ok := object[field].(float64)
	if !ok {
		s.Fatalf("%v has no number %s: %v", args, field, object)
	}
	return int64(number)
}

// groupWithPool is a volume group with one thin pool.
type groupWithPool struct{ *group }

func (g groupWithPool) volume(name string) string { return g.name + "/" + name }
func (g groupWithPool) usedBlocks() int64         { return g.poolStatus("pool").dataUsedBlocks }
func (g groupWithPool) ofItsOwn() int64           { return 0 }

// placesFor makes a place for volumes on devices that on makes.
func placesFor(kind string, s *site, name string, on func(bytes int64) *device) thinPools {
	s.Helper()
	if kind == "thinctl" {
		return s.newOwnPool(name, on(64*mib), on(8*mib))
	}
	g := s.newGroupOn(on(96 * mib))
	g.thinPool("pool", 64*mib)
	return groupWithPool{g}
}

// newGroupOn is newGroup on a device of the test.
func (s *site) newGroupOn(on *device) *group {
	s.Helper()
	g := &group{s: s, name: "group" + on.name}
	s.do("vgcreate", "-qq", "-s", "1m", g.name, on.path())
	s.Cleanup(func() { s.do("vgremove", "-qq", "-ff", "-y", g.name) })
	return g
}

// pairs are the ways from one kind of pool to another.
var pairs = []struct{ from, to string }{
	{"thinctl", "thinctl"}, {"lvm", "lvm"}, {"lvm", "thinctl"}, {"thinctl", "lvm"},
}

// An image moves into a volume of one pool, and from there into one of another. Of a
// volume that is mostly unmapped only what is mapped is read, and the first pool has
// every block back in the end.
func TestFlagshipBetweenPools(t *testing.T) {
	for _, pair := range pairs {
		t.Run(pair.from+" to "+pair.to, func(t *testing.T) {
			s := newSite(t)
			s.slice(mib) // at the start of the disk LVM would find a label twice
			p, p2 := placesFor(pair.from, s, "p", s.slice), placesFor(pair.to, s, "p2", s.slice)
			made := sparseImage(48*mib, 11*mib)
			s.write(made, s.path("image"))
			s.move(0, s.path("image"), p.volume("vol"), "--discard-src")
			s.wantWhole(p.path("vol"), made)
			s.wantEmptied(s.path("image"))
			mapped := (p.usedBlocks() - p.ofItsOwn()) * 64 * kib
			if mapped != 11*mib {
				t.Errorf("%d bytes are mapped", mapped)
			}

			before := readBytes(t, p.path("vol"))
			o := s.move(0, p.volume("vol"), p2.volume("vol2"), "--discard-src")
			if e := o.last(); e.BytesData != mapped || e.BytesCopied != mapped || e.BytesTotal != 48*mib {
				t.Errorf("want %d bytes copied: %+v", mapped, e)
			}
			if read := readBytes(t, p.path("vol")) - before; read < mapped || read > mapped+mib {
				t.Errorf("%d bytes of the source were read, %d are mapped", read, mapped)
			}
			s.wantWhole(p2.path("vol2"), made)
			if used := p.usedBlocks(); used != p.ofItsOwn() {
				t.Errorf("%d blocks of the first pool are still used", used)
			}
			if used := (p2.usedBlocks() - p2.ofItsOwn()) * 64 * kib; used != mapped {
				t.Errorf("%d bytes of the second pool are used, want %d", used, mapped)
			}
		})
	}
}

// sparseImage has pieces of data with large holes between, all of whole MiB.
func sparseImage(size, data int64) image {
	made := newImage(size, 30, solid)
	holes := size - data
	for at, left := mib, holes; left > 0; {
		n := min(left, holes/4/mib*mib+mib)
		clear(made.bytes[at : at+n])
		made.holes = append(made.holes, [2]int64{at, at + n})
		at += n + mib
		left -= n
	}
	return made
}

// readBytes is what was read from a device since it was made.
func readBytes(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("/sys/dev/block/" + strconv.Itoa(int(unix.Major(st.Rdev))) + ":" + strconv.Itoa(int(unix.Minor(st.Rdev))) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	sectors, err := strconv.ParseInt(strings.Fields(string(text))[2], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return sectors * sectorBytes
}

// What list says of each volume, as it is documented.
func TestFlagshipListOfVolumes(t *testing.T) {
	s := newSite(t)
	p := s.newOwnPool("p", s.slice(64*mib), s.slice(8*mib))
	s.write(newImage(3*mib, 31, solid), s.path("image"))
	s.move(0, s.path("image"), "p/vol", "--discard-src")
	s.run("thinctl", "create", "p/empty", "--size", "20MiB")
	for _, args := range [][]string{{"list", "p", "--json"}, {"list", "--json"}} {
		var list []map[string]any
		s.must(json.Unmarshal([]byte(s.run("thinctl", args...).stdout), &list))
		slices.SortFunc(list, func(a, b map[string]any) int { return strings.Compare(b["name"].(string), a["name"].(string)) })
		if len(list) != 2 {
			t.Fatalf("%v: %v", args, list)
		}
		for i, want := range []map[string]any{
			{"pool": "p", "name": "vol", "size_bytes": float64(3 * mib), "mapped_bytes": float64(3 * mib), "exclusive_bytes": float64(3 * mib)},
			{"pool": "p", "name": "empty", "size_bytes": float64(20 * mib), "mapped_bytes": 0., "exclusive_bytes": 0.},
		} {
			for field, value := range want {
				if list[i][field] != value {
					t.Errorf("%s is %v, want %v", field, list[i][field], value)
				}
			}
			for _, field := range []string{"id", "thin_id", "origin", "reserved_bytes", "blob", "state", "created"} {
				if _, ok := list[i][field]; !ok {
					t.Errorf("there is no %s: %v", field, list[i])
				}
			}
		}
	}
	if used := p.usedBlocks(); used != 3*mib/(64*kib)+1 {
		t.Errorf("%d blocks are used", used)
	}
}

// fault 19: pools on devices with sectors of 4096 bytes take images of any size in, and
// give them out again.
func TestFlagshipFault19SectorsOf4KiB(t *testing.T) {
	for _, kind := range []string{"thinctl", "lvm"} {
		t.Run(kind, func(t *testing.T) {
			s := newSite(t)
			p := placesFor(kind, s, "p", s.newLargeSectors)
			made := newImage(5*mib+3*512, 32, mixed)
			s.write(made, s.path("image"))
			s.move(0, s.path("image"), p.volume("vol"), "--discard-src", "--verify")
			s.wantEmptied(s.path("image"))
			if block := strings.TrimSpace(s.do("blockdev", "--getss", p.path("vol"))); block != "4096" {
				t.Fatalf("the volume has sectors of %s bytes", block)
			}
			s.wantWhole(p.path("vol"), made)
			s.move(0, p.volume("vol"), s.path("out"), "--discard-src", "--verify")
			s.wantWhole(s.path("out"), made)
			if used := p.usedBlocks(); used > p.ofItsOwn()+1 { // the last block may be larger than the volume
				t.Errorf("%d blocks are still used", used)
			}
		})
	}
}

// newLargeSectors is a device with sectors of 4096 bytes. It lies inside of a loop device
// rather than all over it, where LVM would find its label twice.
func (s *site) newLargeSectors(bytes int64) *device {
	s.Helper()
	node := s.newLoop(s.newFile("large sectors of "+itoa(bytes), bytes+mib), 4096)
	return s.newDevice(target{Length: uint64(bytes / sectorBytes), Type: "linear", Params: node + " " + itoa(mib/sectorBytes)})
}

// fault 8: the source has a snapshot, which keeps its blocks: moving within the pool
// takes as much room as copying. The user is warned, or refused if there is none.
func TestFlagshipFault8SourceWithSnapshot(t *testing.T) {
	s := newSite(t)
	g := s.newGroup(96 * mib)
	g.thinPool("pool", 36*mib)
	made := newImage(20*mib, 33, solid)
	s.write(made, g.thinVolume("pool", "vm", 20*mib))
	s.do("lvcreate", "-qq", "-s", "-kn", "-n", "snap", g.name+"/vm")
	o := s.move(4, g.name+"/vm", g.name+"/new", "--discard-src")
	s.wantText(o, "does not fit", "lvextend -L +")
	g.wantNone("new")
	g.extend("pool", 16*mib)
	o = s.move(0, g.name+"/vm", g.name+"/new", "--discard-src")
	if want := "share blocks with its snapshot or origin snap"; !strings.Contains(o.stdout, want) {
		t.Errorf("no warning says %q:\n%s", want, o.stdout)
	}
	s.wantWhole(g.path("new"), made)
	s.do("lvchange", "-qq", "-ay", "-K", g.name+"/snap")
	s.wantWhole(g.path("snap"), made)
	s.wantMode(g.poolStatus("pool"), "rw")
}
