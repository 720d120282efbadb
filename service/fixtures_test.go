package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/xxh3"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"decant/journal"
	"decant/loopdev"
	"decant/thin"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	// regionBytes is small, so that a small image has many regions.
	regionBytes = 64 * kib
	// leftBytes is the most that an emptied file still takes: its list of extents.
	leftBytes = 8 * kib
)

// childVariable makes this binary work on the migration that it describes, instead
// of running tests.
const childVariable = "DECANT_SERVICE_TEST_CHILD"

func TestMain(m *testing.M) {
	if request := os.Getenv(childVariable); request != "" {
		child(request)
		return
	}
	// Journals are refused in memory.
	if err := journal.CheckFileSystem(os.TempDir()); err != nil {
		if err := errors.Join(journal.CheckFileSystem("/var/tmp"), os.Setenv("TMPDIR", "/var/tmp")); err != nil {
			fmt.Fprintln(os.Stderr, "no temporary directory is on a disk, set TMPDIR:", err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

// site is a directory with a service on it. Tests that run other programs are not
// parallel: a child has the open files of its parent for a moment, and counts as
// their user.
type site struct {
	testing.TB
	*Service
	dir string
}

func newSite(t testing.TB) *site {
	t.Helper()
	dir := t.TempDir()
	s, err := New(filepath.Join(dir, "state"))
	s0 := &site{TB: t, Service: s, dir: dir}
	s0.must(err)
	return s0
}

func (s *site) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// image makes a file of n random bytes with a hole in its second quarter.
func (s *site) image(name string, n int) []byte {
	s.Helper()
	content := randomBytes(n)
	clear(content[n/4 : n/2])
	f, err := os.Create(s.path(name))
	s.must(err)
	_, err = f.WriteAt(content[:n/4], 0)
	s.must(err)
	_, err = f.WriteAt(content[n/2:], int64(n/2))
	s.must(errors.Join(err, f.Sync(), f.Close()))
	return content
}

func randomBytes(n int) []byte {
	content := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range content {
		content[i] = byte(1 + r.IntN(255))
	}
	return content
}

// pool makes a directory pool.
func (s *site) pool(name string, bytes int64) {
	s.Helper()
	s.must(s.makeStateDir())
	p, err := thin.CreateDirectory(s.pools, name, s.path("pool-"+name), bytes)
	s.must(err)
	s.must(p.Close())
}

// moving are options that move an image in several transactions.
func moving() Options {
	return Options{
		DiscardSource: true, RegionBytes: regionBytes, ThresholdRegions: 4, BatchRegions: 2,
		CommitPeriod: 5 * time.Millisecond, CommitBytes: 4 * regionBytes,
	}
}

// slowly leaves time to interrupt a move of some megabytes.
func slowly() Options {
	o := moving()
	o.BytesPerSecond = 4 * mib
	return o
}

func copying() Options {
	o := moving()
	o.DiscardSource = false
	return o
}

// recorder is a sink that keeps everything.
type recorder struct {
	mu     sync.Mutex
	events []Event
}

func (r *recorder) sink(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *recorder) all() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Event(nil), r.events...)
}

func (r *recorder) last() Event {
	all := r.all()
	if len(all) == 0 {
		return Event{}
	}
	return all[len(all)-1]
}

// messages are the texts of all warnings.
func (r *recorder) messages() string {
	var b strings.Builder
	for _, e := range r.all() {
		if e.Event == Warning {
			b.WriteString(e.Message + "\n")
		}
	}
	return b.String()
}

func (s *site) request(from, to string, o Options) Request {
	at := func(name string) string {
		if strings.Contains(name, "/") {
			return name
		}
		return s.path(name)
	}
	return Request{Source: at(from), Destination: at(to), Options: o}
}

// migrate runs a migration to its end. Names without a slash are files of the site.
func (s *site) migrate(from, to string, o Options) *recorder {
	s.Helper()
	r := &recorder{}
	s.must(s.Migrate(context.Background(), s.request(from, to, o), r.sink))
	return r
}

// until runs something that can be interrupted until when is true of an event.
func (s *site) until(when func(Event) bool, do func(context.Context, Sink) error) *recorder {
	s.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r := &recorder{}
	err := do(ctx, func(e Event) {
		r.sink(e)
		if when(e) {
			cancel()
		}
	})
	if OutcomeOf(err) != Stopped {
		s.Fatalf("ended with %v before it was interrupted", err)
	}
	return r
}

func discarded(e Event) bool { return e.BytesDiscarded > 0 && e.BytesCommitted > 8*regionBytes }
func committed(e Event) bool { return e.Event == CommittedTx && e.BytesCommitted > 0 }

// interrupt begins a migration and stops it in the middle.
func (s *site) interrupt(from, to string, o Options, when func(Event) bool) *recorder {
	s.Helper()
	return s.until(when, func(ctx context.Context, sink Sink) error {
		return s.Migrate(ctx, s.request(from, to, o), sink)
	})
}

// wantRefused fails the test unless do is refused, for a reason that holds the text,
// and changes nothing.
func (s *site) wantRefused(text string, do func() error) {
	s.Helper()
	before := s.snapshot()
	err := do()
	if OutcomeOf(err) != Refused || !strings.Contains(err.Error(), text) {
		s.Errorf("%v; want a refusal with %q", err, text)
	}
	if after := s.snapshot(); after != before {
		s.Errorf("refused, but there is\n%s\nwhere there was\n%s", after, before)
	}
}

func (s *site) wantMoveRefused(text, from, to string, o Options) {
	s.Helper()
	s.wantRefused(text, func() error {
		return s.Migrate(context.Background(), s.request(from, to, o), nil)
	})
}

// snapshot describes every file of the site, but those that SQLite and locks make
// and remove as they please.
func (s *site) snapshot() string {
	s.Helper()
	var b strings.Builder
	s.must(filepath.WalkDir(s.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		switch filepath.Ext(path) {
		case ".lock", ".db-wal", ".db-shm":
			return nil
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %d bytes %d blocks %x, of %d.%09d, mark %s\n", path, st.Size, st.Blocks, xxh3.Hash(content), st.Mtim.Sec, st.Mtim.Nsec, markText(path))
		return nil
	}))
	return b.String()
}

func markText(path string) string {
	text := make([]byte, 4096)
	n, err := unix.Getxattr(path, "user.decant.mark", text)
	if err != nil {
		return ""
	}
	return string(text[:n])
}

func (s *site) wantContent(name string, want []byte) {
	s.Helper()
	got, err := os.ReadFile(s.path(name))
	s.must(err)
	if !bytes.Equal(got, want) {
		s.Errorf("%s holds other bytes than it should (%d, want %d)", name, len(got), len(want))
	}
}

func (s *site) takes(name string) int64 {
	s.Helper()
	var st unix.Stat_t
	s.must(unix.Stat(s.path(name), &st))
	return st.Blocks * 512
}

func (s *site) exists(name string) bool {
	_, err := os.Lstat(s.path(name))
	return err == nil
}

// only is the id of the one migration there is.
func (s *site) only() string {
	s.Helper()
	list, err := s.List()
	s.must(err)
	if len(list) != 1 {
		s.Fatalf("%d migrations: %+v", len(list), list)
	}
	return list[0].ID
}

func (s *site) command(name string, args ...string) string {
	s.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		s.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// loop attaches a loop device.
func (s *site) loop(path string, args ...string) string {
	s.Helper()
	device := s.command("losetup", append(append([]string{"-f", "--show"}, args...), path)...)
	s.Cleanup(func() { s.command("losetup", "-d", device) })
	return device
}

// block is a block device without a file right behind it: a loop device over another.
func (s *site) block(path string) string {
	s.Helper()
	return s.loop(s.loop(path))
}

// mount makes a file system of its own below the site.
func (s *site) mount(name string, bytes int64, mkfs ...string) {
	s.Helper()
	image := filepath.Join(s.TempDir(), "fs.img")
	s.must(os.WriteFile(image, nil, 0o600))
	s.must(os.Truncate(image, bytes))
	s.command(mkfs[0], append(mkfs[1:], image)...)
	s.must(os.Mkdir(s.path(name), 0o755))
	s.command("mount", "-o", "loop", image, s.path(name))
	s.Cleanup(func() { s.command("umount", s.path(name)) })
}

// described is an end that says something else of itself.
type described struct {
	device
	encrypted bool
}

func (d *described) Info() loopdev.Info {
	info := d.device.Info()
	info.Encrypted = d.encrypted
	return info
}
