package hydrate

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"

	"decant/clone"
	"decant/region"
)

// Run hydrates every region of c, commits, and with DiscardSource discards, until
// nothing is left. It blocks, and leaves no goroutine behind.
//
// A cancelled context stops it in an orderly way: no new copy begins, those in
// flight end, and what was copied is committed and discarded before Run returns
// the context's cause. After any other error the same is done as far as the clone
// still allows it. Everything that was committed stays, and a later Run goes on
// from there.
func Run(ctx context.Context, c *clone.Clone, o Options) error {
	if err := o.check(c); err != nil {
		return err
	}
	transactionBytes := max(o.CommitBytes, c.Geometry.RegionBytes())
	r := &run{
		c: c, o: o, committed: c.Status(), begun: time.Now(),
		ended:       make(chan struct{}, 1),
		inFlight:    &inFlight{},
		uncommitted: semaphore.NewWeighted(transactionBytes),
		twice:       semaphore.NewWeighted(2 * transactionBytes),
	}
	if o.Guests != nil {
		r.inFlight = &o.Guests.inFlight
	}
	if o.Threshold == nil {
		r.o.Threshold = NewThreshold(o.ThresholdRegions)
	}
	r.workers = newWorkers(func() int {
		return int(min(max(1, r.o.Threshold.Regions()/o.BatchRegions), mostCopies()))
	})
	r.commits = newLoop(r.commit, o.CommitPeriod)
	r.discards = newLoop(r.discard, 0)
	r.discards.request()

	// An error of a loop ends the copying; the copying's end ends the loops.
	copying, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	for _, l := range []*loop{r.commits, r.discards} {
		go l.run()
		go func() {
			<-l.ended
			stop(l.err)
		}()
	}
	if o.Guests != nil {
		o.Guests.follow(r.makeRoom)
		defer o.Guests.follow(nil)
	}
	err := r.copyAll(copying)
	for _, l := range []*loop{r.commits, r.discards} {
		if loopErr := l.finish(); loopErr != nil && !errors.Is(err, loopErr) {
			err = errors.Join(loopErr, err)
		}
	}
	if err != nil {
		return err
	}
	return r.incomplete()
}

// incomplete is an error if there are regions that could not be read and that no
// guest has written anew since.
func (r *run) incomplete() error {
	var bad []BadRegion
	for _, b := range r.bad {
		if r.c.Unhydrated(b.Range) {
			bad = append(bad, b)
		}
	}
	if len(bad) > 0 {
		return &IncompleteError{Bad: bad}
	}
	return nil
}

// run is the state of one Run. The planner is a single goroutine: the one that
// called Run.
type run struct {
	c *clone.Clone
	o Options

	commits, discards *loop
	accounting        sync.Mutex
	committed         clone.Status // when uncommitted was last released; under accounting
	unsettledBytes    int64        // discarded and not released from twice; of the discarding loop

	// uncommitted bounds the bytes that a crash makes us copy again: what is in
	// flight or dirty. One full transaction fits.
	uncommitted *semaphore.Weighted
	// twice bounds the bytes that exist twice: those, and what is committed and
	// not yet discarded, or discarded and not yet given back. Two full
	// transactions fit.
	twice *semaphore.Weighted

	workers  *workers
	copies   atomic.Int64  // workers that copy
	ended    chan struct{} // holds one: a copy has ended
	inFlight *inFlight
	measured measured // under inFlight.admitting

	begun   time.Time
	sampled atomic.Int64 // when copies have sampled last, as a time since begun

	mu      sync.Mutex
	bad     []BadRegion
	starved starvation
}

// mostCopies is how many copies at a time a processor can keep up with. More of them
// only take memory and switches between threads.
func mostCopies() uint64 { return copiesPerProcessor * uint64(runtime.NumCPU()) }

const copiesPerProcessor = 2

// guestPoll is how often a run that has nothing left to do looks whether guests have
// finished with the regions that they are filling.
const guestPoll = 5 * time.Millisecond

// copyAll plans and copies until nothing is left, or something fails.
func (r *run) copyAll(ctx context.Context) error {
	failing, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	for {
		err := r.plan(failing, fail)
		r.workers.Wait() // workers report through fail
		if cause := context.Cause(failing); cause != nil {
			return cause
		}
		if err != nil || r.covered() {
			return err
		}
		select {
		case <-failing.Done():
		case <-time.After(guestPoll):
		}
	}
}

// covered says whether every region is Dirty or more, or known as bad. What a guest is
// filling may yet fail and be left to us.
func (r *run) covered() bool {
	var bad uint64
	r.mu.Lock()
	for _, b := range r.bad {
		if r.c.Unhydrated(b.Range) {
			bad += b.Range.Count
		}
	}
	r.mu.Unlock()
	s := r.c.Status()
	return s.Hydrated+s.Dirty+bad >= s.Regions
}

