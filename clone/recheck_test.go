package clone_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"testing"

	"decant/clone"
	"decant/clone/clonetest"
	"decant/journal"
	"decant/region"
)

// committed is a machine on which a process has hydrated and committed all regions,
// discarded those of discard, and died.
func committed(t *testing.T, s clonetest.Setup, discard region.Range) *clonetest.Machine {
	t.Helper()
	m := clonetest.New(s)
	c := open(t, m)
	if !discard.Empty() {
		hydrate(t, c, discard)
		commit(t, c)
		if err := c.DiscardSource(context.Background(), c.TakeCommitted()); err != nil {
			t.Fatal(err)
		}
	}
	hydrate(t, c, c.Geometry.All())
	commit(t, c)
	return m.Restart()
}

// lose makes the destination hold something else than was flushed to it, as a thin
// pool may after a repair of its metadata.
func lose(t *testing.T, m *clonetest.Machine, nr region.Nr) {
	t.Helper()
	cfg := m.Config()
	off, n := cfg.Geometry.Bytes(region.Range{First: nr, Count: 1})
	if _, err := cfg.Destination.WriteAt(bytes.Repeat([]byte{0x77}, int(n)), off); err != nil {
		t.Fatal(err)
	}
	if err := cfg.Destination.Flush(); err != nil {
		t.Fatal(err)
	}
}

