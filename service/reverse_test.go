package service

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"decant/loopdev"
)

// wantBack fails the test unless the source is what it was, and the destination that
// decant has made is gone.
func (s *site) wantBack(content []byte, modified time.Time, allocatedBytes int64) {
	s.Helper()
	s.wantContent("image", content)
	st, err := os.Stat(s.path("image"))
	s.must(err)
	if !st.ModTime().Equal(modified) {
		s.Errorf("modified %v, want %v", st.ModTime(), modified)
	}
	if n := s.takes("image"); n > allocatedBytes+leftBytes {
		s.Errorf("takes %d bytes, it took %d", n, allocatedBytes)
	}
	if text := markText(s.path("image")); text != "" {
		s.Errorf("the mark %s is left", text)
	}
	if s.exists("moved") {
		s.Error("the destination is still there")
	}
}

// source is an image and what is to be seen of it.
func (s *site) source(n int) (content []byte, modified time.Time, allocatedBytes int64) {
	s.Helper()
	content = s.image("image", n)
	st, err := os.Stat(s.path("image"))
	s.must(err)
	return content, st.ModTime(), s.takes("image")
}

func TestReverseFromTheMiddle(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content, modified, taken := s.source(4 * mib)
	stopped := s.interrupt("image", "moved", slowly(), discarded).last()
	r := &recorder{}
	s.must(s.Reverse(context.Background(), stopped.ID, r.sink))
	wantOrder(t, r, DoneEvent)
	if e := r.all()[0]; e.Phase != reversingPhase || !e.Resumed || e.BytesCopied != 0 {
		t.Errorf("%+v", e)
	}
	if e := r.last(); e.BytesData > stopped.BytesCommitted || e.BytesCopied == 0 {
		t.Errorf("%+v; %d bytes had been moved", e, stopped.BytesCommitted)
	}
	s.wantBack(content, modified, taken)
	summary := s.summary(s.look(stopped.ID))
	if summary.Phase != "reversed" || summary.Direction != "backward" {
		t.Errorf("%+v", summary)
	}
	// Both ends are free again.
	s.migrate("image", "moved", moving())
	s.wantContent("moved", content)
}

func TestReverseAfterTheEndAndAgain(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]Options{"moved": moving(), "copied": copying()} {
		s := newSite(t)
		content, modified, taken := s.source(2 * mib)
		id := s.migrate("image", "moved", o).last().ID
		for range 2 {
			t.Log(name)
			s.must(s.Reverse(context.Background(), id, nil))
			s.wantBack(content, modified, taken)
		}
	}
}

// A reversal can be interrupted, too, and from then on there is no way forward.
func TestReverseIsResumed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content, modified, taken := s.source(4 * mib)
	id := s.migrate("image", "moved", slowly()).last().ID
	half := func(e Event) bool { return e.BytesDiscarded > mib }
	s.until(half, func(ctx context.Context, sink Sink) error { return s.Reverse(ctx, id, sink) })
	s.wantMoveRefused("is being brought back by migration "+id, "image", "moved", moving())
	s.wantRefused("was given up", func() error { _, err := s.Verify(context.Background(), id, nil); return err })
	s.wantRefused("is being brought back already", func() error { return s.Cancel(context.Background(), id) })
	if x, err := s.Explain(id, 0); err != nil || x.Owner != s.path("image") {
		t.Errorf("%+v, %v", x, err)
	}
	if x, err := s.Explain(id, 4*mib-1); err != nil || x.Owner != s.path("moved") || x.State != "unhydrated" {
		t.Errorf("%+v, %v", x, err)
	}
	s.must(s.Resume(context.Background(), id, nil))
	s.wantBack(content, modified, taken)
}

// A destination that was there before stays, as an ordinary file.
func TestReverseKeepsAForeignDestination(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content := s.image("image", mib)
	s.must(os.WriteFile(s.path("moved"), nil, 0o640))
	id := s.migrate("image", "moved", moving()).last().ID
	s.must(s.Reverse(context.Background(), id, nil))
	s.wantContent("image", content)
	if !s.exists("moved") || markText(s.path("moved")) != "" || s.takes("moved") > leftBytes {
		t.Errorf("exists: %v, mark %s, %d bytes", s.exists("moved"), markText(s.path("moved")), s.takes("moved"))
	}
}

// Fault 67: a crash after the end of a reversal was recorded and before it was tidied up.
func TestFault67ReversalThatWasNotTidiedUp(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content, modified, taken := s.source(mib)
	id := s.migrate("image", "moved", moving()).last().ID
	m, err := s.openByID(id)
	s.must(err)
	_, err = m.journal.Reverse()
	s.must(err)
	m.destination.device = &unremovable{m.destination.device}
	err = m.finishWith(m.run(context.Background(), nil))
	if OutcomeOf(err) != Failed || !strings.Contains(HintOf(err), "migrate resume") {
		t.Errorf("%v", err)
	}
	if !s.exists("moved") {
		t.Fatal("the destination is gone before its time")
	}
	s.must(s.Reverse(context.Background(), id, nil))
	s.wantBack(content, modified, taken)
}

type unremovable struct{ device }

func (unremovable) RemoveMark() error { return errors.New("the power is off") }

func TestCancelBeforeTheFirstDiscard(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content, modified, taken := s.source(4 * mib)
	o := slowly()
	o.DiscardSource = false
	id := s.interrupt("image", "moved", o, committed).last().ID
	s.must(s.Cancel(context.Background(), id))
	s.wantBack(content, modified, taken)
	if sum := s.summary(s.look(id)); sum.Phase != "cancelled" {
		t.Errorf("%+v", sum)
	}
	s.wantRefused("was cancelled", func() error { return s.Reverse(context.Background(), id, nil) })
	s.migrate("image", "moved", moving())
	s.wantContent("moved", content)
}

// fault 95
func TestFault95CancelAfterADiscard(t *testing.T) {
	t.Parallel()
	s, id, content := halfMoved(t)
	s.wantRefused("were emptied already", func() error { return s.Cancel(context.Background(), id) })
	s.migrate("image", "moved", moving())
	s.wantRefused("is done", func() error { return s.Cancel(context.Background(), id) })
	s.wantContent("moved", content)
}

// A discard that may have begun counts as one, also if it was never noted.
func TestFault95CancelAfterAMark(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.image("image", 4*mib)
	o := slowly()
	o.DiscardSource = false
	id := s.interrupt("image", "moved", o, committed).last().ID
	d, err := loopdev.Open(s.path("image"), loopdev.Options{Write: true})
	s.must(err)
	s.must(errors.Join(d.WriteMark(loopdev.Mark{ID: id, Role: givingRole, Tx: 1}), d.Close()))
	s.wantRefused("were emptied already", func() error { return s.Cancel(context.Background(), id) })
}
