package journal

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"

	_ "github.com/mattn/go-sqlite3" // the driver "sqlite3"
)

// background is the context of every statement. None can be cancelled: a change
// that is interrupted half way has no known outcome.
var background = context.Background()

// querier is what can be read from: the connection, or a transaction on it.
type querier interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
	QueryRowContext(context.Context, string, ...any) *sql.Row
}

// connection is the one connection of a journal. The settings that make a commit
// durable belong to it, so it is never given back to a pool that could open
// another.
type connection struct {
	*sql.Conn
	db *sql.DB
}

// access is the mode of SQLite's URI.
type access string

const (
	creating access = "rwc"
	writing  access = "rw"
)

// connect opens the file and gives the connection its settings. It does not set
// the journal mode: that would change the file before anything is known of it.
//
// From the first access on the connection has the file for itself. SQLite then
// keeps the index of the log on the heap: as a file in shared memory, -shm, it
// would kill the process with SIGBUS where the file system has no block for it.
func connect(path string, mode access) (connection, error) {
	name := url.URL{Path: path}
	dsn := "file:" + name.EscapedPath() + "?mode=" + string(mode) +
		"&_locking_mode=EXCLUSIVE&_txlock=immediate&_synchronous=EXTRA&_busy_timeout=5000"
	db, err := sql.Open("sqlite3", dsn)
	if err != nil {
		return connection{}, err
	}
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(background)
	if err != nil {
		return connection{}, errors.Join(err, db.Close())
	}
	c := connection{Conn: conn, db: db}
	for _, setting := range []string{
		"wal_autocheckpoint = 1000",
		"journal_size_limit = 8388608",
		"mmap_size = 0",
		"trusted_schema = OFF",
		"cell_size_check = ON",
	} {
		if _, err := c.ExecContext(background, "PRAGMA "+setting); err != nil {
			return connection{}, errors.Join(fmt.Errorf("set %s: %w", setting, err), c.close())
		}
	}
	return c, nil
}

func (c connection) close() error {
	return errors.Join(c.Conn.Close(), c.db.Close())
}

// setSynchronous changes how far a commit waits for the medium, and reads it back.
func (c connection) setSynchronous(level string) error {
	if _, err := c.ExecContext(background, "PRAGMA synchronous = "+level); err != nil {
		return fmt.Errorf("set synchronous: %w", err)
	}
	var got int
	if err := c.QueryRowContext(background, "PRAGMA synchronous").Scan(&got); err != nil {
		return fmt.Errorf("read synchronous back: %w", err)
	}
	if want := map[string]int{"OFF": 0, "NORMAL": 1, "EXTRA": 3}[level]; got != want {
		return fmt.Errorf("synchronous is %d after it was set to %s", got, level)
	}
	return nil
}

// hurry is for a file that nobody looks at before it was synced as a whole: until then
// SQLite syncs nothing, and has no log beside it that would have to be renamed too.
func (c connection) hurry() error {
	if err := c.setSynchronous("OFF"); err != nil {
		return err
	}
	// Not read back: another mode only costs time, and its log goes with the name.
	_, err := c.ExecContext(background, "PRAGMA journal_mode = MEMORY")
	return err
}

// writeAhead makes write-ahead logging sure.
func (c connection) writeAhead() error {
	var mode string
	if err := c.QueryRowContext(background, "PRAGMA journal_mode = WAL").Scan(&mode); err != nil {
		return fmt.Errorf("set journal_mode: %w", err)
	}
	if mode != "wal" {
		return fmt.Errorf("journal_mode is %s where wal is needed", mode)
	}
	return nil
}

// requireDurable makes write-ahead logging sure and reads back what decides
// whether a commit survives a power loss, and whether the log needs an index in
// shared memory.
func (c connection) requireDurable() error {
	if err := c.writeAhead(); err != nil {
		return err
	}
	var mode string
	if err := c.QueryRowContext(background, "PRAGMA locking_mode").Scan(&mode); err != nil {
		return fmt.Errorf("read locking_mode back: %w", err)
	}
	if mode != "exclusive" {
		return fmt.Errorf("locking_mode is %s where exclusive is needed", mode)
	}
	for _, need := range []struct {
		pragma   string
		min, max int64
	}{
		{"synchronous", 2, 3},
		{"mmap_size", 0, 0},
		{"wal_autocheckpoint", 1, 1000},
	} {
		var got int64
		if err := c.QueryRowContext(background, "PRAGMA "+need.pragma).Scan(&got); err != nil {
			return fmt.Errorf("read %s back: %w", need.pragma, err)
		}
		if got < need.min || got > need.max {
			return fmt.Errorf("%s is %d where %d to %d is needed", need.pragma, got, need.min, need.max)
		}
	}
	return nil
}
