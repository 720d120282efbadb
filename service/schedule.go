package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"decant/journal"
)

// startDue begins as many runs as the limits allow.
func (m *Manager) startDue() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ending {
		return
	}
	running, onDisk := m.load()
	for _, j := range m.due(time.Now()) {
		if j.hasGuests() {
			m.begin(j) // who uses the volume does not wait for others
			continue
		}
		if running >= m.config.Running {
			continue
		}
		if slices.ContainsFunc(j.disks, func(disk string) bool { return onDisk[disk] >= m.config.RunningPerDisk }) {
			continue // those behind it may lie on other disks
		}
		running++
		for _, disk := range j.disks {
			onDisk[disk]++
		}
		m.begin(j)
	}
}

// load is how many runs there are, and how many on each disk. What other processes
// run counts for the disks only: they were started in spite of the limits.
func (m *Manager) load() (running int, onDisk map[string]int) {
	onDisk = map[string]int{}
	for _, j := range m.jobs {
		if j.run == nil && j.state != StateExternal || j.isServing() {
			continue
		}
		if j.run != nil {
			running++
		}
		for _, disk := range j.disks {
			onDisk[disk]++
		}
	}
	return running, onDisk
}

// due is what could run now, in the order in which it should.
func (m *Manager) due(now time.Time) []*job {
	var list []*job
	for _, j := range m.jobs {
		queued := j.state == StateQueued || j.state == StateStopped && !j.retryAt.IsZero() && !j.retryAt.After(now)
		if queued && j.run == nil && len(j.held) == 0 {
			list = append(list, j)
		}
	}
	slices.SortFunc(list, inOrder)
	return list
}

// inOrder puts the more important before the less, and then the older before the newer.
func inOrder(a, b *job) int {
	return cmp.Or(cmp.Compare(b.record.Priority, a.record.Priority),
		a.summary.Created.Compare(b.summary.Created), cmp.Compare(a.id, b.id))
}

// positions are the places in the queue, from 1 on.
func (m *Manager) positions() map[string]int {
	var list []*job
	for _, j := range m.jobs {
		if j.state == StateQueued {
			list = append(list, j)
		}
	}
	slices.SortFunc(list, inOrder)
	places := make(map[string]int, len(list))
	for i, j := range list {
		places[j.id] = i + 1
	}
	return places
}

// begin starts the run of a job. The caller holds mu.
func (m *Manager) begin(j *job) {
	// Nothing but the manager ends a run: its context is no request's.
	ctx, cancel := context.WithCancelCause(context.Background())
	run := &activeRun{
		cancel: cancel, control: &control{meters: &m.meters}, ended: make(chan struct{}),
		begunTx: j.summary.Transaction, verify: j.verify, reverse: j.record.Reverse && j.isReversible(),
	}
	if j.state == StateStopped {
		m.meters.add(func(c *Metrics) { c.Retries++ })
	}
	j.run, j.state, j.event, j.movedAt = run, StateRunning, nil, time.Now()
	j.reason, j.hint, j.retryAt = "", "", time.Time{}
	m.log.Info("migration begins", "id", j.id, "source", j.summary.Source, "destination", j.summary.Destination)
	m.runs.Go(func() {
		defer cancel(nil)
		err := m.work(ctx, j, run)
		m.ended(ctx, j, run, err)
	})
}

// work is one run.
func (m *Manager) work(ctx context.Context, j *job, run *activeRun) error {
	sink := func(e Event) { m.take(j, run, e) }
	switch {
	case run.verify:
		report, err := m.journals.Verify(ctx, j.id, sink)
		m.mu.Lock()
		j.verified = &report
		m.mu.Unlock()
		return err
	case run.reverse:
		return m.journals.reverse(ctx, j.id, sink, run.control)
	}
	return m.journals.resume(ctx, j.id, sink, run.control)
}

// take passes an event of a run on.
func (m *Manager) take(j *job, run *activeRun, e Event) {
	m.mu.Lock()
	before := j.take(e)
	m.mu.Unlock()
	if e.Event != Started { // its counters are those of earlier runs
		m.meters.count(before, e, run.verify)
	}
	m.history.add(e)
	if before.Phase != e.Phase {
		m.nudge() // others may have its place
	}
}

