package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decant/loopdev"
	"decant/nbd"
)

func TestExportIsMoved(t *testing.T) {
	t.Parallel()
	const size = 4*mib + 3*unitBytes + 512
	s, disk, content := remoteSite(t, size)
	s.serve(nbd.Export{Device: disk})
	plan, err := s.Plan(context.Background(), s.request(s.uri(), "moved", moving()))
	s.must(err)
	if disk.changed() || s.exists("moved") || !strings.Contains(fmt.Sprint(plan.Warnings), "somebody else writes") {
		t.Errorf("a plan, and %v; %+v", disk.changes, plan)
	}
	before := disk.readBytes
	r := s.migrate(s.uri(), "moved", moving())
	wantOrder(t, r, DoneEvent)
	s.wantContent("moved", content)
	if now, durable := disk.allocated(); now > 0 || durable > 0 {
		t.Errorf("%d bytes are left at the server, and %d after a restart", now, durable)
	}
	// All data once, and samples before and after.
	if n := disk.readBytes - before; n > size*3/4+3*(sampleParts+20)*sampleBytes {
		t.Errorf("%d bytes were read", n)
	}
	if e := r.last(); *e.SourceFreedBytes < size*3/4-unitBytes || e.PeakExtraBytes > 8*regionBytes+mib {
		t.Errorf("%+v; freed %d", e, *e.SourceFreedBytes)
	}
	id := s.only()
	s.wantRefused("was emptied by migration "+id, func() error {
		return s.Migrate(context.Background(), s.request(s.uri(), "other", moving()), nil)
	})
	if x, err := s.Explain(id, 0); err != nil || x.State != "discarded" {
		t.Errorf("%+v, %v", x, err)
	}
	if v, err := s.Verify(context.Background(), id, nil); err != nil || v.MismatchRegions > 0 {
		t.Errorf("%+v, %v", v, err)
	}
	s.migrate(s.uri(), "moved", moving()) // is done, and says so
	// Another image behind the same name is another source.
	*disk = *newRemoteDisk(randomBytes(size))
	s.migrate(s.uri(), "other", moving())
	s.wantContent("other", randomBytes(size))
}

func TestExportIsCopied(t *testing.T) {
	t.Parallel()
	s, disk, content := remoteSite(t, 2*mib)
	s.serve(nbd.Export{Device: disk, ReadOnly: true})
	s.wantMoveRefused("read-only", s.uri(), "moved", moving())
	s.migrate(s.uri(), "moved", copying())
	s.wantContent("moved", content)
	if disk.changed() {
		t.Error(disk.changes)
	}
	id := s.only()
	// Its name may come to stand for another image, for which nothing was done yet.
	s.migrate(s.uri(), "moved", copying())
	*disk = *newRemoteDisk(randomBytes(2 * mib))
	s.wantMoveRefused("already holds data", s.uri(), "moved", copying())
	again := copying()
	again.Overwrite = true
	s.migrate(s.uri(), "moved", again)
	s.wantContent("moved", randomBytes(2*mib))
	s.wantRefused("does not hold what it held", func() error { return s.Reverse(context.Background(), id, nil) })
}

func TestExportUsage(t *testing.T) {
	t.Parallel()
	s, disk, _ := remoteSite(t, mib)
	s.serve(nbd.Export{Device: disk})
	remove := moving()
	remove.RemoveSource = true
	for _, c := range []struct {
		from, to string
		o        Options
		words    string
	}{
		{s.uri(), s.path("moved"), remove, "--remove-src"},
		{s.path("image"), s.uri(), moving(), "not its destination"},
		{"nbd:localhost:10809", s.path("moved"), moving(), "no URI of an NBD export"},
		{"nbds+unix:///x", s.path("moved"), moving(), "socket"},
	} {
		err := s.Migrate(context.Background(), Request{Source: c.from, Destination: c.to, Options: c.o}, nil)
		if OutcomeOf(err) != Usage || !strings.Contains(err.Error(), c.words) || HintOf(err) == "" {
			t.Errorf("%s to %s: %v", c.from, c.to, err)
		}
	}
	s.wantMoveRefused("no connection", "nbd+unix:///disk?socket="+s.path("nobody"), "moved", moving())
	s.wantMoveRefused("no export of this name", "nbd+unix:///other?socket="+s.path("socket"), "moved", moving())
}

