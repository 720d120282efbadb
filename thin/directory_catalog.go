package thin

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	_ "github.com/mattn/go-sqlite3" // the "sqlite3" driver
)

const (
	catalogFile = "catalog.db"
	// newCatalogFile becomes catalogFile in one step, when it is complete and durable.
	newCatalogFile = "catalog.db.new"

	catalogApplicationID = 0x64637470 // "dctp"
	catalogVersion       = 1
	catalogBusyTimeout   = 5 * time.Second

	// synchronousFull is the weakest of SQLite's levels under which a commit in
	// WAL mode survives a power loss. The driver's own default is below it.
	synchronousFull = 2

	// MaxBlobBytes is the size of the largest blob that a volume can carry.
	MaxBlobBytes = 256
)

const catalogSchema = `
CREATE TABLE pool (
	one            INTEGER PRIMARY KEY CHECK (one = 1),
	name           TEXT    NOT NULL,
	uuid           TEXT    NOT NULL,
	size_bytes     INTEGER NOT NULL CHECK (size_bytes > 0),
	transaction_id INTEGER NOT NULL,
	next_volume_id INTEGER NOT NULL,
	state          TEXT    NOT NULL CHECK (state IN ('active', 'deleting')),
	created        TEXT    NOT NULL
) STRICT;
CREATE TABLE volume (
	id         INTEGER PRIMARY KEY,
	name       TEXT    NOT NULL UNIQUE,
	size_bytes INTEGER NOT NULL CHECK (size_bytes > 0),
	blob       BLOB    NOT NULL CHECK (length(blob) <= 256),
	origin     TEXT    NOT NULL,
	state      TEXT    NOT NULL CHECK (state IN ('creating', 'active', 'deleting')),
	created    TEXT    NOT NULL
) STRICT;`

// State is how far a change of a volume or a pool has come.
type State string

// A record in state Creating or Deleting is being changed right now, or was when
// its process died.
const (
	Creating State = "creating"
	Active   State = "active"
	Deleting State = "deleting"
)

// poolRecord is the row of the pool itself.
type poolRecord struct {
	name, uuid    string
	sizeBytes     int64
	transactionID uint64
	state         State
	created       time.Time
}

// volumeRecord is the row of one volume.
type volumeRecord struct {
	id        uint64
	name      string
	sizeBytes int64
	blob      []byte
	origin    string
	state     State
	created   time.Time
}

// catalog is the pool's record of itself and its volumes. What a method that
// changes it has returned nil for survives a power loss; after an error the
// outcome is unknown until the record is read again. Changes are made under the
// pool's lock only, reads at any time.
type catalog struct {
	db *sql.DB
}

