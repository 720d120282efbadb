package service

import (
	"context"
	"errors"
	"fmt"

	"decant/journal"
)

// hold keeps the scheduler, and other callers, away from a job until release. It waits
// for a caller who has it.
func (m *Manager) hold(ctx context.Context, id string) (j *job, release func(), err error) {
	m.mu.Lock()
	j, err = m.find(id)
	ending := m.ending
	m.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	if ending {
		return nil, nil, &Error{Outcome: Stopped, Object: j.id, Problem: "the service ends", Hint: "ask again when it has been started again"}
	}
	select {
	case j.held <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, &Error{Outcome: Stopped, Object: j.id, Problem: "another request about it has not ended yet", Err: context.Cause(ctx)}
	}
	return j, func() {
		<-j.held
		m.nudge()
	}, nil
}

// stateOf is a consistent look at a held job.
func (m *Manager) stateOf(j *job) (state State, run *activeRun) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return j.state, j.run
}

// stop has the run of a held job commit and end, if there is one.
func (m *Manager) stop(ctx context.Context, j *job, run *activeRun, why error) error {
	if run == nil {
		return nil
	}
	run.stop(why)
	select {
	case <-run.ended:
		return nil
	case <-ctx.Done():
		return &Error{
			Outcome: Stopped, Object: j.id, Problem: "was told to stop and has not ended yet",
			Hint: "it will, as soon as its last input or output returns", Err: context.Cause(ctx),
		}
	}
}

// note changes what the journal of a held job says, and gives the job its new state.
func (m *Manager) note(j *job, change func(*record)) error {
	if err := m.journals.amend(j.id, change); err != nil {
		return err
	}
	f := m.look(j.id)
	m.mu.Lock()
	defer m.mu.Unlock()
	j.learn(f)
	j.tries = 0
	j.settle()
	return nil
}

func (m *Manager) answer(j *job) Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.statusOf(j)
}

var (
	errPausedByUser = errors.New("paused by a user")
	errTakenBack    = errors.New("to be taken back")
)

// Pause has a migration commit and stop, or keeps it from being begun, until it is
// resumed, also by a manager to come. One that another process works on is stopped as
// well.
func (m *Manager) Pause(ctx context.Context, id string) (Status, error) {
	j, release, err := m.hold(ctx, id)
	if err != nil {
		return Status{}, err
	}
	defer release()
	pause := func(r *record) { r.Paused = true }
	state, run := m.stateOf(j)
	switch {
	case state == StatePaused:
		return m.answer(j), nil
	case state == StateExternal:
		if err := m.journals.Pause(ctx, j.id); err != nil {
			return Status{}, err
		}
		err := m.note(j, pause)
		return m.answer(j), err
	case !m.unfinished(j):
		return Status{}, refuse(j.id, "has ended: it is "+string(state), "", nil)
	case run == nil:
		err = m.note(j, pause)
		return m.answer(j), err
	}
	// In the journal first: if this process dies now, the next one does not go on.
	if err := run.control.change(pause); err != nil {
		return Status{}, refuse(j.id, "its journal cannot be written", "", err)
	}
	if err := m.stop(ctx, j, run, errPausedByUser); err != nil {
		return Status{}, err
	}
	return m.answer(j), nil
}

func (m *Manager) unfinished(j *job) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return j.isUnfinished()
}

// Resume lets a migration go on that is paused, or has stopped or failed. It does
// nothing to one that is queued or runs.
func (m *Manager) Resume(ctx context.Context, id string) (Status, error) {
	j, release, err := m.hold(ctx, id)
	if err != nil {
		return Status{}, err
	}
	defer release()
	switch state, _ := m.stateOf(j); state {
	case StateQueued, StateRunning:
		return m.answer(j), nil
	case StateExternal:
		return Status{}, refuse(j.id, "another process works on it", "it is on its way", nil)
	case StateDone, StateCancelled, StateReversed:
		return Status{}, refuse(j.id, "has ended: it is "+string(state), "", nil)
	default:
	}
	if err := m.note(j, func(r *record) { r.Paused = false }); err != nil {
		return Status{}, err
	}
	return m.answer(j), nil
}

// Reverse brings back what a migration has moved, also of one that is done. It returns
// when that is noted in the journal; the run comes when it is its turn.
func (m *Manager) Reverse(ctx context.Context, id string) (Status, error) {
	j, release, err := m.hold(ctx, id)
	if err != nil {
		return Status{}, err
	}
	defer release()
	return m.reverseHeld(ctx, j)
}

