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
// concurrency: workers that copy, a goroutine that commits, one that discards, and
// readers that compare with the image. It returns when all of them have ended.
func (m *Machine) DriveWorkers(c *clone.Clone, workers, readers int, seed uint64) error {
	w := &crew{m: m, c: c}
	var copying, rest sync.WaitGroup
	for i := range workers {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		copying.Go(func() { w.note(w.copyAll(rng)) })
	}
	rest.Go(func() { w.note(w.until(c.Commit)) })
	rest.Go(func() {
		w.note(w.until(func() error { return c.DiscardSource(context.Background(), c.TakeCommitted()) }))
	})
	for i := range readers {
		rng := rand.New(rand.NewPCG(seed, uint64(workers+i)))
		rest.Go(func() {
			w.note(w.until(func() error {
				off := rng.Int64N(m.setup.DeviceBytes)
				return m.ReadBack(c, off, 1+rng.Int64N(m.setup.DeviceBytes-off))
			}))
		})
	}
	copying.Wait()
	w.copied.Store(true)
	rest.Wait()
	if w.err != nil {
		return w.err
	}
	if err := c.Commit(); err != nil {
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
