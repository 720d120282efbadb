package clonetest

import (
	"fmt"
	"iter"

	"decant/clone"
	"decant/journal"
	"decant/region"
)

// memoryJournal is the simulated clone.Journal: a log whose records count after a
// crash up to the first one that did not survive, as in SQLite's WAL.
type memoryJournal struct {
	*Machine
	geometry region.Geometry
}

var _ clone.Journal = memoryJournal{}

// logRecord is one transaction or one note of discards.
type logRecord struct {
	tx          journal.TxID // 0: a note of discards
	transaction journal.Transaction
	discarded   []region.Range
	whole       bool // its last write was made
	synced      bool
}

// Load is what the log says; a record that is not whole does not count.
func (j memoryJournal) Load() (state journal.State, err error) {
	fault, err := j.call(JournalLoad)
	if err != nil {
		return journal.State{}, err
	}
	if fault != nil {
		return journal.State{}, fault.errno()
	}
	err = j.look(func() { state = replay(j.log) })
	return state, err
}

// replay is the state after a log.
func replay(log []logRecord) journal.State {
	s := journal.State{Phase: journal.Running, Hydrated: region.NewSet(), Discarded: region.NewSet()}
	for _, r := range log {
		if !r.whole {
			break
		}
		for _, run := range r.discarded {
			s.Discarded.Add(run)
		}
		if r.tx == 0 {
			continue
		}
		s.Tx = r.tx
		s.Hydrated.Union(r.transaction.Hydrated)
		s.CopiedBytes += r.transaction.CopiedBytes
		s.PeakExtraBytes = max(s.PeakExtraBytes, r.transaction.PeakExtraBytes)
	}
	return s
}

// Commit appends a record in two writes and syncs the log.
func (j memoryJournal) Commit(t journal.Transaction) (journal.TxID, error) {
	fault, err := j.enter(JournalCommit)
	if err != nil {
		return 0, err
	}
	defer j.leave()
	if fault != nil && !fault.Effect {
		return 0, fault.errno()
	}
	if err := j.check(t); err != nil {
		return 0, err
	}
	t.Hydrated = t.Hydrated.Clone()
	t.Checksums = append([]journal.Checksum(nil), t.Checksums...)
	var at int
	var tx journal.TxID
	write := func() {
		at, tx = len(j.log), replay(j.log).Tx+1
		j.log = append(j.log, logRecord{tx: tx, transaction: t})
	}
	finish := func() { j.log[at].whole = true }
	for _, effect := range []func(){write, finish} {
		if err := j.step(effect); err != nil {
			return 0, err
		}
		j.meanwhile(JournalCommit)
	}
	if fault != nil {
		return 0, fault.errno()
	}
	return tx, j.step(func() {
		for i := range j.log[:at+1] {
			j.log[i].synced = true
		}
	})
}

// check refuses what no clone of this device can have meant.
func (j memoryJournal) check(t journal.Transaction) error {
	for run := range t.Hydrated.Ranges() {
		if run != run.Intersect(j.geometry.All()) {
			return fmt.Errorf("regions %v reach behind the end of the device", run)
		}
	}
	for _, sum := range t.Checksums {
		if !t.Hydrated.Has(sum.Nr) {
			return fmt.Errorf("checksum of region %d, which is not in the transaction", sum.Nr)
		}
	}
	return nil
}

// MarkDiscarded appends a record and leaves it to the next Commit to sync it.
func (j memoryJournal) MarkDiscarded(runs []region.Range) error {
	fault, err := j.enter(JournalMarkDiscarded)
	if err != nil {
		return err
	}
	defer j.leave()
	if fault != nil && !fault.Effect {
		return fault.errno()
	}
	var hydrated *region.Set
	if err := j.look(func() { hydrated = replay(j.log).Hydrated }); err != nil {
		return err
	}
	for _, run := range runs {
		if !hydrated.HasAll(run) {
			return fmt.Errorf("regions %v are not hydrated, so they are not discarded", run)
		}
	}
	j.meanwhile(JournalMarkDiscarded)
	err = j.step(func() {
		j.log = append(j.log, logRecord{discarded: append([]region.Range(nil), runs...), whole: true})
	})
	if err == nil && fault != nil {
		return fault.errno()
	}
	return err
}

// Checksums is what the log says, whatever the direction.
func (j memoryJournal) Checksums(_ journal.Direction, within region.Range) iter.Seq2[journal.Checksum, error] {
	return func(yield func(journal.Checksum, error) bool) {
		var sums map[region.Nr]uint64
		if err := j.look(func() { _, sums = j.recorded() }); err != nil {
			yield(journal.Checksum{}, err)
			return
		}
		for nr := within.First; nr < within.End(); nr++ {
			if sum, ok := sums[nr]; ok && !yield(journal.Checksum{Nr: nr, Sum: sum}, nil) {
				return
			}
		}
	}
}

// enter begins a write to the journal, which wants its writers one at a time.
func (j memoryJournal) enter(op Op) (*Fault, error) {
	fault, err := j.call(op)
	if err != nil {
		return nil, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.journalWriters++; j.journalWriters > 1 {
		j.violate("%s while another write to the journal is going on", op)
	}
	return fault, nil
}

func (j memoryJournal) leave() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.journalWriters--
}
