package service

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decant/loopdev"
)

// saveJournal copies the journal of a migration, as a backup would, and returns what
// puts the copy back.
func (s *site) saveJournal(id string) (restore func()) {
	s.Helper()
	saved := map[string][]byte{}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		data, err := os.ReadFile(s.journalPath(id) + suffix)
		if !errors.Is(err, os.ErrNotExist) {
			s.must(err)
			saved[suffix] = data
		}
	}
	return func() {
		s.removeJournal(id)
		for suffix, data := range saved {
			s.must(os.WriteFile(s.journalPath(id)+suffix, data, 0o600))
		}
	}
}

func (s *site) removeJournal(id string) {
	s.Helper()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(s.journalPath(id) + suffix); !errors.Is(err, os.ErrNotExist) {
			s.must(err)
		}
	}
}

// halfMoved is a site with a migration from image to moved that has discarded parts
// of the source.
func halfMoved(t *testing.T) (s *site, id string, content []byte) {
	t.Helper()
	s = newSite(t)
	content = s.image("image", 4*mib)
	id = s.interrupt("image", "moved", slowly(), discarded).last().ID
	return s, id, content
}

// fault 53: a source with holes that are no data is no source without its journal.
func TestFault53JournalLost(t *testing.T) {
	t.Parallel()
	s, id, content := halfMoved(t)
	restore := s.saveJournal(id)
	s.removeJournal(id)
	for _, to := range []string{"moved", "elsewhere"} {
		s.wantMoveRefused("half-moved source of migration "+id, "image", to, moving())
		s.wantMoveRefused("half-moved source of migration "+id, "image", to, copying())
	}
	s.image("other", mib)
	s.wantMoveRefused("half-moved destination of migration "+id, "other", "moved", moving())
	s.wantMoveRefused("half-moved source of migration "+id, "other", "image", moving())
	s.wantMoveRefused("half-moved destination of migration "+id, "moved", "elsewhere", moving())
	restore()
	s.migrate("image", "moved", moving())
	s.wantContent("moved", content)
	// Also what was emptied to the last byte is no image of zeros.
	s.removeJournal(id)
	s.wantMoveRefused("half-moved source of migration "+id, "image", "elsewhere", moving())
	s.wantMoveRefused("half-moved source of migration "+id, "other", "image", moving())
}

// fault 53: a journal that vanishes, or is replaced, while it is worked with: nothing
// more is discarded than what its mark and the file that is gone knew of.
func TestFault53JournalTakenAwayMeanwhile(t *testing.T) {
	t.Parallel()
	for want, take := range map[string]func(path string) error{
		"the journal is gone": os.Remove,
		"was replaced": func(path string) error {
			if err := os.Rename(path, path+".kept"); err != nil {
				return err
			}
			return os.WriteFile(path, []byte("another"), 0o600)
		},
	} {
		s := newSite(t)
		s.image("image", 4*mib)
		var discardedBytes int64
		taken := false
		err := s.Migrate(context.Background(), s.request("image", "moved", slowly()), func(e Event) {
			if committed(e) && !taken {
				taken = true
				if err := take(s.journalPath(e.ID)); err != nil {
					t.Error(err)
				}
			}
			discardedBytes = e.BytesDiscarded
		})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if discardedBytes > mib {
			t.Errorf("%s: %d bytes were discarded", want, discardedBytes)
		}
		s.wantMoveRefused("", "image", "moved", moving())
	}
}

// fault 53: the journal is there, but not where it is looked for.
func TestFault53OtherStateDirectory(t *testing.T) {
	t.Parallel()
	s, id, _ := halfMoved(t)
	other, err := New(s.path("other-state"))
	s.must(err)
	s.wantRefused("half-moved source of migration "+id, func() error {
		return other.Migrate(context.Background(), s.request("image", "moved", moving()), nil)
	})
	s.wantRefused("no such migration", func() error { return other.Resume(context.Background(), id, nil) })
}

