package integration

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What happens to the two ends between a run and the next one.
func TestChangedBetweenRuns(t *testing.T) {
	changes := map[string]func(m *interrupted){
		"fault 5: source written to": func(m *interrupted) {
			overwrite(m, m.source, 47*mib, []byte("by somebody else"))
		},
		"fault 3: source replaced": func(m *interrupted) {
			do(m, "cp", "--sparse=always", "--preserve=timestamps", m.source, m.path("copy"))
			rename(m, m.path("copy"), m.source)
		},
		"fault 3: source replaced by a symbolic link": func(m *interrupted) {
			do(m, "cp", "--sparse=always", "--preserve=timestamps", m.source, m.path("copy"))
			m.remove(m.source)
			if err := os.Symlink(m.path("copy"), m.source); err != nil {
				m.Fatal(err)
			}
		},
		"fault 1: source cut off": func(m *interrupted) { resize(m, m.source, 40*mib) },
		"fault 1: source cut off and grown again": func(m *interrupted) {
			resize(m, m.source, 40*mib)
			resize(m, m.source, 48*mib)
		},
		"fault 2: source grown":   func(m *interrupted) { resize(m, m.source, 49*mib) },
		"source gone":             func(m *interrupted) { m.remove(m.source) },
		"destination gone":        func(m *interrupted) { m.remove(m.destination) },
		"destination replaced":    func(m *interrupted) { m.remove(m.destination); sparse(m, m.destination, 48*mib) },
		"destination cut off":     func(m *interrupted) { resize(m, m.destination, 40*mib) },
		"fault 12: immutable":     func(m *interrupted) { immutable(m, m.source) },
		"destination made a link": func(m *interrupted) { m.remove(m.destination); link(m, m.source, m.destination) },
	}
	for name, change := range changes {
		for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
			t.Run(name+" after "+signal.String(), func(t *testing.T) {
				t.Parallel()
				m := interrupt(t, signal)
				if signal == syscall.SIGKILL {
					// A crash may have left a modification time of its own, which
					// is told from others by when it was.
					time.Sleep(500 * time.Millisecond)
				}
				change(&m)
				m.wantMoveRefused(m.source, m.destination, slowly...)
				m.wantRefused("resume", m.id)
			})
		}
	}
}

func rename(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func link(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Link(from, to); err != nil {
		t.Fatal(err)
	}
}

func resize(t testing.TB, path string, bytes int64) {
	t.Helper()
	if err := os.Truncate(path, bytes); err != nil {
		t.Fatal(err)
	}
}

// immutable makes a file immutable until the test ends.
func immutable(t testing.TB, path string) {
	t.Helper()
	do(t, "chattr", "+i", path)
	t.Cleanup(func() { do(t, "chattr", "-i", path) })
}

// Renaming either end changes nothing: a migration is found by identity.
func TestRenamedBetweenRuns(t *testing.T) {
	t.Parallel()
	m := interrupt(t, syscall.SIGKILL)
	rename(t, m.source, m.path("other name"))
	rename(t, m.destination, m.path("other place"))
	m.source, m.destination = m.path("other name"), m.path("other place")
	o := m.want(0, m.move(m.source, m.destination, "--discard-src"))
	if o.last().ID != m.id {
		t.Errorf("migration %s went on as %s", m.id, o.last().ID)
	}
	wantWhole(t, m.destination, m.made)
	wantEmptied(t, m.source, m.made)
}

// fault 7: emptying one name of a file would empty the others.
func TestFault7HardLinkedSource(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	made := makeImage(t, s.path("image"), 8*mib, 90, mixed)
	link(t, s.path("image"), s.path("second name"))
	s.wantMessage(s.wantMoveRefused(s.path("image"), s.path("moved"), "--discard-src"), "link")
	s.want(0, s.move(s.path("image"), s.path("moved"))) // a copy harms nobody
	wantWhole(t, s.path("moved"), made)
}

// fault 11: whether ext2 can punch depends on the driver that the kernel has for it.
func TestFault11Ext2(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	dir := newFileSystem(t, "ext2", 64*mib)
	made := makeImage(t, dir+"/image", 8*mib, 91, mixed)
	if !canPunch(t, dir) {
		before := treeOf(t, dir)
		s.wantMessage(s.wantMoveRefused(dir+"/image", s.path("moved"), "--discard-src"), "--discard-src")
		if diff := before.difference(treeOf(t, dir)); diff != "" {
			t.Error(diff)
		}
		s.want(0, s.move(dir+"/image", s.path("moved")))
	} else {
		s.want(0, s.move(dir+"/image", s.path("moved"), "--discard-src"))
		wantEmptied(t, dir+"/image", made)
	}
	wantWhole(t, s.path("moved"), made)
	// As a destination it does in any case.
	s.want(0, s.move(s.path("moved"), dir+"/back", "--discard-src"))
	wantWhole(t, dir+"/back", made)
}

func canPunch(t *testing.T, dir string) bool {
	t.Helper()
	f, err := os.CreateTemp(dir, "punch-*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(8 * kib); err != nil {
		t.Fatal(err)
	}
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4*kib) == nil
}

