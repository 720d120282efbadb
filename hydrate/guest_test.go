package hydrate_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"decant/clone"
	"decant/clone/clonetest"
	"decant/hydrate"
)

// Guests that write, trim, read and flush beside a run, with its limits on dirty and
// twofold bytes: it ends, whole, and accounts for what guests copy and commit.
func TestRunBesideGuests(t *testing.T) {
	for _, quiet := range []time.Duration{0, time.Millisecond} {
		s := setup(300)
		s.RegionBytes, s.Guests = 16<<10, true
		m := clonetest.New(s)
		c := open(t, m.Config())
		o := options()
		o.CommitBytes, o.GuestQuiet = 64<<10, quiet
		var guests sync.WaitGroup
		ended := make(chan struct{})
		for i := range 3 {
			guests.Go(func() {
				rng := rand.New(rand.NewPCG(1, uint64(i)))
				for {
					select {
					case <-ended:
						return
					default:
					}
					// Each guest has sectors of its own in every region.
					off := rng.Int64N(s.DeviceBytes/4096)*4096 + int64(i)*1024
					err := m.Change(c, clonetest.GuestOp(rng.IntN(3)), off, 512, rng)
					if rng.IntN(4) == 0 {
						err = errors.Join(err, m.Flush(c.Flush))
					}
					if err := errors.Join(err, m.ReadBack(c, off, 512)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		err := hydrate.Run(context.Background(), c, o)
		close(ended)
		guests.Wait()
		if err := errors.Join(err, m.Flush(c.Flush), m.Finished()); err != nil {
			t.Error(err)
		}
	}
}

// While a guest's request is in flight, one worker copies, and never none.
func TestRunYieldsToGuests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := clonetest.New(setup(64))
		gate := make(chan struct{})
		var copying, most, copies atomic.Int64
		var held atomic.Bool
		m.Meanwhile = func(op clonetest.Op) {
			if op != clonetest.SourceRead {
				return
			}
			if held.CompareAndSwap(false, true) { // the guest's read
				<-gate
				return
			}
			if copies.Add(1) == 32 {
				close(gate)
			}
			if n := copying.Add(1); n > most.Load() && copies.Load() < 32 {
				most.Store(n)
			}
			time.Sleep(time.Millisecond)
			copying.Add(-1)
		}
		c := open(t, m.Config())
		read := make(chan error, 1)
		go func() { read <- m.ReadBack(c, 63*4096, 100) }()
		synctest.Wait()
		o := options()
		o.BatchRegions, o.DiscardSource, o.GuestQuiet = 1, false, 5*time.Millisecond
		if err := errors.Join(hydrate.Run(context.Background(), c, o), <-read); err != nil {
			t.Fatal(err)
		}
		if most.Load() != 1 {
			t.Errorf("%d workers copied while a guest was busy, want 1", most.Load())
		}
	})
}

// readLog keeps the offsets of the reads of a source.
type readLog struct {
	clone.Source
	mu   sync.Mutex
	offs []int64
}

func (l *readLog) ReadAt(p []byte, off int64) (int, error) {
	l.mu.Lock()
	l.offs = append(l.offs, off)
	l.mu.Unlock()
	return l.Source.ReadAt(p, off)
}

// What a guest reads comes next, and nothing is left out for it.
func TestRunFollowsReads(t *testing.T) {
	m := clonetest.New(setup(100))
	cfg := m.Config()
	source := &readLog{Source: cfg.Source}
	cfg.Source = source
	c := open(t, cfg)
	if err := m.ReadBack(c, 80*4096, 100); err != nil {
		t.Fatal(err)
	}
	o := options()
	o.ThresholdRegions, o.BatchRegions = 1, 1 // of several workers any may be the first to read
	if err := hydrate.Run(context.Background(), c, o); err != nil {
		t.Fatal(err)
	}
	if err := m.Finished(); err != nil {
		t.Error(err)
	}
	if at := slices.Index(source.offs[1:], 80*4096); at != 0 {
		t.Errorf("what the guest had read was copied as number %d", at)
	}
}

// Fault 24: a region that cannot be read is listed once, however often guests want
// it, and not at all if a guest has written all of it anew.
func TestBadRegionsWithGuests(t *testing.T) {
	m := clonetest.New(setup(30))
	cfg := m.Config()
	cfg.Source = badSource{cfg.Source, 20 * 4096, 22 * 4096}
	c := open(t, cfg)
	p := make([]byte, 512)
	for range 3 {
		if _, err := c.ReadAt(p, 20*4096); !errors.Is(err, syscall.EIO) {
			t.Errorf("read: %v", err)
		}
	}
	o := options()
	o.Observer = &healer{heal: func(bad hydrate.BadRegion) {
		if bad.Range.First == 21 {
			if err := m.Change(c, clonetest.GuestZero, 21*4096, 4096, nil); err != nil {
				t.Error(err)
			}
		}
	}}
	err := hydrate.Run(context.Background(), c, o)
	var incomplete *hydrate.IncompleteError
	if !errors.As(err, &incomplete) || len(incomplete.Bad) != 1 || incomplete.Bad[0].Range.First != 20 {
		t.Fatalf("run ended with %v, want region 20 alone", err)
	}
}

// healer does something about bad regions.
type healer struct {
	observer
	heal func(hydrate.BadRegion)
}

func (h *healer) Bad(bad hydrate.BadRegion) { h.heal(bad) }

// A run whose last region a guest is still filling waits for that, and does it itself
// if the guest fails.
func TestRunWaitsForGuests(t *testing.T) {
	for _, fails := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m := clonetest.New(setup(2))
			gate, held := make(chan struct{}), false
			m.Meanwhile = func(op clonetest.Op) {
				if op == clonetest.DestinationWrite && !held {
					held = true
					<-gate
				}
			}
			c := open(t, m.Config())
			changed, ran := make(chan error, 1), make(chan error, 1)
			if fails {
				m.Inject(clonetest.Fault{Call: m.Calls() + 1, Err: syscall.ENOSPC})
			}
			go func() { changed <- m.Change(c, clonetest.GuestWrite, 0, 4096, rand.New(rand.NewPCG(1, 1))) }()
			synctest.Wait()
			go func() { ran <- hydrate.Run(context.Background(), c, options()) }()
			time.Sleep(time.Second)
			if len(ran) > 0 {
				t.Errorf("the run ended before the guest: %v", <-ran)
			}
			close(gate)
			if err := <-changed; fails != errors.Is(err, syscall.ENOSPC) || !fails && err != nil {
				t.Errorf("guest: %v", err)
			}
			if err := errors.Join(<-ran, m.Finished()); err != nil {
				t.Error(err)
			}
		})
	}
}
