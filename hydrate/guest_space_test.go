package hydrate_test

import (
	"context"
	"errors"
	"math/rand/v2"
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

// finite is a medium that both ends take their space from, in blocks, and that counts
// what they take. It is their hydrate.GuestSpace, and a pool that has run dry fails the test.
type finite struct {
	testing.TB
	sharedPool

	mu       sync.Mutex
	capacity int64          // besides what the source has
	blocks   map[int64]bool // of the destination that are taken
	freed    int64          // of the source
	least    int64          // of the space there was
}

const blockBytes = 4096

func newFinite(t testing.TB, capacity int64) *finite {
	f := &finite{TB: t, capacity: capacity, least: capacity, blocks: map[int64]bool{}}
	f.sharedPool = *newSharedPool(0)
	return f
}

func (f *finite) left() int64 { return f.capacity + f.freed - int64(len(f.blocks))*blockBytes }

func (f *finite) AvailableBytes() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.left(), nil
}

func (f *finite) Wait(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Millisecond):
	}
}

func (f *finite) Overwrites(off, n int64) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for b := off / blockBytes; b*blockBytes < off+n; b++ {
		if !f.blocks[b] {
			return false, nil
		}
	}
	return true, nil
}

// finiteEnds are ends on a finite medium.
type finiteSource struct {
	clone.Source
	*finite
}

func (s finiteSource) Bytes() int64 { return s.Source.Bytes() }

func (s finiteSource) ReadAt(p []byte, off int64) (int, error) { return s.Source.ReadAt(p, off) }

func (s finiteSource) Discard(off, n int64) error {
	err := s.Source.Discard(off, n)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freed += n
	return err
}

type finiteDestination struct {
	clone.Destination
	*finite
}

func (d finiteDestination) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	for b := off / blockBytes; b*blockBytes < off+int64(len(p)); b++ {
		d.blocks[b] = true
	}
	d.least = min(d.least, d.left())
	dry := d.left() < 0
	d.mu.Unlock()
	if dry {
		d.Errorf("the pool has run dry at a write of %d bytes at %d", len(p), off)
	}
	return d.Destination.WriteAt(p, off)
}

func (d finiteDestination) Bytes() int64 { return d.Destination.Bytes() }

func (d finiteDestination) Zero(off, n int64) error {
	err := d.Destination.Zero(off, n)
	d.mu.Lock()
	defer d.mu.Unlock()
	for b := (off + blockBytes - 1) / blockBytes; (b+1)*blockBytes <= off+n; b++ {
		delete(d.blocks, b)
	}
	return err
}

// guestsOf is a device whose guests share the space of a run.
func guestsOf(t testing.TB, m *clonetest.Machine, f *finite, patience time.Duration) (*clone.Clone, *hydrate.Guests) {
	cfg := m.Config()
	cfg.Source, cfg.Destination = finiteSource{cfg.Source, f}, finiteDestination{cfg.Destination, f}
	c := open(t, cfg)
	return c, hydrate.NewGuests(c, hydrate.GuestOptions{Space: f, UnitBytes: blockBytes, Patience: patience})
}