// openUnchecked opens a clone without Recheck.
func openUnchecked(t *testing.T, cfg clone.Config) *clone.Clone {
	t.Helper()
	c, err := clone.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// fault 38: what an earlier process has committed is not discarded before it was read
// back; what is noted as discarded is discarded again.
func TestFault38NothingIsHandedOutUnchecked(t *testing.T) {
	m := committed(t, plain(4), region.Range{Count: 1})
	c := openUnchecked(t, m.Config())
	if n := c.TakeCommitted().Regions(); n != 1 {
		t.Errorf("%d regions handed out, want the one that was discarded already", n)
	}
	if again, err := c.Recheck(context.Background()); err != nil || len(again) != 0 {
		t.Errorf("recheck: %v, %v", again, err)
	}
	if n := c.TakeCommitted().Regions(); n != 3 {
		t.Errorf("%d regions handed out, want the other 3", n)
	}
	if err := c.Check(); err != nil {
		t.Error(err)
	}
}

// fault 38, fault 39: what the destination has lost is copied again, since the source
// holds it; nothing of it is discarded before that was committed.
func TestFault38LostRegionsAreCopiedAgain(t *testing.T) {
	for name, change := range map[string]func(*clonetest.Setup){
		"plain":           func(*clonetest.Setup) {},
		"verify":          func(s *clonetest.Setup) { s.Verify = true },
		"knows its holes": func(s *clonetest.Setup) { s.KnownZero, s.Sparse = true, true },
		"small buffers":   func(s *clonetest.Setup) { s.BufferBytes = 4 << 10 },
		"zeros and holes": func(s *clonetest.Setup) {
			for i := range s.Content {
				s.Content[i] = clonetest.Content(i % 2) // holes and zeros
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := plain(5)
			change(&s)
			m := committed(t, s, region.Range{Count: 1})
			lose(t, m, 1)
			lose(t, m, 3)
			c := openUnchecked(t, m.Config())
			again, err := c.Recheck(context.Background())
			if want := fmt.Sprint([]region.Range{{First: 1, Count: 1}, {First: 3, Count: 1}}); err != nil || fmt.Sprint(again) != want {
				t.Fatalf("recheck: %v, %v", again, err)
			}
			if err := errors.Join(c.Check(), m.ReadBack(c, 0, s.DeviceBytes)); err != nil {
				t.Error(err)
			}
			if err := c.DiscardSource(context.Background(), c.TakeCommitted()); err != nil {
				t.Error(err)
			}
			if err := errors.Join(m.Drive(c, random(1, 1)), c.Check(), m.Finished()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A crash between the copy and its commit leaves the journal counting on what the
// destination does not hold: the next process finds that out again.
func TestFault38CrashWhileLostRegionsAreCopied(t *testing.T) {
	s := plain(4)
	for n := 1; ; n++ {
		m := committed(t, s, region.Range{})
		lose(t, m, 2)
		begun := m.Steps()
		m.CrashAfter(begun + n)
		driveUntilCut(t, m, random(2, uint64(n)))
		if !m.PowerIsCut() {
			break
		}
		for _, form := range clonetest.CrashForms {
			finish(t, m.Crash(random(3, uint64(n)), form), random(4, uint64(n)))
		}
	}
}

// fault 38: bytes that neither end holds any more end all discards. What the source
// still holds stays there.
func TestFault38LostOnBothEnds(t *testing.T) {
	s := plain(4)
	m := committed(t, s, region.Range{})
	lose(t, m, 1)
	cfg := m.Config()
	cfg.Source = damaged{cfg.Source}
	c := openUnchecked(t, cfg)
	_, err := c.Recheck(context.Background())
	var lost *clone.LostError
	if !errors.Is(err, clone.ErrLost) || !errors.As(err, &lost) || len(lost.Offsets) != 1 || lost.Offsets[0] != s.RegionBytes {
		t.Fatalf("recheck: %v", err)
	}
	if c.Mode() != clone.ReadOnly {
		t.Error("the clone is still read-write")
	}
	changesNothing(t, m, c)
	if _, err := c.Recheck(context.Background()); err == nil {
		t.Error("a second recheck ended well")
	}
}

// damaged is a source that holds other bytes than it once did.
type damaged struct{ clone.Source }

func (d damaged) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.Source.ReadAt(p, off)
	p[0] ^= 1
	return n, err
}

// What cannot be read is neither trusted nor given up; another call goes on.
func TestRecheckEndsAtErrors(t *testing.T) {
	broken := errors.New("broken")
	canceled, cancel := context.WithCancelCause(context.Background())
	cancel(broken)
	for name, change := range map[string]func(*clone.Config) context.Context{
		"journal": func(cfg *clone.Config) context.Context {
			cfg.Journal = forgetful{cfg.Journal, broken}
			return context.Background()
		},
		"destination": func(cfg *clone.Config) context.Context {
			cfg.Destination = unreadable{cfg.Destination, broken}
			return context.Background()
		},
		"context": func(*clone.Config) context.Context { return canceled },
	} {
		t.Run(name, func(t *testing.T) {
			m := committed(t, plain(3), region.Range{})
			cfg := m.Config()
			c := openUnchecked(t, cfg)
			ctx := change(&c.Config)
			if _, err := c.Recheck(ctx); !errors.Is(err, broken) {
				t.Errorf("recheck: %v", err)
			}
			if n := c.TakeCommitted().Regions(); n != 0 {
				t.Errorf("%d regions handed out", n)
			}
			c.Config = cfg
			if _, err := c.Recheck(context.Background()); err != nil {
				t.Error(err)
			}
			if n := c.TakeCommitted().Regions(); n != 3 {
				t.Errorf("%d regions handed out, want 3", n)
			}
		})
	}
}

// forgetful is a journal whose checksums cannot be read.
type forgetful struct {
	clone.Journal
	err error
}

func (f forgetful) Checksums(journal.Direction, region.Range) iter.Seq2[journal.Checksum, error] {
	return func(yield func(journal.Checksum, error) bool) { yield(journal.Checksum{}, f.err) }
}

// unreadable is a destination that fails reads.
type unreadable struct {
	clone.Destination
	err error
}

func (u unreadable) ReadAt([]byte, int64) (int, error) { return 0, u.err }

// A long list is cut short in the message and whole in the error.
func TestLostErrorIsShort(t *testing.T) {
	err := &clone.LostError{Offsets: make([]int64, 1000)}
	if text := err.Error(); len(text) > 200 || !strings.Contains(text, "1000 regions") || !strings.Contains(text, "992 more") {
		t.Error(text)
	}
}
