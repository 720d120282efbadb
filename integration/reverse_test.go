package integration

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// wantBack fails the test unless the source is what it was, byte for byte and hole
// for hole, without a mark, and the destination is gone.
func (m *interrupted) wantBack(before os.FileInfo) {
	m.Helper()
	wantWhole(m, m.source, m.made)
	if got, want := allocated(m, m.source), before.Sys().(*syscall.Stat_t).Blocks*512; got > want+want/20+mib {
		m.Errorf("the source takes %d bytes, it took %d", got, want)
	}
	if exists(m.destination) {
		m.Error("the destination is still there")
	}
	now, err := os.Stat(m.source)
	if err != nil {
		m.Fatal(err)
	}
	if !now.ModTime().Equal(before.ModTime()) || now.Mode() != before.Mode() {
		m.Errorf("the source was modified %v and has mode %v, want %v and %v", now.ModTime(), now.Mode(), before.ModTime(), before.Mode())
	}
	if text, err := describe(m.source); err != nil || strings.Contains(text, "decant") {
		m.Errorf("the source still carries a mark: %s (%v)", text, err)
	}
}

// newMigration is one that has not begun.
func newMigration(t *testing.T, bytes int64, seed uint64) (m interrupted, before os.FileInfo) {
	t.Helper()
	s := newSite(t)
	m = interrupted{site: s, source: s.path("image"), destination: s.path("moved")}
	m.made = makeImage(t, m.source, bytes, seed, mixed)
	before, err := os.Stat(m.source)
	if err != nil {
		t.Fatal(err)
	}
	return m, before
}

func TestReverseInTheMiddle(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			m, before := newMigration(t, 48*mib, 120)
			m.goOn(signal, 3)
			o := m.want(0, m.run("reverse", m.id, "--progress=json"))
			wantEvents(t, o, "done")
			m.wantBack(before)
			// The way is free again.
			m.want(0, m.move(m.source, m.destination, "--discard-src"))
			wantWhole(t, m.destination, m.made)
			wantEmptied(t, m.source, m.made)
		})
	}
}

func TestReverseAfterTheEnd(t *testing.T) {
	for name, flags := range map[string][]string{"emptied": {"--discard-src"}, "copied": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, before := newMigration(t, 48*mib, 121)
			m.id = m.want(0, m.move(m.source, m.destination, flags...)).last().ID
			o := m.want(0, m.run("reverse", m.id, "--progress=json"))
			wantEvents(t, o, "done")
			m.wantBack(before)
			m.want(0, m.run("reverse", m.id)) // nothing is left to do
			m.wantBack(before)
		})
	}
}

// A reversal needs no more room than the way there.
func TestReverseOnAFullDisk(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	dir, made := nearlyFull(t, "ext4", 40*mib)
	m := interrupted{site: s, source: dir + "/image", destination: dir + "/moved", made: made}
	before, err := os.Stat(m.source)
	if err != nil {
		t.Fatal(err)
	}
	m.id = s.want(0, s.move(m.source, m.destination, "--discard-src")).last().ID
	s.want(0, s.run("reverse", m.id))
	m.wantBack(before)
}

// fault 63 on the way back.
func TestReverseKilled(t *testing.T) {
	t.Parallel()
	m, before := newMigration(t, 96*mib, 122)
	m.goOn(syscall.SIGKILL, 8)
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	kills := 0
	for range 12 {
		r := m.start("reverse", m.id, "--progress=json")
		time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
		o := r.kill()
		if o.code == 0 {
			break
		}
		if o.code != -1 {
			t.Fatalf("a reversal that was to be killed ended by itself: %v", o)
		}
		kills++
	}
	if kills == 0 {
		t.Fatal("the reversal has ended before it was killed once")
	}
	// Half way back there is no way forward.
	m.want(0, m.run("reverse", m.id))
	m.wantBack(before)
}

func TestAHalfReversedMigrationDoesNotGoForward(t *testing.T) {
	t.Parallel()
	m, before := newMigration(t, 96*mib, 123)
	m.goOn(syscall.SIGKILL, 8)
	r := m.start("reverse", m.id, "--progress=json")
	r.awaitStarted()
	if o := r.kill(); o.code == 0 {
		t.Fatalf("the reversal has ended already: %v", o)
	}
	m.wantMessage(m.wantMoveRefused(m.source, m.destination, slowly...), "reverse")
	m.wantRefused("cancel", m.id)
	m.want(0, m.run("resume", m.id)) // goes on in the direction it had
	m.wantBack(before)
}

