package hydrate

import (
	"context"
	"errors"
	"time"

	"decant/clone"
)

// loop is a goroutine that repeats one step of the protocol beside the copying:
// when it is due, when somebody demands it, and once more at the end.
type loop struct {
	step     func() error
	period   time.Duration   // at least so often; 0 is only when due
	due      chan struct{}   // holds one
	demands  chan chan error // somebody waits for a step
	finished chan struct{}   // the next step is the last
	ended    chan struct{}   // no step will come
	err      error           // of the step that ended it; read after ended
}

func newLoop(step func() error, period time.Duration) *loop {
	return &loop{
		step: step, period: period,
		due:      make(chan struct{}, 1),
		demands:  make(chan chan error),
		finished: make(chan struct{}),
		ended:    make(chan struct{}),
	}
}

// run repeats the step until it fails or the loop is finished.
func (l *loop) run() {
	defer close(l.ended)
	var ticks <-chan time.Time
	if l.period > 0 {
		ticker := time.NewTicker(l.period)
		defer ticker.Stop()
		ticks = ticker.C
	}
	for l.err == nil {
		select {
		case <-l.due:
			l.err = l.step()
		case <-ticks:
			l.err = l.step()
		case reply := <-l.demands:
			l.err = l.step()
			reply <- l.err
		case <-l.finished:
			l.err = l.step()
			return
		}
	}
}

// request asks for a step soon.
func (l *loop) request() {
	select {
	case l.due <- struct{}{}:
	default: // one is due already
	}
}

// now waits until a step has been made that began after the call.
func (l *loop) now() error {
	reply := make(chan error, 1)
	select {
	case l.demands <- reply:
		return <-reply
	case <-l.ended:
		return errors.Join(errors.New("commits or discards have ended"), l.err)
	}
}

// finish has a last step made, and waits for the end.
func (l *loop) finish() error {
	close(l.finished)
	<-l.ended
	return l.err
}

// commit is the step of the committing loop.
func (r *run) commit() error {
	if r.c.Status().Dirty > 0 {
		begun := time.Now()
		if err := r.c.Commit(); err != nil {
			return err
		}
		if r.o.CommitTook != nil {
			r.o.CommitTook(time.Since(begun))
		}
	}
	r.account()
	return nil
}

// account takes note of what has become durable, by a commit of ours or by a flush of
// a guest's.
func (r *run) account() {
	r.accounting.Lock()
	defer r.accounting.Unlock()
	now := r.c.Status()
	if now.Tx == r.committed.Tx {
		return
	}
	bytes, forGuests := now.CommittedBytes-r.committed.CommittedBytes, now.GuestBytes-r.committed.GuestBytes
	r.committed = now
	r.uncommitted.Release(bytes - forGuests)
	if r.o.Observer != nil {
		r.o.Observer.Committed(bytes)
	}
	r.discards.request()
}

// discard is the step of the discarding loop. The first takes what an earlier
// process committed and did not get to discard.
func (r *run) discard() error {
	done := r.c.TakeCommitted()
	r.unsettledBytes += done.CopiedBytes() - done.GuestBytes()
	if r.o.Space != nil {
		r.o.Space.Sample()
	}
	if !r.o.DiscardSource {
		r.settled()
		return nil
	}
	if r.c.Mode() != clone.ReadWrite {
		return nil // after a failed commit, which has its own error, nothing is discarded
	}
	// Not cancellable: readers end by themselves, and a half-known discard would
	// only have to be repeated.
	if err := r.c.DiscardSource(context.Background(), done); err != nil {
		return err
	}
	if r.o.Observer != nil && done.Regions() > 0 {
		r.o.Observer.Discarded(done)
	}
	if r.o.Space != nil {
		if ok, err := r.o.Space.Settle(done.CopiedBytes()); err != nil || !ok {
			return err
		}
	}
	r.settled()
	return nil
}

// settled lets as much be copied as no longer exists twice.
func (r *run) settled() {
	r.twice.Release(r.unsettledBytes)
	r.unsettledBytes = 0
}
