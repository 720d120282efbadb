package service

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"decant/hydrate"
	"decant/loopdev"
	"decant/thin"
)

// fakePool is a pool with one volume.
type fakePool struct {
	mu      sync.Mutex
	status  thin.TargetStatus
	mapped  int64
	events  uint32
	woken   chan struct{} // closed at an event
	commits int
}

func newFakePool(dataBlocks, used int64) *fakePool {
	return &fakePool{
		woken: make(chan struct{}),
		status: thin.TargetStatus{
			DataBlocks: dataBlocks, DataUsedBlocks: used, MetadataBlocks: 1024, MetadataUsedBlocks: 112,
			Mode: thin.ReadWrite, DiscardPassdown: true,
		},
	}
}

func (p *fakePool) Status(commit bool) (thin.TargetStatus, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if commit {
		p.commits++
	}
	return p.status, nil
}

func (p *fakePool) MappedBytes() (int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mapped, nil
}

func (p *fakePool) EventNumber() (uint32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.events, nil
}

func (p *fakePool) WaitEvent(ctx context.Context, after uint32) error {
	p.mu.Lock()
	woken, events := p.woken, p.events
	p.mu.Unlock()
	if events != after {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-woken:
		return nil
	}
}

// change changes the pool; with an event, if it is one.
func (p *fakePool) change(event bool, change func(*thin.TargetStatus)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.status)
	if event {
		p.events++
		close(p.woken)
		p.woken = make(chan struct{})
	}
}

func storeOf(p *fakePool) *thinStore {
	return &thinStore{
		kernelPool: p, device: "/dev/mapper/vg--0-my--pool-tpool", uuid: "LVM-abc-tpool",
		volume: "/dev/mapper/vg--0-vol", blockBytes: 64 * kib, isExact: true,
	}
}

