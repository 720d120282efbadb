//go:build testkernel

package inside

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"decant/dm"
)

// From one volume to another of the same pool, without a file system between.
func TestKernelSpaceBetweenVolumes(t *testing.T) {
	s := newSite(t)
	p := s.newPool(poolOptions{data: s.slice(144 * mib)})
	source, destination := p.newVolume(1, 128*mib), p.newVolume(2, 128*mib)
	const size = 100 * mib
	sum := s.stream(source.path(), size, 2)
	w := s.watch(p.name)
	o := s.move(0, source.path(), destination.path(), "--discard-src", "--commit-bytes=4MiB")
	rise := s.rise(w) * 64 * kib
	t.Logf("the pool rose by %d KiB, peak_extra_bytes are %d KiB", rise>>10, o.last().PeakExtraBytes>>10)
	if peak := o.last().PeakExtraBytes; rise > 16*mib || peak > 16*mib || peak < rise/2 {
		t.Errorf("the pool rose by %d bytes, peak_extra_bytes are %d", rise, peak)
	}
	if s.sumOf(destination.path(), size) != sum {
		t.Error("the destination is not what the source was")
	}
	if n, err := s.stack(source.path())[0].Pool.MappedBytes(); err != nil || n != 0 {
		t.Errorf("%d bytes of the source are mapped, %v", n, err)
	}
	// And back, with what the journal knows.
	s.run("migrate", "reverse", o.last().ID)
	if s.sumOf(source.path(), size) != sum {
		t.Error("the source is not what it was")
	}
	if n, err := s.stack(destination.path())[0].Pool.MappedBytes(); err != nil || n != 0 {
		t.Errorf("%d bytes of the destination are mapped, %v", n, err)
	}
	p.check()
}

// A file on a file system on a thin volume is bounded by the pool as well, whatever its
// file system has.
func TestKernelSpaceOfAFileAboveAPool(t *testing.T) {
	s := newSite(t)
	p := s.newPool(poolOptions{data: s.slice(64 * mib)})
	f := s.newFilesystem("ext4", p.newVolume(1, 256*mib))
	from := s.newFilesystem("ext4", s.slice(160*mib))
	made := newImage(80*mib, 3, solid)
	s.write(made, from.path("image"))
	o := s.move(4, from.path("image"), f.path("moved"), "--discard-src")
	s.wantText(o, "does not fit", "pool "+p.name, "thinctl pool grow")
	if _, err := os.Stat(f.path("moved")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the refusal left a destination: %v", err)
	}
	small := newImage(24*mib, 4, solid)
	s.write(small, from.path("small"))
	s.move(0, from.path("small"), f.path("moved"), "--discard-src")
	s.wantWhole(f.path("moved"), small)
	s.wantMode(p.poolStatus(), "rw")
}

// wantText fails the test unless standard error has all of the words.
func (s *site) wantText(o outcome, words ...string) {
	s.Helper()
	for _, w := range words {
		if !strings.Contains(o.stderr, w) {
			s.Errorf("nothing is said of %q: %v", w, o)
		}
	}
}

func (s *site) wantMode(st poolStatus, mode string) {
	s.Helper()
	if st.mode != mode || st.needsChecked {
		s.Errorf("the pool is %+v, want mode %s", st, mode)
	}
}

// plan is what --dry-run finds out.
type plan struct {
	RegionBytes int64 `json:"region_bytes"`
	Warnings    []string
	Space       struct {
		Needed  int64 `json:"needed_extra_bytes"`
		Same    bool  `json:"same_space"`
		Bounded bool
		Verdict string
		Stores  []struct {
			Kind, Name string
			Available  int64  `json:"available_bytes"`
			Needed     int64  `json:"needed_bytes"`
			Block      int64  `json:"block_bytes"`
			Returns    bool   `json:"freed_space_returns"`
			Why        string `json:"not_returned"`
		}
	}
}

func (s *site) plan(wantCode int, source, destination string, flags ...string) plan {
	s.Helper()
	o := s.want(wantCode, s.start("migrate", append(append([]string{"--dry-run", "--json"}, flags...), source, destination)...).wait())
	var p plan
	s.must(json.Unmarshal([]byte(o.stdout), &p))
	return p
}