func (m *Manager) reverseHeld(ctx context.Context, j *job) (Status, error) {
	state, run := m.stateOf(j)
	switch state {
	case StateReversed:
		return m.answer(j), nil
	case StateCancelled:
		return Status{}, refuse(j.id, "was cancelled before anything was discarded, the source is whole", "", nil)
	case StateExternal:
		return Status{}, refuse(j.id, "another process works on it", "stop it with: migrate pause "+j.id, nil)
	default:
	}
	if run != nil && m.isBackward(j) {
		return m.answer(j), nil
	}
	if err := m.stop(ctx, j, run, errTakenBack); err != nil {
		return Status{}, err
	}
	if err := m.note(j, func(r *record) { r.Reverse, r.Paused = true, false }); err != nil {
		return Status{}, err
	}
	return m.answer(j), nil
}

func (m *Manager) isBackward(j *job) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return j.summary.Direction == directionName(journal.Backward) || j.record.Reverse
}

// Cancel gives a migration up that has not discarded anything yet. One that has is
// refused, and goes on, unless it is to be reversed instead.
func (m *Manager) Cancel(ctx context.Context, id string, o CancelOptions) (Status, error) {
	j, release, err := m.hold(ctx, id)
	if err != nil {
		return Status{}, err
	}
	defer release()
	state, run := m.stateOf(j)
	switch state {
	case StateCancelled:
		return m.answer(j), nil
	case StateExternal:
		return Status{}, refuse(j.id, "another process works on it", "stop it with: migrate pause "+j.id, nil)
	default:
	}
	m.mu.Lock()
	discarded := j.status(0).Discarded
	m.mu.Unlock()
	if discarded == 0 || !o.Reverse {
		if discarded > 0 {
			return Status{}, m.cannotCancel(j, discarded)
		}
		if err := m.stop(ctx, j, run, errTakenBack); err != nil {
			return Status{}, err
		}
		err := m.journals.Cancel(ctx, j.id)
		if err == nil || !o.Reverse {
			m.relearn(j)
			return m.answer(j), err
		}
	}
	return m.reverseHeld(ctx, j)
}

func (m *Manager) cannotCancel(j *job, discarded uint64) error {
	return refuse(j.id, fmt.Sprintf("%d regions of the source were emptied already, the volume would be cut in two", discarded),
		"bring them back with: migrate reverse "+j.id+"; or let it go on", nil)
}

// relearn takes note of what was done to the journal of a held job.
func (m *Manager) relearn(j *job) {
	f := m.look(j.id)
	m.mu.Lock()
	defer m.mu.Unlock()
	j.learn(f)
	j.settle()
}

// Verify has a migration verified that is not on its way, when it is its turn. What is
// found is in the events, and in Status.Verified.
func (m *Manager) Verify(ctx context.Context, id string) (Status, error) {
	j, release, err := m.hold(ctx, id)
	if err != nil {
		return Status{}, err
	}
	defer release()
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case j.verify:
		return m.statusOf(j), nil
	case j.state == StateQueued, j.state == StateRunning, j.state == StateExternal:
		return Status{}, refuse(j.id, "is on its way", "wait until it is done, or pause it", nil)
	case j.state == StateCancelled, j.state == StateReversed, j.summary.Direction == directionName(journal.Backward):
		return Status{}, refuse(j.id, "was given up, its destination holds nothing to verify", "", nil)
	}
	j.verify, j.verified, j.unverified = true, nil, j.state
	j.settle()
	return m.statusOf(j), nil
}

// Tune changes what may change while a migration runs. It returns when the change is in
// the journal and in force.
func (m *Manager) Tune(ctx context.Context, id string, t Tuning) (Status, error) {
	j, release, err := m.hold(ctx, id)
	if err != nil {
		return Status{}, err
	}
	defer release()
	m.mu.Lock()
	tuned := j.record
	run, state := j.run, j.state
	m.mu.Unlock()
	t.change(&tuned)
	if err := tuned.Options.Check(); err != nil {
		return Status{}, err
	}
	switch {
	case state == StateExternal:
		return Status{}, refuse(j.id, "another process works on it", "stop it with: migrate pause "+j.id, nil)
	case state == StateCancelled, state == StateReversed:
		return Status{}, refuse(j.id, "has ended: it is "+string(state), "", nil)
	case run == nil:
		err = m.tuneIdle(j, t)
	default:
		err = run.control.change(t.change)
	}
	if err != nil {
		return Status{}, refuse(j.id, "its journal cannot be written", "", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t.change(&j.record)
	return m.statusOf(j), nil
}

// tuneIdle is Tune of a job without a run, whose state does not change by it.
func (m *Manager) tuneIdle(j *job, t Tuning) error {
	if err := m.journals.amend(j.id, t.change); err != nil {
		return err
	}
	now := m.journals.stamp(j.id)
	m.mu.Lock()
	defer m.mu.Unlock()
	j.stamp = now
	return nil
}

func (t Tuning) change(r *record) {
	if t.BytesPerSecond != nil {
		r.BytesPerSecond = *t.BytesPerSecond
	}
	if t.ThresholdRegions != nil {
		r.ThresholdRegions = *t.ThresholdRegions
	}
	if t.Priority != nil {
		r.Priority = *t.Priority
	}
}
