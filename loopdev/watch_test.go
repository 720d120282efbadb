package loopdev

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// watched is a marked file, or a loop device on one, whose modification time is kept.
type watched struct {
	*Device
	file string
	kept time.Time
	asks int // how often a Discard asked who has it open
}

func newWatched(t *testing.T, fsType string, looped bool) *watched {
	t.Helper()
	file, _ := image(t, dirOn(t, fsType), 1<<20)
	past := time.Now().Add(-time.Hour).Truncate(time.Second)
	must(t, os.Chtimes(file, past, past))
	path := file
	if looped {
		path = attach(t, file)
	}
	w := &watched{Device: openDevice(t, path, readWrite), file: file, kept: past}
	must(t, w.WriteMark(Mark{ID: "m", Role: GivingRole, Tx: 1, Since: time.Now()}))
	w.KeepModified(past)
	if w.watch == nil {
		t.Fatal("there is no inotify here")
	}
	w.at("", nil)
	return w
}

// at lets something happen once, after a step of a Discard.
func (w *watched) at(name string, happens func()) {
	w.step = func(ended string) {
		if ended == "ask" {
			w.asks++
		}
		if ended == name && happens != nil {
			now := happens
			happens = nil
			now()
		}
	}
}

func (w *watched) wantUnchanged(t *testing.T, want bool) {
	t.Helper()
	again := openDevice(t, w.info.Path, readWrite)
	defer again.Close()
	if same, err := again.UnchangedSince(w.kept); same != want || err != nil {
		t.Errorf("a later run finds it unchanged: %v, %v; want %v", same, err, want)
	}
	if m, marked, err := again.ReadMark(); m.Discarding || !marked || err != nil {
		t.Errorf("the mark is %+v, %v, %v", m, marked, err)
	}
}

// openAndWrite is a foreign writer that does not end by itself.
func openAndWrite(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("by somebody else"), 512<<10)
	must(t, err)
	return f
}