// What is kept in reserve is fixed by what there was first; the scarcer of data and
// metadata counts.
func TestThinStoreMeasures(t *testing.T) {
	t.Parallel()
	p := newFakePool(16000, 0)
	s := storeOf(p)
	first, err := s.measure()
	if err != nil || first.reserveBytes != 1000*64*kib {
		t.Errorf("%+v, %v", first, err)
	}
	if first.availableBytes != 15000*64*kib || first.isShort != "data blocks of pool vg-0/my-pool" {
		t.Errorf("%+v", first)
	}
	for name, c := range map[string]struct {
		change func(*thin.TargetStatus)
		want   int64
		short  string
	}{
		"less data":     {func(s *thin.TargetStatus) { s.DataUsedBlocks = 15500 }, -500 * 64 * kib, "data blocks"},
		"less metadata": {func(s *thin.TargetStatus) { s.MetadataUsedBlocks = 1024 - 114 - 2 }, 2 * 126 * 64 * kib, "metadata blocks"},
		"no metadata":   {func(s *thin.TargetStatus) { s.MetadataUsedBlocks = 1024 - 114 }, 0, "metadata blocks"},
		"out of space":  {func(s *thin.TargetStatus) { s.Mode = thin.OutOfDataSpace }, 0, "data blocks"},
	} {
		p.status = newFakePool(16000, 0).status
		c.change(&p.status)
		got, err := s.measure()
		if err != nil || got.availableBytes != c.want || !strings.HasPrefix(got.isShort, c.short) || got.reserveBytes != first.reserveBytes {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// fault 38: a pool in trouble is an error that says what mends it.
func TestFault38ThinStoreInTrouble(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*thin.TargetStatus){
		"read-only":   func(s *thin.TargetStatus) { s.Mode = thin.ReadOnly },
		"failed":      func(s *thin.TargetStatus) { s.Mode = thin.Failed },
		"needs_check": func(s *thin.TargetStatus) { s.NeedsCheck = true },
	} {
		p := newFakePool(1000, 0)
		change(&p.status)
		_, err := storeOf(p).measure()
		var trouble *poolError
		if !errors.As(err, &trouble) || !strings.Contains(err.Error(), "pool vg-0/my-pool") || !strings.Contains(trouble.hint(), "lvconvert --repair vg-0/my-pool") {
			t.Errorf("%s: %v", name, err)
		}
		if err := storeOf(p).check(); !errors.As(err, &trouble) {
			t.Errorf("%s: the check says %v", name, err)
		}
	}
	other := &thinStore{device: "/dev/mapper/tank", uuid: "something"}
	if hint := (&poolError{pool: other}).hint(); !strings.Contains(hint, "thin_check --clear-needs-check-flag") || strings.Contains(hint, "lv") {
		t.Errorf("%q", hint)
	}
}

// A meter of a destination that is a volume of the pool.
func meterOf(p *fakePool) *meter {
	return &meter{takes: &chain{links: []link{{store: storeOf(p)}}}, gives: &chain{}, returner: &returner{}}
}

// fault 43: who waits for a pool is woken by its events, and looks again by itself for
// what is none.
func TestFault43MeterWakesAtEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newFakePool(1000, 990)
		m := meterOf(p)
		if n, err := m.AvailableBytes(); err != nil || n > 0 {
			t.Fatalf("%d bytes, %v", n, err)
		}
		if s := m.Shortage(); s.What != "data blocks of pool vg-0/my-pool" || s.Patience != poolPatience {
			t.Errorf("%+v", s)
		}
		begun := time.Now()
		m.Wait(context.Background())
		if took := time.Since(begun); took != poolPoll {
			t.Errorf("looks again after %v", took)
		}
		begun = time.Now()
		go func() {
			time.Sleep(poolPoll / 4)
			p.change(true, func(s *thin.TargetStatus) { s.DataBlocks = 2000 })
		}()
		m.Wait(context.Background())
		if took := time.Since(begun); took != poolPoll/4 {
			t.Errorf("woken after %v", took)
		}
		// An event between the look and the wait is not lost.
		begun = time.Now()
		m.Wait(context.Background())
		if took := time.Since(begun); took != 0 {
			t.Errorf("an event of the past is waited for: %v", took)
		}
		if n, err := m.AvailableBytes(); err != nil || n < 900*64*kib {
			t.Errorf("%d bytes, %v", n, err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		begun = time.Now()
		m.Wait(ctx)
		if took := time.Since(begun); took != 0 {
			t.Errorf("a wait that was cancelled took %v", took)
		}
	})
}

func TestMeterOfUnboundedDestination(t *testing.T) {
	t.Parallel()
	m := &meter{takes: &chain{}, gives: &chain{}}
	if n, err := m.AvailableBytes(); err != nil || n != math.MaxInt64 {
		t.Errorf("%d, %v", n, err)
	}
	// A store that cannot be asked for more than it has is none that counts.
	m.takes.links = []link{{store: fixed{availableBytes: 5 * mib, growthBytes: 5 * mib}}}
	if n, err := m.AvailableBytes(); err != nil || n != math.MaxInt64 {
		t.Errorf("%d, %v", n, err)
	}
	m.takes.links = append(m.takes.links, link{store: fixed{availableBytes: 7 * mib, growthBytes: math.MaxInt64, kind: fileSystemStore}})
	if n, err := m.AvailableBytes(); err != nil || n != 7*mib || m.Shortage().Patience != filePatience {
		t.Errorf("%d, %v", n, err)
	}
	if m.hint(mib) != "more of it" {
		t.Errorf("%q", m.hint(mib))
	}
}

// fixed is a store whose supply never changes.
type fixed supply

func (f fixed) key() string              { return "fixed:" + f.name }
func (f fixed) measure() (supply, error) { return supply(f), nil }
func (f fixed) hint(int64) string        { return "more of it" }

// fault 39: a flush counts only if the pool is in order after it.
func TestFault39FlushLooksAtThePool(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.image("image", mib)
	d, err := loopdev.Open(s.path("image"), loopdev.Options{Write: true})
	s.must(err)
	p := newFakePool(1000, 10)
	m := meterOf(p)
	m.taker = &end{device: d, base: d}
	t.Cleanup(func() { s.must(d.Close()) })
	g := m.guard(mib, true, &control{})
	s.must(g.Flush())
	p.change(false, func(s *thin.TargetStatus) { s.Mode = thin.OutOfDataSpace })
	s.must(g.Flush()) // what it has, it keeps
	p.change(true, func(s *thin.TargetStatus) { s.Mode, s.NeedsCheck = thin.ReadOnly, true })
	var trouble *poolError
	if err := g.Flush(); !errors.As(err, &trouble) {
		t.Errorf("%v", err)
	}
}

// fakeFile is the file system of the giver, on a volume of the pool: what is punched
// is free after a sync, and given back when it is trimmed.
type fakeFile struct {
	pool        *fakePool
	punched     int64
	free        int64
	discards    bool // mounted so
	syncs       int
	trims       int
	trimErr     error
	leastTrim   int64
	syncedFirst bool
}

func (f *fakeFile) SyncFS() error {
	f.syncs++
	f.free, f.punched = f.free+f.punched, 0
	if f.discards {
		f.giveBack()
	}
	return nil
}

func (f *fakeFile) giveBack() {
	f.pool.mapped -= f.free
	f.free = 0
}

func (f *fakeFile) Trim(minBytes int64) (int64, error) {
	f.trims++
	f.leastTrim, f.syncedFirst = minBytes, f.punched == 0
	if f.trimErr != nil {
		return 0, f.trimErr
	}
	f.giveBack()
	return 0, nil
}

// A file system is trimmed once for a portion, after a sync, and only where somebody
// needs it.
func TestReturnerTrims(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		isShared, discards bool
		trimErr            error
		wantTrims          int // of 10 discards of 1 MiB in portions of 4
		wantMapped         int64
	}{
		"shared":                       {true, false, nil, 3, 90 * mib},
		"shared, mounted with discard": {true, true, nil, 0, 90 * mib},
		"another pool":                 {false, false, nil, 1, 90 * mib},
		"cannot be trimmed":            {true, false, loopdev.ErrCannotPunch, 1, 100 * mib},
	} {
		p := newFakePool(10000, 0)
		p.mapped = 100 * mib
		f := &fakeFile{pool: p, discards: c.discards, trimErr: c.trimErr}
		r := &returner{giver: f, pool: storeOf(p), isFile: true, isShared: c.isShared, discardsSelf: c.discards, portionBytes: 4 * mib}
		held := 0
		for range 10 {
			f.punched += mib
			settled, err := r.settle(mib)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if !settled {
				held++
			}
			if settled && c.isShared && c.trimErr == nil && f.free+f.punched > 0 {
				t.Errorf("%s: settled with %d bytes held back", name, f.free+f.punched)
			}
		}
		if err := r.finish(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if f.trims != c.wantTrims || p.mapped != c.wantMapped || f.trims > 0 && (f.leastTrim != 64*kib || !f.syncedFirst) {
			t.Errorf("%s: %d trims (%+v), %d bytes mapped", name, f.trims, f, p.mapped)
		}
		if c.isShared != (held == 8) {
			t.Errorf("%s: held back %d times", name, held)
		}
		syncs := f.syncs
		if err := r.finish(); err != nil || f.syncs != syncs {
			t.Errorf("%s: nothing was pending, and yet a sync; %v", name, err)
		}
	}
}

// A file system that discards by itself and does not get round to it is trimmed.
func TestReturnerTrimsWhatWasNotDiscarded(t *testing.T) {
	t.Parallel()
	p := newFakePool(10000, 0)
	p.mapped = 100 * mib
	f := &fakeFile{pool: p}
	r := &returner{giver: f, pool: storeOf(p), isFile: true, isShared: true, discardsSelf: true, portionBytes: mib}
	if _, err := r.settle(0); err != nil {
		t.Fatal(err)
	}
	f.punched = mib
	if settled, err := r.settle(mib); !settled || err != nil || f.trims != 1 || p.mapped != 99*mib {
		t.Errorf("%v, %v, %d trims, %d bytes mapped", settled, err, f.trims, p.mapped)
	}
}

func TestReturnerWithoutPoolDoesNothing(t *testing.T) {
	t.Parallel()
	f := &fakeFile{}
	r := &returner{giver: f, isFile: true, portionBytes: mib}
	if settled, err := r.settle(gib); !settled || err != nil {
		t.Errorf("%v, %v", settled, err)
	}
	if err := r.finish(); err != nil || f.syncs+f.trims > 0 {
		t.Errorf("%d syncs, %d trims, %v", f.syncs, f.trims, err)
	}
}

// A volume gives back by itself, its pool has to commit it.
func TestReturnerOfAVolumeCommits(t *testing.T) {
	t.Parallel()
	p := newFakePool(1000, 0)
	r := &returner{giver: &fakeFile{}, pool: storeOf(p), isShared: true, portionBytes: gib}
	if settled, err := r.settle(mib); !settled || err != nil || p.commits != 1 {
		t.Errorf("%v, %v, %d commits", settled, err, p.commits)
	}
}

// The larger growth counts, of ends in one volume the sum of both; and what the ends
// took more before this run.
func TestUsageOfPools(t *testing.T) {
	t.Parallel()
	var given, received, mappedA, mappedB int64
	read := func(n *int64) func() (int64, error) { return func() (int64, error) { return *n, nil } }
	given, received, mappedA, mappedB = 80, 25, 500, 30
	u, err := newUsage(100, usageGroup{taken: read(&given), mapped: read(&mappedA)}, usageGroup{taken: read(&received), mapped: read(&mappedB)})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ given, received, mappedA, mappedB, want int64 }{
		{80, 25, 500, 30, 5},  // as it was when the run began
		{80, 35, 500, 30, 15}, // copied, and in the file system's cache yet
		{80, 35, 500, 46, 21}, // whole blocks were allocated
		{70, 35, 500, 46, 21}, // punched, and not given back
		{70, 35, 490, 46, 11}, // given back
		{60, 45, 485, 56, 16},
	} {
		given, received, mappedA, mappedB = step.given, step.received, step.mappedA, step.mappedB
		if got, err := u.extraBytes(); err != nil || got != step.want {
			t.Errorf("%+v: %d, %v", step, got, err)
		}
	}
	given, received = 0, 0
	plain, err := newUsage(0, usageGroup{taken: read(&given)}, usageGroup{taken: read(&received)})
	if err != nil {
		t.Fatal(err)
	}
	received = 7
	if got, err := plain.extraBytes(); err != nil || got != 7 {
		t.Errorf("%d, %v", got, err)
	}
}

