package service

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"decant/clone"
)

// halfCopied is a migration that has copied a part and discarded nothing. It gives the
// offset of a region that is committed.
func (s *site) halfCopied() (content []byte, committedAt int64) {
	s.Helper()
	content = s.image("image", 4*mib)
	o := slowly()
	o.DiscardSource = false
	s.interrupt("image", "moved", o, committed)
	k := s.look(s.only())
	s.must(k.err)
	for run := range k.state.Hydrated.Ranges() {
		off, _ := k.superblock.Geometry.Bytes(run)
		return content, off
	}
	s.Fatal("nothing was committed")
	return nil, 0
}

// damage changes some bytes of a file, and no time of it.
func (s *site) damage(name string, off int64) {
	s.Helper()
	var st unix.Stat_t
	s.must(unix.Stat(s.path(name), &st))
	f, err := os.OpenFile(s.path(name), os.O_WRONLY, 0)
	s.must(err)
	_, err = f.WriteAt(bytes.Repeat([]byte{0x77}, 100), off)
	s.must(errors.Join(err, f.Sync(), f.Close()))
	s.must(unix.UtimesNanoAt(unix.AT_FDCWD, s.path(name), []unix.Timespec{st.Atim, st.Mtim}, 0))
}

// fault 38, fault 39: what the destination has lost since it was flushed is copied
// again before anything is discarded, and the user is told.
func TestFault38LostBytesAreCopiedAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content, at := s.halfCopied()
	s.damage("moved", at+5000)
	r := s.migrate("image", "moved", moving())
	s.wantContent("moved", content)
	if text := r.messages(); !strings.Contains(text, "no longer holds 65536 bytes that were flushed to it") {
		t.Errorf("warnings: %s", text)
	}
	if last := r.last(); last.BytesCopied != last.BytesData {
		t.Errorf("%d of %d bytes were copied", last.BytesCopied, last.BytesData)
	}
	if n := s.takes("image"); n > leftBytes {
		t.Errorf("the source still takes %d bytes", n)
	}
	report, err := s.Verify(context.Background(), s.only(), nil)
	if err != nil || report.MismatchRegions != 0 {
		t.Errorf("%+v, %v", report, err)
	}
}

// fault 38: bytes that are at neither end any more end the migration. Nothing is
// discarded by it, however often it is tried.
func TestFault38BytesLostAtBothEnds(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	_, at := s.halfCopied()
	s.damage("moved", at)
	s.damage("image", at)
	before := s.takes("image")
	for range 2 {
		r := &recorder{}
		err := s.Migrate(context.Background(), s.request("image", "moved", moving()), r.sink)
		if OutcomeOf(err) != Failed || !errors.Is(err, clone.ErrLost) || !strings.Contains(HintOf(err), "migrate explain") {
			t.Errorf("%v (hint %q)", err, HintOf(err))
		}
		if last := r.last(); last.Event != FailedEvent || last.BytesDiscarded != 0 {
			t.Errorf("%+v", last)
		}
	}
	if s.takes("image") != before {
		t.Error("something was discarded")
	}
}

// fault 38: bytes are not brought back from a destination that has lost them, while
// the source still holds them.
func TestFault38ReverseOfLostBytes(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content, at := s.halfCopied()
	s.damage("moved", at)
	id := s.only()
	s.wantRefused("the source still holds them", func() error { return s.Reverse(context.Background(), id, nil) })
	s.wantContent("image", content)
	s.until(func(e Event) bool { return e.Event == CommittedTx }, func(ctx context.Context, sink Sink) error {
		return s.Migrate(ctx, s.request("image", "moved", slowly()), sink)
	})
	s.must(s.Reverse(context.Background(), id, nil))
	s.wantContent("image", content)
}
