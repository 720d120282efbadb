package hydrate_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"decant/clone"
	"decant/clone/clonetest"
	"decant/hydrate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// setup is a device of n regions of 4 KiB that are all data.
func setup(n int) clonetest.Setup {
	s := clonetest.Setup{Seed: 7, DeviceBytes: int64(n) * 4096, RegionBytes: 4096, BufferBytes: 4096, BatchRegions: 2}
	for range n {
		s.Content = append(s.Content, clonetest.Data)
	}
	return s
}

func options() hydrate.Options {
	return hydrate.Options{
		ThresholdRegions: 4, BatchRegions: 2, CommitPeriod: time.Millisecond, CommitBytes: 16 << 10, DiscardSource: true,
	}
}

// open opens a clone that is checked when the test ends.
func open(t testing.TB, cfg clone.Config) *clone.Clone {
	t.Helper()
	c, err := clone.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Check(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestRunMovesEverything(t *testing.T) {
	m := clonetest.New(setup(100))
	if err := hydrate.Run(context.Background(), open(t, m.Config()), options()); err != nil {
		t.Fatal(err)
	}
	if err := m.Finished(); err != nil {
		t.Error(err)
	}
}

func TestRunKeepsSourceWithoutDiscard(t *testing.T) {
	m := clonetest.New(setup(20))
	c := open(t, m.Config())
	o := options()
	o.DiscardSource = false
	if err := hydrate.Run(context.Background(), c, o); err != nil {
		t.Fatal(err)
	}
	if s := c.Status(); s.Hydrated != 20 || s.Discarded != 0 {
		t.Errorf("%d regions hydrated and %d discarded, want 20 and 0", s.Hydrated, s.Discarded)
	}
}

// Whatever the limits are, a run ends, and ends whole. Fault 63: also after a crash
// at any moment and a second run.
func TestRunSurvivesCrashUnderAnyLimits(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := clonetest.Setups().Draw(rt, "setup")
		o := hydrate.Options{
			ThresholdRegions: rapid.Uint64Range(1, 9).Draw(rt, "threshold"),
			BatchRegions:     rapid.Uint64Range(1, 9).Draw(rt, "batch"),
			CommitPeriod:     time.Duration(rapid.Int64Range(1, 3000).Draw(rt, "period µs")) * time.Microsecond,
			CommitBytes:      rapid.Int64Range(1, 100<<10).Draw(rt, "commit bytes"),
			DiscardSource:    true,
		}
		m := clonetest.New(s)
		m.CrashAfter(rapid.IntRange(1, 60).Draw(rt, "crash after"))
		c, err := m.Open()
		if err == nil {
			err = hydrate.Run(context.Background(), c, o)
		}
		if err != nil && !m.PowerIsCut() {
			rt.Fatal(err)
		}
		m = m.Crash(rand.New(rand.NewPCG(1, rapid.Uint64().Draw(rt, "crash seed"))), clonetest.CrashForm(rapid.IntRange(0, 2).Draw(rt, "form")))
		if err := m.Owners(); err != nil {
			rt.Fatal(err)
		}
		if c, err = m.Open(); err != nil {
			rt.Fatal(err)
		}
		if err := hydrate.Run(context.Background(), c, o); err != nil {
			rt.Fatal(err)
		}
		if err := errors.Join(m.Finished(), c.Check()); err != nil {
			rt.Fatal(err)
		}
	})
}

var errStop = errors.New("somebody pressed a key")

func TestCancelledRunCommitsWhatItCopied(t *testing.T) {
	m := clonetest.New(setup(200))
	ctx, cancel := context.WithCancelCause(context.Background())
	var once sync.Once
	m.Meanwhile = func(op clonetest.Op) {
		if m.Calls() > 40 {
			once.Do(func() { cancel(errStop) })
		}
	}
	c := open(t, m.Config())
	o := options()
	o.CommitPeriod, o.CommitBytes = time.Hour, 1<<30 // no commit but the last one
	if err := hydrate.Run(ctx, c, o); !errors.Is(err, errStop) {
		t.Fatalf("run ended with %v, want the cause", err)
	}
	s := c.Status()
	if s.Dirty != 0 || s.Hydrating != 0 {
		t.Errorf("%d regions are dirty and %d hydrating after the end", s.Dirty, s.Hydrating)
	}
	if s.Hydrated == 0 || s.Hydrated == s.Regions || s.CopiedBytes != int64(s.Hydrated)*4096 {
		t.Errorf("%d of %d regions hydrated, %d bytes copied", s.Hydrated, s.Regions, s.CopiedBytes)
	}
}

