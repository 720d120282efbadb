package service

import (
	"context"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A source that cannot be unlinked at the end is told of, and closed: a service goes on
// after it.
func TestSourceThatCannotBeRemoved(t *testing.T) {
	s := newSite(t)
	s.must(os.Mkdir(s.path("in"), 0o755))
	content := s.image("in/image", 4*mib)
	o := slowly()
	o.RemoveSource = true
	r := &recorder{}
	err := s.Migrate(context.Background(), s.request(s.path("in/image"), "moved", o), func(e Event) {
		r.sink(e)
		if discarded(e) && s.exists("in/image") {
			s.must(os.Rename(s.path("in/image"), s.path("in/elsewhere")))
		}
	})
	if OutcomeOf(err) != Failed || !strings.Contains(err.Error(), "remove the source") {
		t.Errorf("%v", err)
	}
	s.wantContent("moved", content)
	// Nobody holds it any more.
	f, err := os.Open(s.path("in/elsewhere"))
	s.must(err)
	defer f.Close()
	s.must(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
}