// fault 36: an image that a pool cannot hold is refused, and goes in when the pool was
// given what it needs. Nothing of it is begun before.
func TestKernelSpaceFault36PoolTooSmall(t *testing.T) {
	s := newSite(t)
	g := s.newGroup(160 * mib)
	g.thinPool("pool", 64*mib, "--errorwhenfull", "y")
	from := s.newFilesystem("ext4", s.slice(128*mib))
	made := newImage(80*mib, 5, solid)
	s.write(made, from.path("image"))
	destination := g.thinVolume("pool", "vol", 100*mib)
	p := s.plan(4, from.path("image"), destination, "--discard-src")
	if len(p.Space.Stores) != 1 || p.Space.Stores[0].Kind != "thin-pool" || p.Space.Stores[0].Name != "pool "+g.name+"/pool" ||
		p.Space.Stores[0].Block != 64*kib || p.Space.Same || p.Space.Needed < 80*mib {
		t.Errorf("%+v", p)
	}
	o := s.move(4, from.path("image"), destination, "--discard-src")
	s.wantText(o, "does not fit", "pool "+g.name+"/pool", "lvextend -L +", g.name+"/pool")
	s.wantWhole(from.path("image"), made)
	if st := g.poolStatus("pool"); st.dataUsedBlocks != 0 {
		t.Errorf("%+v", st)
	}
	g.extend("pool", 40*mib)
	s.move(0, from.path("image"), destination, "--discard-src")
	s.wantWhole(destination, made)
	s.wantMode(g.poolStatus("pool"), "rw")
}

// fault 43: others take what the pool has left. The migration waits, says for what, and
// goes on when the pool has grown; it never drives the pool out of space itself.
func TestKernelSpaceFault43OthersFillThePool(t *testing.T) {
	s := newSite(t)
	g := s.newGroup(200 * mib)
	g.thinPool("pool", 96*mib, "--errorwhenfull", "y")
	from := s.newFilesystem("ext4", s.slice(96*mib))
	made := newImage(64*mib, 6, solid)
	s.write(made, from.path("image"))
	destination, other := g.thinVolume("pool", "vol", 64*mib), g.thinVolume("pool", "other", 96*mib)
	r := s.startMove(from.path("image"), destination, "--discard-src", "--commit-bytes=2MiB", "--bwlimit=8MiB/s")
	r.awaitCommitted(2)
	st := g.poolStatus("pool")
	left := (st.dataBlocks-st.dataUsedBlocks)*64*kib - 20*mib
	s.stream(other, left, 7)
	r.await("a pause", func(e event) bool { return e.Event == "paused" })
	s.wantMode(g.poolStatus("pool"), "rw")
	g.extend("pool", 64*mib)
	o := s.want(0, r.wait())
	if want := "waiting for data blocks of pool " + g.name + "/pool"; !strings.Contains(o.stdout, want) {
		t.Errorf("no event says %q:\n%s", want, o.stdout)
	}
	s.wantWhole(destination, made)
	s.wantMode(g.poolStatus("pool"), "rw")
}

// fault 36: others leave the pool without a single block. What the migration had
// flushed is safe, and it goes on as soon as the pool has grown.
func TestKernelSpaceFault36OthersExhaustThePool(t *testing.T) {
	s := newSite(t)
	data := s.slice(128 * mib)
	p := s.newPool(poolOptions{data: &device{s: s, name: data.name, bytes: 64 * mib}, features: "error_if_no_space"})
	from := s.newFilesystem("ext4", s.slice(96*mib))
	made := newImage(56*mib, 8, solid)
	s.write(made, from.path("image"))
	destination, other := p.newVolume(1, 64*mib), p.newVolume(2, 64*mib)
	r := s.startMove(from.path("image"), destination.path(), "--discard-src", "--commit-bytes=2MiB", "--bwlimit=8MiB/s")
	r.awaitCommitted(2)
	if err := s.exhaust(other.path()); err == nil {
		t.Fatal("64 MiB fit beside what was there")
	}
	s.wantMode(p.poolStatus(), "out_of_data_space")
	r.await("a pause", func(e event) bool { return e.Event == "paused" })
	p.data = data
	p.exchange(p.table())
	s.want(0, r.wait())
	s.wantWhole(destination.path(), made)
	s.wantMode(p.poolStatus(), "rw")
}

