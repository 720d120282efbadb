package journal

import (
	"database/sql"
	"errors"
)

// writable says whether the journal takes changes.
func (j *Journal) writable(doing string) error {
	switch {
	case j.readOnly:
		return j.fault(doing, ErrReadOnly, nil)
	case j.closed:
		return j.fault(doing, nil, sql.ErrConnDone)
	case j.broken != nil:
		return j.fault(doing, j.broken.Reason, j.broken.Cause)
	}
	return nil
}

// write makes a change, durably or not at all. The caller holds the mutex, has
// asked writable, and changes what is in memory only after it returned nil.
func (j *Journal) write(doing string, change func(*sql.Tx) error) error {
	tx, err := j.c.BeginTx(background, nil)
	if err != nil {
		return j.failed(doing, err)
	}
	err = j.nextGeneration(tx)
	if err == nil {
		err = change(tx)
	}
	if err != nil {
		// An error here is that SQLite has rolled back by itself. Were the
		// transaction still open, the next one could not begin.
		_ = tx.Rollback()
		return j.failed(doing, err)
	}
	if err := tx.Commit(); err != nil {
		return j.failed(doing, err)
	}
	j.generation++
	return nil
}

// writeLate makes a change that a power loss may take back: it does without the sync
// that makes write durable. The log keeps the order of changes, so the next durable
// one makes this one durable, too.
func (j *Journal) writeLate(doing string, change func(*sql.Tx) error) error {
	if err := j.c.setSynchronous("NORMAL"); err != nil {
		return j.failed(doing, err)
	}
	err := j.write(doing, change)
	if again := j.c.setSynchronous("EXTRA"); again != nil {
		j.broken = &Error{Path: j.path, Doing: doing, Reason: ErrNotDurable, Cause: again}
		return errors.Join(err, j.broken)
	}
	return err
}

var errGeneration = errors.New("it was changed since it was opened")

// nextGeneration makes sure that the file is as this process left it.
func (j *Journal) nextGeneration(tx *sql.Tx) error {
	result, err := tx.ExecContext(background, `UPDATE state SET generation = generation + 1 WHERE generation = ?`, j.generation)
	if err != nil {
		return err
	}
	if n, err := result.RowsAffected(); err != nil || n != 1 {
		return errors.Join(errGeneration, err)
	}
	return nil
}

// failed is the error of a change that did not work. Unless it is sure that the
// same change can work later, it is the last one that the journal takes.
func (j *Journal) failed(doing string, err error) error {
	e := &Error{Path: j.path, Doing: doing, Reason: writeFault(err), Cause: err}
	if !errors.Is(e.Reason, ErrFull) {
		j.broken = e
	}
	return e
}
