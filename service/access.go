package service

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"decant/clone"
	"decant/journal"
)

// access is a way in which guests use the volume of a migration while it hydrates, such
// as a socket that speaks NBD. The methods are called one after the other in the order
// in which they stand here, each once at most but for close, which follows any open.
//
// What guests use is reporter.volume.
type access interface {
	// check refuses what cannot work, in words for people (refuse), and changes
	// nothing. It is part of the preflight, and nothing else follows in a dry run.
	check(a *attempt) error
	// open lets guests in, and tells the sink how they find the volume. By then the
	// clone shows what it should, and hydration begins after it. ctx ends when the run
	// is to stop: from that moment on no guest has to be let in, and finish and close
	// follow at once.
	open(ctx context.Context, r *reporter) error
	// finish is called when hydration has ended: failed is why, or nil if every region
	// is hydrated. It returns as soon as no guest needs this process any more, and at
	// the latest when ctx ends.
	finish(ctx context.Context, failed error) error
	// close keeps guests out. When it returns no method of the volume is running, and
	// none will be called. It may be called without open, or after an error of it.
	close() error
}

// chooseAccesses makes the accesses that the options ask for. Paths become absolute: a
// resume by id may come from another directory.
func (a *attempt) chooseAccesses() error {
	o := &a.request.Options
	if o.Export == "" {
		return nil
	}
	var err error
	if o.Export, err = filepath.Abs(o.Export); err != nil {
		return refuse(o.Export, "is no path", "", err)
	}
	a.accesses = append(a.accesses, &export{path: o.Export})
	return nil
}

// checkAccesses refuses accesses that cannot work. A migration that is done has none but
// a live device, which may have to be put over the destination yet.
func (a *attempt) checkAccesses() error {
	if a.known != nil && a.known.state.Phase == journal.Done {
		a.accesses = nil
	}
	if err := a.checkStacked(); err != nil {
		return err
	}
	if err := a.chooseLive(); err != nil {
		return err
	}
	for _, x := range a.accesses {
		if err := x.check(a); err != nil {
			return err
		}
	}
	return nil
}

// holder is an access whose guests may be there already, from an earlier process.
type holder interface {
	// hold makes them wait for open. It comes first of all, also before the recheck.
	hold(ctx context.Context, r *reporter) error
}

// holdGuests makes guests of an earlier process wait for this one.
func (m *migration) holdGuests(ctx context.Context, r *reporter) error {
	for _, x := range m.accesses {
		if h, ok := x.(holder); ok {
			err := h.hold(ctx, r)
			if ours := new(*Error); errors.As(err, ours) {
				return err
			}
			if err != nil {
				return m.stopped(ctx, err)
			}
		}
	}
	return nil
}

// letGuestsIn opens the accesses. From the moment when that begins the journal knows
// that the destination may hold what the source never held.
func (m *migration) letGuestsIn(ctx context.Context, r *reporter) error {
	if len(m.accesses) == 0 {
		return nil
	}
	if !m.record.Used {
		if err := m.control.change(func(r *record) { r.Used = true }); err != nil {
			return m.failure(err)
		}
	}
	for _, x := range m.accesses {
		if err := x.open(ctx, r); err != nil {
			return m.stopped(ctx, err)
		}
	}
	return nil
}

// hydrationEnded begins the warning of a run that goes on for its guests only.
const hydrationEnded = "hydration has ended: "

// seeGuestsOff is called when hydration has ended, with its error. It waits until no
// guest needs this process any more, or ctx ends. Guests who are there may go on after a
// failure as well: nothing that they can read or write has become less (I13). What they
// have written is committed at the end.
func (m *migration) seeGuestsOff(ctx context.Context, r *reporter, failed error) error {
	if len(m.accesses) == 0 {
		return failed
	}
	if failed != nil && ctx.Err() == nil && m.kernelEngine() == nil { // which needs this process for no guest
		r.warn(hydrationEnded + failed.Error() + "; whoever uses the volume can go on, and the run ends when the last one has left")
	}
	r.setPhase(servingPhase)
	r.tell(Progress, nil)
	errs := make([]error, len(m.accesses))
	var finishing sync.WaitGroup
	for i, x := range m.accesses {
		finishing.Go(func() { errs[i] = x.finish(ctx, failed) })
	}
	finishing.Wait()
	err := errors.Join(errors.Join(errs...), m.shutGuestsOut())
	if r.clone.Mode() == clone.ReadWrite {
		err = errors.Join(err, r.clone.Commit())
	} else {
		err = errors.Join(err, clone.ErrReadOnly, r.clone.Failure())
	}
	switch {
	case failed != nil:
		return failed
	case err != nil:
		return m.stopped(ctx, err)
	case ctx.Err() != nil:
		return m.stopped(ctx, context.Cause(ctx))
	}
	return nil
}

// shutGuestsOut closes the accesses, however far they have come. It may be called again.
func (m *migration) shutGuestsOut() error {
	var errs []error
	for _, x := range m.accesses {
		if w, ok := x.(interface{ waits() string }); ok {
			m.waits = w.waits()
		}
		if err := x.close(); err != nil {
			errs = append(errs, fmt.Errorf("end the use by others: %w", err))
		}
	}
	m.accesses = nil
	return errors.Join(errs...)
}
