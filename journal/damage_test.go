package journal_test

import (
	"bytes"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"decant/journal"
	"decant/region"
)

// written is a closed journal with transactions, checksums and discards.
func written(t testing.TB) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "m.db")
	j := mustCreate(t, path, superblock(t))
	for i := range region.Nr(40) {
		r := regions(i*500, 300)
		sums := []journal.Checksum{}
		for nr := r.First; nr < r.End(); nr++ {
			sums = append(sums, journal.Checksum{Nr: nr, Sum: uint64(nr) * 0x9e3779b97f4a7c15})
		}
		if _, err := j.Commit(journal.Transaction{Hydrated: region.NewSet(r), Checksums: sums, CopiedBytes: 300 * 4096}); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.MarkDiscarded([]region.Range{regions(0, 300), regions(500, 100)}); err != nil {
		t.Fatal(err)
	}
	if err := j.SetBad([]journal.BadRange{{Range: regions(450, 1), Error: "input/output error"}}); err != nil {
		t.Fatal(err)
	}
	mustClose(t, j)
	return path
}

// statement changes a journal behind this package's back.
func statement(t testing.TB, path, query string) {
	t.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t testing.TB, path string, change func([]byte) []byte) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// requireRefused opens the journal and expects a reason, the path and a hint.
func requireRefused(t *testing.T, path string, reason error) {
	t.Helper()
	j, err := journal.Open(path)
	if err == nil {
		j.Close() // the test has failed already
	}
	var e *journal.Error
	if !errors.Is(err, reason) || !errors.As(err, &e) || e.Hint() == "" || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want %v with the path and a hint", err, reason)
	}
}

// faults 62 and 70: a journal of another version is refused and left as it is.
func TestOtherVersionsAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		query  string
		reason error
	}{
		"newer":     {"PRAGMA user_version = 2", journal.ErrNewer},
		"unknown":   {"PRAGMA user_version = 0", journal.ErrOlder},
		"negative":  {"PRAGMA user_version = -1", journal.ErrOlder},
		"other app": {"PRAGMA application_id = 1", journal.ErrNotJournal},
	} {
		t.Run(name, func(t *testing.T) {
			path := written(t)
			statement(t, path, test.query)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			requireRefused(t, path, test.reason)
			if r, err := journal.OpenReadOnly(path); !errors.Is(err, test.reason) {
				t.Errorf("read-only: %v, %v", r, err)
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
				t.Errorf("it was changed, %v", err)
			}
		})
	}
}

func TestForeignFilesAreRefused(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"empty": "", "short": "x", "text": strings.Repeat("not a database\n", 1000)} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		requireRefused(t, path, journal.ErrNotJournal)
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Errorf("%s was changed, %v", name, err)
		}
	}
	path := filepath.Join(dir, "database")
	statement(t, path, "CREATE TABLE other (x)")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	requireRefused(t, path, journal.ErrNotJournal)
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a foreign database was changed, %v", err)
	}
	requireRefused(t, dir, journal.ErrNotJournal)
	if _, err := journal.Open(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opening made a file: %v", err)
	}
}

// fault 56: what a torn or corrupt page leaves behind is recognised.
func TestFault56DamagedPages(t *testing.T) {
	const pageBytes = 4096
	for name, test := range map[string]struct {
		change func([]byte) []byte
		reason error
	}{
		"first page":     {func(b []byte) []byte { return append(make([]byte, pageBytes), b[pageBytes:]...) }, journal.ErrNotJournal},
		"half cut off":   {func(b []byte) []byte { return b[:len(b)/2/pageBytes*pageBytes] }, journal.ErrDamaged},
		"last page torn": {func(b []byte) []byte { return b[:len(b)-512] }, journal.ErrDamaged},
		"one page only":  {func(b []byte) []byte { return b[:pageBytes] }, journal.ErrDamaged},
		"noise": {func(b []byte) []byte {
			for i := pageBytes; i < len(b); i += 64 {
				b[i] ^= 0xa5
			}
			return b
		}, journal.ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			path := written(t)
			overwrite(t, path, test.change)
			requireRefused(t, path, test.reason)
		})
	}
}