func TestExportIsLocked(t *testing.T) {
	t.Parallel()
	s, disk, _ := remoteSite(t, mib)
	s.serve(nbd.Export{Device: disk})
	from, err := s.sourceTarget(s.uri())
	s.must(err)
	e, err := s.open(from, false)
	s.must(err)
	other := newSite(t)
	err = other.Migrate(context.Background(), Request{Source: s.uri(), Destination: other.path("moved"), Options: copying()}, nil)
	if OutcomeOf(err) != Refused || !errors.Is(err, loopdev.ErrInUse) {
		t.Errorf("%v", err)
	}
	s.must(e.Close())
	s.must(other.Migrate(context.Background(), Request{Source: s.uri(), Destination: other.path("moved"), Options: copying()}, nil))
}

func TestExportOfAnotherSizeOrImageIsRefused(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]Options{"moved": slowly(), "copied": func() Options { o := slowly(); o.DiscardSource = false; return o }()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, disk, content := remoteSite(t, 4*mib)
			server := s.serve(nbd.Export{Device: disk})
			s.interrupt(s.uri(), "moved", o, func(e Event) bool { return e.Event == CommittedTx && e.BytesCommitted > mib/2 })
			server.end()
			for words, other := range map[string]*remoteDisk{
				"another object":             newRemoteDisk(randomBytes(4*mib + 512)),
				"does not hold what it held": newRemoteDisk(randomBytes(4 * mib)[1 : 4*mib : 4*mib]),
				"read-only":                  nil,
			} {
				e := nbd.Export{Device: other}
				if other == nil {
					e = nbd.Export{Device: disk, ReadOnly: true}
				}
				if name == "copied" && other == nil {
					continue
				}
				if words == "does not hold what it held" {
					e.Device = newRemoteDisk(append(randomBytes(4 * mib)[1:], 1))
				}
				server := s.serve(e)
				s.wantMoveRefused(words, s.uri(), "moved", o)
				server.end()
			}
			s.serve(nbd.Export{Device: disk})
			o.BytesPerSecond = 0
			s.must(s.Resume(context.Background(), s.only(), nil))
			s.wantContent("moved", content)
		})
	}
}

// A server that goes away for good ends the run; the same command goes on.
func TestExportGoesAway(t *testing.T) {
	t.Parallel()
	s, disk, content := remoteSite(t, 4*mib)
	s.nbdOptions.TotalTime = 3 * time.Second // for the requests of a machine that is busy with other tests, too
	server := s.serve(nbd.Export{Device: disk})
	var once bool
	err := s.Migrate(context.Background(), s.request(s.uri(), "moved", slowly()), func(e Event) {
		if discarded(e) && !once {
			once = true
			server.stop()
		}
	})
	if OutcomeOf(err) != Stopped || !errors.Is(err, nbd.ErrUnreachable) || !strings.Contains(HintOf(err), "start it again") {
		t.Fatalf("%v", err)
	}
	server.end()
	disk.lose()
	s.serve(nbd.Export{Device: disk})
	s.migrate(s.uri(), "moved", moving())
	s.wantContent("moved", content)
	if _, durable := disk.allocated(); durable > 0 {
		t.Errorf("%d bytes are left at the server", durable)
	}
}

// A server that is restarted has lost the discards that no flush had covered, and the run
// that meets it again repeats them.
func TestExportIsRestarted(t *testing.T) {
	t.Parallel()
	s, disk, content := remoteSite(t, 4*mib)
	server := s.serve(nbd.Export{Device: disk})
	restarts := 0
	restarted := make(chan struct{})
	s.must(s.Migrate(context.Background(), s.request(s.uri(), "moved", slowly()), func(e Event) {
		if e.BytesDiscarded > int64(restarts+1)*mib/2 && restarts < 2 {
			if restarts++; restarts == 2 {
				defer close(restarted)
			}
			server.end()
			disk.lose()
			server = s.serve(nbd.Export{Device: disk})
		}
	}))
	<-restarted
	s.wantContent("moved", content)
	if _, durable := disk.allocated(); durable > 0 {
		t.Errorf("%d bytes are left at the server", durable)
	}
}

