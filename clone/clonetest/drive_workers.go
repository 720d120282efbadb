package clonetest

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"

	"decant/clone"
	"decant/region"
)

// DriveWorkers runs a migration to its end, or to the first error, with real
// concurrency: workers that copy, a goroutine that commits, one that discards,
// guests if the setup has some, and readers that compare with what the device may
// hold. It returns when all of them have ended.
func (m *Machine) DriveWorkers(c *clone.Clone, workers, readers int, seed uint64) error {
	w := &crew{m: m, c: c}
	var copying, rest sync.WaitGroup
	for i := range workers {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		copying.Go(func() { w.note(w.copyAll(rng)) })
	}
	rest.Go(func() { w.note(w.until(func() error { return m.Flush(c.Commit) })) })
	rest.Go(func() {
		w.note(w.until(func() error { return c.DiscardSource(context.Background(), c.TakeCommitted()) }))
	})
	for i := range readers {
		rng := rand.New(rand.NewPCG(seed, uint64(workers+i)))
		rest.Go(func() {
			w.note(w.until(func() error {
				off := rng.Int64N(m.setup.DeviceBytes)
				n := 1 + rng.Int64N(m.setup.DeviceBytes-off)
				if off%4 == 0 { // most find out what a discard takes from under a read
					return m.Look(c, off, n)
				}
				return m.ReadBack(c, off, n)
			}))
		})
	}
	if m.setup.Guests {
		for i := range guestCount {
			rng := rand.New(rand.NewPCG(seed, uint64(workers+readers+i)))
			rest.Go(func() { w.note(w.use(i, rng)) })
		}
	}
	copying.Wait()
	w.copied.Store(true)
	rest.Wait()
	if w.err != nil {
		return w.err
	}
	if err := m.Flush(c.Commit); err != nil {
		return err
	}
	return c.DiscardSource(context.Background(), c.TakeCommitted())
}

// crew is what the goroutines of one run share.
type crew struct {
	m      *Machine
	c      *clone.Clone
	copied atomic.Bool
	failed atomic.Bool
	mu     sync.Mutex
	err    error
}

// note keeps an error and ends the run. What fails for want of power is no news
// beside a broken rule, so all are kept.
func (w *crew) note(err error) {
	if err == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = errors.Join(w.err, err)
	w.failed.Store(true)
}

// copyAll copies until nothing is left.
func (w *crew) copyAll(rng *rand.Rand) error {
	all := w.m.setup.Geometry().All()
	for !w.failed.Load() {
		within := region.Between(region.Nr(rng.Uint64N(all.Count)), all.End())
		work, ok, err := w.c.Next(within, w.m.setup.BatchRegions)
		if err == nil && !ok {
			work, ok, err = w.c.Next(all, w.m.setup.BatchRegions)
		}
		if err != nil || !ok {
			return err
		}
		if work.Hole {
			err = w.c.HydrateHole(context.Background(), work.Range)
		} else {
			_, err = w.c.Hydrate(context.Background(), work.Range)
		}
		if err != nil {
			return err
		}
		runtime.Gosched()
	}
	return nil
}

const (
	guestCount = 3
	// stripeBytes is what two guests take in turn, so that they share regions.
	stripeBytes = 2 << 10
)

// use is one guest: it changes what no other guest changes, and flushes, until the
// copies are done and then some more.
func (w *crew) use(guest int, rng *rand.Rand) error {
	for left := 10; left > 0 && !w.failed.Load(); {
		if w.copied.Load() {
			left--
		}
		var err error
		if rng.IntN(6) == 0 {
			err = w.m.Flush(w.c.Flush)
		} else if off, n := w.place(guest, rng); n > 0 {
			err = w.m.Change(w.c, GuestOp(rng.IntN(3)), off, n, rng)
		}
		if err != nil {
			return err
		}
		runtime.Gosched()
	}
	return nil
}

// place is a range of whole sectors that belongs to a guest: the first one has half
// of the device, the others stripes of the rest.
func (w *crew) place(guest int, rng *rand.Rand) (off, n int64) {
	size := w.m.setup.DeviceBytes
	half := size / 2 / stripeBytes * stripeBytes
	if guest == 0 {
		if half == 0 {
			return 0, 0
		}
		off = rng.Int64N(half) / sectorBytes * sectorBytes
		return off, min(half-off, sectorBytes*(1+rng.Int64N(64)))
	}
	stripe := rng.Int64N((size - half + stripeBytes - 1) / stripeBytes)
	if stripe%2 != int64(guest-1) {
		return 0, 0
	}
	off = half + stripe*stripeBytes + sectorBytes*rng.Int64N(stripeBytes/sectorBytes)
	if off >= size {
		return 0, 0
	}
	return off, min(size-off, sectorBytes*(1+rng.Int64N((half+(stripe+1)*stripeBytes-off)/sectorBytes)))
}

// until repeats f until the copies are done.
func (w *crew) until(f func() error) error {
	for !w.copied.Load() && !w.failed.Load() {
		if err := f(); err != nil {
			return err
		}
		runtime.Gosched()
	}
	return nil
}