// fault 54
func TestFault54OlderJournal(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content := s.image("image", 4*mib)
	id := s.interrupt("image", "moved", slowly(), committed).last().ID
	restoreOld := s.saveJournal(id)
	s.interrupt("image", "moved", slowly(), func(e Event) bool { return e.BytesDiscarded > 20*regionBytes })
	restoreNew := s.saveJournal(id)
	restoreOld()
	s.wantMoveRefused("discards of transaction", "image", "moved", moving())
	s.wantMoveRefused("is being migrated to", "image", "elsewhere", moving())
	s.wantRefused("discards of transaction", func() error { return s.Resume(context.Background(), id, nil) })
	s.wantRefused("discards of transaction", func() error { return s.Reverse(context.Background(), id, nil) })
	s.wantRefused("discards of transaction", func() error { return s.Cancel(context.Background(), id) })
	restoreNew()
	s.migrate("image", "moved", moving())
	s.wantContent("moved", content)
}

// fault 56
func TestFault56DamagedJournal(t *testing.T) {
	t.Parallel()
	s, id, _ := halfMoved(t)
	s.removeJournal(id)
	s.must(os.WriteFile(s.journalPath(id), []byte(strings.Repeat("no database ", 1000)), 0o600))
	s.wantMoveRefused("cannot be used", "image", "moved", moving())
	for name, do := range map[string]func() error{
		"resume":  func() error { return s.Resume(context.Background(), id, nil) },
		"reverse": func() error { return s.Reverse(context.Background(), id, nil) },
		"show":    func() error { _, err := s.Show(id, 1); return err },
		"explain": func() error { _, err := s.Explain(id, 0); return err },
		"verify":  func() error { _, err := s.Verify(context.Background(), id, nil); return err },
	} {
		t.Log(name)
		s.wantRefused("", do)
	}
	list, err := s.List()
	if err != nil || len(list) != 1 || list[0].Problem == "" || list[0].ID != id {
		t.Errorf("%+v, %v", list, err)
	}
}

// fault 55: a journal whose newest transactions were in a log that is gone.
func TestFault55LogRemoved(t *testing.T) {
	s := newSite(t)
	s.image("image", 4*mib)
	cmd := s.process(s.request("image", "moved", slowly()), false)
	s.must(cmd.Process.Kill())
	cmd.Wait() //nolint:errcheck // it was killed
	id := s.only()
	if err := os.Remove(s.journalPath(id) + "-wal"); err != nil {
		t.Fatalf("a killed process leaves a log: %v", err)
	}
	before := s.snapshot()
	err := s.Migrate(context.Background(), s.request("image", "moved", moving()), nil)
	if OutcomeOf(err) != Refused {
		t.Errorf("%v", err)
	}
	if after := s.snapshot(); after != before {
		t.Errorf("refused, but there is\n%s\nwhere there was\n%s", after, before)
	}
}

// A mark that nobody can read is not taken for none.
func TestBrokenMark(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.image("image", mib)
	s.must(unix.Setxattr(s.path("image"), "user.decant.mark", []byte("{"), 0))
	s.wantMoveRefused("its mark cannot be read", "image", "moved", moving())
}

// A destination that was marked and not written yet belongs to nobody.
func TestOrphanOfARunThatNeverBegan(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content := s.image("image", mib)
	d, err := loopdev.Open(s.path("moved"), loopdev.Options{Write: true, CreateBytes: mib})
	s.must(err)
	s.must(d.WriteMark(loopdev.Mark{ID: "gone", Role: receivingRole, Tx: createdByUs}))
	s.must(d.Close())
	id := s.interrupt("image", "moved", slowly(), func(e Event) bool { return e.Event == Started }).last().ID
	s.must(s.Cancel(context.Background(), id))
	if s.exists("moved") {
		t.Error("it is forgotten that decant has made the destination")
	}
	s.wantContent("image", content)
}

