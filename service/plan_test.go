package service

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decant/loopdev"
)

func (s *site) plan(from, to string, o Options) (Plan, error) {
	s.Helper()
	before := s.snapshot()
	p, err := s.Plan(context.Background(), s.request(from, to, o))
	if after := s.snapshot(); after != before {
		s.Errorf("to plan has changed something:\n%s\nwas\n%s", after, before)
	}
	return p, err
}

var mkfsExt4 = []string{"mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0"}

// The proof, on a file system of 64 MiB with an image of 40 MiB on it, of which 30
// are data.
func TestSpaceProof(t *testing.T) {
	s := newSite(t)
	s.mount("disk", 64*mib, mkfsExt4...)
	s.mount("small", 24*mib, mkfsExt4...)
	s.pool("narrow", 29*mib)
	s.pool("wide", 64*mib)
	s.image("disk/image", 40*mib)
	s.command("fallocate", "-l", "64M", s.path("medium"))
	block := s.block(s.path("medium"))
	s.command("truncate", "-s", "64M", s.path("disk/sparse"))
	sparse := s.block(s.path("disk/sparse"))
	slack := int64(mib)
	for name, c := range map[string]struct {
		to      string
		discard bool
		commit  int64
		outcome Outcome
		verdict string
		want    SpaceProof
	}{
		"in place, with room for two transactions": {
			"disk/moved", true, mib, Success, "fits: at most 3.0 MiB",
			SpaceProof{Bounded: true, SameSpace: true, NeededExtraBytes: 2*mib + slack},
		},
		"in place, with less room than two transactions": {
			"disk/moved", true, 64 * mib, Success, "transactions are kept smaller than 64 MiB",
			SpaceProof{Bounded: true, SameSpace: true, LimitedTransactions: true, NeededExtraBytes: 30*mib + slack},
		},
		"in place, and the source is kept": {
			"disk/moved", false, mib, Refused, "does not fit",
			SpaceProof{Bounded: true, SameSpace: true, NeededExtraBytes: 30*mib + slack},
		},
		"on another file system": {
			"moved", true, mib, Success, "fits",
			SpaceProof{Bounded: true, NeededExtraBytes: 30*mib + slack},
		},
		"on another that is too small": {
			"small/moved", true, mib, Refused, "does not fit",
			SpaceProof{Bounded: true, NeededExtraBytes: 30*mib + slack},
		},
		"into a pool whose limit is too low": {
			"narrow/moved", true, mib, Refused, "29 MiB are available in pool narrow",
			SpaceProof{Bounded: true, NeededExtraBytes: 30 * mib},
		},
		"into a pool": {
			"wide/moved", true, mib, Success, "fits",
			SpaceProof{Bounded: true, NeededExtraBytes: 30 * mib},
		},
		"onto a block device": {
			block, true, mib, Success, "block device",
			SpaceProof{NeededExtraBytes: 0},
		},
		"onto a block device whose bytes are in a sparse file": {
			sparse, false, mib, Refused, "does not fit",
			SpaceProof{Bounded: true, SameSpace: true, NeededExtraBytes: 30*mib + slack},
		},
	} {
		o := moving()
		o.DiscardSource, o.CommitBytes, o.RegionBytes = c.discard, c.commit, mib
		to := c.to
		if strings.HasPrefix(to, "disk/") || strings.HasPrefix(to, "small/") {
			to = s.path(to)
		}
		s.wantProof(name, c.verdict, c.outcome, c.want, to, o)
	}
}

// wantProof plans to move the image of TestSpaceProof.
func (s *site) wantProof(name, verdict string, outcome Outcome, want SpaceProof, to string, o Options) {
	s.Helper()
	p, err := s.plan(s.path("disk/image"), to, o)
	if OutcomeOf(err) != outcome || err != nil && !strings.Contains(err.Error(), verdict) {
		s.Errorf("%s: %v", name, err)
	}
	got := p.Space
	if !strings.Contains(got.Verdict, verdict) || got.Bounded != want.Bounded || got.SameSpace != want.SameSpace ||
		got.LimitedTransactions != want.LimitedTransactions || got.NeededExtraBytes != want.NeededExtraBytes || got.DataBytes != 30*mib {
		s.Errorf("%s:\n%+v, want\n%+v", name, got, want)
	}
	fits := got.NeededExtraBytes <= got.AvailableBytes || got.LimitedTransactions
	if fits != (err == nil) {
		s.Errorf("%s: %v with %+v", name, err, got)
	}
	if !got.Bounded && got.AvailableBytes != math.MaxInt64 {
		s.Errorf("%s: %d bytes are available", name, got.AvailableBytes)
	}
}

