package clonetest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"decant/journal"
	"decant/region"
)

// blank is a machine with an image of data and an empty destination.
func blank() *Machine {
	return New(Setup{
		Seed: 1, Content: []Content{Data, Data, Data, Data}, DeviceBytes: 16 << 10, RegionBytes: 4 << 10,
		BufferBytes: 4 << 10, BatchRegions: 1, CommitEvery: 1,
	})
}

func fixed() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

func onDestination(m *Machine, n int) []byte { return m.dst.durable[:n] }

func TestUnflushedWriteIsVolatile(t *testing.T) {
	m := blank()
	d := m.Config().Destination
	p := bytes.Repeat([]byte{7}, 8192)
	if _, err := d.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(p))
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, p) {
		t.Errorf("a write does not show before the flush: %v", err)
	}
	if after := m.Crash(fixed(), LoseAll); !allZero(onDestination(after, 8192)) {
		t.Error("an unflushed write survived where all is lost")
	}
	if after := m.Crash(fixed(), KeepAll); !bytes.Equal(onDestination(after, 8192), p) {
		t.Error("an unflushed write is gone where all is kept")
	}
}

func TestFlushedWriteSurvives(t *testing.T) {
	m := blank()
	d := m.Config().Destination
	p := bytes.Repeat([]byte{7}, 8192)
	if _, err := d.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, form := range CrashForms {
		if after := m.Crash(fixed(), form); !bytes.Equal(onDestination(after, 8192), p) {
			t.Errorf("%v: a flushed write is gone", form)
		}
	}
}

// A flush covers what was written before it began, and no more.
func TestFlushCoversWhatCameBefore(t *testing.T) {
	m := blank()
	d := m.Config().Destination
	m.Meanwhile = func(op Op) {
		if op != DestinationFlush {
			return
		}
		if _, err := d.WriteAt([]byte{9}, 4096); err != nil {
			t.Error(err)
		}
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	if after := m.Crash(fixed(), LoseAll); !allZero(onDestination(after, 8192)) {
		t.Error("a write during the flush was covered by it")
	}
}

// Mixed crashes give every outcome: lost, kept, torn at sectors, and in the wrong
// order.
func TestMixedCrashGivesEveryOutcome(t *testing.T) {
	m := blank()
	d := m.Config().Destination
	for _, b := range []byte{1, 2} {
		if _, err := d.WriteAt(bytes.Repeat([]byte{b}, 1024), 0); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[[2]byte]bool{}
	rng := fixed()
	for range 1000 {
		p := onDestination(m.Crash(rng, Mixed), 1024)
		for _, sector := range [][]byte{p[:512], p[512:]} {
			if !bytes.Equal(sector, bytes.Repeat(sector[:1], 512)) {
				t.Fatal("a sector is torn")
			}
		}
		seen[[2]byte{p[0], p[512]}] = true
	}
	if len(seen) != 9 {
		t.Errorf("outcomes %v, want each of {0,1,2} in both sectors", seen)
	}
}

func TestNothingChangesWithoutPower(t *testing.T) {
	m := blank()
	cfg := m.Config()
	m.CrashAfter(1)
	if _, err := cfg.Destination.WriteAt([]byte{1}, 0); err != nil || !m.PowerIsCut() {
		t.Fatalf("step 1: %v, cut %v", err, m.PowerIsCut())
	}
	_, readErr := cfg.Source.ReadAt(make([]byte, 1), 0)
	_, writeErr := cfg.Destination.WriteAt([]byte{1}, 4096)
	_, loadErr := cfg.Journal.Load()
	_, commitErr := cfg.Journal.Commit(journal.Transaction{Hydrated: region.NewSet()})
	for i, err := range []error{
		readErr, writeErr, loadErr, commitErr, cfg.Source.Discard(0, 4096), cfg.Destination.Flush(),
		cfg.Destination.Zero(0, 4096), cfg.Journal.MarkDiscarded(nil), cfg.Marker.Mark(1),
	} {
		if !errors.Is(err, ErrPowerCut) {
			t.Errorf("operation %d without power: %v", i, err)
		}
	}
	if m.Steps() != 1 || len(m.dst.pending) != 1 || len(m.log) != 0 || m.markNow != 0 || m.punched[0] {
		t.Error("something changed without power")
	}
}

// A journal commit and a mark are durable when they have returned, and a discard
// never is.
func TestWhatIsDurableWithoutFlush(t *testing.T) {
	m := blank()
	cfg := m.Config()
	if _, err := cfg.Journal.Commit(journal.Transaction{Hydrated: region.NewSet(region.Range{Count: 1})}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(cfg.Marker.Mark(1), cfg.Source.Discard(0, 4096)); err != nil {
		t.Fatal(err)
	}
	after := m.Crash(fixed(), LoseAll)
	if s := replay(after.log); s.Tx != 1 || after.markDurable != 1 {
		t.Errorf("transaction %d, mark %d; want 1 and 1", s.Tx, after.markDurable)
	}
	if after.punched[0] || after.sourceNow[0] == garbageByte {
		t.Error("a discard survived where all is lost")
	}
	if after := m.Crash(fixed(), KeepAll); !after.punched[0] || after.sourceNow[0] != garbageByte {
		t.Error("a discard is gone where all is kept")
	}
}

// The checks of the machine see what they are there for.
func TestMachineSeesViolations(t *testing.T) {
	for name, do := range map[string]func(*Machine) error{
		"discard before the commit": func(m *Machine) error { return m.Config().Source.Discard(0, 4096) },
		"commit before the copy": func(m *Machine) error {
			_, err := m.Config().Journal.Commit(journal.Transaction{Hydrated: region.NewSet(region.Range{Count: 1})})
			return err
		},
		"mark going down": func(m *Machine) error {
			return errors.Join(m.Config().Marker.Mark(2), m.Config().Marker.Mark(1))
		},
		"discard during a read": func(m *Machine) error {
			m.Meanwhile = func(op Op) {
				if op == SourceRead {
					_ = m.Config().Source.Discard(0, 4096) // seen below
				}
			}
			_, err := m.Config().Source.ReadAt(make([]byte, 100), 0)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := blank()
			if err := do(m); err != nil {
				t.Fatal(err)
			}
			if err := m.Crash(fixed(), KeepAll).Owners(); !errors.Is(err, ErrViolation) {
				t.Errorf("not seen: %v", err)
			}
		})
	}
	m := blank()
	if err := m.Config().Source.Discard(100, 4096); err == nil || !errors.Is(m.Violations(), ErrViolation) {
		t.Errorf("discard of a part of a region: %v, %v", err, m.Violations())
	}
	if err := m.Finished(); !errors.Is(err, ErrViolation) {
		t.Errorf("a migration that has not begun counts as finished: %v", err)
	}
}

// A run driven by one goroutine is the same again.
func TestDriveIsDeterministic(t *testing.T) {
	setup := Setups().Example(7)
	var steps, calls [2]int
	for i := range 2 {
		m := New(setup)
		c, err := m.Open()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Check(); err != nil {
				t.Error(err)
			}
		})
		if err := errors.Join(m.Drive(c, fixed()), m.Finished()); err != nil {
			t.Fatal(err)
		}
		steps[i], calls[i] = m.Steps(), m.Calls()
	}
	if steps[0] != steps[1] || calls[0] != calls[1] {
		t.Errorf("steps %v and calls %v differ", steps, calls)
	}
}
