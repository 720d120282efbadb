package clonetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"decant/clone"
	"decant/region"
)

// Drive runs a migration to its end in one goroutine, or to the first error:
// copies, commits and discards in random order, guests' changes if there are guests,
// and reads of the device that must show what it holds. In the middle of every operation it lets others happen, as
// concurrent workers would: a commit and a discard during a copy, copies and reads
// during a flush. A run is the same again for the same machine and rng.
func (m *Machine) Drive(c *clone.Clone, rng *rand.Rand) error {
	d := &driver{m: m, c: c, rng: rng, inPlace: region.NewSet()}
	d.begun = replay(m.log).Hydrated
	if st := c.Status(); st.Hydrated+st.Dirty > d.begun.Count() {
		d.begun.Add(m.setup.Geometry().All()) // from an earlier Drive
	}
	m.Meanwhile = d.meanwhile
	defer func() { m.Meanwhile = nil }()
	err := d.run()
	return errors.Join(err, d.nested)
}

// driver knows which locks of the clone are held on its goroutine's stack, since
// it must not ask for them again.
type driver struct {
	m   *Machine
	c   *clone.Clone
	rng *rand.Rand

	depth      int
	committing bool
	discarding bool
	journal    bool // inside the journal
	reading    int  // reads of the device on the stack

	held    []region.Range // that copies and changes on the stack may have claimed
	begun   *region.Set    // regions that may be anything but Unhydrated
	settled *region.Set    // begun when the commit on the stack began, or later
	inPlace *region.Set    // regions that guests have written to

	nested error
	quiet  bool          // a discard goes on beside; nothing else begins
	beside chan struct{} // closed when it has ended
}

var canceled = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

func (d *driver) run() error {
	all := d.m.setup.Geometry().All()
	for d.nested == nil {
		within := all
		if d.rng.IntN(3) == 0 {
			within = region.Between(region.Nr(d.rng.Uint64N(all.Count)), all.End())
		}
		worked, err := d.copyOne(within)
		if err != nil {
			return err
		}
		if !worked && within == all {
			break
		}
		if d.rng.IntN(d.m.setup.CommitEvery) == 0 {
			if err := d.commit(); err != nil {
				return err
			}
		}
		if d.rng.IntN(d.m.setup.CommitEvery) == 0 {
			if err := d.discard(); err != nil {
				return err
			}
		}
		if err := d.guests(2); err != nil {
			return err
		}
	}
	if err := d.guests(6); err != nil {
		return err
	}
	if err := d.commit(); err != nil {
		return err
	}
	if err := d.read(0, d.m.setup.DeviceBytes); err != nil {
		return err
	}
	return d.discard()
}

// copyOne asks for work in within and does it.
func (d *driver) copyOne(within region.Range) (worked bool, err error) {
	work, ok, err := d.c.Next(within, d.m.setup.BatchRegions)
	if err != nil || !ok {
		return false, err
	}
	if work.Range.Empty() {
		return false, fmt.Errorf("%w: work without regions at %d", ErrViolation, work.Range.First)
	}
	d.hold(work.Range)
	defer d.release()
	if work.Hole {
		return true, d.c.HydrateHole(context.Background(), work.Range)
	}
	_, err = d.c.Hydrate(context.Background(), work.Range)
	return true, err
}

// hold notes that a range is being worked on, until release.
func (d *driver) hold(run region.Range) {
	d.held = append(d.held, run)
	d.begun.Add(run)
}

// release ends the last hold.
func (d *driver) release() { d.held = d.held[:len(d.held)-1] }

// asCommit does what may commit the settled regions.
func (d *driver) asCommit(settled *region.Set, do func() error) error {
	d.committing, d.settled = true, settled
	err := do()
	d.committing, d.settled = false, nil
	if d.beside != nil {
		<-d.beside
		d.beside, d.quiet, d.discarding = nil, false, false
	}
	return err
}

func (d *driver) commit() error {
	commit := d.c.Commit
	if d.rng.IntN(2) == 0 {
		commit = d.c.Flush
	}
	return d.asCommit(d.begun.Clone(), func() error { return d.m.Flush(commit) })
}

func (d *driver) discard() error {
	ctx := context.Background()
	if d.reading > 0 {
		ctx = canceled // the read below on the stack cannot end before this does
	}
	d.discarding = true
	err := d.c.DiscardSource(ctx, d.c.TakeCommitted())
	d.discarding = false
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// discardBeside discards while a commit is inside the journal. The discard's own
// entry into the journal may have to wait for the commit's, so it gets a goroutine;
// it is waited for until it has nothing else left to do.
func (d *driver) discardBeside() {
	done := d.c.TakeCommitted()
	if done.Regions() == 0 {
		return
	}
	d.discarding, d.quiet = true, true
	ended, discarded := make(chan struct{}), d.m.await(done.Regions())
	d.beside = ended
	go func() {
		defer close(ended)
		d.note(d.c.DiscardSource(context.Background(), done))
	}()
	select {
	case <-ended:
	case <-discarded:
	}
}

// read reads through the clone and compares.
func (d *driver) read(off, n int64) error {
	if d.m.flushFails() && d.c.Mode() == clone.ReadWrite {
		return nil // what the destination has lost, nobody can know yet
	}
	d.reading++
	defer func() { d.reading-- }()
	if off%2 == 0 {
		if err := d.m.Look(d.c, off, n); err != nil {
			return err
		}
	}
	return d.m.ReadBack(d.c, off, n)
}

// meanwhile does one random other thing in the middle of an operation.
func (d *driver) meanwhile(op Op) {
	if d.quiet || d.depth == 3 || d.rng.IntN(4) > 0 {
		return
	}
	if op == JournalCommit || op == JournalMarkDiscarded {
		before := d.journal
		d.journal = true
		defer func() { d.journal = before }()
	}
	d.depth++
	defer func() { d.depth-- }()
	d.note(d.other(op))
}

// other does it, as far as the locks on the stack allow.
func (d *driver) other(op Op) error {
	if d.m.setup.Guests && d.rng.IntN(3) == 0 {
		return d.guest()
	}
	switch d.rng.IntN(4) {
	case 0:
		_, err := d.copyOne(d.m.setup.Geometry().All())
		return err
	case 1:
		off := d.rng.Int64N(d.m.setup.DeviceBytes)
		return d.read(off, 1+d.rng.Int64N(d.m.setup.DeviceBytes-off))
	case 2:
		if !d.committing && !d.journal {
			if err := d.commit(); err != nil {
				return err
			}
		}
	}
	switch {
	case d.discarding:
	case !d.journal:
		return d.discard()
	case op == JournalCommit && d.reading == 0:
		d.discardBeside()
	}
	return nil
}

// note keeps the first errors of what happened meanwhile. What fails for want of
// power is no news.
func (d *driver) note(err error) {
	if err == nil || d.m.PowerIsCut() && !errors.Is(err, ErrViolation) {
		return
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	d.nested = errors.Join(d.nested, err)
}