// A server that comes back with another image in the middle of a run is found out before
// anything is read or discarded there.
func TestExportComesBackAsAnother(t *testing.T) {
	t.Parallel()
	s, disk, content := remoteSite(t, 4*mib)
	other := newRemoteDisk(append(randomBytes(4 * mib)[1:], 1))
	server := s.serve(nbd.Export{Device: disk})
	replaced := false
	err := s.Migrate(context.Background(), s.request(s.uri(), "moved", slowly()), func(e Event) {
		if discarded(e) && !replaced {
			replaced = true
			server.end()
			server = s.serve(nbd.Export{Device: other})
		}
	})
	if OutcomeOf(err) != Stopped || !errors.Is(err, nbd.ErrChanged) {
		t.Fatalf("%v", err)
	}
	if other.changed() {
		t.Errorf("the other image was changed: %v", other.changes)
	}
	server.end()
	s.serve(nbd.Export{Device: disk})
	s.migrate(s.uri(), "moved", moving())
	s.wantContent("moved", content)
}

// What a server cannot read is a bad region, as on any other source.
func TestExportWithBadRegions(t *testing.T) {
	t.Parallel()
	s, disk, content := remoteSite(t, 2*mib)
	disk.bad = func(off int64) bool { return off < 10*regionBytes && off > 0 }
	s.serve(nbd.Export{Device: disk})
	err := s.Migrate(context.Background(), s.request(s.uri(), "moved", moving()), nil)
	if OutcomeOf(err) != Stopped || !strings.Contains(err.Error(), "incomplete") {
		t.Fatalf("%v", err)
	}
	d, err := s.Show(s.only(), 4)
	s.must(err)
	if len(d.Bad) == 0 || d.Bad[0].Offset != 2*regionBytes {
		t.Errorf("%+v", d.Bad)
	}
	disk.mu.Lock()
	disk.bad = nil
	disk.mu.Unlock()
	s.migrate(s.uri(), "moved", moving())
	s.wantContent("moved", content)
}

func TestReverseIntoAnExport(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(s *site){
		"from the middle": func(s *site) { s.interrupt(s.uri(), "moved", slowly(), discarded) },
		"from the end":    func(s *site) { s.migrate(s.uri(), "moved", moving()) },
		"of a copy":       func(s *site) { s.migrate(s.uri(), "moved", copying()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, disk, content := remoteSite(t, 4*mib+512)
			server := s.serve(nbd.Export{Device: disk})
			begin(s)
			id := s.only()
			server.end()
			for words, e := range map[string]nbd.Export{
				"read-only":                  {Device: disk, ReadOnly: true},
				"whole blocks":               {Device: disk, MinBlockBytes: 16 * kib},
				"does not hold what it held": {Device: newRemoteDisk(append(randomBytes(4 * mib)[512:], make([]byte, 1024)...))},
			} {
				if words == "whole blocks" && int64(len(content))%(16*kib) != 0 {
					e.MinBlockBytes = 512
					continue // our server serves no device that is no multiple
				}
				server := s.serve(e)
				s.wantRefused(words, func() error { return s.Reverse(context.Background(), id, nil) })
				server.end()
			}
			s.serve(nbd.Export{Device: disk})
			s.must(s.Reverse(context.Background(), id, nil))
			disk.lose() // all of it is durable
			if got := disk.content(); string(got) != string(content) {
				t.Error("the export does not hold what it held")
			}
			if s.exists("moved") {
				t.Error("the destination is still there")
			}
			s.migrate(s.uri(), "moved", moving())
			s.wantContent("moved", content)
		})
	}
}