// fault 12: what cannot be emptied is refused; it can be copied.
func TestFault12ImmutableSource(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	made := makeImage(t, s.path("image"), 8*mib, 92, mixed)
	immutable(t, s.path("image"))
	s.wantMoveRefused(s.path("image"), s.path("moved"), "--discard-src")
	s.want(0, s.move(s.path("image"), s.path("moved")))
	wantWhole(t, s.path("moved"), made)
}

// fault 12: chattr +i in the middle of a run takes away the right to punch through a
// descriptor that is open.
func TestFault12ImmutableMidRun(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	source, destination := s.path("image"), s.path("moved")
	made := makeImage(t, source, 48*mib, 93, mixed)
	r := s.startMove(source, destination, slowly...)
	r.awaitCommitted(2)
	do(t, "chattr", "+i", source)
	o := r.wait()
	do(t, "chattr", "-i", source)
	s.want(3, o)
	wantEvents(t, o, "stopped")
	s.want(0, s.move(source, destination, "--discard-src"))
	wantWhole(t, destination, made)
	wantEmptied(t, source, made)
}

// fault 15: what is neither a file nor a block device, and without waiting for
// somebody at the other end of a fifo.
func TestFault15WrongKindsOfSource(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	makeImage(t, s.path("image"), 1*mib, 94, mixed)
	if err := unix.Mkfifo(s.path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(s.path("directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	sparse(t, s.path("empty"), 0)
	for _, source := range []string{s.path("fifo"), s.path("directory"), s.path("empty"), "/dev/zero", "/dev/mem", "/proc/self/maps", "/proc/kcore", "/sys/kernel/notes", s.path("missing")} {
		if !exists(source) && !strings.HasSuffix(source, "missing") {
			continue // a kernel without it
		}
		begun := time.Now()
		s.wantMoveRefused(source, s.path("moved"))
		s.wantMoveRefused(source, s.path("moved"), "--discard-src")
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("%s: it took %v", source, took)
		}
		if exists(s.path("moved")) {
			t.Fatalf("%s: there is a destination", source)
		}
	}
	for _, destination := range []string{s.path("fifo"), s.path("directory"), "/dev/null", "/dev/zero", s.path("missing") + "/moved", s.path("image") + "/moved"} {
		s.wantMoveRefused(s.path("image"), destination, "--discard-src")
	}
}

// fault 20: what is read-only can be copied and not emptied.
func TestFault20ReadOnlySources(t *testing.T) {
	sources := map[string]func(s *site) (string, image){
		"mount": func(s *site) (string, image) {
			dir := newFileSystem(s, "ext4", 64*mib)
			made := makeImage(s, dir+"/image", 8*mib, 95, mixed)
			do(s, "mount", "-o", "remount,ro", dir)
			return dir + "/image", made
		},
		"loop device": func(s *site) (string, image) {
			made := makeImage(s, s.path("image"), 8*mib, 96, mixed)
			return attach(s, s.path("image"), "--read-only"), made
		},
	}
	for name, prepare := range sources {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			source, made := prepare(s)
			s.wantMoveRefused(source, s.path("moved"), "--discard-src")
			if exists(s.path("moved")) {
				t.Error("there is a destination")
			}
			s.want(0, s.move(source, s.path("moved")))
			wantWhole(t, s.path("moved"), made)
		})
	}
}

// fault 20: a destination that cannot be written.
func TestFault20ReadOnlyDestinations(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	makeImage(t, s.path("image"), 8*mib, 97, mixed)
	dir := newFileSystem(t, "ext4", 64*mib)
	do(t, "mount", "-o", "remount,ro", dir)
	loop := attach(t, sparse(t, s.path("disk"), 8*mib), "--read-only")
	for _, destination := range []string{dir + "/moved", loop} {
		s.wantMoveRefused(s.path("image"), destination, "--discard-src")
	}
}

// fault 21: the file behind a loop device has no name any more.
func TestFault21BackingFileDeleted(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	makeImage(t, s.path("image"), 8*mib, 98, mixed)
	source := attach(t, s.path("image"))
	if err := os.Remove(s.path("image")); err != nil {
		t.Fatal(err)
	}
	s.wantMoveRefused(source, s.path("moved"), "--discard-src")
}