// mapAndWrite leaves a mapping without a descriptor.
func mapAndWrite(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	m, err := unix.Mmap(int(f.Fd()), 512<<10, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	must(t, f.Close())
	copy(m, "by somebody else")
	return m
}

// foreignWriters write, and return how they end.
var foreignWriters = map[string]func(t *testing.T, path string) (end func()){
	"closes": func(t *testing.T, path string) func() {
		must(t, openAndWrite(t, path).Close())
		return func() {}
	},
	"keeps it open": func(t *testing.T, path string) func() {
		f := openAndWrite(t, path)
		return func() { must(t, f.Close()) }
	},
	"keeps it open beside a reader": func(t *testing.T, path string) func() {
		reader, err := os.Open(path)
		must(t, err)
		f := openAndWrite(t, path)
		return func() { must(t, errors.Join(f.Close(), reader.Close())) }
	},
	"unmaps": func(t *testing.T, path string) func() {
		must(t, unix.Munmap(mapAndWrite(t, path)))
		return func() {}
	},
	"keeps it mapped beside a reader": func(t *testing.T, path string) func() {
		reader, err := os.Open(path)
		must(t, err)
		m := mapAndWrite(t, path)
		return func() { must(t, errors.Join(unix.Munmap(m), reader.Close())) }
	},
	"detaches": func(t *testing.T, path string) func() {
		loop := run(t, "losetup", "-f", "--show", path)
		f := openAndWrite(t, loop)
		must(t, errors.Join(f.Sync(), f.Close()))
		run(t, "losetup", "-d", loop)
		return func() {}
	},
	"keeps it attached": func(t *testing.T, path string) func() {
		loop := run(t, "losetup", "-f", "--show", path)
		f := openAndWrite(t, loop)
		must(t, errors.Join(f.Sync(), f.Close()))
		return func() { run(t, "losetup", "-d", loop) }
	},
}

// fault 5, fault 65: whoever writes between the look at the modification time and the
// moment when it is put back, however long the process stood still there, is seen by
// this Discard and by every later one.
func TestFault65WriteWithinADiscardIsSeen(t *testing.T) {
	for name, write := range foreignWriters {
		steps := []string{"checked", "punched", "looked", "restored"}
		if strings.HasPrefix(name, "keeps") { // a Discard waits a moment for those
			steps = []string{"punched", "restored"}
		}
		for _, step := range steps {
			w := newWatched(t, "ext4", false)
			must(t, w.Discard(0, 64<<10))
			end := func() {}
			w.at(step, func() { end = write(t, w.file) })
			if err := w.Discard(64<<10, 64<<10); !errors.Is(err, ErrSourceChanged) {
				t.Errorf("somebody writes and %s after %q: %v", name, step, err)
			}
			end()
			before := blocksOf(t, w.file)
			if err := w.Discard(128<<10, 64<<10); !errors.Is(err, ErrSourceChanged) {
				t.Errorf("somebody wrote and %s after %q: the next discard: %v", name, step, err)
			}
			if now := blocksOf(t, w.file); now < before || step == "checked" && now != before {
				t.Errorf("somebody wrote and %s after %q: %d blocks, and then %d", name, step, before, now)
			}
			must(t, w.Close())
			w.wantUnchanged(t, false)
			// Whoever is sure that no byte was changed can still say so.
			must(t, os.Chtimes(w.file, w.kept, w.kept))
			w.wantUnchanged(t, true)
		}
	}
}

// A writer who leaves in the moment in which it is asked for him.
func TestFault65WriterWhoLeavesWhenAskedForIsSeen(t *testing.T) {
	for _, step := range []string{"punched", "looked", "restored"} {
		w := newWatched(t, "ext4", false)
		must(t, w.Discard(0, 64<<10))
		w.at(step, func() {
			f := openAndWrite(t, w.file)
			w.at("ask", func() { must(t, f.Close()) })
		})
		if err := w.Discard(64<<10, 64<<10); !errors.Is(err, ErrSourceChanged) {
			t.Errorf("after %q: %v", step, err)
		}
		must(t, w.Close())
		w.wantUnchanged(t, false)
	}
}

func TestFault65WriteWithinADiscardOnAnyFileSystem(t *testing.T) {
	for _, fsType := range punching {
		for _, looped := range []bool{false, true} {
			w := newWatched(t, fsType, looped)
			w.at("punched", func() { must(t, openAndWrite(t, w.file).Close()) })
			if err := w.Discard(0, 64<<10); !errors.Is(err, ErrSourceChanged) {
				t.Errorf("%s, loop device %v: %v", fsType, looped, err)
			}
			must(t, w.Close())
			w.wantUnchanged(t, false)
		}
	}
}

// A write through the loop device does not open its file, and reaches it at any time
// later.
func TestFault65WriteThroughTheLoopDeviceIsSeen(t *testing.T) {
	for _, step := range []string{"checked", "punched", "looked", "restored"} {
		w := newWatched(t, "ext4", true)
		w.at(step, func() { must(t, openAndWrite(t, w.info.Path).Close()) })
		if err := w.Discard(0, 64<<10); !errors.Is(err, ErrSourceChanged) {
			t.Errorf("after %q: %v", step, err)
		}
	}
	w := newWatched(t, "ext4", true)
	must(t, openAndWrite(t, w.info.Path).Close())
	if err := w.Discard(0, 64<<10); !errors.Is(err, ErrSourceChanged) {
		t.Errorf("what is still in the cache of the loop device: %v", err)
	}
}

// Nothing is punched any more once somebody has written, also within one Discard.
func TestFault65NothingIsPunchedAfterAWrite(t *testing.T) {
	w := newWatched(t, "ext4", false)
	before := blocksOf(t, w.file)
	w.at("checked", func() { must(t, openAndWrite(t, w.file).Close()) })
	if err := w.Discard(0, 64<<10); !errors.Is(err, ErrSourceChanged) {
		t.Error(err)
	}
	if now := blocksOf(t, w.file); now != before {
		t.Errorf("%d blocks, %d before", now, before)
	}
}

// A killed Discard is put right first; what somebody writes while that happens is no
// part of it.
func TestFault65WriteWhileAKilledDiscardIsPutRight(t *testing.T) {
	for _, step := range []string{"checked", "looked", "restored"} {
		w := newWatched(t, "ext4", false)
		must(t, w.punchInPieces(0, 64<<10))
		must(t, w.Close())
		w.Device = openDevice(t, w.file, readWrite)
		if same, err := w.UnchangedSince(w.kept); !same || err != nil {
			t.Fatalf("after our own punch: %v, %v", same, err)
		}
		w.KeepModified(w.kept)
		w.at(step, func() { must(t, openAndWrite(t, w.file).Close()) })
		if err := w.Discard(64<<10, 64<<10); !errors.Is(err, ErrSourceChanged) {
			t.Errorf("after %q: %v", step, err)
		}
		must(t, w.Close())
		w.wantUnchanged(t, false)
	}
}

// fault 5: somebody who may write stops a Discard before it begins, and nothing has
// changed: once he has left, all goes on.
func TestFault5NothingIsDiscardedBesideAWriter(t *testing.T) {
	for _, beforeKept := range []bool{false, true} {
		w := newWatched(t, "ext4", false)
		if beforeKept {
			w.stopWatch()
		}
		f, err := os.OpenFile(w.file, os.O_RDWR, 0)
		must(t, err)
		w.KeepModified(w.kept)
		before := blocksOf(t, w.file)
		for range 2 {
			if err := w.Discard(0, 64<<10); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "open for writing") {
				t.Error(err)
			}
		}
		if now := blocksOf(t, w.file); now != before {
			t.Errorf("%d blocks, %d before", now, before)
		}
		must(t, f.Close())
		must(t, w.Discard(0, 64<<10))
		must(t, w.Close())
		w.wantUnchanged(t, true)
	}
}