// A server that is restarted while it is filled may have lost what it acknowledged: the
// run ends, and goes on from what was committed.
func TestReverseIntoAnExportThatIsRestarted(t *testing.T) {
	t.Parallel()
	s, disk, content := remoteSite(t, 4*mib)
	server := s.serve(nbd.Export{Device: disk})
	id := s.migrate(s.uri(), "moved", moving()).last().ID
	writes := make(chan struct{}, 1<<16)
	disk.before = func(op string) {
		if op == "write" {
			writes <- struct{}{}
		}
	}
	failed := make(chan error)
	go func() { failed <- s.Reverse(context.Background(), id, nil) }()
	for range 4 {
		<-writes
	}
	server.end()
	disk.lose()
	s.serve(nbd.Export{Device: disk})
	err := <-failed
	if err != nil && OutcomeOf(err) != Stopped {
		t.Fatalf("%v", err)
	}
	t.Logf("it ended with %v", err)
	s.must(s.Reverse(context.Background(), id, nil))
	disk.lose()
	if string(disk.content()) != string(content) {
		t.Error("the export does not hold what it held")
	}
}

// A service that works for others connects to sockets below its roots only.
func TestExportOfAConfinedService(t *testing.T) {
	t.Parallel()
	s, disk, content := remoteSite(t, mib)
	s.must(os.Mkdir(s.path("in"), 0o700))
	s.must(s.confine([]string{s.path("in")}))
	s.serve(nbd.Export{Device: disk})
	s.wantMoveRefused("outside", s.uri(), s.path("in/moved"), copying())
	s.must(os.Symlink(s.path("socket"), s.path("in/socket")))
	inside := "nbd+unix:///disk?socket=" + s.path("in/socket")
	s.wantMoveRefused("outside", inside, s.path("in/moved"), copying())
	s.wantMoveRefused("certificates", "nbds://localhost/x?tls-certificates=/etc", s.path("in/moved"), copying())
	s.must(os.Remove(s.path("in/socket")))
	s.must(os.Rename(s.path("socket"), s.path("in/socket")))
	s.migrate(inside, s.path("in/moved"), copying())
	s.wantContent("in/moved", content)
}

// A server that goes away at the very end, when only the last flush is missing, is one that
// can come back.
func TestExportGoesAwayAtTheEnd(t *testing.T) {
	t.Parallel()
	s, disk, content := remoteSite(t, 2*mib)
	s.nbdOptions.TotalTime = 3 * time.Second
	server := s.serve(nbd.Export{Device: disk})
	disk.flushed = func() error {
		server.stop()
		return unix.ESHUTDOWN
	}
	err := s.Migrate(context.Background(), s.request(s.uri(), "moved", moving()), nil)
	if OutcomeOf(err) != Stopped || !errors.Is(err, nbd.ErrUnreachable) {
		t.Fatalf("%v", err)
	}
	server.end()
	disk.flushed = nil
	s.nbdOptions.TotalTime = time.Minute
	// All is hydrated, and what is left to be done is to discard all of it once more: not
	// on another image.
	other := newRemoteDisk(append(bytes.Clone(content[1:]), 1))
	server = s.serve(nbd.Export{Device: other})
	s.wantMoveRefused("does not hold what it held", s.uri(), "moved", moving())
	server.end()
	if other.changed() {
		t.Errorf("another image was changed: %v", other.changes)
	}
	disk.lose()
	if _, durable := disk.allocated(); durable == 0 {
		t.Fatal("the server had flushed")
	}
	s.serve(nbd.Export{Device: disk})
	s.migrate(s.uri(), "moved", moving())
	s.wantContent("moved", content)
	if _, durable := disk.allocated(); durable > 0 {
		t.Errorf("%d bytes are left at the server", durable)
	}
}

// Where what was discarded reads as anything, it cannot be told from another image: nothing
// more is discarded, and the rest can be copied.
func TestExportThatScramblesWhatIsDiscarded(t *testing.T) {
	t.Parallel()
	s, disk, content := remoteSite(t, 4*mib)
	disk.scrambles = true
	s.serve(nbd.Export{Device: disk})
	s.interrupt(s.uri(), "moved", slowly(), discarded)
	err := s.Migrate(context.Background(), s.request(s.uri(), "moved", moving()), nil)
	if OutcomeOf(err) != Refused || !strings.Contains(HintOf(err), "without --discard-src") {
		t.Fatalf("%v; hint: %s", err, HintOf(err))
	}
	s.migrate(s.uri(), "moved", copying())
	s.wantContent("moved", content)
}
