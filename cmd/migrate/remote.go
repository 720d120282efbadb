package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"decant/api/client"
	"decant/service"
)

// remote is the service as the commands see it. What they begin there goes on without
// them: they watch.
type remote struct {
	client *client.Client
	note   func(line string) // for the person who watches; may be nil
}

func (r *remote) say(format string, args ...any) {
	if r.note != nil {
		r.note(fmt.Sprintf(format, args...))
	}
}

// The short answers take as long as their disks, and the service answers for that.
var background = context.Background()

func (r *remote) List() ([]service.Summary, error) {
	statuses, err := r.client.List(background)
	list := make([]service.Summary, 0, len(statuses))
	for _, s := range statuses {
		list = append(list, s.Summary)
	}
	return list, err
}

func (r *remote) Show(id string, cells int) (service.Detail, error) {
	m, err := r.client.Get(background, id, cells)
	return detailOf(m), err
}

func detailOf(m client.Migration) service.Detail {
	return service.Detail{
		Summary: m.Summary, Options: m.Options, Map: m.Map, Bad: m.Bad, Transactions: m.Transactions, Journal: m.Journal,
	}
}

func (r *remote) Explain(id string, offset int64) (service.Explanation, error) {
	return r.client.Explain(background, id, offset)
}

func (r *remote) Pause(ctx context.Context, id string) error {
	_, err := r.client.Pause(ctx, id)
	return err
}

func (r *remote) Cancel(ctx context.Context, id string) error {
	_, err := r.client.Cancel(ctx, id, client.Cancellation{})
	return err
}

func (r *remote) Resume(ctx context.Context, id string, sink service.Sink) error {
	_, err := r.run(ctx, id, r.client.Resume, sink)
	return err
}

func (r *remote) Reverse(ctx context.Context, id string, sink service.Sink) error {
	_, err := r.run(ctx, id, r.client.Reverse, sink)
	return err
}

func (r *remote) Verify(ctx context.Context, id string, sink service.Sink) (service.VerifyReport, error) {
	status, err := r.run(ctx, id, r.client.Verify, sink)
	if status.Verified == nil {
		return service.VerifyReport{ID: status.ID}, err
	}
	return *status.Verified, err
}

// run has the service begin something, and watches until it has ended.
func (r *remote) run(ctx context.Context, id string, begin func(context.Context, string) (service.Status, error), sink service.Sink) (service.Status, error) {
	// The stream is open before anything begins, so that nothing of it is missed.
	events, err := r.client.Events(ctx, id, service.FromNow)
	if err != nil {
		return service.Status{}, err
	}
	status, err := begin(ctx, id)
	if err != nil {
		events.Close()
		return status, err
	}
	if status.State == service.StateQueued && status.Position > 0 {
		r.say("%s waits for its turn in the service, at place %d", printableName(status.ID), status.Position)
	}
	f := &following{remote: r, id: status.ID, sink: sink, events: events}
	defer func() { f.events.Close() }()
	return f.untilEnd(ctx)
}

// following is one migration that is watched.
type following struct {
	*remote
	id     string
	sink   service.Sink
	events *client.EventReader
}

// untilEnd passes events on until the migration has ended, one way or another, and
// returns what the command would have that had run it itself.
func (f *following) untilEnd(ctx context.Context) (service.Status, error) {
	for {
		last, err := f.untilNews(ctx)
		if err != nil {
			return service.Status{Summary: service.Summary{ID: f.id}}, err
		}
		status, err := f.settled(ctx)
		if errors.Is(err, client.ErrNoService) { // a run also ends with the service
			if err := f.reconnect(ctx); err != nil {
				return status, err
			}
			// How that run ended says nothing of what the next service has made of it.
			last = service.Event{}
			status, err = f.settled(ctx)
		}
		if err != nil {
			return status, err
		}
		isOver, err := f.verdict(status, last)
		if isOver && last.Event == "" && isEnd(status.Event) {
			f.sink(*status.Event) // the stream has not told it yet
		}
		if isOver {
			return status, err
		}
	}
}