// ended settles a job whose run has ended.
func (m *Manager) ended(ctx context.Context, j *job, run *activeRun, err error) {
	left := run.control.leftovers()
	f := m.look(j.id)
	if err != nil && ctx.Err() == nil && run.reverse && f.summary.Direction == directionName(journal.Forward) {
		// Its user wanted it back; to go on the other way instead is not ours to decide.
		left = append(left, func(r *record) { r.Reverse, r.Paused = false, f.summary.Phase == string(journal.Running) })
		err = fmt.Errorf("could not be brought back: %w", err)
	}
	if len(left) > 0 {
		err = errors.Join(err, m.journals.amend(j.id, left...))
		f = m.look(j.id)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	j.verify = false
	j.learn(f)
	j.settle()
	if run.verify && j.state == StateQueued {
		j.state = j.unverified // it was not on its way, and is not now
	}
	if j.summary.Transaction > run.begunTx || err == nil {
		j.tries = 0
	}
	if err != nil && ctx.Err() == nil {
		m.explain(j, run, err)
	}
	m.log.Info("migration ends its run", "id", j.id, "state", string(j.state))
	j.run = nil
	close(run.ended)
	m.nudge()
}

// explain says why the run of a job has ended before its end. The caller holds mu.
func (m *Manager) explain(j *job, run *activeRun, err error) {
	switch {
	case run.verify || j.state != StateQueued:
		// It is not on its way.
	case OutcomeOf(err) == Failed && !isPassing(err):
		j.state = StateFailed
	default:
		j.state = StateStopped
		if isPassing(err) {
			j.tries++
			j.retryAt = time.Now().Add(retryPause(j.tries))
		}
	}
	j.reason, j.hint = err.Error(), HintOf(err)
	m.log.Warn("migration stopped", "id", j.id, "state", string(j.state), "reason", j.reason, "hint", j.hint, "tries", j.tries)
}

// stamp changes when a journal does.
type stamp struct {
	journalBytes, logBytes int64
	journalAt, logAt       time.Time
}

// scan looks for journals that have come, gone, or been changed by other processes.
// The first one takes everything unfinished up.
func (m *Manager) scan(first bool) error {
	m.mu.Lock()
	before := maps.Clone(m.jobs)
	m.mu.Unlock()
	ids, err := m.journals.ids()
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(ids))
	for _, id := range ids {
		there[id] = true
		m.scanOne(id, first)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, j := range before {
		if !there[id] && m.jobs[id] == j && j.run == nil && len(j.held) == 0 {
			delete(m.jobs, id)
		}
	}
	return nil
}

func (m *Manager) scanOne(id string, first bool) {
	m.mu.Lock()
	j := m.jobs[id]
	if m.making[id] || j != nil && (j.run != nil || len(j.held) > 0) {
		m.mu.Unlock()
		return
	}
	wasExternal := j != nil && j.state == StateExternal
	unfinished := j == nil || j.isUnfinished()
	var before stamp
	if j != nil {
		before = j.stamp
	}
	m.mu.Unlock()

	now := m.journals.stamp(id)
	if j != nil && now == before && !unfinished {
		return
	}
	held, isHeld := m.journals.held(id)
	if j != nil && now == before && isHeld == wasExternal {
		return
	}
	f := m.look(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	if j == nil && m.jobs[id] == nil {
		j = newJob(id)
		m.jobs[id] = j
	} else if j == nil || m.jobs[id] != j || j.run != nil || len(j.held) > 0 {
		return // it was taken up meanwhile
	}
	state, reason, hint, retryAt := j.state, j.reason, j.hint, j.retryAt
	j.learn(f)
	j.settle()
	switch {
	case isHeld && held.Holder != serviceHolder:
		j.state, j.reason = StateExternal, fmt.Sprintf("process %d works on it", held.PID)
		j.hint = "it is seen here as far as it has committed; to stop it: migrate pause " + id
	case first || j.state != StateQueued:
	case wasExternal || state == "":
		j.state, j.reason = StateStopped, "the command that worked on it has ended before its end"
		j.hint = "go on with: migrate resume " + id
	default: // nothing has happened that would change what was decided
		j.state, j.reason, j.hint, j.retryAt = state, reason, hint, retryAt
	}
	m.nudge()
}
