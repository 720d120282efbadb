// Package hydrate drives a migration: it finds what is left to copy, keeps a pool
// of workers busy with it within the limits of rate and space, and commits and
// discards beside them.
package hydrate

import (
	"errors"
	"fmt"
	"time"

	"decant/clone"
	"decant/region"
)

// Options of a run. The zero value of a limit means that there is none; sizes and
// counts have to be positive.
type Options struct {
	ThresholdRegions uint64 // regions in flight at most, as dm-clone's hydration_threshold
	// Threshold takes the place of ThresholdRegions, where that is to change during the run.
	Threshold    *Threshold
	BatchRegions uint64 // contiguous regions per copy at most, as dm-clone's hydration_batch_size
	CommitPeriod time.Duration
	CommitBytes  int64 // copied bytes that may be uncommitted at a time, and so in one transaction
	// GuestQuiet makes room for guests: while requests of theirs are in flight, or
	// the last one has ended no longer ago than this, a single worker copies. Some
	// milliseconds do; 0 lets the run compete with guests.
	GuestQuiet    time.Duration
	Throttle      Limiter // nil: none
	DiscardSource bool
	Space         Space // nil: unlimited
	// Guests share Space with the run; nil: there are none, or they take no space of it.
	Guests *Guests
	// EdgeBytes is how much more than its bytes one copy may take, where space is
	// allocated in units that copies need not begin and end with.
	EdgeBytes int64
	Observer  Observer
	// CommitTook is told how long each commit took that succeeded. It must return soon.
	CommitTook func(time.Duration)
}

// Observer is told what happens. Its methods are called by the goroutines of the
// run and must return soon.
type Observer interface {
	Committed(copiedBytes int64)
	Discarded(clone.Committed)
	Waiting(forWhat string) // to have more room; an empty text ends it
	Bad(BadRegion)
}

// BadRegion is a run of regions that could not be read. They were neither hydrated
// nor discarded.
type BadRegion struct {
	Range region.Range
	Err   error
}

// IncompleteError says that everything was hydrated but for some regions that
// could not be read.
type IncompleteError struct {
	Bad []BadRegion
}

func (e *IncompleteError) Error() string {
	var regions uint64
	for _, b := range e.Bad {
		regions += b.Range.Count
	}
	return fmt.Sprintf("%d regions of the source cannot be read, the first: %v", regions, e.Bad[0].Err)
}

func (e *IncompleteError) Unwrap() error { return e.Bad[0].Err }

func (o Options) check(c *clone.Clone) error {
	if o.Threshold != nil {
		o.ThresholdRegions = o.Threshold.Regions()
	}
	switch {
	case o.ThresholdRegions == 0 || o.BatchRegions == 0 || o.CommitBytes <= 0 || o.CommitPeriod <= 0:
		return errors.New("threshold, batch, commit bytes and commit period have to be positive")
	case o.ThresholdRegions > c.Geometry.Regions()+1<<20:
		return fmt.Errorf("threshold of %d regions", o.ThresholdRegions)
	}
	return nil
}