// Who comes between the ends of an unfinished migration is sent away.
func TestCollisions(t *testing.T) {
	t.Parallel()
	s, id, content := halfMoved(t)
	s.image("third", mib)
	for _, c := range []struct{ text, from, to string }{
		{"is being migrated to", "image", "elsewhere"}, // fault 6
		{"is being filled from", "third", "moved"},
		{"it is not whole", "moved", "elsewhere"},
		{"is the source of the unfinished migration", "third", "image"},
	} {
		s.wantMoveRefused(c.text, c.from, c.to, moving())
		s.wantMoveRefused(c.text, c.from, c.to, copying())
	}
	rename := func(from, to string) { s.must(os.Rename(s.path(from), s.path(to))) }

	rename("moved", "away")
	s.wantMoveRefused("the destination of the unfinished migration "+id+" is gone", "image", "moved", moving())
	s.wantRefused("is gone", func() error { return s.Resume(context.Background(), id, nil) })
	s.must(os.WriteFile(s.path("moved"), nil, 0o600))
	s.wantMoveRefused("is another object than the destination", "image", "moved", moving())
	s.wantRefused("is another object than the one", func() error { return s.Reverse(context.Background(), id, nil) })
	s.must(os.Remove(s.path("moved")))

	rename("image", "image-away")
	s.image("image", 4*mib)                                                                                                              // fault 3
	s.wantMoveRefused("", "image", "moved", moving())                                                                                    // both
	s.wantRefused("is another object than the one", func() error { return s.Reverse(context.Background(), id, nil) })                    // the source
	rename("away", "moved")                                                                                                              // only the source is another one
	s.wantMoveRefused("is another object than the source", "image", "moved", moving())                                                   //
	s.wantRefused("is another object than the source", func() error { return s.Resume(context.Background(), id, nil) })                  //
	s.must(os.Remove(s.path("image")))                                                                                                   //
	rename("image-away", "image")                                                                                                        //
	s.must(os.Symlink(s.path("image"), s.path("link")))                                                                                  // another name of the same is the same
	s.must(s.Migrate(context.Background(), s.request("link", filepath.Join(s.dir, "..", filepath.Base(s.dir), "moved"), moving()), nil)) //
	s.wantContent("moved", content)
}

// fault 7
func TestFault7HardLink(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content := s.image("image", mib)
	s.must(os.Link(s.path("image"), s.path("second")))
	s.wantMoveRefused("has 2 names", "image", "moved", moving())
	s.wantMoveRefused("", "image", "second", copying()) // fault 32: onto itself
	s.migrate("image", "copied", copying())
	s.wantContent("second", content)
}

func TestDestinationThatHoldsData(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content := s.image("image", mib)
	s.image("full", 2*mib)
	s.wantMoveRefused("already holds data", "image", "full", moving())
	o := moving()
	o.Overwrite = true
	s.migrate("image", "full", o)
	s.wantContent("full", append(content, make([]byte, mib)...))
	// Holes alone are no data.
	s.must(os.WriteFile(s.path("sparse"), nil, 0o600))
	s.must(os.Truncate(s.path("sparse"), mib/2))
	content = s.image("image2", mib)
	s.migrate("image2", "sparse", moving())
	s.wantContent("sparse", content)
}

func TestEmptySource(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.must(os.WriteFile(s.path("image"), nil, 0o600))
	s.wantMoveRefused("is empty", "image", "moved", copying())
}

