package service

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"decant/journal"
	"decant/loopdev"
	"decant/region"
)

// migration is a migration that this process has open: both ends, the journal, and
// the lock that keeps other processes away.
type migration struct {
	s           *Service
	id          string
	record      record
	source      *end
	destination *end
	journal     *journal.Journal
	lock        *journal.LockFile
	resumed     bool
	warnings    []string
	accesses    []access // that guests use the volume by
	waits       string   // what becomes of guests that are still there when the run has stopped
	spaceHint   string   // how to get space that a run has stopped for
	control     *control
}

func (m *migration) Close() error {
	var err error
	if m.journal != nil {
		err = m.journal.Close()
	}
	for _, e := range []*end{m.source, m.destination} {
		if e != nil {
			err = errors.Join(err, e.Close())
		}
	}
	if m.lock != nil {
		err = errors.Join(err, m.lock.Unlock())
	}
	return err
}

// Plan finds out what Migrate would do with the request, and changes nothing. An
// error is why Migrate would refuse; the plan holds what was found out before that.
func (s *Service) Plan(_ context.Context, request Request) (Plan, error) {
	a, err := s.prepare(request)
	if err != nil {
		return a.plan, err
	}
	return a.plan, a.Close()
}

// Migrate moves the source into the destination, from where an earlier call with
// the same ends has stopped. It returns when nothing is left to do, or something
// stands in the way, or the context is cancelled; then it commits first.
func (s *Service) Migrate(ctx context.Context, request Request, sink Sink) error {
	return s.migrate(ctx, request, sink, &control{})
}

func (s *Service) migrate(ctx context.Context, request Request, sink Sink, c *control) error {
	a, err := s.prepare(request)
	if err != nil {
		return err
	}
	var m *migration
	if a.known != nil {
		m, err = a.resume()
	} else {
		m, err = a.begin()
	}
	if err != nil {
		return err
	}
	m.accesses = a.accesses
	m.control = c
	return m.finishWith(m.run(ctx, sink))
}

// finishWith closes the migration and returns the more important error.
func (m *migration) finishWith(err error) error {
	closeErr := m.Close()
	if err == nil && closeErr != nil {
		return &Error{Outcome: Failed, Object: m.id, Problem: "could not be closed", State: "every byte is at the destination", Err: closeErr}
	}
	return err
}

// begin makes destination and journal of a new migration. If it fails, a destination
// that it made is gone again; a crash may leave one, empty and with a mark.
func (a *attempt) begin() (_ *migration, err error) {
	m := &migration{s: a.s, id: cmp.Or(a.start.id, newID()), source: a.source, destination: a.destination, warnings: a.plan.Warnings, control: &control{}}
	defer func() {
		err = errors.Join(err, a.release())
		if err != nil {
			err = errors.Join(err, m.unmake(), m.Close())
		}
	}()
	m.record = record{Options: a.request.Options, Priority: a.start.Priority, IdempotencyKey: a.start.IdempotencyKey}
	m.record.RegionBytes = a.plan.RegionBytes
	if err := a.s.makeStateDir(); err != nil {
		return m, err
	}
	if m.lock, err = a.s.lock(m.id); err != nil {
		return m, refuse(m.id, "the journal cannot be locked", "", err)
	}
	if err := m.readyDestination(a); err != nil {
		return m, refuse(a.target.name, "the destination cannot be made", "", err)
	}
	if err := m.createJournal(); err != nil {
		e := refuse(a.s.journalPath(m.id), "the journal cannot be made", "free space there, or name another directory with --state-dir", err)
		if m.record.Overwrite && !m.record.DestinationCreated {
			e.Outcome, e.State = Failed, "the source is whole, the destination was to be overwritten and is empty by now"
		}
		return m, e
	}
	m.keepDestination()
	return m, nil
}

// keepDestination hands the destination over to its user, whose journal there is now.
func (m *migration) keepDestination() {
	if err := m.destination.keep(); err != nil {
		m.warnings = append(m.warnings, fmt.Sprintf("the destination keeps a tag of this program: %v", err))
	}
}

// unmake deletes a destination that begin made and has no journal for.
func (m *migration) unmake() error {
	if m.journal != nil || m.destination == nil || !m.destination.created {
		return nil
	}
	if _, err := os.Stat(m.s.journalPath(m.id)); !errors.Is(err, os.ErrNotExist) {
		return nil // it was made all the same, and names this destination: a resume needs both
	}
	destination := m.destination
	m.destination = nil
	return m.s.remove(destination)
}

func newID() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails, as documented
	return hex.EncodeToString(b[:])
}

// readyDestination makes the destination, or empties what may be overwritten, and
// marks it as not whole.
func (m *migration) readyDestination(a *attempt) (err error) {
	bytes := a.source.Bytes()
	if m.destination == nil {
		if m.destination, err = m.s.create(a.target, bytes); err != nil {
			return err
		}
	}
	if !m.destination.created {
		if m.destination.created, err = m.destination.isFresh(); err != nil {
			return err
		}
	}
	m.record.DestinationCreated = m.destination.created
	if err := m.takeOffOldMarks(); err != nil {
		return err
	}
	switch e := m.destination; {
	case e.created:
	case e.kind == "file":
		err = e.base.Resize(max(bytes, e.Bytes()))
	case m.record.Overwrite && e.isBounded():
		err = e.Zero(0, e.Bytes())
	}
	if err != nil {
		return err
	}
	if err := zeroTail(m.destination, bytes); err != nil {
		return err
	}
	mark := loopdev.Mark{ID: m.id, Role: receivingRole, Since: time.Now()}
	if m.record.DestinationCreated {
		mark.Tx = createdByUs
	}
	return m.destinationMarks().write(mark)
}