// Fault 24: what cannot be read is listed and stays, the rest is moved.
func TestUnreadableRegionsAreListed(t *testing.T) {
	m := clonetest.New(setup(30))
	cfg := m.Config()
	cfg.Source = badSource{cfg.Source, 5 * 4096, 7 * 4096}
	c := open(t, cfg)
	err := hydrate.Run(context.Background(), c, options())
	var incomplete *hydrate.IncompleteError
	if !errors.As(err, &incomplete) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("run ended with %v, want an IncompleteError with EIO", err)
	}
	if len(incomplete.Bad) != 2 || incomplete.Bad[0].Range.First+incomplete.Bad[1].Range.First != 11 {
		t.Errorf("bad regions %v, want 5 and 6", incomplete.Bad)
	}
	if s := c.Status(); s.Hydrated != 28 || s.Discarded != 28 {
		t.Errorf("%d regions hydrated and %d discarded, want 28 of each", s.Hydrated, s.Discarded)
	}
}

// badSource cannot be read from one offset up to another.
type badSource struct {
	clone.Source
	from, to int64
}

func (s badSource) ReadAt(p []byte, off int64) (int, error) {
	if off < s.to && off+int64(len(p)) > s.from {
		return 0, syscall.EIO
	}
	return s.Source.ReadAt(p, off)
}

// A source that has vanished is no list of bad regions.
func TestVanishedSourceEndsTheRun(t *testing.T) {
	m := clonetest.New(setup(30))
	m.Inject(clonetest.Fault{Call: 10, Err: syscall.ENXIO, Forever: true})
	c := open(t, m.Config())
	err := hydrate.Run(context.Background(), c, options())
	if err == nil || !errors.Is(err, syscall.ENXIO) {
		t.Fatalf("run ended with %v, want ENXIO", err)
	}
}

// disk is a hydrate.Space of a few regions: copies take from it, and what was
// discarded comes back when it is reclaimed, late times after the discard.
type disk struct {
	mu       sync.Mutex
	free     int64
	lowest   int64
	given    uint64 // regions given back
	late     int
	reclaims int
	clone    *clone.Clone
}

func (d *disk) AvailableBytes() (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.measure()
	return d.free + int64(d.given)*4096 - d.clone.Status().CopiedBytes, nil
}

func (d *disk) measure() {
	d.lowest = min(d.lowest, d.free+int64(d.given)*4096-d.clone.Status().CopiedBytes)
}

func (d *disk) Reclaim() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.reclaims++; d.reclaims > d.late {
		d.given, d.reclaims = d.clone.Status().Discarded, 0
	}
	return nil
}

func (d *disk) Shortage() hydrate.Shortage {
	return hydrate.Shortage{What: "the disk", Patience: 10 * time.Second}
}

func (d *disk) Settle(int64) (bool, error) { return true, nil }
func (d *disk) Wait(context.Context)       { time.Sleep(100 * time.Millisecond) }

func (d *disk) Sample() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.measure()
}

func TestGovernorNeverOverdraws(t *testing.T) { synctest.Test(t, testGovernorNeverOverdraws) }

func testGovernorNeverOverdraws(t *testing.T) {
	for _, regions := range []int64{1, 2, 3, 7, 40} {
		m := clonetest.New(setup(60))
		c := open(t, m.Config())
		space := &disk{free: regions * 4096, lowest: regions * 4096, late: 2, clone: c}
		o := options()
		o.Space = space
		if err := hydrate.Run(context.Background(), c, o); err != nil {
			t.Fatalf("room for %d regions: %v", regions, err)
		}
		if err := m.Finished(); err != nil {
			t.Error(err)
		}
		if space.lowest < 0 {
			t.Errorf("room for %d regions: overdrawn by %d bytes", regions, -space.lowest)
		}
	}
}

