package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"decant/journal"
)

// job is one migration in a manager, whose lock guards it.
type job struct {
	id      string
	summary Summary // from its journal when that was looked at last
	record  record
	stamp   stamp // of the journal at that time
	disks   []string

	state        State
	reason, hint string
	verify       bool // is queued, or runs, to be verified
	verified     *VerifyReport
	unverified   State     // what it was before it was queued to be verified
	retryAt      time.Time // of a stopped one; zero: not by itself
	tries        int
	event        *Event // the last of the last run
	movedAt      time.Time
	run          *activeRun // nil: the manager does not work on it
	held         chan struct{}
}

// activeRun is a run of a job.
type activeRun struct {
	verify, reverse bool // what it does instead of going on
	cancel          context.CancelCauseFunc
	control         *control
	ended           chan struct{} // closed when the job is settled again
	begunTx         uint64
}

func (r *activeRun) stop(why error) { r.cancel(why) }

func newJob(id string) *job { return &job{id: id, held: make(chan struct{}, 1)} }

// facts are what journal and kernel say of a migration. Finding them out may take as
// long as a medium takes to answer, so it is never done under the lock of the manager.
type facts struct {
	stamp   stamp // of before the rest was looked at
	summary Summary
	record  record
	disks   []string
}

func (m *Manager) look(id string) facts {
	f := facts{stamp: m.journals.stamp(id)}
	k := m.journals.look(id)
	f.summary, f.record, f.disks = m.journals.summary(k), k.record, m.disks(k)
	return f
}

// diskPatience is how long a medium may take to say what it lies on.
const diskPatience = 3 * time.Second

// disks is none for a medium that hangs: the run will, too, and nobody else.
func (m *Manager) disks(k known) []string {
	found := make(chan []string, 1)
	go func() { found <- m.journals.disks(k) }()
	patience := time.NewTimer(diskPatience)
	defer patience.Stop()
	select {
	case disks := <-found:
		return disks
	case <-patience.C:
		return nil
	}
}

// learn takes over what was found out.
func (j *job) learn(f facts) {
	j.stamp, j.summary, j.record, j.disks = f.stamp, f.summary, f.record, f.disks
}

// settle gives the job the state that the journal implies while nobody works on it.
// An unfinished one is queued.
func (j *job) settle() {
	j.reason, j.hint, j.retryAt = "", "", time.Time{}
	switch {
	case j.summary.Problem != "":
		j.state, j.reason = StateFailed, "its journal cannot be used: "+j.summary.Problem
		j.hint = "repair or restore it; never start over"
	case j.verify, j.record.Reverse && j.isReversible():
		j.state = StateQueued
	case j.summary.Phase == string(journal.Running) && j.record.Paused:
		j.state = StatePaused
	case j.summary.Phase == string(journal.Running):
		j.state = StateQueued
	default: // done, cancelled, reversed
		j.state = State(j.summary.Phase)
	}
}

// isReversible says whether bringing back is still to be begun.
func (j *job) isReversible() bool {
	return j.summary.Direction == directionName(journal.Forward) &&
		(j.summary.Phase == string(journal.Running) || j.summary.Phase == string(journal.Done))
}

func (j *job) isUnfinished() bool {
	return j.state != StateDone && j.state != StateCancelled && j.state != StateReversed
}

// isServing says whether nothing is left to do but to wait for guests.
func (j *job) isServing() bool {
	return j.run != nil && j.event != nil && j.event.Phase == servingPhase
}

// hasGuests says whether somebody waits for the volume to be there.
func (j *job) hasGuests() bool {
	return j.record.Export != "" || j.record.Live != ""
}

// standstill is how long nothing may move before a status says so.
const standstill = 4 * time.Second

// status is the job for its users; position is its place in the queue, or 0.
func (j *job) status(position int) Status {
	s := Status{
		Summary: j.summary, State: j.state, Reason: j.reason, Hint: j.hint, Tries: j.tries,
		Priority: j.record.Priority, Position: position, Options: j.record.Options, Verified: j.verified,
	}
	s.Active, s.Service = j.run != nil || j.state == StateExternal, j.run != nil
	switch {
	case j.run != nil:
		s.PID = os.Getpid()
	case !s.Active:
		s.PID = 0
	}
	if j.event != nil {
		e := *j.event
		s.Event = &e
	}
	if j.state == StateStopped && !j.retryAt.IsZero() {
		at := j.retryAt
		s.RetryAt = &at
	}
	if j.run != nil {
		j.addLive(&s)
	}
	return s
}

// addLive adds what is known of a run beyond the journal.
func (j *job) addLive(s *Status) {
	if regions, ok := j.run.control.regions(); ok {
		s.Hydrated, s.Discarded = regions.Hydrated, regions.Discarded
		s.RegionsHydrating, s.RegionsDirty, s.Transaction = regions.Hydrating, regions.Dirty, uint64(regions.Tx)
	}
	if s.Reason == "" {
		s.Reason = j.stillness()
	}
	if j.event != nil && !j.run.verify {
		s.BytesCopied, s.PeakExtraBytes = j.event.BytesCopied, j.event.PeakExtraBytes
	}
}

// stillness says that nothing has moved for longer than it should take.
func (j *job) stillness() string {
	patience := standstill
	if rate := j.record.BytesPerSecond; rate > 0 {
		patience += 2 * time.Duration(float64(j.record.BatchRegions)*float64(j.summary.RegionBytes)/float64(rate)*float64(time.Second))
	}
	still := time.Since(j.movedAt)
	if still < patience {
		return ""
	}
	if j.event == nil {
		return fmt.Sprintf("its ends have not opened for %s", still.Round(time.Second))
	}
	switch j.event.Phase {
	case hydratingPhase, reversingPhase, discardingPhase:
		return fmt.Sprintf("nothing has moved for %s: an input or output operation does not return", still.Round(time.Second))
	}
	return ""
}

// take notes an event of the run.
func (j *job) take(e Event) (before Event) {
	if j.event != nil {
		before = *j.event
	}
	if before.BytesCopied != e.BytesCopied || before.BytesDiscarded != e.BytesDiscarded ||
		before.BytesVerified != e.BytesVerified || before.Phase != e.Phase || j.movedAt.IsZero() {
		j.movedAt = time.Now()
	}
	switch {
	case e.Event == Paused, e.Event == Warning && strings.HasPrefix(e.Message, hydrationEnded):
		j.reason = e.Message
	case e.Phase != waitingPhase && e.Phase != servingPhase:
		j.reason = ""
	}
	j.event = &e
	return before
}

// isPassing says whether the cause of an error may go away by itself, so that trying
// again later can help.
func isPassing(err error) bool {
	var e *Error
	if !errors.As(err, &e) || e.Outcome == Usage {
		return false
	}
	return e.Passing || passes(err)
}
