package hydrate_test

import (
	"context"
	"errors"
	"strings"
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

// sharedPool is a hydrate.Space that others share: what it has is set from outside,
// and whoever waits is woken by that.
type sharedPool struct {
	mu        sync.Mutex
	available int64
	broken    error
	changed   chan struct{}
	patience  time.Duration
	waits     int
	settle    func(copiedBytes int64) bool
}

func newSharedPool(available int64) *sharedPool {
	return &sharedPool{available: available, changed: make(chan struct{}), patience: time.Minute}
}

func (p *sharedPool) set(available int64, broken error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.available, p.broken = available, broken
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *sharedPool) AvailableBytes() (int64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.available, p.broken
}

func (p *sharedPool) Shortage() hydrate.Shortage {
	return hydrate.Shortage{What: "pool vg/tp", Patience: p.patience}
}

// Wait is woken by nothing but set, up to a time at which a run may look again.
func (p *sharedPool) Wait(ctx context.Context) {
	p.mu.Lock()
	p.waits++
	changed := p.changed
	p.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-changed:
	case <-time.After(20 * time.Second):
	}
}

func (p *sharedPool) Settle(copiedBytes int64) (bool, error) {
	if p.settle != nil {
		return p.settle(copiedBytes), nil
	}
	return true, nil
}

func (p *sharedPool) Reclaim() error { return nil }
func (p *sharedPool) Sample()        {}

// waiting tells when a run begins to wait, and for what.
type waiting struct {
	observer
	begins chan string
}

func (w *waiting) Waiting(forWhat string) {
	if forWhat != "" {
		w.begins <- forWhat
	}
}

// fault 43: others fill the pool; the run pauses, names what it waits for, and goes on
// the moment that there is room again.
func TestFault43RunWaitsForASharedPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := clonetest.New(setup(20))
		pool, seen := newSharedPool(0), &waiting{begins: make(chan string, 9)}
		o := options()
		o.Space, o.Observer = pool, seen
		c := open(t, m.Config())
		begun := time.Now()
		done := make(chan error, 1)
		go func() { done <- hydrate.Run(context.Background(), c, o) }()
		if what := <-seen.begins; what != "pool vg/tp" {
			t.Errorf("waits for %q", what)
		}
		time.Sleep(45 * time.Second)
		pool.set(1<<30, nil)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > 46*time.Second {
			t.Errorf("went on %v after there was room", took-45*time.Second)
		}
		if pool.waits > 4 {
			t.Errorf("looked %d times in 45 s, which nobody asked for", pool.waits)
		}
	})
}

// The patience is that of what is short.
func TestRunWaitsAsLongAsItIsWorth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, patience := range []time.Duration{10 * time.Second, time.Minute} {
			m := clonetest.New(setup(20))
			pool := newSharedPool(0)
			pool.patience = patience
			o := options()
			o.Space = pool
			begun := time.Now()
			err := hydrate.Run(context.Background(), open(t, m.Config()), o)
			if !errors.Is(err, hydrate.ErrNoSpace) || !strings.Contains(err.Error(), "pool vg/tp") {
				t.Errorf("ended with %v", err)
			}
			if took := time.Since(begun); took < patience || took > patience+21*time.Second {
				t.Errorf("gave up after %v, want %v", took, patience)
			}
		}
	})
}

// fault 38: a pool that broke while the run waits ends it at once.
func TestFault38BrokenPoolEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := clonetest.New(setup(20))
		pool, seen := newSharedPool(0), &waiting{begins: make(chan string, 9)}
		o := options()
		o.Space, o.Observer = pool, seen
		c := open(t, m.Config())
		done := make(chan error, 1)
		go func() { done <- hydrate.Run(context.Background(), c, o) }()
		<-seen.begins
		begun, broken := time.Now(), errors.New("the pool needs a check")
		pool.set(0, broken)
		if err := <-done; !errors.Is(err, broken) {
			t.Errorf("ended with %v", err)
		}
		if took := time.Since(begun); took > time.Second {
			t.Errorf("ended %v after the pool broke", took)
		}
	})
}

func TestCancelEndsTheWaitForSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := clonetest.New(setup(20))
		seen := &waiting{begins: make(chan string, 9)}
		o := options()
		o.Space, o.Observer = newSharedPool(0), seen
		c := open(t, m.Config())
		ctx, cancel := context.WithCancelCause(context.Background())
		done := make(chan error, 1)
		go func() { done <- hydrate.Run(ctx, c, o) }()
		<-seen.begins
		cancel(errStop)
		if err := <-done; !errors.Is(err, errStop) {
			t.Errorf("ended with %v", err)
		}
	})
}

// hungry is a destination that has no room for some writes, from a certain one on.
type hungry struct {
	clone.Destination
	mu      sync.Mutex
	writes  int
	refuses func(write int) bool
}

func (h *hungry) WriteAt(p []byte, off int64) (int, error) {
	h.mu.Lock()
	h.writes++
	refused := h.refuses(h.writes)
	h.mu.Unlock()
	if refused {
		return 0, syscall.ENOSPC
	}
	return h.Destination.WriteAt(p, off)
}

