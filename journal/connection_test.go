package journal

import (
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"decant/region"
)

// newFile is a closed journal.
func newFile(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "m.db")
	g, err := region.NewGeometry(1<<20, 4096)
	if err != nil {
		t.Fatal(err)
	}
	j, err := Create(path, Superblock{ID: "m1", Geometry: g})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSettingsAreReadBack(t *testing.T) {
	for pragma, named := range map[string]string{
		"synchronous = NORMAL":   "synchronous",
		"synchronous = OFF":      "synchronous",
		"mmap_size = 1048576":    "mmap_size",
		"wal_autocheckpoint = 0": "wal_autocheckpoint",
	} {
		c, err := connect(newFile(t), writing)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.requireDurable(); err != nil {
			t.Errorf("as connected: %v", err)
		}
		if _, err := c.ExecContext(background, "PRAGMA "+pragma); err != nil {
			t.Fatal(err)
		}
		if err := c.requireDurable(); err == nil || !strings.Contains(err.Error(), named) {
			t.Errorf("%s: %v", pragma, err)
		}
		if err := c.close(); err != nil {
			t.Error(err)
		}
	}
}

// A database in memory stands for a file system on which SQLite cannot log.
func TestOnlyALogIsDurable(t *testing.T) {
	c, err := connect(newFile(t), access("memory"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.requireDurable(); err == nil || !strings.Contains(err.Error(), "journal_mode is memory") {
		t.Error(err)
	}
	if err := c.close(); err != nil {
		t.Error(err)
	}
}

// fault 57: a connection that shares the file with others has an index in shared
// memory.
func TestFault57SharedIndexIsNotAccepted(t *testing.T) {
	db, err := sql.Open("sqlite3", "file:"+newFile(t)+"?_synchronous=EXTRA")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(background)
	if err != nil {
		t.Fatal(err)
	}
	c := connection{Conn: conn, db: db}
	if err := c.requireDurable(); err == nil || !strings.Contains(err.Error(), "locking_mode is normal") {
		t.Error(err)
	}
	if err := c.close(); err != nil {
		t.Error(err)
	}
}

// fault 60: should somebody ever write in spite of the lock, the one that did not
// make the change stops.
func TestFault60ForeignChangeIsNoticed(t *testing.T) {
	first := region.Range{First: 0, Count: 1}
	for name, change := range map[string]func(*Journal) error{
		"commit": func(j *Journal) error {
			_, err := j.Commit(Transaction{Hydrated: region.NewSet(region.Range{First: 7, Count: 1})})
			return err
		},
		"discard": func(j *Journal) error { return j.MarkDiscarded([]region.Range{first}) },
		"phase":   func(j *Journal) error { return j.SetPhase(Done) },
		"reverse": func(j *Journal) error { _, err := j.Reverse(); return err },
	} {
		t.Run(name, func(t *testing.T) {
			j, err := Open(newFile(t))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := j.Commit(Transaction{Hydrated: region.NewSet(first)}); err != nil {
				t.Fatal(err)
			}
			if _, err := j.c.ExecContext(background, `UPDATE state SET generation = generation + 1`); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := change(j); !errors.Is(err, ErrOtherWriter) {
					t.Errorf("after another's change: %v", err)
				}
			}
			if _, err := j.Load(); !errors.Is(err, ErrOtherWriter) {
				t.Errorf("load: %v", err)
			}
			if err := j.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUnsafeSettingsAreNamedNotDurable(t *testing.T) {
	c, err := connect(newFile(t), writing)
	if err != nil {
		t.Fatal(err)
	}
	j := &Journal{path: "x", c: c}
	if _, err := c.ExecContext(background, "PRAGMA synchronous = NORMAL"); err != nil {
		t.Fatal(err)
	}
	if err := j.prepareToWrite(); !errors.Is(err, ErrNotDurable) {
		t.Error(err)
	}
	if err := c.close(); err != nil {
		t.Error(err)
	}
}
