package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// interrupted is a migration that was killed, or stopped in order, after it had
// discarded some of its source.
type interrupted struct {
	*site
	source, destination string
	made                image
	id                  string
}

func interrupt(t *testing.T, signal syscall.Signal, prepare ...func(*site)) interrupted {
	t.Helper()
	s := newSite(t)
	for _, p := range prepare {
		p(s)
	}
	m := interrupted{site: s, source: s.path("image"), destination: s.path("moved")}
	m.made = makeImage(t, m.source, 48*mib, 80, mixed)
	m.goOn(signal, 3)
	return m
}

// goOn runs the migration until some more transactions are committed and something
// of them was discarded, and ends it with the signal.
func (m *interrupted) goOn(signal syscall.Signal, transactions uint64) {
	m.Helper()
	r := m.startMove(m.source, m.destination, slowly...)
	begun := r.awaitStarted()
	m.id = begun.ID
	r.awaitCommitted(begun.Transaction + transactions)
	r.awaitDiscarded()
	r.signal(signal)
	if o := r.wait(); o.code != 3 && o.code != -1 {
		m.Fatalf("after %v: %v", signal, o)
	}
}

func (m *interrupted) journal() string { return filepath.Join(m.state, m.id+".db") }

// finish ends the migration and checks what came of it.
func (m *interrupted) finish() {
	m.Helper()
	m.want(0, m.move(m.source, m.destination, "--discard-src"))
	wantWhole(m, m.destination, m.made)
	wantEmptied(m, m.source, m.made)
}

func (m *interrupted) remove(paths ...string) {
	m.Helper()
	remove(m, paths...)
}

// fault 53, fault 96: the journal is lost after a part of the source was punched.
// Nobody takes the holes for data, whatever the destination is.
func TestFault53JournalLost(t *testing.T) {
	losses := map[string]func(m *interrupted){
		"deleted":                 func(m *interrupted) { m.remove(m.journal(), m.journal()+"-wal", m.journal()+"-shm") },
		"state directory deleted": func(m *interrupted) { m.remove(m.state) },
		"another state directory": func(m *interrupted) { m.site = m.at(m.path("other state")) },
		"empty file in its place": func(m *interrupted) {
			m.remove(m.journal()+"-wal", m.journal()+"-shm")
			if err := os.Truncate(m.journal(), 0); err != nil {
				m.Fatal(err)
			}
		},
	}
	for name, lose := range losses {
		for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
			t.Run(name+" after "+signal.String(), func(t *testing.T) {
				t.Parallel()
				m := interrupt(t, signal)
				lose(&m)
				for _, flags := range [][]string{{"--discard-src"}, {}, {"--discard-src", "--overwrite"}} {
					m.wantMoveRefused(m.source, m.destination, flags...)
					m.wantMoveRefused(m.source, m.path("elsewhere"), flags...)
				}
				// Nor is the half of the destination a source.
				m.wantMoveRefused(m.destination, m.path("elsewhere"), "--discard-src")
				if exists(m.path("elsewhere")) {
					t.Error("a destination was made")
				}
			})
		}
	}
}

// fault 53: the same with a device as source, which cannot carry a mark. The record
// beside the journal speaks for it.
func TestFault53JournalOfADeviceLost(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	makeImage(t, s.path("image"), 48*mib, 81, mixed)
	m := interrupted{site: s, source: attach(t, attach(t, s.path("image"))), destination: s.path("moved")}
	m.goOn(syscall.SIGKILL, 3)
	m.remove(m.journal(), m.journal()+"-wal", m.journal()+"-shm")
	m.wantMoveRefused(m.source, m.destination, "--discard-src")
	m.wantMoveRefused(m.source, m.path("elsewhere"), "--discard-src")
}

// copyState copies the state directory, as a backup would.
func (m *interrupted) copyState(to string) {
	m.Helper()
	do(m, "cp", "-a", m.state, to)
}

func (m *interrupted) restoreState(from string) {
	m.Helper()
	m.remove(m.state)
	do(m, "cp", "-a", from, m.state)
}