// Guests that write everywhere, and a run that copies what they leave, on a medium with
// room for little more than the source takes: it never runs dry, the run ends well, and
// every change is made or refused for want of space.
func TestGuestsAndRunShareASmallPool(t *testing.T) {
	for seed := range uint64(4) {
		s := setup(300)
		s.RegionBytes, s.Guests = 16<<10, true
		m := clonetest.New(s)
		f := newFinite(t, 160<<10)
		c, g := guestsOf(t, m, f, 50*time.Millisecond)
		o := options()
		o.CommitBytes, o.Space, o.Guests = 64<<10, f, g
		var guests sync.WaitGroup
		var changed, refused atomic.Int64
		ended := make(chan struct{})
		for i := range 3 {
			guests.Go(func() {
				rng := rand.New(rand.NewPCG(seed, uint64(i)))
				for {
					select {
					case <-ended:
						return
					default:
					}
					off, op := rng.Int64N(s.DeviceBytes/4096)*4096+int64(i)*1024, clonetest.GuestOp(rng.IntN(3))
					claim, err := g.Admit(context.Background(), off, 512, op != clonetest.GuestWrite)
					if errors.Is(err, syscall.ENOSPC) {
						refused.Add(1)
						continue
					}
					if err == nil {
						changed.Add(1)
						err = m.Change(c, op, off, 512, rng)
						g.Landed(claim)
					}
					if err != nil {
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
		if changed.Load() == 0 {
			t.Error("no guest changed anything")
		}
		t.Logf("%d changes, %d refused, at least %d bytes were free", changed.Load(), refused.Load(), f.least)
	}
}

// held is a Limiter that lets nothing through before it is released.
type held struct{ waits, release chan struct{} }

func (h held) Wait(ctx context.Context, _ int64) error {
	select {
	case h.waits <- struct{}{}:
	default: // it is known already
	}
	select {
	case <-h.release:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A change that needs space waits for what the run frees by a commit and a discard. Both
// come for its sake: nothing else is due.
func TestGuestWaitsForWhatTheRunFrees(t *testing.T) {
	m := clonetest.New(setup(8))
	f := newFinite(t, 4*4096)
	c, g := guestsOf(t, m, f, time.Minute)
	for off := int64(0); off < 2*4096; off += 4096 { // which copies the rest of the two regions
		if err := m.Change(c, clonetest.GuestWrite, off, 512, rand.New(rand.NewPCG(1, 1))); err != nil {
			t.Fatal(err)
		}
	}
	o := options()
	o.CommitBytes, o.CommitPeriod, o.Space, o.Guests = 1<<20, time.Hour, f, g
	limit := held{make(chan struct{}, 1), make(chan struct{})}
	o.Throttle = limit
	done := make(chan error, 1)
	go func() { done <- hydrate.Run(context.Background(), c, o) }()
	<-limit.waits // the other half of the space is claimed
	begun := time.Now()
	claim, err := g.Admit(context.Background(), 7*4096, 4096, false)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("waited %v", took)
	}
	if err := m.Change(c, clonetest.GuestWrite, 7*4096, 4096, rand.New(rand.NewPCG(1, 1))); err != nil {
		t.Error(err)
	}
	g.Landed(claim)
	close(limit.release)
	if err := errors.Join(<-done, m.Finished()); err != nil {
		t.Error(err)
	}
}

func TestGuestIsRefusedWhatThereIsNoSpaceFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := clonetest.New(setup(8))
		f := newFinite(t, 4096)
		c, g := guestsOf(t, m, f, 5*time.Second)
		admit := func(off, n int64, zero bool, want error, least, most time.Duration) {
			t.Helper()
			begun := time.Now()
			claim, err := g.Admit(context.Background(), off, n, zero)
			if !errors.Is(err, want) {
				t.Errorf("%d bytes at %d: %v, want %v", n, off, err, want)
			}
			if took := time.Since(begun); took < least || took > most {
				t.Errorf("%d bytes at %d: took %v", n, off, took)
			}
			if err != nil {
				return
			}
			if zero {
				err = c.Zero(off, n)
			} else {
				_, err = c.WriteAt(make([]byte, n), off)
			}
			if err != nil {
				t.Error(err)
			}
			g.Landed(claim)
		}
		admit(0, 512, false, nil, 0, 0)
		admit(4096, 512, false, syscall.ENOSPC, 5*time.Second, 5*time.Second+2*time.Millisecond)
		admit(4096, 512, false, syscall.ENOSPC, 0, 0) // the next ones do not wait as long
		admit(1024, 2048, false, nil, 0, 0)           // what is there can be overwritten
		admit(4096, 4096, true, nil, 0, 0)            // and a whole region trimmed
		time.Sleep(2 * time.Second)
		admit(8192, 512, false, syscall.ENOSPC, 5*time.Second, 5*time.Second+2*time.Millisecond)
		f.mu.Lock()
		f.capacity += 1 << 20
		f.mu.Unlock()
		admit(8192, 512, false, nil, 0, 0)

		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(errStop)
		f.mu.Lock()
		f.capacity = 0
		f.mu.Unlock()
		time.Sleep(2 * time.Second)
		if _, err := g.Admit(ctx, 5*4096, 1<<30, false); !errors.Is(err, errStop) || !errors.Is(err, syscall.ESHUTDOWN) {
			t.Errorf("at the end: %v", err)
		}
	})
}
