package hydrate

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"decant/region"
)

const (
	// spacePatience is how long the governor waits for blocks that were
	// discarded to come back. File systems give them back with their own
	// journal's commit, ext4 within 5 s if nobody asks for it.
	spacePatience = 10 * time.Second
	spacePoll     = 100 * time.Millisecond
)

// inFlight counts bytes that are admitted and may not show in the free space yet.
type inFlight struct{ bytes atomic.Int64 }

func (f *inFlight) add(n int64) { f.bytes.Add(n) }

// waitForSpace returns the leading part of within that fits into the space there
// is. Where not even one region fits, it commits, discards, makes the media give
// blocks back, and waits for them; if none come, it ends with ErrNoSpace.
func (r *run) waitForSpace(ctx context.Context, within region.Range) (region.Range, error) {
	if r.o.Space == nil {
		return within, nil
	}
	if fit, _, err := r.fitting(within); err != nil || !fit.Empty() {
		return fit, err
	}
	_ = r.workers.Wait() // workers report through fail; none is started meanwhile
	if ctx.Err() != nil {
		return within, context.Cause(ctx)
	}
	if err := errors.Join(r.commits.now(), r.discards.now()); err != nil {
		return within, err
	}
	waiting := false
	defer func() {
		if waiting {
			r.o.Observer.Waiting("")
		}
	}()
	for deadline := time.Now().Add(spacePatience); ; {
		if err := r.o.Space.Reclaim(); err != nil {
			return within, err
		}
		fit, available, err := r.fitting(within)
		if err != nil || !fit.Empty() {
			return fit, err
		}
		if time.Now().After(deadline) {
			return within, fmt.Errorf("%w: %d bytes can be had, a region has %d", ErrNoSpace,
				max(0, available), r.c.Geometry.RegionBytes())
		}
		if r.o.Observer != nil && !waiting {
			waiting = true
			r.o.Observer.Waiting("space")
		}
		select {
		case <-ctx.Done():
			return within, context.Cause(ctx)
		case <-time.After(spacePoll):
		}
	}
}

// fitting is the leading part of within that fits, perhaps nothing.
func (r *run) fitting(within region.Range) (fit region.Range, availableBytes int64, err error) {
	// What is in flight is subtracted in full before the free space is read, so
	// that a copy which ends in between counts twice rather than not at all.
	inFlight := r.inFlight.bytes.Load()
	available, err := r.o.Space.AvailableBytes()
	if err != nil {
		return within, 0, fmt.Errorf("measure the free space: %w", err)
	}
	available -= inFlight
	within.Count = min(within.Count, uint64(max(0, available)/r.c.Geometry.RegionBytes()))
	if _, n := r.c.Geometry.Bytes(region.Range{First: within.First, Count: 1}); within.Empty() && n <= available {
		within.Count = 1 // the short last region
	}
	return within, available, nil
}
