package hydrate

import (
	"context"
	"errors"
	"time"

	"decant/clone"
)

// committer is the goroutine that commits and discards beside the copying.
type committer struct {
	c *clone.Clone
	o Options
	// These bytes need not be copied again after a crash; exist only once.
	committed, settled func(copiedBytes int64)

	full     chan struct{}   // a transaction is due
	demands  chan chan error // somebody waits for one
	finished chan struct{}   // the copying has ended
	ended    chan struct{}   // the loop has ended
}

func newCommitter(c *clone.Clone, o Options) *committer {
	return &committer{
		c: c, o: o,
		full:     make(chan struct{}, 1),
		demands:  make(chan chan error),
		finished: make(chan struct{}),
		ended:    make(chan struct{}),
	}
}

// loop runs rounds when they are due: by period, by bytes, on demand, and a last
// one when the copying has ended. The first takes what an earlier process
// committed and did not get to discard.
func (m *committer) loop() error {
	defer close(m.ended)
	ticker := time.NewTicker(m.o.CommitPeriod)
	defer ticker.Stop()
	err := m.round()
	for err == nil {
		select {
		case <-m.full:
			err = m.round()
		case <-ticker.C:
			err = m.round()
		case reply := <-m.demands:
			err = m.round()
			reply <- err
		case <-m.finished:
			return m.round()
		}
	}
	return err
}

// round commits what is dirty and discards what is committed.
func (m *committer) round() error {
	commitErr := m.commit()
	done := m.c.TakeCommitted()
	m.committed(done.CopiedBytes())
	if m.o.Space != nil {
		m.o.Space.Sample()
	}
	var discardErr error
	if m.o.DiscardSource && commitErr == nil {
		// Not cancellable: readers end by themselves, and a half-known
		// discard would only have to be repeated.
		discardErr = m.c.DiscardSource(context.Background(), done)
		if m.o.Observer != nil && done.Regions() > 0 && discardErr == nil {
			m.o.Observer.Discarded(done)
		}
	}
	m.settled(done.CopiedBytes())
	return errors.Join(commitErr, discardErr)
}

func (m *committer) commit() error {
	before := m.c.Status()
	if before.Dirty == 0 {
		return nil
	}
	if err := m.c.Commit(); err != nil {
		return err
	}
	if m.o.Observer != nil {
		m.o.Observer.Committed(before.DirtyBytes)
	}
	return nil
}

// copied asks for a commit once half a transaction's worth is dirty, so that the
// other half can be copied while it is committed.
func (m *committer) copied() {
	if m.c.Status().DirtyBytes >= m.o.CommitBytes/2 {
		m.request()
	}
}

// request asks for a commit soon.
func (m *committer) request() {
	select {
	case m.full <- struct{}{}:
	default: // one is due already
	}
}

// now has everything that is dirty committed and discarded before it returns.
func (m *committer) now() error {
	reply := make(chan error, 1)
	select {
	case m.demands <- reply:
		return <-reply
	case <-m.ended:
		return errors.New("the commits have ended")
	}
}

// finish ends the loop after a last round.
func (m *committer) finish() { close(m.finished) }