// What was emptied can be filled anew and moved again, and an emptied source is not
// taken for one that holds zeros.
func TestAfterTheEnd(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content := s.image("image", mib)
	first := s.migrate("image", "moved", moving()).last().ID
	s.wantMoveRefused("was emptied by migration "+first, "image", "elsewhere", moving())
	s.wantMoveRefused("was emptied by migration "+first, "image", "elsewhere", copying())

	time.Sleep(20 * time.Millisecond) // a clock of files that stands still for a moment
	refilled := randomBytes(mib)
	f, err := os.OpenFile(s.path("image"), os.O_WRONLY, 0)
	s.must(err)
	_, err = f.Write(refilled)
	s.must(errors.Join(err, f.Close()))
	s.wantMoveRefused("already holds data", "image", "moved", moving())
	s.migrate("image", "copied", copying())
	second := s.migrate("image", "again", moving()).last().ID
	if second == first {
		t.Error("the old migration was taken for the new one")
	}
	s.wantContent("copied", refilled)
	s.wantContent("again", refilled)
	// A copy leaves the mark of the past where it is, and a move does not stumble over it.
	s.must(os.WriteFile(s.path("image"), randomBytes(4*mib), 0o600))
	s.interrupt("image", "third", func() Options { o := slowly(); o.DiscardSource = false; return o }(), committed)
	s.migrate("image", "third", moving())
	s.wantContent("third", randomBytes(4*mib))
	s.wantContent("moved", content)
	// The emptied file may be the destination of another.
	s.migrate("moved", "image", moving())
	s.wantContent("image", append(content, make([]byte, 3*mib)...))
}

func TestRepeatWithOtherWishes(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content := s.image("image", mib)
	s.migrate("image", "copied", copying())
	s.wantMoveRefused("and kept", "image", "copied", moving())
	s.wantContent("image", content)
}

// fault 5: on resume, and back.
func TestFault5SourceTouchedBetweenRuns(t *testing.T) {
	t.Parallel()
	s, id, _ := halfMoved(t)
	st, err := os.Stat(s.path("image"))
	s.must(err)
	s.must(os.Chtimes(s.path("image"), time.Time{}, st.ModTime().Add(time.Hour)))
	s.wantMoveRefused("was modified since migration "+id, "image", "moved", moving())
	_, err = s.Plan(context.Background(), s.request("image", "moved", moving()))
	if !strings.Contains(HintOf(err), "touch -d @") {
		t.Errorf("%s", HintOf(err))
	}
	s.must(os.Chtimes(s.path("image"), time.Time{}, st.ModTime()))
	s.must(os.Truncate(s.path("moved"), mib))
	s.wantMoveRefused("has shrunk to 1048576 bytes", "image", "moved", moving())
	for _, do := range []func(context.Context, string, Sink) error{s.Resume, s.Reverse} {
		s.wantRefused("has shrunk to 1048576 bytes", func() error { return do(context.Background(), id, nil) })
	}
}

// fault 60: two services on one directory see and lock the same.
func TestFault60TwoServicesOnOneDirectory(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.image("image", 4*mib)
	other, err := New(s.stateDir)
	s.must(err)
	var met error
	s.must(s.Migrate(context.Background(), s.request("image", "moved", slowly()), func(e Event) {
		if committed(e) && met == nil {
			met = other.Resume(context.Background(), e.ID, nil)
		}
	}))
	if OutcomeOf(met) != Refused {
		t.Errorf("%v", met)
	}
}

// A block device carries no mark: it is kept beside the journal.
func TestBlockDeviceHasItsMarkBesideTheJournal(t *testing.T) {
	s := newSite(t)
	content := s.image("medium", 4*mib)
	block := s.block(s.path("medium"))
	id := s.interrupt(block, "moved", slowly(), discarded).last().ID
	entries, err := os.ReadDir(filepath.Join(s.stateDir, "marks"))
	if len(entries) != 1 || err != nil {
		t.Fatalf("%v, %v", entries, err)
	}
	record := filepath.Join(s.stateDir, "marks", entries[0].Name())
	restore := s.saveJournal(id)
	s.removeJournal(id)
	s.wantMoveRefused("half-moved source of migration "+id, block, "elsewhere", moving()) // fault 53
	restore()
	text, err := os.ReadFile(record)
	s.must(err)
	s.must(os.WriteFile(record, []byte("{}"), 0o600))
	s.wantMoveRefused("its mark cannot be read", block, "moved", moving())
	s.must(os.WriteFile(record, text, 0o600))
	s.migrate(block, "moved", moving())
	s.wantContent("moved", content)
	s.must(s.Reverse(context.Background(), id, nil))
	if _, err := os.Stat(record); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the reversal the record is still there: %v", err)
	}
	got, err := os.ReadFile(block)
	if s.must(err); string(got) != string(content) {
		t.Error("the reversal has brought back other bytes")
	}
}

