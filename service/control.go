package service

import (
	"errors"
	"sync"
	"time"

	"decant/clone"
	"decant/hydrate"
	"decant/journal"
	"decant/region"
)

// control reaches into a run from outside: what may change while it goes on, and what
// is counted of it. A zero control belongs to a run that nobody steers. Its methods may
// be called concurrently with the run.
type control struct {
	meters *meters // nil: nobody counts

	throttle  *hydrate.Throttle  // of the run; set by attach
	threshold *hydrate.Threshold // likewise

	mu      sync.Mutex
	m       *migration // while it can be changed
	clone   *clone.Clone
	pending []func(*record) // changes that came before there was a run to change
}

// attach makes m the migration that is controlled. Changes that have come already are
// made now; durability and errors are as of journal.SetOptions.
func (c *control) attach(m *migration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.throttle = hydrate.NewThrottle(m.record.BytesPerSecond)
	c.threshold = hydrate.NewThreshold(m.record.ThresholdRegions)
	c.m = m
	changes := c.pending
	c.pending = nil
	for _, change := range changes {
		if err := c.apply(change); err != nil {
			return err
		}
	}
	return nil
}

// watch lets the state of the regions be asked for.
func (c *control) watch(of *clone.Clone) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clone = of
}

// detach ends what attach began.
func (c *control) detach() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m, c.clone = nil, nil
}

// change changes the record of the migration, and what the run does by it. It returns
// when the change is in the journal; where there is no run yet the change waits for it,
// and leftovers has it if none comes.
func (c *control) change(change func(*record)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.pending = append(c.pending, change)
		return nil
	}
	return c.apply(change)
}

// apply is change under the lock. Nothing of a change that the journal does not take
// comes into force. Only fields that the run reads through the control may change.
func (c *control) apply(change func(*record)) error {
	after := c.m.record
	change(&after)
	if err := c.m.saveRecord(after); err != nil {
		return err
	}
	// The run reads the other fields without a lock.
	r := &c.m.record
	r.BytesPerSecond, r.ThresholdRegions = after.BytesPerSecond, after.ThresholdRegions
	r.Priority, r.Paused, r.Reverse, r.Used = after.Priority, after.Paused, after.Reverse, after.Used
	r.SourceSamples = after.SourceSamples
	c.throttle.Set(r.BytesPerSecond)
	c.threshold.Set(r.ThresholdRegions)
	return nil
}

// options of the run, of which some may change later.
func (c *control) options(m *migration) Options {
	c.mu.Lock()
	defer c.mu.Unlock()
	return m.record.Options
}

// leftovers are the changes that no run has made.
func (c *control) leftovers() []func(*record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := c.pending
	c.pending = nil
	return left
}

// regions is the state of the regions now; not ok if there is no run.
func (c *control) regions() (s clone.Status, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clone == nil {
		return s, false
	}
	return c.clone.Status(), true
}

// dirty is the regions that are copied and not yet committed; none if there is no run.
func (c *control) dirty() *region.Set {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clone == nil {
		return region.NewSet()
	}
	return c.clone.Dirty()
}

func (c *control) commitTook(d time.Duration) {
	if c.meters != nil {
		c.meters.commits.observe(d)
	}
}

func (c *control) flushTook(d time.Duration) {
	if c.meters != nil {
		c.meters.flushes.observe(d)
	}
}

// amend changes the record of a migration that nobody works on.
func (s *Service) amend(id string, changes ...func(*record)) (err error) {
	lock, err := s.lock(id)
	if err != nil {
		return refuse(id, "another process works on it", "wait for it, or stop it with: migrate pause "+id, err)
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	j, err := journal.Open(s.journalPath(id))
	if err != nil {
		return refuse(id, "its journal cannot be used; nothing was changed", "repair or restore it; never start over", err)
	}
	m := &migration{s: s, id: id, journal: j}
	r, err := recordIn(j)
	if err == nil {
		for _, change := range changes {
			change(&r)
		}
		err = m.saveRecord(r)
	}
	if err = errors.Join(err, j.Close()); err != nil {
		return refuse(id, "its journal cannot be written", "", err)
	}
	return nil
}