// createCatalog makes the catalog of a pool without volumes in dir. It is there
// completely and durably, or not at all.
func createCatalog(dir string, r poolRecord) error {
	path := filepath.Join(dir, newCatalogFile)
	for _, leftover := range []string{path, path + "-wal", path + "-shm", path + "-journal"} {
		if err := os.Remove(leftover); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := writeNewCatalog(path, r); err != nil {
		return err
	}
	if err := syncPath(path); err != nil {
		return err
	}
	if err := os.Rename(path, filepath.Join(dir, catalogFile)); err != nil {
		return err
	}
	return syncPath(dir)
}

// writeNewCatalog fills the file at path. When it returns, no connection is left
// that could hold a write-ahead log beside the file.
func writeNewCatalog(path string, r poolRecord) (err error) {
	db, err := openDB(path, "rwc")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	_, err = db.Exec(fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d;", catalogApplicationID, catalogVersion) + catalogSchema)
	if err != nil {
		return err
	}
	_, err = db.Exec(`INSERT INTO pool VALUES (1, ?, ?, ?, 0, 1, ?, ?)`,
		r.name, r.uuid, r.sizeBytes, string(Active), r.created.UTC().Format(time.RFC3339Nano))
	return err
}

// openCatalog opens the catalog in dir and refuses it if it is damaged, of another
// program or of a later version, or if its commits would not be durable.
func openCatalog(dir string) (*catalog, error) {
	db, err := openDB(filepath.Join(dir, catalogFile), "rw")
	if err != nil {
		return nil, err
	}
	if err := checkCatalog(db); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	// The check has made the write-ahead log. SQLite ignores whether its name
	// reached the disk, but a commit in it is durable only if it did.
	if err := syncPath(dir); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &catalog{db: db}, nil
}

// openDB opens an SQLite file with durable commits. mode is that of SQLite's URIs.
func openDB(path, mode string) (*sql.DB, error) {
	query := url.Values{}
	query.Set("mode", mode)
	if mode == "rwc" {
		// The file remembers it. One that does not have it is not ours to change.
		query.Set("_journal_mode", "WAL")
	}
	query.Set("_synchronous", "EXTRA")
	query.Set("_busy_timeout", strconv.FormatInt(catalogBusyTimeout.Milliseconds(), 10))
	query.Set("_txlock", "immediate")
	dsn := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: query.Encode()}
	db, err := sql.Open("sqlite3", dsn.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	for _, pragma := range []string{"trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"} {
		if _, err := db.Exec("PRAGMA " + pragma); err != nil {
			return nil, errors.Join(err, db.Close())
		}
	}
	return db, nil
}

func checkCatalog(db *sql.DB) error {
	var mode, check string
	var synchronous, application, version int
	for _, q := range []struct {
		pragma string
		into   any
	}{
		{"journal_mode", &mode},
		{"synchronous", &synchronous},
		{"application_id", &application},
		{"user_version", &version},
		{"quick_check(1)", &check},
	} {
		if err := db.QueryRow("PRAGMA " + q.pragma).Scan(q.into); err != nil {
			return fmt.Errorf("read %s of the catalog: %w", q.pragma, err)
		}
	}
	switch {
	case application != catalogApplicationID:
		return fmt.Errorf("%w: %s is not the catalog of a pool", ErrForeign, catalogFile)
	case version != catalogVersion:
		return fmt.Errorf("%w: the catalog has version %d and this program knows version %d only", ErrForeign, version, catalogVersion)
	case mode != "wal" || synchronous < synchronousFull:
		return fmt.Errorf("commits of the catalog would not be durable (journal_mode=%s, synchronous=%d)", mode, synchronous)
	case check != "ok":
		return fmt.Errorf("the catalog is damaged: %s", check)
	}
	return nil
}

// Close ends the use of the catalog.
func (c *catalog) Close() error { return c.db.Close() }

// pool reads the row of the pool.
func (c *catalog) pool() (poolRecord, error) {
	var r poolRecord
	var created string
	err := c.db.QueryRow(`SELECT name, uuid, size_bytes, transaction_id, state, created FROM pool`).
		Scan(&r.name, &r.uuid, &r.sizeBytes, &r.transactionID, &r.state, &created)
	if err != nil {
		return poolRecord{}, fmt.Errorf("read the pool's record: %w", err)
	}
	r.created, err = time.Parse(time.RFC3339Nano, created)
	return r, err
}

const selectVolumes = `SELECT id, name, size_bytes, blob, origin, state, created FROM volume `

// volumes reads the rows of all volumes, in whatever state, by name.
func (c *catalog) volumes() ([]volumeRecord, error) {
	rows, err := c.db.Query(selectVolumes + `ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("read the volumes: %w", err)
	}
	defer rows.Close() //nolint:errcheck // reading has no outcome that could be lost
	var all []volumeRecord
	for rows.Next() {
		r, err := scanVolume(rows.Scan)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

// volume reads the row of one volume. It is ErrNotFound if there is none.
func (c *catalog) volume(name string) (volumeRecord, error) {
	r, err := scanVolume(c.db.QueryRow(selectVolumes+`WHERE name = ?`, name).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return volumeRecord{}, ErrNotFound
	}
	return r, err
}

func scanVolume(scan func(...any) error) (volumeRecord, error) {
	var r volumeRecord
	var created string
	if err := scan(&r.id, &r.name, &r.sizeBytes, &r.blob, &r.origin, &r.state, &created); err != nil {
		return volumeRecord{}, fmt.Errorf("read a volume's record: %w", err)
	}
	var err error
	r.created, err = time.Parse(time.RFC3339Nano, created)
	return r, err
}

// add records a volume in state Creating and returns it with its id, which no
// volume of this pool had before or will have after.
func (c *catalog) add(r volumeRecord) (volumeRecord, error) {
	r.state = Creating
	if r.blob == nil {
		r.blob = []byte{} // nil would be NULL
	}
	err := c.change(func(tx *sql.Tx) error {
		if err := tx.QueryRow(`SELECT next_volume_id FROM pool`).Scan(&r.id); err != nil {
			return err
		}
		if r.id >= math.MaxInt64 {
			return errors.New("the ids of the pool are used up")
		}
		if _, err := tx.Exec(`UPDATE pool SET next_volume_id = next_volume_id + 1`); err != nil {
			return err
		}
		_, err := tx.Exec(`INSERT INTO volume (id, name, size_bytes, blob, origin, state, created) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			r.id, r.name, r.sizeBytes, r.blob, r.origin, string(r.state), r.created.UTC().Format(time.RFC3339Nano))
		return err
	})
	return r, err
}

// setState records that the volume is in state to; it must have been in from.
func (c *catalog) setState(id uint64, from, to State) error {
	return c.change(func(tx *sql.Tx) error {
		return oneRow(tx.Exec(`UPDATE volume SET state = ? WHERE id = ? AND state = ?`, string(to), id, string(from)))
	})
}

// remove forgets a volume, which must be in a trying state.
func (c *catalog) remove(id uint64) error {
	return c.change(func(tx *sql.Tx) error {
		return oneRow(tx.Exec(`DELETE FROM volume WHERE id = ? AND state <> ?`, id, string(Active)))
	})
}

// retire records that the pool is being destroyed. It is ErrNotEmpty while the
// pool has volumes.
func (c *catalog) retire() error {
	return c.change(func(tx *sql.Tx) error {
		var volumes int
		if err := tx.QueryRow(`SELECT count(*) FROM volume`).Scan(&volumes); err != nil {
			return err
		}
		if volumes > 0 {
			return fmt.Errorf("%w: it has %d volumes", ErrNotEmpty, volumes)
		}
		return oneRow(tx.Exec(`UPDATE pool SET state = ?`, string(Deleting)))
	})
}

// change carries out f in one transaction of its own number. No context: a
// commit that was given up half way has no known outcome.
func (c *catalog) change(f func(*sql.Tx) error) error {
	tx, err := c.db.BeginTx(context.Background(), nil)
	if err != nil {
		return fmt.Errorf("begin a change of the catalog: %w", err)
	}
	if err := f(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	if _, err := tx.Exec(`UPDATE pool SET transaction_id = transaction_id + 1`); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit a change of the catalog, outcome unknown: %w", err)
	}
	return nil
}

// oneRow makes an error of a statement that did not change exactly one row.
func oneRow(result sql.Result, err error) error {
	if err != nil {
		return err
	}
	n, err := result.RowsAffected()
	if err != nil {
		return err
	}
	if n != 1 {
		return fmt.Errorf("the record is not in the expected state (%d rows changed)", n)
	}
	return nil
}

// syncPath makes the file or the directory at path durable. The file must not be
// open in SQLite: closing it here would drop SQLite's locks.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
