package thin

import (
	"bytes"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var testRecord = poolRecord{name: "p", uuid: "u", sizeBytes: 1 << 30, created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)}

// newCatalog makes a catalog in a directory of its own and opens it.
func newCatalog(t *testing.T) (dir string, c *catalog) {
	t.Helper()
	// SQLite takes the path as a URI, in which these mean something.
	dir = filepath.Join(t.TempDir(), "a b?c=d&e%20#f")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := createCatalog(dir, testRecord); err != nil {
		t.Fatal(err)
	}
	return dir, reopenCatalog(t, dir)
}

func reopenCatalog(t *testing.T, dir string) *catalog {
	t.Helper()
	c, err := openCatalog(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestCatalogKeepsThePool(t *testing.T) {
	_, c := newCatalog(t)
	got, err := c.pool()
	want := testRecord
	want.state = Active
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestCatalogKeepsVolumes(t *testing.T) {
	dir, c := newCatalog(t)
	want := volumeRecord{name: "v", sizeBytes: 12345, blob: bytes.Repeat([]byte{0, 255}, 128), origin: "o", created: testRecord.created}
	added, err := c.add(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.setState(added.id, Creating, Active); err != nil {
		t.Fatal(err)
	}
	got, err := reopenCatalog(t, dir).volume("v")
	if err != nil {
		t.Fatal(err)
	}
	if got.id != added.id || got.name != want.name || got.sizeBytes != want.sizeBytes || !bytes.Equal(got.blob, want.blob) ||
		got.origin != want.origin || got.state != Active || !got.created.Equal(want.created) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestCatalogCountsEveryChange(t *testing.T) {
	_, c := newCatalog(t)
	r, err := c.add(volumeRecord{name: "v", sizeBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.setState(r.id, Creating, Active), c.setState(r.id, Active, Deleting), c.remove(r.id)); err != nil {
		t.Fatal(err)
	}
	if p, err := c.pool(); err != nil || p.transactionID != 4 {
		t.Errorf("transaction id %d, %v; want 4", p.transactionID, err)
	}
}

func TestCatalogRefusesStatesOutOfOrder(t *testing.T) {
	_, c := newCatalog(t)
	r, err := c.add(volumeRecord{name: "v", sizeBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.setState(r.id, Active, Deleting); err == nil {
		t.Error("a volume that is being created was set to deleting")
	}
	if err := c.setState(r.id, Creating, Active); err != nil {
		t.Fatal(err)
	}
	if err := c.remove(r.id); err == nil {
		t.Error("an active volume was forgotten")
	}
	if _, err := c.add(volumeRecord{name: "v", sizeBytes: 1}); err == nil {
		t.Error("a second volume of the same name was added")
	}
	if p, err := c.pool(); err != nil || p.transactionID != 2 {
		t.Errorf("transaction id %d, %v; refused changes must not count, want 2", p.transactionID, err)
	}
}

// fault 62: a catalog of a later version, and other files, are refused.
func TestCatalogRefusesForeignFiles(t *testing.T) {
	for name, pragma := range map[string]string{
		"later version": "PRAGMA user_version = 2", "other program": "PRAGMA application_id = 1",
	} {
		t.Run(name, func(t *testing.T) {
			dir, c := newCatalog(t)
			if _, err := c.db.Exec(pragma); err != nil {
				t.Fatal(err)
			}
			if _, err := openCatalog(dir); !errors.Is(err, ErrForeign) {
				t.Errorf("got %v, want ErrForeign", err)
			}
		})
	}
}

// fault 56: a damaged page is found when the catalog is opened.
func TestCatalogRefusesDamage(t *testing.T) {
	dir := t.TempDir()
	if err := createCatalog(dir, testRecord); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(filepath.Join(dir, catalogFile), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt(bytes.Repeat([]byte{0xa5}, 4096), 4096); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err := openCatalog(dir); err == nil {
		t.Error("a damaged catalog was opened", c.Close())
	}
}

func TestCatalogRefusesCommitsThatAreNotDurable(t *testing.T) {
	dir, _ := newCatalog(t)
	for _, pragma := range []string{"PRAGMA synchronous = NORMAL", "PRAGMA synchronous = OFF"} {
		db, err := openDB(filepath.Join(dir, catalogFile), "rw")
		if err != nil {
			t.Fatal(err)
		}
		if err := checkCatalog(db); err != nil {
			t.Errorf("before %s: %v", pragma, err)
		}
		if _, err := db.Exec(pragma); err != nil {
			t.Fatal(err)
		}
		if err := checkCatalog(db); err == nil {
			t.Errorf("after %s: no error", pragma)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// The name of the write-ahead log is synced by openCatalog; for that it has to
// exist by then.
func TestCatalogHasItsLogWhenItIsOpen(t *testing.T) {
	dir, _ := newCatalog(t)
	if _, err := os.Stat(filepath.Join(dir, catalogFile+"-wal")); err != nil {
		t.Error(err)
	}
}

// fault 72: the ids end before they would repeat.
func TestCatalogEndsItsIDs(t *testing.T) {
	_, c := newCatalog(t)
	if _, err := c.db.Exec(`UPDATE pool SET next_volume_id = 9223372036854775807`); err != nil {
		t.Fatal(err)
	}
	if r, err := c.add(volumeRecord{name: "v", sizeBytes: 1}); err == nil {
		t.Errorf("got the id %d after the last one", r.id)
	}
}

func TestCatalogSaysWhatIsMissing(t *testing.T) {
	_, c := newCatalog(t)
	if _, err := c.volume("v"); !errors.Is(err, ErrNotFound) || errors.Is(err, sql.ErrNoRows) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}