// exhaust writes to a device until that fails.
func (s *site) exhaust(path string) error {
	s.Helper()
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_DIRECT, 0)
	s.must(err)
	defer unix.Close(fd)
	piece, err := unix.Mmap(-1, 0, int(mib), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	s.must(err)
	defer unix.Munmap(piece)
	for off := int64(0); off < 64*mib; off += mib {
		if _, err := unix.Pwrite(fd, piece, off); err != nil {
			return err
		}
	}
	return nil
}

// fault 38: metadata that is nearly full is a limit like any other.
func TestKernelSpaceFault38MetadataNearlyFull(t *testing.T) {
	s := newSite(t)
	p := s.newPool(poolOptions{data: s.slice(128 * mib), metadata: s.slice(2 * mib)})
	destination := p.newVolume(1, 64*mib)
	s.write(newImage(32*mib, 9, solid), s.path("image"))
	for id := 100; ; id++ { // each takes a block of the metadata
		st := p.poolStatus()
		if st.metadataBlocks-st.metadataUsedBlocks <= 34 {
			break
		}
		p.message(0, fmt.Sprintf("create_thin %d", id))
	}
	o := s.move(4, s.path("image"), destination.path(), "--discard-src")
	s.wantText(o, "does not fit", "pool "+p.name, "metadata")
	s.wantMode(p.poolStatus(), "rw")
	for id := 100; id < 200; id++ {
		p.message(0, fmt.Sprintf("delete %d", id))
	}
	s.move(0, s.path("image"), destination.path(), "--discard-src")
	s.wantMode(p.poolStatus(), "rw")
}

// faults 38 and 39: the metadata device fails in mid-run, and the pool goes back to its
// last transaction and wants a check. Nothing that is not safe is discarded, and nothing
// is begun anew before the pool was checked.
func TestKernelSpaceFault38PoolNeedsCheck(t *testing.T) {
	s := newSite(t)
	metadata := s.slice(4 * mib)
	under := s.newDevice(metadata.whole(metadata.linear())...)
	p := s.newPool(poolOptions{metadata: under})
	from := s.newFilesystem("ext4", s.slice(64*mib))
	made := newImage(32*mib, 10, solid)
	s.write(made, from.path("image"))
	destination := p.newVolume(1, 32*mib)
	flags := []string{"--discard-src", "--commit-bytes=1MiB", "--bwlimit=4MiB/s"}
	r := s.startMove(from.path("image"), destination.path(), flags...)
	r.awaitCommitted(3)
	under.exchange(metadata.whole(metadata.flakey("error_writes"))...)
	o := s.want(3, r.wait())
	under.exchange(metadata.whole(metadata.linear())...)
	if st := p.poolStatus(); st.mode == "rw" && !st.needsChecked {
		t.Fatalf("the pool has not noticed: %+v", st)
	}
	p.reopen(nil)
	if st := p.poolStatus(); !st.needsChecked {
		t.Fatalf("the pool wants no check: %+v", st)
	}
	s.wantNothingLost(o.last().ID, made, from.path("image"), destination.path())
	again := s.move(4, from.path("image"), destination.path(), flags...)
	s.wantText(again, "needs_check", "thin_check --clear-needs-check-flag")
	p.reopen(func() { s.do("thin_check", "--clear-needs-check-flag", under.path()) })
	s.move(0, from.path("image"), destination.path(), "--discard-src")
	s.wantWhole(destination.path(), made)
}

// fault 45: a pool that ignores discards gets nothing back. It is told, and counted.
func TestKernelSpaceFault45PoolIgnoresDiscards(t *testing.T) {
	s := newSite(t)
	p := s.newPool(poolOptions{data: s.slice(128 * mib), features: "ignore_discard"})
	f := s.newFilesystem("ext4", p.newVolume(1, 96*mib), "discard")
	made := newImage(64*mib, 11, solid)
	s.write(made, f.path("image"))
	source, destination := p.newVolume(2, 64*mib), p.newVolume(3, 64*mib)
	plan := s.plan(4, f.path("image"), destination.path(), "--discard-src", "--commit-bytes=1MiB")
	if plan.Space.Same || len(plan.Space.Stores) != 1 || plan.Space.Stores[0].Returns || plan.Space.Needed < 64*mib ||
		!slices.ContainsFunc(plan.Warnings, func(w string) bool { return strings.Contains(w, "ignores discards") }) {
		t.Errorf("%+v", plan)
	}
	small := newImage(16*mib, 12, solid)
	s.write(small, f.path("small"))
	s.move(0, f.path("small"), destination.path(), "--discard-src")
	s.wantWhole(destination.path(), small)
	s.wantText(s.move(4, source.path(), s.path("moved"), "--discard-src"), "discards")
}

