//go:build testkernel

package inside

import (
	"strings"
	"testing"
)

// An image of 580 MiB on a file system on a thin volume moves into a new volume of the
// same pool, which has 700 MiB.
func TestFlagshipWithinAPool(t *testing.T) {
	for name, options := range map[string][]string{"mounted with discard": {"discard"}, "mounted without discard": nil} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			g := s.newGroup(740 * mib)
			g.thinPool("pool", 700*mib)
			f := s.newFilesystem("ext4", g.thinDevice("pool", "source", 680*mib), options...)
			const size = 580 * mib
			sum := s.stream(f.path("image"), size, 1)

			w := s.watch(g.poolDevice("pool"))
			o := s.move(0, f.path("image"), g.name+"/new", "--discard-src", "--commit-bytes", "16MiB")
			rise := s.rise(w) * 64 * kib
			t.Logf("the pool rose by %d KiB, peak_extra_bytes are %d KiB", rise>>10, o.last().PeakExtraBytes>>10)
			if rise > 64*mib {
				t.Errorf("the pool rose by %d bytes", rise)
			}
			if peak := o.last().PeakExtraBytes; peak > 64*mib || peak < rise/2 {
				t.Errorf("peak_extra_bytes are %d, the pool rose by %d", peak, rise)
			}
			if got := s.sumOf(g.path("new"), size); got != sum {
				t.Error("the volume is not what the source was")
			}
			s.wantEmptied(f.path("image"))
			s.wantMode(g.poolStatus("pool"), "rw")
			f.check()
		})
	}
}

// fault 36: the image lies outside of a pool that cannot hold it. It is refused and
// nothing is changed; once the pool was grown, the same command does it.
func TestFlagshipPoolTooSmall(t *testing.T) {
	for name, flags := range moveAndCopy {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			g := s.newGroup(160 * mib)
			g.thinPool("pool", 64*mib)
			from := s.newFilesystem("ext4", s.slice(128*mib))
			made := newImage(80*mib, 20, solid)
			s.write(made, from.path("image"))

			o := s.move(4, from.path("image"), g.name+"/new", flags...)
			s.wantText(o, "does not fit", "lvextend -L +", g.name+"/pool")
			s.wantWhole(from.path("image"), made)
			g.wantNone("new")
			// A pool that never had a volume has no device of its own beneath it.
			idle := &pool{device: &device{s: s, name: g.name + "-pool"}}
			s.wantMode(idle.poolStatus(), "rw")

			g.extend("pool", 40*mib)
			s.move(0, from.path("image"), g.name+"/new", flags...)
			s.wantWhole(g.path("new"), made)
			s.wantMode(g.poolStatus("pool"), "rw")
			s.wantMovedOrCopied(from.path("image"), made, flags)
		})
	}
}

// fault 43: the pool could hold the image, until others took the room. The migration
// stops with the pool in order and every byte whole on one side, and the same command
// goes on where it was once the pool was grown.
func TestFlagshipFault43PoolFilledByOthers(t *testing.T) {
	for name, flags := range moveAndCopy {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			g := s.newGroup(200 * mib)
			g.thinPool("pool", 96*mib)
			from := s.newFilesystem("ext4", s.slice(96*mib))
			made := newImage(64*mib, 21, solid)
			s.write(made, from.path("image"))
			other := g.thinVolume("pool", "other", 96*mib)

			r := s.startMove(from.path("image"), g.name+"/new", append([]string{"--commit-bytes=2MiB", "--bwlimit=8MiB/s"}, flags...)...)
			r.awaitCommitted(2)
			st := g.poolStatus("pool")
			s.stream(other, (st.dataBlocks-st.dataUsedBlocks)*64*kib-20*mib, 22)
			r.await("a pause", func(e event) bool { return e.Event == "paused" })
			s.must(r.cmd.Process.Signal(interrupt))
			o := s.want(3, r.wait())
			s.wantMode(g.poolStatus("pool"), "rw")
			s.wantNothingLost(o.last().ID, made, from.path("image"), g.path("new"))

			g.extend("pool", 64*mib)
			again := s.move(0, from.path("image"), g.name+"/new", flags...)
			if again.last().ID != o.last().ID {
				t.Errorf("another migration was begun: %v", again)
			}
			s.wantWhole(g.path("new"), made)
			s.wantMode(g.poolStatus("pool"), "rw")
			s.wantMovedOrCopied(from.path("image"), made, flags)
		})
	}
}

var moveAndCopy = map[string][]string{"move": {"--discard-src"}, "copy": nil}

func (s *site) wantMovedOrCopied(source string, made image, flags []string) {
	s.Helper()
	if len(flags) > 0 {
		s.wantEmptied(source)
	} else {
		s.wantWhole(source, made)
	}
}

func (g *group) path(volume string) string { return "/dev/" + g.name + "/" + volume }

func (g *group) wantNone(volume string) {
	g.s.Helper()
	if list := g.s.do("lvs", "--noheadings", "-o", "lv_name", g.name); strings.Contains(list, volume) {
		g.s.Errorf("there is a volume %s:\n%s", volume, list)
	}
}
