package journal

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Create makes a journal and opens it as Open does. Either the whole journal is
// durably there under its name, or the name is free as before. A journal that
// exists already is left alone; the error then matches fs.ErrExist. The directory
// must exist. The caller holds the lock of the migration.
func Create(path string, sb Superblock) (*Journal, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	fail := func(reason, cause error) (*Journal, error) {
		return nil, &Error{Path: path, Doing: "create", Reason: reason, Cause: cause}
	}
	if sb.ID == "" || sb.Geometry.Regions() == 0 {
		return fail(ErrInvalid, errors.New("the superblock has no ID or no regions"))
	}
	if _, err := os.Lstat(path); err == nil {
		return fail(nil, fs.ErrExist)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fail(nil, err)
	}
	if err := requireNoLeftovers(path); err != nil {
		return fail(ErrLeftover, err)
	}
	unfinished := path + ".new"
	if err := writeNew(unfinished, sb); err != nil {
		reason := writeFault(err)
		if errors.Is(reason, ErrUnknownOutcome) { // nobody will ever look at it
			reason = nil
		}
		return fail(reason, errors.Join(err, removeAll(unfinished)))
	}
	if err := unix.Renameat2(unix.AT_FDCWD, unfinished, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
		return fail(nil, errors.Join(fmt.Errorf("rename %s: %w", unfinished, err), removeAll(unfinished)))
	}
	for _, dir := range []string{filepath.Dir(path), filepath.Dir(filepath.Dir(path))} {
		if err := syncPath(dir); err != nil {
			return fail(ErrNotDurable, err)
		}
	}
	return Open(path)
}

// companions are the files that SQLite keeps beside a database.
func companions(path string) []string {
	return []string{path + "-wal", path + "-journal", path + "-shm"}
}

// requireNoLeftovers refuses to put a new journal beside the log of another one:
// SQLite would replay that log into it, and that there is one at all says that a
// journal got lost. Empty files say nothing and go.
func requireNoLeftovers(path string) error {
	for _, name := range companions(path)[:2] {
		if info, err := os.Lstat(name); err == nil && info.Size() > 0 {
			return fmt.Errorf("%s holds %d bytes", name, info.Size())
		}
	}
	return removeAll(companions(path)...)
}

func removeAll(names ...string) (err error) {
	for _, name := range names {
		if e := os.Remove(name); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// writeNew makes a complete journal at a name that nobody else looks at, in place
// of what a crash may have left there.
func writeNew(path string, sb Superblock) error {
	if err := removeAll(slices.Concat([]string{path}, companions(path))...); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	c, err := connect(path, creating)
	if err != nil {
		return err
	}
	if err = c.hurry(); err == nil {
		err = fill(c, sb)
	}
	if err == nil {
		err = c.writeAhead()
	}
	if err == nil {
		err = c.setSynchronous("EXTRA")
	}
	if err == nil {
		err = c.requireDurable()
	}
	if err = errors.Join(err, c.close()); err != nil {
		return errors.Join(err, removeAll(companions(path)...))
	}
	return errors.Join(removeAll(companions(path)...), syncPath(path))
}

func fill(c connection, sb Superblock) error {
	tx, err := c.BeginTx(background, nil)
	if err != nil {
		return err
	}
	if err := fillIn(tx, sb); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func fillIn(tx *sql.Tx, sb Superblock) error {
	statements := append([]string{
		fmt.Sprintf("PRAGMA application_id = %d", applicationID),
		fmt.Sprintf("PRAGMA user_version = %d", schemaVersion),
	}, schema...)
	for _, s := range statements {
		if _, err := tx.ExecContext(background, s); err != nil {
			return err
		}
	}
	options := blob(sb.Options)
	if _, err := tx.ExecContext(background, `INSERT INTO superblock VALUES (1, ?, ?, ?, ?, ?, ?)`, sb.ID,
		sb.Geometry.DeviceBytes(), sb.Geometry.RegionBytes(), sb.SourceStartBytes, nanoseconds(sb.Created), options); err != nil {
		return err
	}
	for side, id := range map[int]Identity{sourceSide: sb.Source, destinationSide: sb.Destination} {
		if _, err := tx.ExecContext(background, `INSERT INTO identity VALUES (?, ?, ?, ?, ?, ?, ?, ?)`, side,
			id.Kind, id.Name, id.Path, id.Key, id.Bytes, id.Offset, id.ModifiedNanoseconds); err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(background, `INSERT INTO state VALUES (1, ?, ?, 0, 0, ?)`, int64(Forward), string(Running), options)
	return err
}

// blob keeps an empty value from becoming NULL.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// nanoseconds is a time as it is kept; the zero time is 0.
func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// kept is the time that nanoseconds made a number of.
func kept(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

// syncPath makes a file or directory durable. It must not be called on a database
// that is open in this process: closing any handle of it drops SQLite's locks.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
