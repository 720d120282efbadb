package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"decant/clone"
	"decant/hydrate"
	"decant/journal"
	"decant/loopdev"
	"decant/nbd"
)

// bufferBytes is the most that one read or write moves.
const bufferBytes = 2 << 20

// guestQuiet is how long a run keeps out of the way of a guest after a request.
const guestQuiet = 5 * time.Millisecond

// run brings an open migration as far as it comes, in the direction that its
// journal says, and tells the sink everything from Started to the end.
func (m *migration) run(ctx context.Context, sink Sink) error {
	state, err := m.journal.Load()
	if err != nil {
		return m.failure(err)
	}
	if sink == nil {
		sink = func(Event) {}
	}
	if err := m.control.attach(m); err != nil {
		return m.failure(err)
	}
	defer m.control.detach()
	mail := newMailbox(sink)
	defer mail.finish()
	r, err := m.wire(state, mail)
	if err != nil {
		err = m.stopped(ctx, err)
		m.tellUnbegun(mail, err)
		return err
	}
	defer r.clone.Close()
	defer func() { _ = r.meter.close() }()   // it has only looked
	defer func() { _ = m.shutGuestsOut() }() // has told its errors where it was called first
	m.control.watch(r.clone)
	r.volume = m.newVolume(ctx, r)
	r.tell(Started, func(e *Event) {
		e.Source, e.Destination, e.Resumed = m.source.name, m.destination.name, m.resumed
	})
	for _, w := range m.warnings {
		r.warn(w)
	}
	stop := context.AfterFunc(ctx, m.source.hurry)
	defer stop()
	err = m.carryOut(ctx, r, state)
	if err == nil {
		return nil
	}
	err = errors.Join(err, m.shutGuestsOut())
	if ours := new(*Error); errors.As(err, ours) && m.waits != "" {
		(*ours).State = strings.TrimPrefix((*ours).State+"; "+m.waits, "; ")
	}
	kind := StoppedRun
	if OutcomeOf(err) == Failed {
		kind = FailedEvent
	}
	r.tell(kind, func(e *Event) { e.Reason, e.Hint = err.Error(), HintOf(err) })
	return err
}

// tellUnbegun tells of a run that ended before there was anything to count.
func (m *migration) tellUnbegun(mail *mailbox, err error) {
	e := Event{
		Event: Started, ID: m.id, Time: time.Now(), Phase: m.workPhase(), BytesTotal: m.journal.Superblock().Geometry.DeviceBytes(),
		Source: m.source.name, Destination: m.destination.name, Resumed: m.resumed,
	}
	mail.post(e)
	e = Event{Event: StoppedRun, ID: m.id, Time: time.Now(), Phase: e.Phase, BytesTotal: e.BytesTotal, Reason: err.Error(), Hint: HintOf(err)}
	mail.post(e)
}

// giver and taker are the ends by what they do in a direction.
func (m *migration) roles(d journal.Direction) (giver, taker *end) {
	if d == journal.Backward {
		return m.destination, m.source
	}
	return m.source, m.destination
}

func (m *migration) workPhase() string {
	if m.direction() == journal.Backward {
		return reversingPhase
	}
	return hydratingPhase
}

// wire makes the clone of a run, and what measures and reports it.
func (m *migration) wire(state journal.State, mail *mailbox) (_ *reporter, err error) {
	giver, taker := m.roles(state.Direction)
	sb := m.journal.Superblock()
	r := &reporter{m: m, mail: mail, begun: time.Now(), phase: m.workPhase(), baseCopied: state.CopiedBytes}
	r.meter, err = newMeter(m.source, m.destination, giver, taker, max(m.record.CommitBytes, sb.Geometry.RegionBytes()))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = r.meter.close() // it has only looked
		}
	}()
	r.meter.peakBytes.Store(state.PeakExtraBytes)
	mark, err := m.newMarker(giver)
	if err != nil {
		return nil, err
	}
	r.clone, err = clone.Open(clone.Config{
		Source:         view{giver, sb.Geometry.DeviceBytes()},
		Destination:    r.meter.guard(sb.Geometry.RegionBytes(), m.discards(state.Direction), m.control),
		Journal:        m.journal,
		Geometry:       sb.Geometry,
		Marker:         mark,
		Verify:         m.record.Verify,
		PeakExtraBytes: r.meter.peakBytes.Load,
		RepeatDiscards: m.resumed,
		GuestsOutlive:  m.guestsOutlive(),
		BufferBytes:    bufferBytes,
		Cache:          m.guestCache(r),
		ZeroUnitBytes:  r.meter.takenBlockBytes(),
	})
	if err != nil {
		return nil, err
	}
	copied := func() int64 { return r.baseCopied + r.clone.Status().CopiedBytes }
	if err := r.meter.startUsage(sb.SourceStartBytes, copied); err != nil {
		return nil, err
	}
	left, err := dataBytes(giver, sb.Geometry, state.Hydrated)
	if err != nil {
		return nil, err
	}
	r.dataBytes = state.CopiedBytes + left
	r.discardedBytes = max(0, state.CopiedBytes-int64(state.Hydrated.Count()-state.Discarded.Count())*sb.Geometry.RegionBytes())
	if !m.record.DiscardSource && state.Direction == journal.Forward {
		r.discardedBytes = 0
	}
	return r, nil
}

