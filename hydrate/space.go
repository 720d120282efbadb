package hydrate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"decant/region"
)

// Space is the room that the run may fill. Its methods may be called concurrently.
type Space interface {
	// AvailableBytes is how much may be written before the reserve is touched. An
	// error ends the run: then nothing more is written.
	AvailableBytes() (int64, error)
	// Shortage describes what had the least room when AvailableBytes was called last.
	Shortage() Shortage
	// Reclaim makes the media give back what was discarded, as far as they do.
	Reclaim() error
	// Settle is told how much of what this run has copied was discarded on the source
	// since the last call. A medium that gives back only when it is asked to is asked
	// now, or later, when more has come together. The result is true when none of
	// all that is held back any more; until then it counts as existing twice. More
	// than one transaction must not be held back.
	Settle(copiedBytes int64) (bool, error)
	// Wait returns when there may be more room than before, or when ctx ends.
	Wait(ctx context.Context)
	// Sample measures how much space both ends take now, for the highest use.
	Sample()
}

// Shortage is lack of room.
type Shortage struct {
	What     string        // that has too little of it, for people
	Patience time.Duration // how long waiting for more makes sense
}

// ErrNoSpace says that the run stopped because space ran short and none came back.
var ErrNoSpace = errors.New("not enough space to go on")

// inFlight counts bytes that are admitted and may not show in the free space yet.
type inFlight struct {
	bytes     atomic.Int64
	admitting sync.Mutex // held from the measurement until what is admitted by it is added
}

func (f *inFlight) add(n int64) { f.bytes.Add(n) }

// measured is the last measurement of the space.
type measured struct {
	at        time.Time
	leftBytes int64 // less what was in flight then, and what was claimed since
}

// A measurement is trusted for a moment while there is plenty of room: others would
// have to take gigabytes a second to make it wrong, and what then finds no room is
// noticed (starvation). Without that, every copy would cost several questions to the
// media.
const (
	trustedFor        = 25 * time.Millisecond
	trustedAboveBytes = 128 << 20
)

// claimed is what a copy of a range takes of the space at most.
func (r *run) claimed(within region.Range) int64 {
	_, n := r.c.Geometry.Bytes(within)
	return n + r.o.EdgeBytes
}

// waitForSpace claims the leading part of within that fits into the space there
// is. Where not even one region fits, it commits, discards, makes the media give
// blocks back, and waits for them; if none come, it ends with ErrNoSpace.
func (r *run) waitForSpace(ctx context.Context, within region.Range) (region.Range, error) {
	if r.o.Space == nil {
		r.inFlight.add(r.claimed(within))
		return within, nil
	}
	if fit, _, err := r.fitting(within); err != nil || !fit.Empty() {
		return fit, err
	}
	r.workers.Wait() // workers report through fail; none is started meanwhile
	if ctx.Err() != nil {
		return within, context.Cause(ctx)
	}
	return r.gainSpace(ctx, within)
}

// gainSpace is waitForSpace when there is none and nothing is in flight.
func (r *run) gainSpace(ctx context.Context, within region.Range) (region.Range, error) {
	if err := errors.Join(r.commits.now(), r.discards.now()); err != nil {
		return within, err
	}
	waiting := false
	defer func() {
		if waiting {
			r.o.Observer.Waiting("")
		}
	}()
	for begun := time.Now(); ; {
		if err := r.o.Space.Reclaim(); err != nil {
			return within, err
		}
		if r.o.Guests != nil {
			r.o.Guests.giveBack()
		}
		fit, available, err := r.fitting(within)
		if err != nil || !fit.Empty() {
			return fit, err
		}
		shortage := r.o.Space.Shortage()
		if time.Since(begun) > shortage.Patience {
			return within, fmt.Errorf("%w: of %s %d bytes can be had, a region has %d", ErrNoSpace,
				shortage.What, max(0, available), r.c.Geometry.RegionBytes())
		}
		if r.o.Observer != nil && !waiting {
			waiting = true
			r.o.Observer.Waiting(shortage.What)
		}
		r.o.Space.Wait(ctx)
		if ctx.Err() != nil {
			return within, context.Cause(ctx)
		}
	}
}