// untilNews passes events on until one of them ends a run, and returns that, or until
// some were lost.
func (f *following) untilNews(ctx context.Context) (last service.Event, err error) {
	for {
		e, isGap, err := f.events.Next()
		switch {
		case ctx.Err() != nil:
			return last, f.left(ctx)
		case errors.Is(err, client.ErrNoService):
			return last, f.reconnect(ctx)
		case err != nil || isGap:
			return last, err
		}
		f.sink(e.Event)
		switch e.Event.Event {
		case service.DoneEvent, service.StoppedRun, service.FailedEvent:
			return e.Event, nil
		default:
		}
	}
}

// left is the error of a person who does not watch any longer.
func (f *following) left(ctx context.Context) error {
	return &service.Error{
		Outcome: service.Stopped, Object: f.id, Problem: "not watched any longer; the service goes on with it",
		Hint: "watch it with: migrate watch " + f.id + "; stop it with: migrate pause " + f.id, Err: context.Cause(ctx),
	}
}

const (
	reconnectPeriod   = 200 * time.Millisecond
	reconnectPatience = time.Minute
)

// reconnect waits for the service to come back, and goes on behind the last event.
func (f *following) reconnect(ctx context.Context) error {
	f.say("the service is gone; waiting for it to come back")
	f.events.Close()
	deadline := time.Now().Add(reconnectPatience)
	for {
		events, err := f.client.Events(ctx, f.id, f.events.Last())
		switch {
		case err == nil:
			f.events = events
			f.say("the service is back")
			return nil
		case ctx.Err() != nil:
			return f.left(ctx)
		case !errors.Is(err, client.ErrNoService):
			return err
		case time.Now().After(deadline):
			return &service.Error{
				Outcome: service.Stopped, Object: f.id, Problem: "the service is gone", State: "nothing is lost",
				Hint: "it goes on when hydrated is started again, or with: migrate resume " + f.id, Err: err,
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(reconnectPeriod):
		}
	}
}

// settled is the status once the run that has ended is over for the service, too, which
// is a moment after its last event.
func (f *following) settled(ctx context.Context) (service.Status, error) {
	for {
		m, err := f.client.Get(ctx, f.id, 0)
		if err != nil || m.State != service.StateRunning || !isEnd(m.Event) {
			return m.Status, err
		}
		select {
		case <-ctx.Done():
			return m.Status, f.left(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func isEnd(e *service.Event) bool {
	return e != nil && (e.Event == service.DoneEvent || e.Event == service.StoppedRun || e.Event == service.FailedEvent)
}

// verdict says whether what was begun is over, and how it ended. last is the event that
// ended the run; it is empty if that may have been lost.
func (f *following) verdict(status service.Status, last service.Event) (isOver bool, err error) {
	reason, hint := status.Reason, status.Hint
	if reason == "" {
		reason, hint = last.Reason, last.Hint
	}
	fail := func(outcome service.Outcome, otherwise string) (bool, error) {
		if reason == "" {
			reason = f.id + ": " + otherwise
		}
		return true, &service.Error{Outcome: outcome, Problem: reason, Hint: hint}
	}
	switch {
	case last.Event == service.DoneEvent:
		return true, nil
	case status.State == service.StateStopped && status.RetryAt != nil:
		f.say("stopped: %s; the service tries again at %s", escapeControls(reason), formatTime(*status.RetryAt))
		return false, nil
	}
	switch status.State {
	case service.StatePaused, service.StateStopped:
		if last.Event == service.FailedEvent {
			return fail(service.Failed, "failed")
		}
		return fail(service.Stopped, "stopped")
	case service.StateFailed:
		return fail(service.Failed, "failed")
	case service.StateCancelled:
		return fail(service.Refused, "was cancelled")
	case service.StateDone, service.StateReversed:
		if last.Event == service.FailedEvent || last.Event == service.StoppedRun {
			return fail(service.Failed, "failed")
		}
		return true, nil
	case service.StateQueued, service.StateRunning, service.StateExternal:
	}
	return false, nil
}