func (m *migration) newMarker(giver *end) (*marker, error) {
	path := m.s.journalPath(m.id)
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	return &marker{marks: marks{m.s, giver}, id: m.id, journalPath: path, journalFile: info}, nil
}

// view is a giving end cut to the size that the journal knows: a destination may
// have been larger than the source.
type view struct {
	*end
	bytes int64
}

func (v view) Bytes() int64 { return v.bytes }

func (v view) NextData(off int64) (start, end int64, err error) {
	start, end, err = v.end.NextData(off)
	return min(start, v.bytes), min(end, v.bytes), err
}

// carryOut hydrates what is left, and ends the migration if nothing is.
func (m *migration) carryOut(ctx context.Context, r *reporter, state journal.State) error {
	if state.Phase == journal.Done {
		if err := m.endLive(ctx, r); err != nil {
			return err
		}
		return m.endForward(r, state)
	}
	giver, _ := m.roles(state.Direction)
	discard := m.discards(state.Direction)
	if sb := m.journal.Superblock(); giver == m.source && sb.Source.ModifiedNanoseconds != 0 {
		giver.base.KeepModified(time.Unix(0, sb.Source.ModifiedNanoseconds))
	}
	if err := m.hydrate(ctx, r, discard); err != nil {
		return err
	}
	if err := m.confirm(ctx, r, state.Direction); err != nil {
		return err
	}
	if state.Direction == journal.Backward {
		return m.endBackward(ctx, r)
	}
	return m.endForward(r, state)
}

// confirm finds out whether a run that has hydrated and discarded everything may end.
func (m *migration) confirm(ctx context.Context, r *reporter, d journal.Direction) error {
	if m.discards(d) {
		// So that no power loss undoes a discard when nobody is left to repeat it.
		giver, _ := m.roles(d)
		if err := giver.Flush(); err != nil {
			return m.unflushed(ctx, fmt.Errorf("flush what was discarded: %w", err))
		}
	}
	if err := r.clone.Check(); err != nil {
		return &Error{
			Outcome: Failed, Object: m.id, Problem: "the end of the run does not add up", Err: err,
			State: "nothing was lost: " + m.whereabouts(), Hint: "keep both ends and the journal, and report this",
		}
	}
	if d == journal.Backward {
		return nil
	}
	return m.stillUnchanged()
}

// conclude records that the migration is done, while guests still use the clone: all is
// hydrated, and stays so whatever they do.
func (m *migration) conclude(ctx context.Context, r *reporter) error {
	state, err := m.journal.Load()
	if err != nil {
		return m.failure(err)
	}
	if state.Phase == journal.Done {
		return nil
	}
	if err := r.clone.Commit(); err != nil {
		return m.failure(err)
	}
	if err := m.confirm(ctx, r, journal.Forward); err != nil {
		return err
	}
	if err := m.sampleEmptied(); err != nil {
		return m.failure(err)
	}
	if err := m.journal.SetPhase(journal.Done); err != nil {
		return m.failure(err)
	}
	return nil
}

// discards says whether a run in direction d frees what it has copied. On the way
// back it always does, so that it needs no more room than the way there; but a
// block device that is not thin has its space whether it is used or not, and so has a
// pool that takes no discards.
func (m *migration) discards(d journal.Direction) bool {
	if d == journal.Backward {
		return m.destination.isBounded() && checkDiscards(m.destination) == nil
	}
	return m.record.DiscardSource
}