// fault 98: backups and other lookers do not stop anything, nor does another instance
// of this program that is refused.
func TestFault98ReadersStopNothing(t *testing.T) {
	readers := map[string]func(path string){
		"closes": func(path string) {
			_, err := os.ReadFile(path)
			must(t, err)
		},
		"keeps it open": func(path string) {
			f, err := os.Open(path)
			must(t, err)
			t.Cleanup(func() { f.Close() })
		},
		"keeps it mapped": func(path string) {
			f, err := os.Open(path)
			must(t, err)
			m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
			must(t, errors.Join(err, f.Close()))
			t.Cleanup(func() { unix.Munmap(m) })
		},
		"keeps it attached for reading": func(path string) { attach(t, path, "-r") },
		"is another instance": func(path string) {
			if d, err := Open(path, readWrite); !errors.Is(err, ErrInUse) {
				t.Errorf("opened twice: %v, %v", d, err)
			}
		},
		"is an instance that looks": func(path string) {
			d, err := Open(path, Options{})
			must(t, err)
			_, err = d.UsedBy()
			must(t, errors.Join(err, d.Close()))
		},
	}
	for name, read := range readers {
		for _, step := range []string{"checked", "punched", "looked", "restored"} {
			w := newWatched(t, "ext4", false)
			w.at(step, func() { read(w.file) })
			for range 3 {
				if err := w.Discard(0, 64<<10); err != nil {
					t.Errorf("somebody reads and %s after %q: %v", name, step, err)
				}
			}
			must(t, w.Close())
			w.wantUnchanged(t, true)
		}
	}
}