func TestBlockDeviceAsDestination(t *testing.T) {
	s := newSite(t)
	content := s.image("image", 2*mib)
	s.must(os.WriteFile(s.path("medium"), randomBytes(3*mib), 0o600))
	s.must(os.WriteFile(s.path("short"), make([]byte, mib), 0o600))
	block := s.block(s.path("medium"))
	s.wantMoveRefused("already holds data", "image", block, moving())
	s.wantMoveRefused("has 1048576 bytes, the source has 2097152", "image", s.block(s.path("short")), moving()) // fault 28
	o := moving()
	o.Overwrite = true
	id := s.migrate("image", block, o).last().ID
	got, err := os.ReadFile(block)
	s.must(err)
	if string(got[:2*mib]) != string(content) { // fault 10: also where the source has a hole
		t.Error("the block device holds other bytes")
	}
	s.must(s.Reverse(context.Background(), id, nil))
	s.wantContent("image", content)
	if !s.exists("medium") {
		t.Error("a device was deleted")
	}
}

func TestPoolVolumeAsEitherEnd(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content := s.image("image", 2*mib)
	s.pool("tank", 8*mib)
	s.interrupt("image", "tank/disk", slowly(), discarded)
	r := s.migrate("image", "tank/disk", moving())
	if e := r.all()[0]; !e.Resumed || e.Destination != "tank/disk" {
		t.Errorf("%+v", e)
	}
	report, err := s.Verify(context.Background(), r.last().ID, nil)
	if err != nil || report.RegionsChecked != 32 {
		t.Errorf("%+v, %v", report, err)
	}
	s.migrate("tank/disk", "back", moving())
	s.wantContent("back", content)
	list, err := s.List()
	if err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
}

// A volume that decant has made goes again when its migration is given up.
func TestPoolVolumeIsGivenUp(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.pool("tank", 8*mib)
	content, modified, taken := s.source(2 * mib)
	kept := slowly()
	kept.DiscardSource = false
	giveUp := map[string]func(context.Context, string) error{
		"cancel":  s.Cancel,
		"reverse": func(ctx context.Context, id string) error { return s.Reverse(ctx, id, nil) },
		"resume and reverse": func(ctx context.Context, id string) error {
			return errors.Join(s.Resume(ctx, id, nil), s.Reverse(ctx, id, nil))
		},
	}
	for name, giveUp := range giveUp {
		t.Log(name)
		id := s.interrupt("image", "tank/disk", kept, committed).last().ID
		s.must(giveUp(context.Background(), id))
		s.wantBack(content, modified, taken)
		if there, err := s.Service.exists(target{pool: "tank", volume: "disk"}); there || err != nil {
			t.Errorf("%s: the volume is there: %v, %v", name, there, err)
		}
	}
}

// fault 5: whoever has an end open may change it; a reader matters to what is emptied.
func TestFault5EndInUse(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.image("image", mib)
	s.must(os.WriteFile(s.path("moved"), nil, 0o600))
	hold := func(name string, flags int) *os.File {
		f, err := os.OpenFile(s.path(name), flags, 0)
		s.must(err)
		return f
	}
	for name, flags := range map[string]int{"image": os.O_RDWR, "moved": os.O_RDONLY} {
		f := hold(name, flags)
		s.wantMoveRefused("in use", "image", "moved", moving())
		s.wantMoveRefused("in use", "image", "moved", copying())
		s.must(f.Close())
	}
	f := hold("image", os.O_RDONLY)
	s.wantMoveRefused("in use", "image", "moved", moving())
	s.must(f.Close())
	s.migrate("image", "moved", moving())
}