// hydrate does all that has to be done before the migration can end, and shows how far
// it has come.
func (m *migration) hydrate(ctx context.Context, r *reporter, discard bool) error {
	stop := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() { r.every(stop) })
	defer telling.Wait()
	defer close(stop)
	if err := m.holdGuests(ctx, r); err != nil {
		return err
	}
	if err := m.recheck(ctx, r, discard); err != nil {
		return err
	}
	if err := m.letGuestsIn(ctx, r); err != nil {
		return err
	}
	err := m.hydrateAll(ctx, r, discard)
	if err == nil {
		r.allData()
		r.tell(HydratedAll, nil)
	}
	return m.seeGuestsOff(ctx, r, err)
}

// hydrateAll hydrates what is left.
func (m *migration) hydrateAll(ctx context.Context, r *reporter, discard bool) error {
	var err error
	if k := m.kernelEngine(); k != nil {
		err = k.hydrate(ctx, discard)
	} else {
		err = m.copyAll(ctx, r, discard)
	}
	// Also of a run that stopped: what it has discarded is not to be kept from others.
	err = errors.Join(err, r.meter.returner.finish())
	if failure := r.clone.Failure(); failure != nil && errors.Is(err, clone.ErrReadOnly) && !errors.Is(err, failure) {
		err = errors.Join(failure, err) // it was a guest's flush that failed
	}
	if errors.Is(err, hydrate.ErrNoSpace) {
		m.spaceHint = m.source.spaceHint() + r.meter.hint(r.clone.Geometry.RegionBytes())
	}
	if badErr := m.noteBad(err); badErr != nil {
		err = errors.Join(err, badErr)
	}
	if err != nil {
		return m.stopped(ctx, r.meter.explain(err, discard))
	}
	return nil
}

// copyAll copies what is left, in this process.
func (m *migration) copyAll(ctx context.Context, r *reporter, discard bool) error {
	o := m.control.options(m)
	return hydrate.Run(ctx, r.clone, hydrate.Options{
		Threshold:     m.control.threshold,
		BatchRegions:  o.BatchRegions,
		CommitPeriod:  o.CommitPeriod,
		CommitBytes:   o.CommitBytes,
		GuestQuiet:    guestQuiet,
		Throttle:      m.control.throttle,
		DiscardSource: discard,
		Space:         r.meter,
		Guests:        r.volume.space,
		EdgeBytes:     r.meter.edgeBytes(r.clone.Geometry.RegionBytes()),
		Observer:      r,
		CommitTook:    m.control.commitTook,
	})
}

// noteBad keeps the list of what could not be read, for show and explain. The list
// of this run replaces that of an earlier one, which tried the same regions.
func (m *migration) noteBad(err error) error {
	var incomplete *hydrate.IncompleteError
	if err != nil && !errors.As(err, &incomplete) {
		return nil
	}
	var bad []journal.BadRange
	if incomplete != nil {
		for _, b := range incomplete.Bad {
			bad = append(bad, journal.BadRange{Range: b.Range, Error: b.Err.Error()})
		}
	}
	return m.journal.SetBad(bad)
}

// stillUnchanged refuses to call a migration done whose source was written to.
func (m *migration) stillUnchanged() error {
	e := m.source
	changed, err := m.sourceChanged()
	if err == nil && !changed {
		return nil
	}
	return &Error{
		Outcome: Stopped, Object: e.name, Problem: "was modified while it was copied", Err: err,
		State: "the destination may hold a mixture of old and new bytes",
		Hint:  "find out who writes to it; the same command tells how to go on",
	}
}

// endForward makes the end of a migration known, in an order in which each step may
// be the last one.
func (m *migration) endForward(r *reporter, state journal.State) error {
	if state.Phase != journal.Done {
		if err := m.sampleEmptied(); err != nil {
			return m.failure(err)
		}
		if err := m.journal.SetPhase(journal.Done); err != nil {
			return m.failure(err)
		}
	}
	if err := m.destinationMarks().remove(); err != nil {
		return m.failure(fmt.Errorf("take the mark off the destination: %w", err))
	}
	freed := int64(-1)
	if now, err := m.source.AllocatedBytes(); err == nil {
		freed = max(0, m.journal.Superblock().SourceStartBytes-now)
		m.warnUnfreed(r, now)
	}
	if m.record.RemoveSource && m.source.kind == "file" {
		source := m.source
		m.source = nil
		if err := m.s.remove(source); err != nil {
			return m.failure(fmt.Errorf("remove the source: %w", err))
		}
	}
	r.setPhase(donePhase)
	r.tell(DoneEvent, func(e *Event) {
		elapsed := time.Since(r.begun).Seconds()
		e.ElapsedSeconds = &elapsed
		if freed < 0 {
			freed = e.BytesDiscarded
		}
		e.SourceFreedBytes = &freed
	})
	return nil
}