// fault 54: the journal is restored from an older copy.
func TestFault54JournalRestoredFromAnOldCopy(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			m := interrupt(t, signal)
			m.copyState(m.path("old"))
			m.goOn(signal, 3)
			m.copyState(m.path("new"))
			m.restoreState(m.path("old"))
			m.wantMoveRefused(m.source, m.destination, slowly...)
			m.wantMoveRefused(m.source, m.path("elsewhere"), slowly...)
			m.wantRefused("resume", m.id)
			m.wantRefused("reverse", m.id)
			m.wantRefused("cancel", m.id)
			// With the newest one all is well.
			m.restoreState(m.path("new"))
			m.finish()
		})
	}
}

// fault 55: the write-ahead log is gone. A journal without it is an old copy.
func TestFault55LogDeleted(t *testing.T) {
	t.Parallel()
	m := interrupt(t, syscall.SIGKILL)
	log := m.journal() + "-wal"
	if info, err := os.Stat(log); err != nil || info.Size() == 0 {
		t.Fatalf("a killed run leaves no log: %v", err)
	}
	if err := os.Rename(log, m.path("log")); err != nil {
		t.Fatal(err)
	}
	m.remove(m.journal() + "-shm")
	m.wantMoveRefused(m.source, m.destination, slowly...)
	m.wantMoveRefused(m.source, m.path("elsewhere"), slowly...)
	m.wantRefused("resume", m.id)
	m.wantRefused("reverse", m.id)
	m.remove(log, m.journal()+"-shm")
	if err := os.Rename(m.path("log"), log); err != nil {
		t.Fatal(err)
	}
	m.finish()
}

// fault 56: a damaged page, anywhere in the journal.
func TestFault56DamagedJournal(t *testing.T) {
	for _, where := range []string{"header", "first page", "middle", "end", "truncated"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			m := interrupt(t, syscall.SIGINT)
			do(t, "cp", "-a", m.journal(), m.path("good"))
			size := sizeOf(t, m.journal())
			noise := []byte(strings.Repeat("\xa5\x5a noise", 100))
			switch where {
			case "header":
				overwrite(t, m.journal(), 0, noise[:16])
			case "first page":
				overwrite(t, m.journal(), 100, noise)
			case "middle":
				overwrite(t, m.journal(), size/8192*4096, noise)
			case "end":
				overwrite(t, m.journal(), size-4096, noise)
			case "truncated":
				if err := os.Truncate(m.journal(), size-4096); err != nil {
					t.Fatal(err)
				}
			}
			m.wantMoveRefused(m.source, m.destination, slowly...)
			m.wantMoveRefused(m.source, m.path("elsewhere"), slowly...)
			m.wantRefused("resume", m.id)
			m.wantRefused("reverse", m.id)
			m.want(0, m.run("list")) // the others have to be seen all the same
			do(t, "cp", "-a", m.path("good"), m.journal())
			m.finish()
		})
	}
}

// fault 62, fault 70: the journal of a newer version.
func TestFault62NewerJournal(t *testing.T) {
	t.Parallel()
	m := interrupt(t, syscall.SIGINT)
	version := do(t, "sqlite3", m.journal(), "PRAGMA user_version")
	do(t, "sqlite3", m.journal(), "PRAGMA user_version=999")
	m.wantMessage(m.wantMoveRefused(m.source, m.destination, slowly...), "version")
	m.wantMoveRefused(m.source, m.path("elsewhere"), slowly...)
	m.wantRefused("resume", m.id)
	do(t, "sqlite3", m.journal(), "PRAGMA user_version="+version)
	m.finish()
}

// fault 59: journals in memory would be lost at a restart.
func TestFault59JournalInMemory(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	makeImage(t, s.path("image"), 1*mib, 82, mixed)
	memory := s.path("memory")
	if err := os.Mkdir(memory, 0o700); err != nil {
		t.Fatal(err)
	}
	mountAt(t, memory, "-t", "tmpfs", "tmpfs")
	for _, state := range []string{memory, memory + "/made/on/demand"} {
		o := s.at(state).wantMoveRefused(s.path("image"), s.path("moved"), "--discard-src")
		s.wantMessage(o, "memory", "--state-dir")
	}
}

// listed is the migrations that list --json shows.
func (s *site) listed() []map[string]any {
	s.Helper()
	var all []map[string]any
	o := s.want(0, s.run("list", "--json"))
	if err := json.Unmarshal([]byte(o.stdout), &all); err != nil {
		s.Fatalf("%v: %s", err, o.stdout)
	}
	return all
}