// Regions are whole blocks of the pools that the ends are volumes of.
func TestRegionsOfPools(t *testing.T) {
	t.Parallel()
	chainWith := func(blockBytes int64, isExact bool) *chain {
		if blockBytes == 0 {
			return &chain{}
		}
		s := storeOf(newFakePool(1, 0))
		s.blockBytes, s.isExact = blockBytes, isExact
		return &chain{links: []link{{store: s}}}
	}
	for name, c := range map[string]struct {
		gives, takes *chain
		given        int64 // --region-size
		want         int64 // 0: refused
		hint         string
	}{
		"no pool":                  {chainWith(0, false), chainWith(0, false), 0, mib, ""},
		"no pool, small regions":   {chainWith(0, false), chainWith(0, false), 4 * kib, 4 * kib, ""},
		"small blocks":             {chainWith(0, false), chainWith(64*kib, true), 0, mib, ""},
		"large blocks":             {chainWith(0, false), chainWith(4*mib, true), 0, 4 * mib, ""},
		"large blocks of a source": {chainWith(8*mib, true), chainWith(4*mib, true), 0, 8 * mib, ""},
		"the largest blocks":       {chainWith(0, false), chainWith(gib, true), 0, gib, ""},
		"blocks below a file":      {chainWith(4*mib, false), chainWith(4*mib, false), 64 * kib, 64 * kib, ""},
		"uneven blocks":            {chainWith(0, false), chainWith(192*kib, true), 0, mib, ""},
		"uneven, large blocks":     {chainWith(0, false), chainWith(3*mib, true), 0, 4 * mib, ""},
		"given as they are":        {chainWith(0, false), chainWith(64*kib, true), 64 * kib, 64 * kib, ""},
		"given too small":          {chainWith(0, false), chainWith(64*kib, true), 32 * kib, 0, "--region-size 64KiB"},
		"given too small, uneven":  {chainWith(192*kib, true), chainWith(0, false), 128 * kib, 0, "--region-size 256KiB"},
		"given, large and uneven":  {chainWith(192*kib, true), chainWith(0, false), 256 * kib, 256 * kib, ""},
	} {
		o := DefaultOptions()
		if c.given != 0 {
			o.RegionBytes, o.RegionBytesFixed = c.given, true
		}
		a := &attempt{request: Request{Options: o}, gives: c.gives, takes: c.takes}
		got, err := a.chooseRegionBytes()
		if got != c.want || (OutcomeOf(err) == Refused) != (c.want == 0) || !strings.Contains(HintOf(err), c.hint) {
			t.Errorf("%s: %d, %v (%s)", name, got, err, HintOf(err))
		}
	}
}

var _ hydrate.Space = (*meter)(nil)