// What a reversal has to put in place of a volume of a pool, and of devices.
func TestReverseOfOtherKinds(t *testing.T) {
	t.Run("volume", func(t *testing.T) {
		t.Parallel()
		m, before := newMigration(t, 24*mib, 124)
		m.thinctl("pool", "create", "tank", "--dir", m.path("tank"), "--size", "1GiB")
		m.id = m.want(0, m.move(m.source, "tank/vm", "--discard-src")).last().ID
		m.want(0, m.run("reverse", m.id))
		m.wantBack(before)
		if list := m.thinctl("list", "--json"); strings.Contains(list, `"vm"`) {
			t.Errorf("the volume is still there: %s", list)
		}
	})
	t.Run("loop devices", func(t *testing.T) {
		t.Parallel()
		m, before := newMigration(t, 24*mib, 125)
		source, destination := attach(t, m.source), attach(t, sparse(t, m.path("disk"), 24*mib))
		m.id = m.want(0, m.move(source, destination, "--discard-src")).last().ID
		m.want(0, m.run("reverse", m.id))
		m.wantBack(before)
		if at := firstData(t, m.path("disk")); at >= 0 {
			t.Errorf("the destination still holds something at %d", at)
		}
	})
	t.Run("existing file", func(t *testing.T) {
		t.Parallel()
		m, before := newMigration(t, 24*mib, 126)
		sparse(t, m.destination, 24*mib)
		m.id = m.want(0, m.move(m.source, m.destination, "--discard-src")).last().ID
		m.want(0, m.run("reverse", m.id))
		if !exists(m.destination) || firstData(t, m.destination) >= 0 {
			t.Error("a file that was there before has to stay, as empty as it was")
		}
		m.remove(m.destination)
		m.wantBack(before)
	})
}

// fault 95: a migration that has discarded nothing can be cancelled; another can not.
func TestFault95Cancel(t *testing.T) {
	t.Run("before discards", func(t *testing.T) {
		t.Parallel()
		m, before := newMigration(t, 48*mib, 127)
		r := m.startMove(m.source, m.destination, slowly[1:]...)
		m.id = r.awaitCommitted(2).ID
		r.kill()
		m.want(0, m.run("cancel", m.id))
		m.wantBack(before)
		m.wantRefused("resume", m.id)
		m.want(0, m.move(m.source, m.destination, "--discard-src"))
		wantWhole(t, m.destination, m.made)
	})
	t.Run("after discards", func(t *testing.T) {
		t.Parallel()
		m := interrupt(t, syscall.SIGKILL)
		m.wantMessage(m.wantRefused("cancel", m.id), "reverse")
		m.finish()
	})
	t.Run("after the end", func(t *testing.T) {
		t.Parallel()
		m, _ := newMigration(t, 8*mib, 128)
		m.id = m.want(0, m.move(m.source, m.destination, "--discard-src")).last().ID
		m.wantRefused("cancel", m.id)
		wantWhole(t, m.destination, m.made)
	})
	t.Run("while it runs", func(t *testing.T) {
		t.Parallel()
		m, _ := newMigration(t, 24*mib, 129)
		r := m.startMove(m.source, m.destination, slowly...)
		m.id = r.awaitCommitted(1).ID
		r.signal(syscall.SIGSTOP) // so that it does not end meanwhile
		waitStopped(t, r)
		if o := m.run("cancel", m.id); o.code != 4 {
			t.Errorf("%v", o)
		}
		r.signal(syscall.SIGCONT)
		m.want(0, r.wait())
		wantWhole(t, m.destination, m.made)
	})
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	m, _ := newMigration(t, 48*mib, 130)
	r := m.startMove(m.source, m.destination, slowly...)
	m.id = r.awaitCommitted(2).ID
	m.want(0, m.run("pause", m.id))
	if !r.hasEnded() {
		time.Sleep(100 * time.Millisecond) // its last words
	}
	if !r.hasEnded() {
		t.Error("pause has returned, and the process is still there")
	}
	o := m.want(3, r.wait())
	wantEvents(t, o, "stopped")
	m.wantRefused("pause", m.id)
	next := m.want(0, m.run("resume", m.id, "--progress=json"))
	wantEvents(t, next, "done")
	if next.events[0].BytesCopied != o.last().BytesCopied {
		t.Errorf("copied again: stopped at %d, went on at %d", o.last().BytesCopied, next.events[0].BytesCopied)
	}
	wantWhole(t, m.destination, m.made)
	wantEmptied(t, m.source, m.made) // resume goes on with --discard-src
}

// Resume works from any directory, also where the paths were relative.
func TestResumeFromAnotherDirectory(t *testing.T) {
	t.Parallel()
	m, _ := newMigration(t, 48*mib, 131)
	args := append([]string{"--state-dir", m.state, "--progress=json"}, slowly...)
	r := m.launch(commandIn(m.dir, append(args, "image", "./moved")...))
	m.id = r.awaitCommitted(2).ID
	r.kill()
	m.want(0, m.launch(commandIn("/", "--state-dir", m.state, "resume", m.id)).wait())
	wantWhole(t, m.destination, m.made)
	wantEmptied(t, m.source, m.made)
	if left, err := filepath.Glob(m.path(".*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
