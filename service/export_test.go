package service

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"decant/nbd"
)

// exporting are options that offer the volume on a socket of the site.
func (s *site) exporting(o Options) Options {
	o.Export = s.path("socket")
	return o
}

// client is a client of the export, closed at the end of the test.
func (s *site) client(uri string) *nbd.Client {
	s.Helper()
	c, err := nbd.Dial(context.Background(), uri, nbd.Options{Connections: 1})
	s.must(err)
	s.Cleanup(func() { _ = c.Close() })
	return c
}

// exported runs a migration in the background, and returns when its volume can be used.
func (s *site) exported(from, to string, o Options) *running {
	s.Helper()
	return s.begun(func(ctx context.Context, sink Sink) error { return s.Migrate(ctx, s.request(from, to, o), sink) })
}

// running is a run in the background whose volume can be used.
type running struct {
	*recorder
	uri   string
	stop  context.CancelFunc
	ended chan error
}

func (s *site) begun(do func(context.Context, Sink) error) *running {
	s.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r := &running{recorder: &recorder{}, stop: stop, ended: make(chan error, 1)}
	uri := make(chan string, 1)
	go func() {
		r.ended <- do(ctx, func(e Event) {
			r.sink(e)
			if e.Event == Exported {
				uri <- e.Export
			}
		})
	}()
	s.Cleanup(func() {
		stop()
		r.ended <- <-r.ended
	})
	select {
	case r.uri = <-uri:
	case err := <-r.ended:
		r.ended <- err
		s.Fatalf("ended before it was exported: %v", err)
	}
	return r
}

// wait is how the run ended.
func (r *running) wait() error {
	err := <-r.ended
	r.ended <- err
	return err
}

func TestGuestsUseTheVolumeWhileItHydrates(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	want := s.image("image", 4*mib)
	r := s.exported("image", "moved", s.exporting(slowly()))
	c := s.client(r.uri)
	got := make([]byte, len(want))
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("reads other bytes than the source has, or: %v", err)
	}
	for _, off := range []int64{0, mib + 512, 3*mib - 4096} {
		p := bytes.Repeat([]byte{byte(off>>9) | 1}, 8192)
		copy(want[off:], p)
		_, err := c.WriteAt(p, off)
		s.must(err)
	}
	s.must(c.Discard(2*mib, mib/2))
	clear(want[2*mib : 2*mib+mib/2])
	s.must(c.Flush())
	s.must(c.Close())
	s.must(r.wait())
	wantOrder(t, r.recorder, DoneEvent)
	s.wantContent("moved", want)
	if n := s.takes("image"); n > leftBytes {
		t.Errorf("the source takes %d bytes", n)
	}
	if s.exists("socket") || s.exists("socket.lock") {
		t.Error("the socket was left behind")
	}
}

func TestExportIsRefusedBeforeAnythingIsChanged(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.image("image", mib)
	s.must(os.WriteFile(s.path("file"), []byte("mine"), 0o600))
	for path, why := range map[string]string{
		s.path("file"):                 "something else than a socket",
		s.path("missing/socket"):       "no such file or directory",
		s.path("file/socket"):          "not a directory",
		"/" + strings.Repeat("x", 107): "108 bytes",
	} {
		o := moving()
		o.Export = path
		s.wantMoveRefused(why, "image", "moved", o)
		_, err := s.Plan(context.Background(), s.request("image", "moved", o))
		if OutcomeOf(err) != Refused || !errors.Is(err, nbd.ErrSocket) {
			t.Errorf("the plan says %v", err)
		}
	}
}

// fault 38: what guests read after a crash was read back before; where the destination
// has lost it, they read what the source has, also in a run that discards nothing.
func TestFault38GuestsReadOnlyWhatWasRechecked(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content, at := s.halfCopied()
	s.damage("moved", at+5000)
	o := slowly()
	o.DiscardSource = false
	r := s.exported("image", "moved", s.exporting(o))
	c := s.client(r.uri)
	got := make([]byte, len(content))
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("guests read other bytes than the source has, or: %v", err)
	}
	s.must(c.Close())
	s.must(r.wait())
	s.wantContent("moved", content)
	if text := r.messages(); !strings.Contains(text, "no longer holds 65536 bytes") {
		t.Errorf("warnings: %s", text)
	}
}

// What cannot be read of the source leaves the rest to guests, for as long as they stay.
// The run ends after that, incomplete.
func TestGuestsStayWhenHydrationFails(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	content := s.image("image", 2*mib)
	r := s.exported("image", "moved", s.exporting(slowly()))
	c := s.client(r.uri)
	s.must(os.Truncate(s.path("image"), mib)) // which no run survives
	for r.messages() == "" {
		select {
		case err := <-r.ended:
			t.Fatalf("ended with a guest there: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	got := make([]byte, 64*kib)
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, content[:len(got)]) {
		t.Errorf("a guest who stayed reads: %v", err)
	}
	s.must(c.Close())
	if err := r.wait(); OutcomeOf(err) != Stopped {
		t.Errorf("ended with %v", err)
	}
	wantOrder(t, r.recorder, StoppedRun)
}