// takeOffOldMarks takes off what checkMark has let pass: marks of migrations that
// have ended, or that never got as far as a journal. The latter tell whether they
// have made the destination.
func (m *migration) takeOffOldMarks() error {
	mark, ok, err := m.destinationMarks().read()
	if err != nil {
		return err
	}
	if ok {
		if _, err := os.Stat(m.s.journalPath(mark.ID)); errors.Is(err, os.ErrNotExist) {
			m.record.DestinationCreated = m.record.DestinationCreated || mark.Tx == createdByUs
		}
		if err := m.destinationMarks().remove(); err != nil {
			return err
		}
	}
	return m.takeOffOldSourceMark()
}

func (m *migration) takeOffOldSourceMark() error {
	mark, ok, err := m.sourceMarks().read()
	if err != nil || !ok || mark.ID == m.id {
		return err
	}
	err = m.sourceMarks().remove()
	if errors.Is(err, loopdev.ErrReadOnly) {
		return nil // a copy leaves its source alone, and each run judges the mark anew
	}
	return err
}

// createdByUs stands in the mark of a destination that the migration has made,
// where no transaction number has a meaning.
const createdByUs = 1

func (m *migration) sourceMarks() marks      { return marks{m.s, m.source} }
func (m *migration) destinationMarks() marks { return marks{m.s, m.destination} }

func (m *migration) createJournal() error {
	geometry, err := region.NewGeometry(m.source.Bytes(), m.record.RegionBytes)
	if err != nil {
		return err
	}
	if err := m.sampleSource(geometry, region.NewSet()); err != nil {
		return err
	}
	options, err := json.Marshal(m.record)
	if err != nil {
		return err
	}
	start, err := m.source.AllocatedBytes()
	if errors.Is(err, loopdev.ErrNotCountable) {
		start, err = m.source.Bytes(), nil
	}
	if err != nil {
		return err
	}
	path := m.s.journalPath(m.id)
	m.journal, err = journal.Create(path, journal.Superblock{
		ID: m.id, Geometry: geometry,
		Source: m.source.identity(), Destination: m.destination.identity(),
		Options: options, Created: time.Now(), SourceStartBytes: start,
	})
	return err
}

// resume opens the journal of the migration that was found between the ends.
func (a *attempt) resume() (_ *migration, err error) {
	m := &migration{s: a.s, id: a.known.id, source: a.source, destination: a.destination, resumed: true, warnings: a.plan.Warnings, control: &control{}}
	defer func() {
		err = errors.Join(err, a.release())
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	if err := m.openJournal(); err != nil {
		return m, err
	}
	m.record = a.known.record
	m.record.Options, m.record.Paused, m.record.Reverse = a.request.Options, false, false
	m.record.RegionBytes = a.plan.RegionBytes
	if a.known.state.Phase == journal.Done {
		m.record.Options = a.known.record.Options // nothing is left that others could change
	}
	if err := m.sampleAgain(a.known); err != nil {
		return m, refuse(m.source.name, "cannot be read", "", err)
	}
	if err := m.takeOffOldSourceMark(); err != nil {
		return m, refuse(m.source.name, "an old mark cannot be taken off", "", err)
	}
	if err := m.saveRecord(m.record); err != nil {
		return m, refuse(m.id, "its journal cannot be written", "", err)
	}
	m.keepDestination()
	return m, nil
}

func (m *migration) saveRecord(r record) error {
	options, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return m.journal.SetOptions(options)
}

func (m *migration) openJournal() (err error) {
	if m.lock, err = m.s.lock(m.id); err != nil {
		return refuse(m.id, "another process works on it", "wait for it, or stop it with: migrate pause "+m.id, err)
	}
	if m.journal, err = journal.Open(m.s.journalPath(m.id)); err != nil {
		return refuse(m.id, "its journal cannot be used; nothing was changed", "repair or restore it; never start over", err)
	}
	return nil
}

// lock takes the lock of a migration. A process that was killed may keep it for a
// moment longer than its ends.
func (s *Service) lock(id string) (*journal.LockFile, error) {
	const attempts, pause = 20, 50 * time.Millisecond
	for attempt := 1; ; attempt++ {
		lock, err := journal.LockAs(s.lockPath(id), s.holder)
		if !errors.Is(err, journal.ErrLocked) || attempt == attempts {
			return lock, err
		}
		time.Sleep(pause)
	}
}

// Resume goes on with a migration by its id, in its direction and with the options
// of the command that began it.
func (s *Service) Resume(ctx context.Context, id string, sink Sink) error {
	return s.resume(ctx, id, sink, &control{})
}

func (s *Service) resume(ctx context.Context, id string, sink Sink, c *control) error {
	id, err := s.resolveID(id)
	if err != nil {
		return err
	}
	k := s.look(id)
	if k.err != nil {
		return refuse(id, "its journal cannot be used; nothing was changed", "repair or restore it; never start over", k.err)
	}
	if k.state.Direction == journal.Backward && k.state.Phase == journal.Running {
		return s.reverse(ctx, id, sink, c)
	}
	if k.ended() {
		return refuse(id, fmt.Sprintf("is %s, there is nothing to go on with", k.state.Phase), "", nil)
	}
	return s.migrate(ctx, Request{
		Source:      requestName(k.superblock.Source),
		Destination: requestName(k.superblock.Destination),
		Options:     k.record.Options,
	}, sink, c)
}

// requestName is what leads to an end again from any directory.
func requestName(id journal.Identity) string {
	if id.Kind == "volume" || id.Kind == groupVolumeKind {
		return id.Name
	}
	return id.Path
}
