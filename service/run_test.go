package service

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"decant/loopdev"
)

// wantOrder checks what every run tells: how it begins and ends, and counters that
// only grow and never run ahead of one another.
func wantOrder(t *testing.T, r *recorder, end EventKind) {
	t.Helper()
	all := r.all()
	if len(all) < 2 || all[0].Event != Started || all[len(all)-1].Event != end {
		t.Fatalf("from %+v to %+v", all[0], all[len(all)-1])
	}
	before := all[0]
	for i, e := range all {
		last := slices.Contains([]EventKind{DoneEvent, StoppedRun, FailedEvent}, e.Event)
		if last != (i == len(all)-1) || (e.Event == Started) != (i == 0) {
			t.Errorf("event %d of %d is %s", i, len(all), e.Event)
		}
		if e.ID != before.ID || e.BytesTotal != before.BytesTotal || e.Time.Before(before.Time) {
			t.Errorf("%+v\nafter\n%+v", e, before)
		}
		if e.BytesDiscarded > e.BytesCommitted || e.BytesCommitted > e.BytesCopied || e.BytesCopied > e.BytesData || e.BytesData > e.BytesTotal {
			t.Errorf("out of order: %+v", e)
		}
		for _, p := range [][2]int64{
			{before.BytesCopied, e.BytesCopied},
			{before.BytesCommitted, e.BytesCommitted},
			{before.BytesDiscarded, e.BytesDiscarded},
			{before.PeakExtraBytes, e.PeakExtraBytes},
			{int64(before.Transaction), int64(e.Transaction)},
		} {
			if p[1] < p[0] {
				t.Errorf("a counter fell from %d to %d:\n%+v\nafter\n%+v", p[0], p[1], e, before)
			}
		}
		before = e
	}
}

func TestEventsOfAMove(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content := s.image("image", 4*mib)
	var kinds []EventKind
	r := s.migrate("image", "moved", slowly())
	wantOrder(t, r, DoneEvent)
	for _, e := range r.all() {
		if !slices.Contains(kinds, e.Event) {
			kinds = append(kinds, e.Event)
		}
	}
	if want := []EventKind{Started, Progress, CommittedTx, HydratedAll, DoneEvent}; len(kinds) != len(want) || kinds[0] != Started || !slices.Equal(kinds[3:], want[3:]) {
		t.Errorf("%v, want %v", kinds, want)
	}
	first, last := r.all()[0], r.last()
	if first.Source != s.path("image") || first.Destination != s.path("moved") || first.Resumed || first.Phase != hydratingPhase {
		t.Errorf("begins with %+v", first)
	}
	if last.BytesCopied != 3*mib || last.BytesCommitted != 3*mib || last.BytesDiscarded != 3*mib || last.BytesTotal != 4*mib || last.BytesData != 3*mib {
		t.Errorf("ends with %+v", last)
	}
	if last.ElapsedSeconds == nil || *last.ElapsedSeconds <= 0 || last.SourceFreedBytes == nil || *last.SourceFreedBytes < 3*mib-leftBytes ||
		last.Phase != donePhase || last.ETASeconds == nil || *last.ETASeconds != 0 {
		t.Errorf("ends with %+v", last)
	}
	if last.PeakExtraBytes <= 0 || last.PeakExtraBytes > 2*4*regionBytes+mib {
		t.Errorf("%d bytes of extra space", last.PeakExtraBytes)
	}
	s.wantContent("moved", content)
	if n := s.takes("image"); n > leftBytes {
		t.Errorf("the source takes %d bytes", n)
	}
}

func TestCopyKeepsTheSource(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content := s.image("image", 2*mib)
	before := s.takes("image")
	r := s.migrate("image", "copy", copying())
	wantOrder(t, r, DoneEvent)
	if last := r.last(); last.BytesDiscarded != 0 || *last.SourceFreedBytes != 0 || last.BytesCopied != mib+mib/2 {
		t.Errorf("%+v", last)
	}
	s.wantContent("image", content)
	s.wantContent("copy", content)
	if s.takes("image") != before {
		t.Errorf("the source takes %d bytes, it took %d", s.takes("image"), before)
	}
}

// Fault 63, and an interruption by its user: the counters go on from where they were.
func TestCountersGoOnAfterAResume(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content := s.image("image", 4*mib)
	first := s.interrupt("image", "moved", slowly(), discarded)
	wantOrder(t, first, StoppedRun)
	stopped := first.last()
	if stopped.Reason == "" || !strings.Contains(stopped.Hint, "migrate resume "+stopped.ID) || stopped.BytesCommitted != stopped.BytesCopied {
		t.Errorf("stopped with %+v", stopped)
	}
	second := &recorder{}
	s.must(s.Resume(context.Background(), stopped.ID[:4], second.sink))
	wantOrder(t, second, DoneEvent)
	again, done := second.all()[0], second.last()
	if !again.Resumed || again.ID != stopped.ID || again.BytesCopied != stopped.BytesCopied || again.BytesCommitted != stopped.BytesCommitted ||
		again.BytesData != stopped.BytesData || again.Transaction != stopped.Transaction || again.BytesDiscarded < stopped.BytesDiscarded {
		t.Errorf("goes on with\n%+v\nafter\n%+v", again, stopped)
	}
	if again.PeakExtraBytes == 0 {
		t.Error("the peak of the first run is forgotten")
	}
	if done.BytesCopied != 3*mib || done.BytesCommitted != 3*mib || done.BytesDiscarded != 3*mib || *done.SourceFreedBytes < 3*mib-leftBytes {
		t.Errorf("done with %+v", done)
	}
	s.wantContent("moved", content)
}