// warnUnfreed says what a discarded source still takes: edges that fill no block
// of the file system, or a file system that did not give back what was punched.
func (m *migration) warnUnfreed(r *reporter, allocatedBytes int64) {
	const blockBytes = 64 << 10 // an edge on either side, of the largest usual block
	if m.record.DiscardSource && allocatedBytes > 2*blockBytes {
		r.warn(humanize.IBytes(uint64(allocatedBytes)) + " of the source could not be freed; its bytes are at the destination all the same")
	}
}

// stopped words why a run ended before its end.
func (m *migration) stopped(ctx context.Context, err error) error {
	e := &Error{
		Outcome: Stopped, Object: m.id, Err: err, State: m.whereabouts(),
		Hint: "run the same command again, or: migrate resume " + m.id,
	}
	var incomplete *hydrate.IncompleteError
	var pool *poolError
	switch {
	case ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
		e.Problem = "stopped"
	case errors.As(err, &incomplete):
		e.Problem = "incomplete"
		e.Hint = "see the list with: migrate show " + m.id + "; once they can be read, the same command goes on"
	case errors.Is(err, hydrate.ErrNoSpace):
		e.Problem = "out of space"
		e.Hint = m.spaceHint + ", then " + e.Hint
	case errors.As(err, &pool):
		e.Problem = pool.pool.name() + " must not be written to"
		e.Hint = pool.hint() + "; then " + e.Hint
	case errors.Is(err, clone.ErrMismatch):
		e.Problem = "verification failed"
		e.Hint = "do not trust the destination's medium; nothing was discarded that had not been read back. " + e.Hint
	case errors.Is(err, loopdev.ErrSourceChanged), errors.Is(err, loopdev.ErrSourceShrunk):
		e.Problem = "the source changed"
		e.Hint = "find out who writes to it; the same command tells how to go on"
	case errors.Is(err, nbd.ErrUnreachable):
		e.Problem = "the NBD server does not answer"
		e.Hint = "start it again with the same image, then " + e.Hint
	case errors.Is(err, nbd.ErrInterrupted), errors.Is(err, nbd.ErrNotFlushed):
		e.Problem = "the NBD server went away, perhaps with what was written to it last"
	case errors.Is(err, nbd.ErrChanged):
		e.Problem = "the NBD server offers another image"
		e.Hint = "start it again with the old image, then " + e.Hint
	case errors.Is(err, loopdev.ErrInUse):
		e.Problem = "the source is in use"
		e.Hint = "end that use, then " + e.Hint
	case errors.Is(err, loopdev.ErrCannotPunch):
		e.Problem = "the source cannot be freed"
		e.Hint = "run the same command without --discard-src to copy the rest"
	default:
		e.Problem = "stopped by an error"
	}
	return e
}

// unflushed words that a last flush has failed. A server that is gone can come back, and
// everything that the flush was for is done again.
func (m *migration) unflushed(ctx context.Context, err error) error {
	if errors.Is(err, nbd.ErrUnreachable) || errors.Is(err, nbd.ErrChanged) {
		return m.stopped(ctx, err)
	}
	return m.failure(err)
}

// failure words an error that no resume is known to mend.
func (m *migration) failure(err error) error {
	var ours *Error
	if errors.As(err, &ours) {
		return err
	}
	return &Error{
		Outcome: Failed, Object: m.id, Problem: "failed", Err: err, State: m.whereabouts(),
		Hint: "once the cause is mended: migrate resume " + m.id,
	}
}

// whereabouts says which end holds what.
func (m *migration) whereabouts() string {
	state, err := m.journal.Load()
	if err != nil {
		return "nothing was lost; the journal tells which end holds what when it is opened again"
	}
	// By the journal's names: one of the ends may be closed by now.
	sb := m.journal.Superblock()
	giver, taker := sb.Source.Name, sb.Destination.Name
	if state.Direction == journal.Backward {
		giver, taker = taker, giver
	}
	return fmt.Sprintf("nothing was lost: %d of %d regions are safe at %s, the rest is whole at %s",
		state.Hydrated.Count(), sb.Geometry.Regions(), taker, giver)
}

func (m *migration) direction() journal.Direction {
	state, err := m.journal.Load()
	if err != nil {
		return journal.Forward // for wording only
	}
	return state.Direction
}