// Fault 36: a migration that ran out of space is not refused its resume when that
// frees space first.
func TestSpaceOfAResume(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.image("image", 4*mib)
	stopped := s.interrupt("image", "moved", slowly(), discarded).last()
	p, err := s.plan("image", "moved", moving())
	s.must(err)
	if !p.Resume || p.ID != stopped.ID || p.Space.DataBytes != 3*mib-stopped.BytesCommitted {
		t.Errorf("%+v after %+v", p, stopped)
	}
	o := moving()
	o.RegionBytes *= 2
	p, err = s.plan("image", "moved", o)
	s.must(err)
	if p.RegionBytes != regionBytes || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "begun with regions of 65536 bytes") {
		t.Errorf("%+v", p)
	}
}

func (s *site) wantWarning(text, from, to string, o Options) {
	s.Helper()
	p, err := s.plan(from, to, o)
	s.must(err)
	if text == "" && len(p.Warnings) == 0 {
		return
	}
	if len(p.Warnings) != 1 || text == "" || !strings.Contains(p.Warnings[0], text) {
		s.Errorf("%s: warnings %q, want %q", from, p.Warnings, text)
	}
}

// fault 8
func TestFault8SharedExtentsAreTold(t *testing.T) {
	s := newSite(t)
	s.mount("disk", 320*mib, "mkfs.xfs", "-q", "-m", "reflink=1")
	s.image("disk/image", mib)
	s.command("cp", "--reflink=always", s.path("disk/image"), s.path("disk/other"))
	s.wantWarning("shared with other files", s.path("disk/image"), s.path("disk/moved"), moving())
	s.wantWarning("", s.path("disk/image"), s.path("disk/moved"), copying())
}

// fault 14
func TestFault14CompressedSource(t *testing.T) {
	s := newSite(t)
	s.mount("disk", 256*mib, "mkfs.btrfs", "-q")
	s.must(os.WriteFile(s.path("disk/image"), nil, 0o600))
	s.command("chattr", "+c", s.path("disk/image"))
	s.must(os.WriteFile(s.path("disk/image"), []byte(strings.Repeat("compressible", mib)), 0o600))
	s.command("sync", "-f", s.path("disk"))
	s.wantWarning("compressed by its file system", s.path("disk/image"), s.path("disk/moved"), moving())
	s.wantWarning("", s.path("disk/image"), s.path("disk/moved"), copying())
}

// fault 14: what was encrypted would lie open at the destination.
func TestFault14EncryptedSource(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.image("image", mib)
	for _, encrypted := range []bool{false, true} {
		a, err := s.prepare(s.request("image", "moved", moving()))
		s.must(err)
		a.source.device = &described{device: a.source.device, encrypted: encrypted}
		a.plan.Warnings = nil
		s.must(a.warn())
		if told := strings.Contains(strings.Join(a.plan.Warnings, ""), "encrypted"); told != encrypted {
			t.Errorf("warnings %q", a.plan.Warnings)
		}
		s.must(a.Close())
	}
}

// fault 16
func TestFault16DirectoryOfEverybody(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.must(os.Mkdir(s.path("open"), 0o755))
	s.image("image", mib)
	s.image("open/image", mib)
	s.must(os.Chmod(s.path("open"), 0o777))
	open := "any user may replace it"
	s.wantMoveRefused(open, s.path("open/image"), "moved", moving())
	s.wantMoveRefused(open, "image", s.path("open/moved"), copying())
	s.must(unix.Mknod(s.path("open/empty"), unix.S_IFREG|0o600, 0))
	s.wantMoveRefused(open, "image", s.path("open/empty"), copying())
	// What is only read cannot be lost, and in a sticky directory only owners
	// remove files.
	s.migrate(s.path("open/image"), "copied", copying())
	s.must(os.Chmod(s.path("open"), os.ModeSticky|0o777))
	s.migrate(s.path("open/image"), "moved", moving())
	s.migrate("image", s.path("open/moved"), moving())
}

// Fault 36: where there is little room, the move waits for what
// it has freed, and never takes the last of it.
func TestMoveOnANearlyFullDisk(t *testing.T) {
	s := newSite(t)
	s.mount("disk", 64*mib, mkfsExt4...)
	content := s.image("disk/image", 40*mib)
	place, err := loopdev.PlaceAt(s.path("disk"))
	s.must(err)
	free, err := place.FreeBytes()
	s.must(errors.Join(err, place.Close()))
	filler := free - 5*mib
	s.command("fallocate", "-l", fmt.Sprint(filler), s.path("disk/filler"))
	o := moving()
	o.RegionBytes, o.CommitBytes, o.CommitPeriod = mib, 64*mib, time.Minute
	r := s.migrate(s.path("disk/image"), s.path("disk/moved"), o)
	s.wantContent("disk/moved", content)
	if e := r.last(); e.PeakExtraBytes > 4*mib {
		t.Errorf("%d bytes of extra space", e.PeakExtraBytes)
	}
	id := r.last().ID
	s.must(s.Reverse(context.Background(), id, nil))
	s.wantContent("disk/image", content)
	s.command("fallocate", "-l", fmt.Sprint(filler+4*mib), s.path("disk/filler"))
	s.wantMoveRefused("does not fit", s.path("disk/image"), s.path("disk/moved"), o)
}