func TestVerifiedMoveCountsWhatItReadBack(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content := s.image("image", mib)
	o := moving()
	o.Verify, o.RemoveSource = true, true
	r := s.migrate("image", "moved", o)
	if last := r.last(); last.BytesVerified != last.BytesCopied || last.BytesVerified == 0 {
		t.Errorf("%+v", last)
	}
	s.wantContent("moved", content)
	if s.exists("image") {
		t.Error("the source was not removed")
	}
}

func TestSameCommandAfterTheEndDoesNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content := s.image("image", mib)
	id := s.migrate("image", "moved", moving()).last().ID
	r := s.migrate("image", "moved", moving())
	if e := r.last(); e.ID != id || e.Event != DoneEvent || !r.all()[0].Resumed {
		t.Errorf("%+v", e)
	}
	s.wantContent("moved", content)
	s.must(s.Reverse(context.Background(), id, nil))
	s.wantContent("image", content)
	s.wantRefused("there is nothing to go on with", func() error { return s.Resume(context.Background(), id, nil) })
}

// faulty is an end whose reads or writes fail where the test wants it.
type faulty struct {
	device
	read, write func(off int64) error
}

func (f *faulty) ReadAt(p []byte, off int64) (int, error) {
	if f.read != nil {
		if err := f.read(off); err != nil {
			return 0, err
		}
	}
	return f.device.ReadAt(p, off)
}

func (f *faulty) WriteAt(p []byte, off int64) (int, error) {
	if f.write != nil {
		if err := f.write(off); err != nil {
			return 0, err
		}
	}
	return f.device.WriteAt(p, off)
}

// runWith runs a new migration whose ends are changed before they are used.
func (s *site) runWith(from, to string, o Options, change func(*migration)) (*recorder, error) {
	s.Helper()
	a, err := s.prepare(s.request(from, to, o))
	s.must(err)
	m, err := a.begin()
	s.must(err)
	change(m)
	r := &recorder{}
	return r, m.finishWith(m.run(context.Background(), r.sink))
}

// fault 24: what cannot be read stays where it is, the rest is moved.
func TestFault24UnreadableRegion(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content := s.image("image", mib)
	r, err := s.runWith("image", "moved", moving(), func(m *migration) {
		m.source.device = &faulty{device: m.source.device, read: func(off int64) error {
			if off/regionBytes == 2 {
				return unix.EIO
			}
			return nil
		}}
	})
	if OutcomeOf(err) != Stopped || !strings.Contains(err.Error(), "incomplete") || !strings.Contains(HintOf(err), "migrate show") {
		t.Errorf("%v; %s", err, HintOf(err))
	}
	wantOrder(t, r, StoppedRun)
	if text := r.messages(); !strings.Contains(text, "65,536 bytes at offset 131,072 cannot be read") {
		t.Errorf("warnings: %s", text)
	}
	id := s.only()
	d, err := s.Show(id, 16)
	s.must(err)
	if len(d.Bad) != 1 || d.Bad[0].Offset != 2*regionBytes || d.Bad[0].Bytes != regionBytes || d.Map[2].State != "bad" || d.Map[3].State != "discarded" {
		t.Errorf("%+v, %+v", d.Bad, d.Map)
	}
	if x, err := s.Explain(id, 2*regionBytes+5); err != nil || x.State != "bad" || x.Error == "" || x.Owner != s.path("image") {
		t.Errorf("%+v, %v", x, err)
	}
	// Once it can be read again, the same command ends it.
	s.migrate("image", "moved", moving())
	s.wantContent("moved", content)
	if d, err := s.Show(id, 16); err != nil || len(d.Bad) != 0 || d.Phase != "done" {
		t.Errorf("%+v, %v", d, err)
	}
}

// Fault 27: a quota that is used up is lack of space, and frees as space does. Fault
// 46: what could not be written stays on the source.
func TestFault27And46FailedWrites(t *testing.T) {
	t.Parallel()
	for errno, want := range map[unix.Errno]string{unix.EDQUOT: "out of space", unix.ENOSPC: "out of space", unix.EIO: "stopped by an error"} {
		s := newSite(t)
		content := s.image("image", mib)
		r, err := s.runWith("image", "moved", moving(), func(m *migration) {
			m.destination.device = &faulty{device: m.destination.device, write: func(off int64) error {
				if off >= 12*regionBytes {
					return errno
				}
				return nil
			}}
		})
		if OutcomeOf(err) != Stopped || !strings.Contains(err.Error(), want) || !errors.Is(err, errno) || !strings.Contains(err.Error(), "nothing was lost") {
			t.Errorf("%v: %v", errno, err)
		}
		wantOrder(t, r, StoppedRun)
		if n := s.takes("image"); n == 0 {
			t.Errorf("%v: nothing is left on the source", errno)
		}
		s.must(s.Resume(context.Background(), s.only(), nil))
		s.wantContent("moved", content)
	}
}