func TestNoSpaceStopsTheRun(t *testing.T) { synctest.Test(t, testNoSpaceStopsTheRun) }

func testNoSpaceStopsTheRun(t *testing.T) {
	m := clonetest.New(setup(10))
	c := open(t, m.Config())
	o := options()
	o.Space = &disk{free: 4 * 4096, late: 1 << 30, clone: c}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := hydrate.Run(ctx, c, o); !errors.Is(err, hydrate.ErrNoSpace) {
		t.Fatalf("run ended with %v, want ErrNoSpace", err)
	}
	if s := c.Status(); s.Hydrated != 4 || s.Discarded != 4 {
		t.Errorf("%d regions hydrated and %d discarded, want the 4 that fitted", s.Hydrated, s.Discarded)
	}
}

// A write that finds no room in spite of everything is reported as such.
func TestFullDestinationIsNoSpace(t *testing.T) {
	m := clonetest.New(setup(10))
	cfg := m.Config()
	cfg.Destination = fullDestination{cfg.Destination}
	if err := hydrate.Run(context.Background(), open(t, cfg), options()); !errors.Is(err, hydrate.ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("run ended with %v, want ErrNoSpace and ENOSPC", err)
	}
}

type fullDestination struct{ clone.Destination }

func (fullDestination) WriteAt([]byte, int64) (int, error) { return 0, syscall.ENOSPC }

// At no time may more than two transactions' bytes exist twice.
func TestAtMostTwoTransactionsExistTwice(t *testing.T) {
	m := clonetest.New(setup(400))
	c := open(t, m.Config())
	o := options()
	o.CommitPeriod = time.Hour
	var most, mostDirty int64
	var mu sync.Mutex
	m.Meanwhile = func(clonetest.Op) {
		s := c.Status()
		mu.Lock()
		defer mu.Unlock()
		most = max(most, s.CopiedBytes-int64(s.Discarded)*4096)
		mostDirty = max(mostDirty, s.CopiedBytes-int64(s.Hydrated)*4096)
	}
	if err := hydrate.Run(context.Background(), c, o); err != nil {
		t.Fatal(err)
	}
	if limit := 2 * o.CommitBytes; most > limit || most < o.CommitBytes/2 {
		t.Errorf("%d bytes existed twice, want %d to %d", most, o.CommitBytes/2, limit)
	}
	if mostDirty > o.CommitBytes {
		t.Errorf("a crash would have made us copy %d bytes again, want at most %d", mostDirty, o.CommitBytes)
	}
}

func TestObserverSeesEveryTransaction(t *testing.T) {
	m := clonetest.New(setup(64))
	c := open(t, m.Config())
	o := options()
	seen := &observer{}
	o.Observer = seen
	if err := hydrate.Run(context.Background(), c, o); err != nil {
		t.Fatal(err)
	}
	if seen.committed != 64*4096 || seen.discarded != 64 {
		t.Errorf("saw %d bytes committed and %d regions discarded", seen.committed, seen.discarded)
	}
}

type observer struct {
	committed int64
	discarded uint64
}

func (o *observer) Committed(copiedBytes int64)    { o.committed += copiedBytes }
func (o *observer) Discarded(done clone.Committed) { o.discarded += done.Regions() }
func (o *observer) Waiting(string)                 {}
func (o *observer) Bad(hydrate.BadRegion)          {}

func TestBadOptionsAreRefused(t *testing.T) {
	good := options()
	for name, change := range map[string]func(*hydrate.Options){
		"threshold":     func(o *hydrate.Options) { o.ThresholdRegions = 0 },
		"batch":         func(o *hydrate.Options) { o.BatchRegions = 0 },
		"commit bytes":  func(o *hydrate.Options) { o.CommitBytes = 0 },
		"commit period": func(o *hydrate.Options) { o.CommitPeriod = 0 },
	} {
		o := good
		change(&o)
		m := clonetest.New(setup(2))
		if err := hydrate.Run(context.Background(), open(t, m.Config()), o); err == nil {
			t.Errorf("no %s: accepted", name)
		}
	}
}
