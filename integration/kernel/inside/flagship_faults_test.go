//go:build testkernel

package inside

import (
	"strings"
	"testing"
)

// faults 38 and 39: the metadata of the destination's pool is brought back from an
// older copy, so that blocks are gone that were flushed and journaled. Nothing of their
// source is discarded before they are at the destination again.
func TestFlagshipFault38RepairedPoolHasLostBlocks(t *testing.T) {
	s := newSite(t)
	p := s.newPool(poolOptions{data: s.slice(64 * mib)})
	v := p.newVolume(1, 32*mib)
	made := newImage(24*mib, 40, solid)
	s.write(made, s.path("image"))
	some := func(transactions uint64) outcome {
		r := s.startMove(s.path("image"), v.path(), "--commit-bytes=2MiB", "--bwlimit=8MiB/s")
		r.awaitCommitted(transactions)
		s.must(r.cmd.Process.Signal(interrupt))
		return s.want(3, r.wait())
	}
	first := some(1)
	backup := s.path("metadata.xml")
	p.reopen(func() { s.do("thin_dump", "-o", backup, p.metadata.path()) })
	second := some(first.last().Transaction + 2)
	if first.last().ID != second.last().ID {
		t.Fatalf("two migrations: %v, %v", first, second)
	}
	p.reopen(func() { s.do("thin_restore", "-i", backup, "-o", p.metadata.path()) })

	o := s.move(0, s.path("image"), v.path(), "--discard-src", "--commit-bytes=2MiB")
	if want := "no longer holds"; !strings.Contains(o.stdout, want) {
		t.Errorf("no warning says %q:\n%s", want, o.stdout)
	}
	s.wantWhole(v.path(), made)
	s.wantEmptied(s.path("image"))
	p.check()
}

// The same where nothing is discarded: the copy is whole in the end, too.
func TestFlagshipFault38RepairedPoolAndCopy(t *testing.T) {
	s := newSite(t)
	g := s.newGroup(64 * mib)
	g.thinPool("pool", 48*mib)
	made := newImage(24*mib, 41, solid)
	s.write(made, s.path("image"))
	r := s.startMove(s.path("image"), g.name+"/new", "--commit-bytes=2MiB", "--bwlimit=8MiB/s")
	r.awaitCommitted(3)
	s.must(r.cmd.Process.Signal(interrupt))
	o := s.want(3, r.wait())
	hydrated, geometry := s.owned(o.last().ID)
	for run := range hydrated.Ranges() { // what a lost mapping looks like
		off, n := geometry.Bytes(run)
		s.do("blkdiscard", "--offset", itoa(off), "--length", itoa(n/2), g.path("new"))
		break
	}
	s.move(0, s.path("image"), g.name+"/new")
	s.wantWhole(g.path("new"), made)
	s.wantWhole(s.path("image"), made)
}

// fault 31: a physical volume of LVM is in use as long as one of its volumes is active,
// and holds data after that.
func TestFlagshipFault31PhysicalVolume(t *testing.T) {
	s := newSite(t)
	s.slice(mib) // at the start of the disk LVM would find the same label on both
	disk := s.slice(32 * mib)
	g := s.newGroupOn(disk)
	volume := g.linearVolume("vol", 16*mib)
	kept := newImage(16*mib, 42, solid)
	s.write(kept, volume)
	s.write(newImage(8*mib, 43, solid), s.path("image"))
	for _, flags := range [][]string{nil, {"--overwrite"}, {"--overwrite", "--discard-src"}} {
		s.wantText(s.move(4, s.path("image"), disk.path(), flags...), "in use")
	}
	s.do("vgchange", "-qq", "-an", g.name)
	s.wantText(s.move(4, s.path("image"), disk.path(), "--discard-src"), "already holds data")
	s.do("vgchange", "-qq", "-ay", g.name)
	s.wantWhole(volume, kept)
}