// fault 1
func TestFault1SourceCutOffMeanwhile(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.image("image", 4*mib)
	r := &recorder{}
	var once bool
	err := s.Migrate(context.Background(), s.request("image", "moved", slowly()), func(e Event) {
		r.sink(e)
		if committed(e) && !once {
			once = true
			if err := os.Truncate(s.path("image"), 3*mib); err != nil {
				t.Error(err)
			}
		}
	})
	if OutcomeOf(err) != Stopped || !strings.Contains(err.Error(), "the source changed") {
		t.Errorf("%v", err)
	}
	wantOrder(t, r, StoppedRun)
	s.wantMoveRefused("had 4194304 when migration", "image", "moved", slowly())
}

// fault 5
func TestFault5SourceWrittenToMeanwhile(t *testing.T) {
	t.Parallel()
	copying := slowly()
	copying.DiscardSource = false
	for name, o := range map[string]Options{"moving": slowly(), "copying": copying} {
		s := newSite(t)
		s.image("image", 2*mib)
		once := false
		err := s.Migrate(context.Background(), s.request("image", "moved", o), func(e Event) {
			if !committed(e) || once {
				return
			}
			once = true
			f, err := os.OpenFile(s.path("image"), os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte("by somebody else"), 2*mib-100)
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				t.Error(err)
			}
		})
		if OutcomeOf(err) != Stopped || !strings.Contains(err.Error(), "chang") && !strings.Contains(err.Error(), "modified") {
			t.Errorf("%s: %v", name, err)
		}
		s.wantMoveRefused("was modified since migration", "image", "moved", o)
	}
}

// fault 5: somebody who has the source open for writing stops the run, and when he has
// left without a write the same command goes on.
func TestFault5SourceOpenForWritingMeanwhile(t *testing.T) {
	t.Parallel()
	s, _, content := halfMoved(t)
	a, err := s.prepare(s.request("image", "moved", moving()))
	s.must(err)
	m, err := a.resume()
	s.must(err)
	f, err := os.OpenFile(s.path("image"), os.O_RDWR, 0)
	s.must(err)
	err = m.run(context.Background(), nil)
	if OutcomeOf(err) != Stopped || !strings.Contains(err.Error(), "the source is in use") || !strings.Contains(err.Error(), "open for writing") {
		t.Errorf("%v", err)
	}
	s.must(errors.Join(m.Close(), f.Close()))
	s.migrate("image", "moved", moving())
	s.wantContent("moved", content)
}

// fault 26: an image is bytes, whatever it says of itself.
func TestFault26ContentIsOpaque(t *testing.T) {
	t.Parallel()
	for name, header := range map[string]struct {
		off  int
		text string
	}{
		"qcow2 with a backing file": {0, "QFI\xfb\x00\x00\x00\x03" + strings.Repeat("\x00", 8) + "\x00\x00\x00\x0b/etc/passwd"},
		"LVM label":                 {512, "LABELONE\x01\x00\x00\x00"},
		"partition table":           {510, "\x55\xaaEFI PART"},
		"swap":                      {4086, "SWAPSPACE2"},
		"SQLite":                    {0, "SQLite format 3\x00"},
	} {
		s := newSite(t)
		content := randomBytes(mib)
		copy(content[header.off:], header.text)
		s.must(os.WriteFile(s.path("image"), content, 0o600))
		r := s.migrate("image", "moved", moving())
		if e := r.last(); e.BytesTotal != mib || e.BytesCopied != mib {
			t.Errorf("%s: %+v", name, e)
		}
		s.wantContent("moved", content)
	}
}

// fault 68: times are for people. A clock that was set back by years between two runs
// makes no journal old and no mark wrong.
func TestFault68ClockSetBack(t *testing.T) {
	t.Parallel()
	s, id, content := halfMoved(t)
	for _, name := range []string{"image", "moved"} {
		var mark loopdev.Mark
		s.must(json.Unmarshal([]byte(markText(s.path(name))), &mark))
		mark.Since = mark.Since.AddDate(20, 0, 0)
		text, err := json.Marshal(mark)
		s.must(err)
		s.must(unix.Setxattr(s.path(name), "user.decant.mark", text, unix.XATTR_REPLACE))
	}
	s.must(s.Resume(context.Background(), id, nil))
	s.wantContent("moved", content)
	s.must(s.Reverse(context.Background(), id, nil))
	s.wantContent("image", content)
}