// Reading again and again, and faster than can be asked for, stops nothing either.
func TestFault98BusyReaderStopsNothing(t *testing.T) {
	for _, looped := range []bool{false, true} {
		w := newWatched(t, "ext4", looped)
		stop, ended := make(chan struct{}), make(chan error, 1)
		go func() {
			for {
				select {
				case <-stop:
					ended <- nil
					return
				default:
				}
				if f, err := os.Open(w.file); err != nil || f.Close() != nil {
					ended <- errors.Join(err, errors.New("the reader failed"))
					return
				}
			}
		}()
		for range 20 {
			must(t, w.Discard(0, 64<<10))
		}
		close(stop)
		must(t, <-ended)
	}
}

// Without anybody about, one question is enough for all Discards; our own questions
// and openings lead to no other.
func TestNobodyIsAskedForWithoutNeed(t *testing.T) {
	for _, looped := range []bool{false, true} {
		w := newWatched(t, "ext4", looped)
		for off := int64(0); off < 512<<10; off += 64 << 10 {
			must(t, w.Discard(off, 64<<10))
		}
		if w.asks != 1 {
			t.Errorf("loop device %v: %d questions", looped, w.asks)
		}
		_, err := os.ReadFile(w.file)
		must(t, err)
		for off := int64(512 << 10); off < 1<<20; off += 64 << 10 {
			must(t, w.Discard(off, 64<<10))
		}
		if w.asks != 2 {
			t.Errorf("loop device %v: %d questions after a reader", looped, w.asks)
		}
	}
}

// Where inotify is missing, every Discard asks.
func TestFault5WritersAreSeenWithoutInotify(t *testing.T) {
	w := newWatched(t, "ext4", false)
	w.stopWatch()
	w.opened = true
	for range 3 {
		asks := w.asks
		must(t, w.Discard(0, 64<<10))
		if w.asks <= asks {
			t.Fatal("nobody was asked for")
		}
	}
	f, err := os.OpenFile(w.file, os.O_RDWR, 0)
	must(t, err)
	if err := w.Discard(0, 64<<10); !errors.Is(err, ErrInUse) {
		t.Errorf("beside a writer: %v", err)
	}
	must(t, f.Close())
	w.at("punched", func() { f = openAndWrite(t, w.file) })
	if err := w.Discard(0, 64<<10); !errors.Is(err, ErrSourceChanged) {
		t.Errorf("opened meanwhile: %v", err)
	}
	must(t, f.Close())
	must(t, w.Close())
	w.wantUnchanged(t, false)
}

// When it cannot be seen who is there, somebody is.
func TestUnansweredQuestionIsAChange(t *testing.T) {
	w := newWatched(t, "ext4", false)
	w.at("punched", func() { must(t, w.watch.queue.Close()) })
	if err := w.Discard(0, 64<<10); !errors.Is(err, ErrSourceChanged) {
		t.Error(err)
	}
	must(t, w.Close())
	w.wantUnchanged(t, false)
}

func TestParseEvents(t *testing.T) {
	event := func(mask uint32, name string) []byte {
		var b []byte
		for _, v := range []uint32{1, mask, 0, uint32(len(name))} {
			b = binary.NativeEndian.AppendUint32(b, v)
		}
		return append(b, name...)
	}
	for name, c := range map[string]struct {
		text []byte
		want seen
	}{
		"nothing":     {nil, seen{}},
		"opened":      {event(unix.IN_OPEN, ""), seen{opened: true}},
		"closed":      {event(unix.IN_CLOSE_WRITE, "name\x00\x00\x00\x00"), seen{closed: true}},
		"both":        {append(event(unix.IN_CLOSE_WRITE, "name"), event(unix.IN_OPEN, "")...), seen{true, true}},
		"overflow":    {event(unix.IN_Q_OVERFLOW, ""), seen{true, true}},
		"watch gone":  {event(unix.IN_IGNORED, ""), seen{true, true}},
		"cut off":     {event(unix.IN_OPEN, "")[:15], seen{}},
		"name cut of": {event(unix.IN_OPEN, "name")[:18], seen{opened: true}},
	} {
		if got := parseEvents(c.text); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
