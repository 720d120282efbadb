//go:build testkernel

package inside

import (
	"encoding/json"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serve starts the service on the state directory of the site, and waits until it answers.
func (s *site) serve(socket string) *running {
	s.Helper()
	r := s.start("hydrated", "--config", os.DevNull, "--socket", socket, "--group=")
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", socket)
		if err == nil {
			s.must(c.Close())
			return r
		}
		if time.Since(begun) > time.Minute {
			s.Fatalf("hydrated does not answer: %v", err)
		}
	}
}

// stateOf is where a migration of the service stands.
func (s *site) stateOf(socket, id string) (state, reason string) {
	s.Helper()
	o := s.want(0, s.start("migrate", "--service", socket, "list", "--json").wait())
	var list []struct{ ID, State, Reason string }
	s.must(json.Unmarshal([]byte(o.stdout), &list))
	for _, m := range list {
		if m.ID == id {
			return m.State, m.Reason
		}
	}
	return "", ""
}

// A live device outlives the service that serves it: who has it mounted waits while the
// service is away, notices nothing else, and keeps the device when the migration is done.
func TestLiveUnderTheService(t *testing.T) {
	s := newSite(t)
	const bytes = 96 * mib
	l := s.newLively("ext4", s.slice(bytes+16*mib).path(), bytes)
	socket := s.path("hydrated.sock")
	daemon := s.serve(socket)
	o := s.want(0, s.start("migrate", "--service", socket, "--detach", "--discard-src", "--live", l.name, "--engine=user", "--live-timeout=40s",
		"--bwlimit=4MiB/s", "--commit-period=200ms", l.image, l.destination).wait())
	id := strings.TrimSpace(o.stdout)
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(l.path()); err == nil {
			break
		}
		if time.Since(begun) > time.Minute {
			state, reason := s.stateOf(socket, id)
			t.Fatalf("there is no live device: %s %s", state, reason)
		}
	}
	f := l.mount()
	a := l.newAuthor(f.dir)
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
		time.Sleep(time.Second)
		s.must(daemon.cmd.Process.Signal(signal))
		daemon.wait()
		daemon = s.serve(socket)
	}
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		state, reason := s.stateOf(socket, id)
		if state == "done" {
			break
		}
		if time.Since(begun) > 2*time.Minute {
			t.Fatalf("it is %s: %s", state, reason)
		}
	}
	if n := a.end(); n == 0 {
		t.Error("nothing was written")
	}
	s.must(daemon.cmd.Process.Signal(syscall.SIGTERM))
	s.want(0, daemon.wait())
	l.wantEnd()
	l.check(f.dir)
	f.check()
	f.mount()
	l.check(f.dir)
}