// fitting claims the leading part of within that fits, perhaps nothing.
func (r *run) fitting(within region.Range) (fit region.Range, availableBytes int64, err error) {
	r.inFlight.admitting.Lock()
	defer r.inFlight.admitting.Unlock()
	available, err := r.measure()
	if err != nil {
		return within, 0, err
	}
	available -= r.o.EdgeBytes
	within.Count = min(within.Count, uint64(max(0, available)/r.c.Geometry.RegionBytes()))
	if _, n := r.c.Geometry.Bytes(region.Range{First: within.First, Count: 1}); within.Empty() && n <= available {
		within.Count = 1 // the short last region
	}
	if !within.Empty() {
		r.inFlight.add(r.claimed(within))
		r.measured.leftBytes -= r.claimed(within)
	}
	return within, available, nil
}

// measure is what there is room for besides what is in flight. The caller holds
// admitting.
func (r *run) measure() (int64, error) {
	m := &r.measured
	if r.o.Guests == nil && m.leftBytes > trustedAboveBytes && time.Since(m.at) < trustedFor {
		return m.leftBytes, nil
	}
	// What is in flight is subtracted in full before the free space is read, so
	// that a copy which ends in between counts twice rather than not at all.
	inFlight := r.inFlight.bytes.Load()
	available, err := r.o.Space.AvailableBytes()
	if err != nil {
		return 0, fmt.Errorf("measure the free space: %w", err)
	}
	*m = measured{at: time.Now(), leftBytes: available - inFlight}
	return m.leftBytes, nil
}

// sampleEvery is how often copies look how much space both ends take. Between two
// discards that only grows, and before each there is a look in any case.
const sampleEvery = 25 * time.Millisecond

// sampleNowAndThen samples if that was not done for a while.
func (r *run) sampleNowAndThen() {
	if r.o.Space == nil {
		return
	}
	now, last := int64(time.Since(r.begun)), r.sampled.Load()
	if now-last >= int64(sampleEvery) && r.sampled.CompareAndSwap(last, now) {
		r.o.Space.Sample()
	}
}

// starvation is a copy that found no room although there should have been some:
// somebody else was quicker. Its regions are copied anew when there is room again.
type starvation struct {
	err         error // of the first such copy since the last recovery
	copiedBytes int64 // by the whole run, when it was noted last
	tries       int   // without any progress in between
}

// mostTries is how often copies may find no room where room is measured.
const mostTries = 3

// starve notes that a copy found no room, and says whether the run can go on.
func (r *run) starve(err error) bool {
	if r.o.Space == nil || !errors.Is(err, ErrNoSpace) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.starved.err == nil {
		r.starved.err = err
	}
	return true
}

func (r *run) isStarving() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.starved.err != nil
}

// recoverSpace waits for the copies in flight, and says whether all has to be planned
// once more since some of them found no room. Then there is room again.
func (r *run) recoverSpace(ctx context.Context) (again bool, err error) {
	r.workers.Wait() // workers report through fail
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	r.mu.Lock()
	cause := r.starved.err
	r.starved.err = nil
	if copied := r.c.Status().CopiedBytes; copied > r.starved.copiedBytes {
		r.starved.copiedBytes, r.starved.tries = copied, 0
	}
	if cause != nil { // else nothing was tried in vain; plans may end while guests fill regions
		r.starved.tries++
	}
	tries := r.starved.tries
	r.mu.Unlock()
	if cause == nil {
		return false, nil
	}
	if tries > mostTries {
		return false, cause
	}
	one := r.c.Geometry.All()
	one.Count = 1
	one, err = r.gainSpace(ctx, one)
	if err != nil {
		return false, errors.Join(err, cause)
	}
	r.inFlight.add(-r.claimed(one)) // it is for whatever is planned next
	return true, nil
}
