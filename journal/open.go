package journal

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Journal is an open journal. All methods may be called concurrently, and are
// carried out one after the other.
type Journal struct {
	path       string
	readOnly   bool // c is open on a private copy
	superblock Superblock
	file       *openFile // the file that c writes to; nil if readOnly

	mu     sync.Mutex
	c      connection
	closed bool
	broken *Error // why it takes no more changes; nil if it does
	// What a journal open for writing knows of the file, to which nobody else
	// writes.
	state      State
	generation int64
}

// Open opens a journal for writing. It has the file for itself until Close or the
// end of the process: whoever else opens it for writing, here or in another process,
// gets ErrOtherWriter, after up to five seconds. The caller holds the lock of the
// migration all the same. It returns only a journal whose commits survive a power
// loss and whose records agree with each other; the other reasons for which it does
// not are ErrNotJournal, ErrNewer, ErrOlder, ErrDamaged, ErrNotDurable and ErrFull.
// A file that is no journal is not changed.
func Open(path string) (*Journal, error) {
	j, err := named(path)
	if err != nil {
		return nil, err
	}
	if j.file, err = writers.claim(j.path); err != nil {
		reason := error(nil)
		if errors.Is(err, errClaimed) {
			reason = ErrOtherWriter
		}
		return nil, j.fault("open", reason, err)
	}
	if j.c, err = connect(j.path, writing); err != nil {
		return nil, errors.Join(j.fault("open", readFault(err), err), j.file.release())
	}
	err = j.recognise()
	if err == nil {
		err = j.prepareToWrite()
	}
	if err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return j, nil
}

// named is a journal that is not open yet, of a file that may be one.
func named(path string) (*Journal, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	j := &Journal{path: path}
	// SQLite's own words for a missing file would be "unable to open".
	info, err := os.Stat(path)
	if err != nil {
		return nil, j.fault("open", nil, err)
	}
	if !info.Mode().IsRegular() || info.Size() == 0 {
		return nil, j.fault("open", ErrNotJournal, fmt.Errorf("it is %v of %d bytes", info.Mode(), info.Size()))
	}
	return j, nil
}

// recognise finds out whether the file is a journal of this version.
func (j *Journal) recognise() error {
	return j.read("open", func(q querier) error {
		var app, version int64
		if err := q.QueryRowContext(background, "PRAGMA application_id").Scan(&app); err != nil {
			return err
		}
		if app != applicationID {
			return j.fault("open", ErrNotJournal, fmt.Errorf("SQLite application_id is %#x, not %#x", app, applicationID))
		}
		if err := q.QueryRowContext(background, "PRAGMA user_version").Scan(&version); err != nil {
			return err
		}
		if version > schemaVersion {
			return j.fault("open", ErrNewer, fmt.Errorf("version %d, known is %d", version, schemaVersion))
		}
		if version < schemaVersion {
			return j.fault("open", ErrOlder, fmt.Errorf("version %d, known is %d", version, schemaVersion))
		}
		if err := checkSchema(q); err != nil {
			return err
		}
		var err error
		j.superblock, err = readSuperblock(q)
		return err
	})
}

// checkSchema compares the tables with those that Create makes. A table, index or
// trigger that somebody added could make a statement do something else.
func checkSchema(q querier) error {
	found, err := texts(q, "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid")
	if err != nil {
		return err
	}
	if !slices.Equal(found, schema) {
		return errors.New("the tables are not those of a journal")
	}
	return nil
}

// prepareToWrite makes sure that what is written on top of the journal is safe.
func (j *Journal) prepareToWrite() error {
	if err := j.c.requireDurable(); err != nil {
		reason := readFault(err)
		if errors.Is(reason, ErrDamaged) && !isSQLite(err) {
			reason = ErrNotDurable
		}
		return j.fault("open", reason, err)
	}
	if err := j.read("open", func(q querier) error { return pragmaCheck(q, "quick_check") }); err != nil {
		return err
	}
	if err := j.makeDurable(); err != nil {
		return err
	}
	err := j.read("open", func(q querier) (err error) {
		if j.state, err = readState(q, j.superblock.Geometry); err != nil {
			return err
		}
		if err = q.QueryRowContext(background, `SELECT generation FROM state`).Scan(&j.generation); err != nil {
			return err
		}
		return checkRecords(q, j.superblock.Geometry)
	})
	if err != nil {
		return err
	}
	// By now the write-ahead log is there, made anew if the last process closed
	// the journal in order. SQLite ignores whether the sync of its name worked.
	if err := syncPath(filepath.Dir(j.path)); err != nil {
		return j.fault("open", ErrNotDurable, err)
	}
	return nil
}

// makeDurable syncs what the last process may have written and not synced: SQLite
// takes every whole transaction in the write-ahead log for committed, also one
// whose process was killed before its sync. A power loss could still take it back,
// when its discards have already been made. So the log is copied into the database
// file, with a sync of both, before any of it is believed.
func (j *Journal) makeDurable() error {
	var busy, logged, copied int
	err := j.read("open", func(q querier) error {
		return q.QueryRowContext(background, `PRAGMA wal_checkpoint(FULL)`).Scan(&busy, &logged, &copied)
	})
	if err != nil {
		return j.fault("open", writeFault(err), err)
	}
	if busy != 0 || logged != copied {
		return j.fault("open", ErrNotDurable, fmt.Errorf("%d of %d pages of the log could not be made durable; end what else uses the file and try again", logged-copied, logged))
	}
	return nil
}

// pragmaCheck runs one of SQLite's own checks.
func pragmaCheck(q querier, check string) error {
	found, err := texts(q, "PRAGMA "+check+"(3)")
	if err != nil {
		return err
	}
	if len(found) != 1 || found[0] != "ok" {
		return fmt.Errorf("%s: %s", check, strings.Join(found, ", "))
	}
	return nil
}

// texts is the single column of a query.
func texts(q querier, query string) (all []string, err error) {
	rows, err := q.QueryContext(background, query)
	if err != nil {
		return nil, err
	}
	defer closeRows(rows, &err)
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, rows.Err()
}

func closeRows(rows *sql.Rows, err *error) { *err = errors.Join(*err, rows.Close()) }

// read runs f over one consistent state of the file. What f returns gets its
// reason here unless it has one.
func (j *Journal) read(doing string, f func(querier) error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	err := f(j.c) // nobody else changes what it reads
	var known *Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	return j.fault(doing, readFault(err), err)
}

// Superblock is what the journal belongs to, as it was given to Create.
func (j *Journal) Superblock() Superblock {
	sb := j.superblock
	sb.Options = bytes.Clone(sb.Options)
	return sb
}

// Close gives the file back. It may be called again.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil
	}
	j.closed = true
	err := j.c.close()
	if j.file != nil {
		err = errors.Join(err, j.file.release())
	}
	if err != nil {
		return j.fault("close", nil, err)
	}
	return nil
}
