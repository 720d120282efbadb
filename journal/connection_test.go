package journal

import (
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
	c, err := connect(newFile(t), access{mode: "memory", txlock: "immediate"})
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