func TestEveryLostPageIsFound(t *testing.T) {
	path := written(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for off := 4096; off < len(whole); off += 4096 {
		damaged := bytes.Clone(whole)
		clear(damaged[off : off+4096])
		if bytes.Equal(damaged, whole) {
			continue
		}
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := journal.Open(path)
		if err == nil {
			j.Close() // the test fails below
		}
		if !errors.Is(err, journal.ErrDamaged) {
			t.Errorf("page at byte %d lost: %v", off, err)
		}
	}
}

// Records that SQLite has nothing against and that contradict each other.
func TestContradictionsAreFound(t *testing.T) {
	for name, query := range map[string]string{
		"a region hydrated by nobody":      `UPDATE hydrated SET bits = CAST(x'ffff' || substr(bits, 3) AS BLOB) WHERE chunk = 1`,
		"a chunk of regions gone":          `DELETE FROM hydrated WHERE chunk = 1`,
		"a chunk behind the end":           `INSERT INTO hydrated VALUES (0, 2, x'ff')`,
		"a chunk of another form":          `UPDATE hydrated SET bits = CAST(bits || x'00' AS BLOB) WHERE chunk = 1`,
		"last chunk too full":              `UPDATE hydrated SET bits = x'ff' WHERE chunk = 1`,
		"discarded and not hydrated":       `UPDATE discarded SET bits = x'ff' WHERE chunk = 0`,
		"noted as discarded":               `UPDATE tx SET discarded_ns = 1 WHERE number = 7`,
		"a transaction gone":               `DELETE FROM tx WHERE number = 7`,
		"the first transaction gone":       `DELETE FROM tx WHERE number = 1`,
		"the last transaction gone":        `DELETE FROM tx WHERE number = 40`,
		"a wrong number of regions":        `UPDATE tx SET regions = 299 WHERE number = 7`,
		"ranges torn":                      `UPDATE tx SET ranges = substr(ranges, 1, 2) WHERE number = 7`,
		"regions twice":                    `UPDATE tx SET ranges = (SELECT ranges FROM tx WHERE number = 8) WHERE number = 7`,
		"backward without a reversal":      `UPDATE tx SET direction = 1 WHERE number = 40`,
		"reversed without its start":       `UPDATE state SET direction = 1`,
		"unknown direction":                `UPDATE state SET direction = 2`,
		"unknown phase":                    `UPDATE state SET phase = 'x'`,
		"no state":                         `DELETE FROM state`,
		"no superblock":                    `DELETE FROM superblock`,
		"no identity of the source":        `DELETE FROM identity WHERE side = 0`,
		"a geometry that cannot be":        `UPDATE superblock SET region_bytes = 4097`,
		"a smaller device":                 `UPDATE superblock SET device_bytes = 4096`,
		"a table more":                     `CREATE TABLE more (x)`,
		"a trigger":                        `CREATE TRIGGER t AFTER INSERT ON tx BEGIN DELETE FROM bad; END`,
		"a bad range behind the end":       `INSERT INTO bad VALUES (20000, 1, '')`,
		"negative bytes":                   `UPDATE tx SET copied_bytes = -1 WHERE number = 7`,
		"sum of bytes beyond 63 bits":      `UPDATE tx SET copied_bytes = 9223372036854775807`,
		"negative peak":                    `UPDATE state SET peak_extra_bytes = -1`,
		"transaction number far ahead":     `UPDATE tx SET number = 9223372036854775807 WHERE number = 40`,
		"transaction number before others": `UPDATE tx SET number = -5 WHERE number = 40`,
		"checksums of uncopied regions":    `UPDATE checksum SET chunk = 78 WHERE chunk = 1`,
		"checksums behind the end":         `UPDATE checksum SET chunk = 79 WHERE chunk = 1`,
		"checksums so far that they wrap":  `UPDATE checksum SET chunk = 72057594037927936 WHERE chunk = 1`,
		"checksums malformed":              `UPDATE checksum SET sums = CAST(substr(sums, 2) AS BLOB) WHERE chunk = 1`,
		"checksums of nothing":             `UPDATE checksum SET sums = zeroblob(32) WHERE chunk = 1`,
		"checksums in the wrong direction": `UPDATE checksum SET direction = 1 WHERE chunk = 1`,
	} {
		t.Run(name, func(t *testing.T) {
			path := written(t)
			statement(t, path, query)
			requireRefused(t, path, journal.ErrDamaged)
		})
	}
}

func TestDamagedJournalCanBeLookedAt(t *testing.T) {
	path := written(t)
	statement(t, path, `UPDATE tx SET regions = 1 WHERE number = 7`)
	r, err := journal.OpenReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	if s := load(t, r); s.Tx != 40 {
		t.Errorf("transaction %d", s.Tx)
	}
	if err := r.Check(); !errors.Is(err, journal.ErrDamaged) {
		t.Errorf("check: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// copyFiles copies the journal and the files beside it as they are, as a crash of
// the process would leave them, or a careless backup take them.
func copyFiles(t *testing.T, from, to string, suffixes ...string) {
	t.Helper()
	for _, suffix := range suffixes {
		content, err := os.ReadFile(from + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to+suffix, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// fault 55: without its log a journal is older, or refused, but never newer than
// what the mark on the source tells.
func TestFault55LogDeleted(t *testing.T) {
	path := written(t)
	j := mustOpen(t, path)
	commit(t, j, regions(300, 5))
	crashed := filepath.Join(t.TempDir(), "m.db")
	copyFiles(t, path, crashed, "", "-wal")
	if s := load(t, mustOpen(t, crashed)); s.Tx != 41 {
		t.Errorf("with its log: transaction %d", s.Tx)
	}
	looked := filepath.Join(t.TempDir(), "m.db")
	copyFiles(t, path, looked, "", "-wal")
	r, err := journal.OpenReadOnly(looked)
	if err != nil {
		t.Fatal(err)
	}
	if s := load(t, checkedAtEnd(t, r)); s.Tx != 41 {
		t.Errorf("read-only with its log: transaction %d", s.Tx)
	}
	bare := filepath.Join(t.TempDir(), "m.db")
	copyFiles(t, path, bare, "")
	if s := load(t, mustOpen(t, bare)); s.Tx != 40 {
		t.Errorf("without its log: transaction %d", s.Tx)
	}
}

// fault 54: a backup tells by its transaction number that it is one.
func TestFault54OldBackup(t *testing.T) {
	path := written(t)
	backup := filepath.Join(t.TempDir(), "m.db")
	copyFiles(t, path, backup, "")
	j := mustOpen(t, path)
	commit(t, j, regions(300, 5))
	now := load(t, j)
	if old := load(t, mustOpen(t, backup)); old.Tx >= now.Tx {
		t.Errorf("the backup has transaction %d, the journal %d", old.Tx, now.Tx)
	}
}

// fault 53: a lost journal is not replaced by a fresh one while its log is there.
func TestFault53LeftoverLog(t *testing.T) {
	path := written(t)
	j := mustOpen(t, path)
	commit(t, j, regions(300, 5))
	lost := filepath.Join(t.TempDir(), "m.db")
	copyFiles(t, path, lost, "-wal")
	if _, err := journal.Create(lost, superblock(t)); !errors.Is(err, journal.ErrLeftover) {
		t.Errorf("create: %v", err)
	}
	if err := os.Truncate(lost+"-wal", 0); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, lost, superblock(t))
}

func TestLogModeIsRestored(t *testing.T) {
	path := written(t)
	statement(t, path, "PRAGMA journal_mode = DELETE")
	j := mustOpen(t, path)
	commit(t, j, regions(300, 5))
	if info, err := os.Stat(path + "-wal"); err != nil || info.Size() == 0 {
		t.Errorf("no log: %v", err)
	}
}

func TestCreateLeavesAnotherJournalAlone(t *testing.T) {
	path := written(t)
	if _, err := journal.Create(path, superblock(t)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create: %v", err)
	}
	if s := load(t, mustOpen(t, path)); s.Tx != 40 {
		t.Errorf("transaction %d", s.Tx)
	}
}

func TestCreateTakesAwayWhatACrashLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	for _, suffix := range []string{".new", ".new-journal", ".new-wal", "-shm"} {
		if err := os.WriteFile(path+suffix, []byte("torn"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustCreate(t, path, superblock(t))
	if left, err := filepath.Glob(path + ".new*"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestCreateRefusesAnEmptySuperblock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	if _, err := journal.Create(path, journal.Superblock{ID: "x"}); !errors.Is(err, journal.ErrInvalid) {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