// fault 33: the pool keeps its data in a file on the very file system that the source
// is on. That is allowed as far as what the source frees is what the pool grows by.
func TestKernelSpaceFault33PoolOnTheSourcesFileSystem(t *testing.T) {
	s := newSite(t)
	disk := s.slice(96 * mib)
	f := s.newFilesystem("ext4", disk)
	medium := s.blank(f.path("pool data"), 80*mib)
	made := newImage(56*mib, 13, solid)
	s.write(made, f.path("image"))
	loop := s.attach(medium)
	data := s.newDevice(dm.Target{Length: uint64(80 * mib / dm.SectorBytes), Type: "linear", Params: loop + " 0"})
	p := s.newPool(poolOptions{data: data})
	destination := p.newVolume(1, 64*mib)
	o := s.move(4, f.path("image"), destination.path())
	s.wantText(o, "does not fit", "--discard-src")
	plan := s.plan(0, f.path("image"), destination.path(), "--discard-src", "--commit-bytes=2MiB")
	if len(plan.Space.Stores) != 2 || plan.Space.Stores[0].Returns || !plan.Space.Stores[1].Returns || plan.Space.Stores[1].Kind != "file-system" {
		t.Errorf("%+v", plan)
	}
	s.move(0, f.path("image"), destination.path(), "--discard-src", "--commit-bytes=2MiB")
	s.wantWhole(destination.path(), made)
	s.wantMode(p.poolStatus(), "rw")
}

// fault 34: a journal on a volume of the pool that is filled would stall with it.
func TestKernelSpaceFault34JournalInTheSamePool(t *testing.T) {
	s := newSite(t)
	p := s.newPool(poolOptions{data: s.slice(96 * mib)})
	f := s.newFilesystem("ext4", p.newVolume(1, 64*mib))
	s.write(newImage(mib, 14, solid), s.path("image"))
	destination := p.newVolume(2, 8*mib)
	elsewhere := s.state
	s.state = f.path("not yet/state")
	s.wantText(s.move(4, s.path("image"), destination.path()), "--state-dir", "pool "+p.name)
	s.state = elsewhere
	s.move(0, s.path("image"), destination.path())
}

// Regions are made of whole blocks of the pools that the ends are volumes of. Blocks
// that are no power of two cannot make regions up, and the kernel cuts discards so that
// not all of them are given back.
func TestKernelSpaceOfRegions(t *testing.T) {
	for name, c := range map[string]struct {
		block       int64
		wantRegion  int64
		refusedSize string
	}{
		"large blocks":    {4 * mib, 4 * mib, "1MiB"},
		"small blocks":    {64 * kib, mib, "32KiB"},
		"uneven blocks":   {192 * kib, mib, "128KiB"},
		"uneven and more": {1216 * kib, 2 * mib, "1MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			p := s.newPool(poolOptions{data: s.slice(96 * mib), blockBytes: c.block})
			source, destination := p.newVolume(1, 32*mib), p.newVolume(2, 32*mib)
			made := newImage(32*mib, 15, mixed)
			s.write(made, source.path())
			s.wantText(s.move(4, source.path(), destination.path(), "--region-size="+c.refusedSize), "--region-size", "blocks")
			if plan := s.plan(0, source.path(), destination.path(), "--discard-src"); plan.RegionBytes != c.wantRegion {
				t.Errorf("regions of %d bytes, want %d", plan.RegionBytes, c.wantRegion)
			}
			s.move(0, source.path(), destination.path(), "--discard-src", "--commit-bytes=4MiB")
			s.wantWhole(destination.path(), made)
			most := int64(0)
			if c.block&(c.block-1) != 0 {
				most = 16 * mib
			}
			if n, err := s.stack(source.path())[0].Pool.MappedBytes(); err != nil || n > most {
				t.Errorf("%d bytes of the source are mapped, %v", n, err)
			}
		})
	}
}