// fault 36: somebody else was quicker, and a write found no room where some had been
// measured. Those regions are copied later.
func TestFault36StarvedCopiesAreRepeated(t *testing.T) {
	m := clonetest.New(setup(100))
	cfg := m.Config()
	cfg.Destination = &hungry{Destination: cfg.Destination, refuses: func(write int) bool { return write%7 == 0 }}
	o := options()
	o.Space = newSharedPool(1 << 30)
	if err := hydrate.Run(context.Background(), open(t, cfg), o); err != nil {
		t.Fatal(err)
	}
	if err := m.Finished(); err != nil {
		t.Error(err)
	}
}

// Where no write finds room any more, whatever is measured, the run ends.
func TestFault36NoRoomAtAllEndsTheRun(t *testing.T) {
	m := clonetest.New(setup(100))
	cfg := m.Config()
	destination := &hungry{Destination: cfg.Destination, refuses: func(write int) bool { return write > 30 }}
	cfg.Destination = destination
	o := options()
	o.Space = newSharedPool(1 << 30)
	c := open(t, cfg)
	err := hydrate.Run(context.Background(), c, o)
	if !errors.Is(err, hydrate.ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("ended with %v", err)
	}
	if s := c.Status(); s.Hydrated == 0 || s.Dirty != 0 || s.Hydrated != s.Discarded {
		t.Errorf("%+v", s)
	}
	if destination.writes > 80 {
		t.Errorf("%d writes were tried", destination.writes)
	}
}

// Regions that cannot be read are listed once, however often they are tried.
func TestFault24BadRegionsOfAStarvedRun(t *testing.T) {
	m := clonetest.New(setup(40))
	cfg := m.Config()
	cfg.Source = badSource{cfg.Source, 5 * 4096, 7 * 4096}
	cfg.Destination = &hungry{Destination: cfg.Destination, refuses: func(write int) bool { return write == 25 }}
	o := options()
	o.Space = newSharedPool(1 << 30)
	var incomplete *hydrate.IncompleteError
	if err := hydrate.Run(context.Background(), open(t, cfg), o); !errors.As(err, &incomplete) || len(incomplete.Bad) != 2 {
		t.Fatalf("ended with %v", err)
	}
}

// What was discarded and not given back exists twice, too: together with all else it
// is no more than two transactions.
func TestUnsettledBytesExistTwice(t *testing.T) {
	m := clonetest.New(setup(400))
	c := open(t, m.Config())
	o := options()
	o.CommitPeriod = time.Hour
	pool := newSharedPool(1 << 30)
	var held, settled, most int64
	var mu sync.Mutex
	pool.settle = func(copiedBytes int64) bool {
		mu.Lock()
		defer mu.Unlock()
		if held += copiedBytes; held < o.CommitBytes {
			return false
		}
		settled, held = settled+held, 0
		return true
	}
	o.Space = pool
	m.Meanwhile = func(clonetest.Op) {
		mu.Lock()
		defer mu.Unlock()
		most = max(most, c.Status().CopiedBytes-settled)
	}
	if err := hydrate.Run(context.Background(), c, o); err != nil {
		t.Fatal(err)
	}
	if limit := 2 * o.CommitBytes; most > limit || most < o.CommitBytes {
		t.Errorf("%d bytes existed twice, want %d to %d", most, o.CommitBytes, limit)
	}
}

// With edges that copies share with others, less fits.
func TestEdgesTakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := clonetest.New(setup(20))
		c := open(t, m.Config())
		o := options()
		o.EdgeBytes = 8 << 10
		o.Space = newSharedPool(11 << 10) // a region of 4 KiB would fit
		if err := hydrate.Run(context.Background(), c, o); !errors.Is(err, hydrate.ErrNoSpace) {
			t.Errorf("ended with %v", err)
		}
		if n := c.Status().CopiedBytes; n != 0 {
			t.Errorf("%d bytes were copied", n)
		}
	})
}

// countedPool counts the questions to it.
type countedPool struct {
	*sharedPool
	questions, samples atomic.Int64
}

func (p *countedPool) AvailableBytes() (int64, error) {
	p.questions.Add(1)
	return p.sharedPool.AvailableBytes()
}

func (p *countedPool) Sample() { p.samples.Add(1) }

func TestRoomIsMeasuredAsOftenAsItIsScarce(t *testing.T) {
	for _, c := range []struct {
		name                 string
		availableBytes, most int64
		least                int64
	}{
		{"plenty", 1 << 40, 10, 1},
		{"little", 100 << 20, 1 << 20, 100}, // each copy
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // in which no time passes while something is done
				m := clonetest.New(setup(200))
				pool := &countedPool{sharedPool: newSharedPool(c.availableBytes)}
				o := options()
				o.Space = pool
				if err := hydrate.Run(context.Background(), open(t, m.Config()), o); err != nil {
					t.Fatal(err)
				}
				if n := pool.questions.Load(); n < c.least || n > c.most {
					t.Errorf("%d questions for 100 copies, want %d to %d", n, c.least, c.most)
				}
				if pool.samples.Load() == 0 {
					t.Error("the use of space was never sampled")
				}
			})
		})
	}
}