func (r *run) plan(ctx context.Context, fail context.CancelCauseFunc) error {
	all := r.c.Geometry.All()
	for left := all; ; {
		r.yield(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		work, ok, err := r.c.Next(left, r.batch())
		if err != nil {
			return err
		}
		if !ok || r.isStarving() {
			if again, err := r.recoverSpace(ctx); err != nil || !again {
				return err
			}
			left = all
			continue
		}
		after := work.Range.First + 1 // of a bad region
		if work.Range = r.good(work.Range); !work.Range.Empty() {
			if work.Range, err = r.do(ctx, work, fail); err != nil {
				return err
			}
			after = work.Range.End()
		}
		if !work.Wanted {
			left = region.Between(after, all.End())
		}
	}
}

// batch is the most regions of one copy.
func (r *run) batch() uint64 {
	return min(r.o.BatchRegions, r.o.Threshold.Regions(), max(1, uint64(r.o.CommitBytes/2/r.c.Geometry.RegionBytes())))
}

// do does work, or has it done, or a leading part of it, and says what that is.
func (r *run) do(ctx context.Context, work clone.Work, fail context.CancelCauseFunc) (region.Range, error) {
	if work.Hole {
		return work.Range, spaceError(r.c.HydrateHole(ctx, work.Range))
	}
	part, err := r.admit(ctx, work.Range)
	if err == nil {
		r.start(ctx, part, fail)
	}
	return part, err
}

// good is the part of a range before the first region that is known as bad.
func (r *run) good(within region.Range) region.Range {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.bad {
		if !b.Range.Intersect(within).Empty() {
			within.Count = uint64(max(b.Range.First, within.First) - within.First)
		}
	}
	return within
}

// admit waits until the range, or a leading part of it, may be copied. The space of it
// is claimed then.
func (r *run) admit(ctx context.Context, within region.Range) (_ region.Range, err error) {
	within, err = r.waitForSpace(ctx, within)
	if err != nil {
		return within, err
	}
	defer func() {
		if err != nil {
			r.inFlight.add(-r.claimed(within))
		}
	}()
	_, n := r.c.Geometry.Bytes(within)
	if r.o.Throttle != nil {
		if err := r.o.Throttle.Wait(ctx, n); err != nil {
			return within, context.Cause(ctx)
		}
	}
	for _, limit := range []*semaphore.Weighted{r.twice, r.uncommitted} {
		if limit.TryAcquire(n) {
			continue
		}
		r.commits.request()
		if err := limit.Acquire(ctx, n); err != nil {
			return within, context.Cause(ctx)
		}
	}
	return within, nil
}

// start copies an admitted range in a worker.
func (r *run) start(ctx context.Context, within region.Range, fail context.CancelCauseFunc) {
	_, n := r.c.Geometry.Bytes(within)
	r.copies.Add(1)
	r.workers.Go(func() {
		defer r.stop()
		defer r.inFlight.add(-r.claimed(within))
		// A copy that began is ended: the context stops the planner, not the copy.
		copied, err := r.copy(context.WithoutCancel(ctx), within)
		r.sampleNowAndThen()
		r.uncommitted.Release(n - copied)
		r.twice.Release(n - copied)
		if err != nil && !r.starve(err) {
			fail(err)
		}
		r.copied()
	})
}

// copied asks for a commit once half a transaction's worth is dirty, so that the
// other half can be copied while it is committed.
func (r *run) copied() {
	r.account()
	if r.c.Status().DirtyBytes >= r.o.CommitBytes/2 {
		r.commits.request()
	}
}

// copy hydrates a range. What cannot be read is tried once more region by region,
// and what still fails is listed instead of failing the run.
func (r *run) copy(ctx context.Context, within region.Range) (int64, error) {
	copied, err := r.c.Hydrate(ctx, within)
	if !sourceFault(err) {
		return copied, spaceError(err)
	}
	for nr := within.First; nr < within.End(); nr++ {
		one := region.Range{First: nr, Count: 1}
		n, err := r.c.Hydrate(ctx, one)
		copied += n
		if sourceFault(err) {
			if !r.noteBad(BadRegion{Range: one, Err: err}) {
				return copied, fmt.Errorf("more than %d regions cannot be read: %w", maxBadRegions, err)
			}
		} else if err != nil {
			return copied, spaceError(err)
		}
	}
	return copied, nil
}

// maxBadRegions is how many regions may turn out unreadable before the source
// counts as broken altogether.
const maxBadRegions = 1 << 12

// noteBad says whether the run may go on. What a guest wanted ahead of its turn
// fails twice.
func (r *run) noteBad(bad BadRegion) bool {
	r.mu.Lock()
	known := slices.ContainsFunc(r.bad, func(b BadRegion) bool { return b.Range == bad.Range })
	if !known {
		r.bad = append(r.bad, bad)
	}
	count := len(r.bad)
	r.mu.Unlock()
	if r.o.Observer != nil && !known {
		r.o.Observer.Bad(bad)
	}
	return count <= maxBadRegions
}

// sourceFault says whether only the medium under the source refused these bytes.
// A source that became shorter or vanished is no such case: it fails the run.
func sourceFault(err error) bool {
	var ioErr *clone.IOError
	return errors.As(err, &ioErr) && ioErr.Side == clone.SourceSide && errors.Is(err, syscall.EIO)
}

// spaceError gives a write that found no room the name that callers look for.
func spaceError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return errors.Join(ErrNoSpace, err)
	}
	return err
}
