package journal_test

import (
	"os"
	"path/filepath"
	"testing"

	"decant/journal"
	"decant/region"
)

// Fault 63: a process was killed after it wrote a transaction and before it synced
// it. Who opens the journal sees the transaction and may discard on its strength,
// so it has to be in the database file, synced, before Open returns.
func TestOpenMakesLeftoverLogDurable(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "j.db")
	g, err := region.NewGeometry(1<<20, 4096)
	if err != nil {
		t.Fatal(err)
	}
	j, err := journal.Create(path, journal.Superblock{ID: "a", Geometry: g, Options: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	want := region.NewSet(region.Range{First: 3, Count: 5})
	if _, err := j.Commit(journal.Transaction{Hydrated: want}); err != nil {
		t.Fatal(err)
	}
	// The files as a killed process leaves them: a log that nobody has copied back.
	killed := t.TempDir()
	for _, name := range []string{"j.db", "j.db-wal"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(killed, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	left, err := journal.Open(filepath.Join(killed, "j.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = left.Close() }() // only read
	// The database file alone, as after a power loss that takes the whole log.
	alone := t.TempDir()
	data, err := os.ReadFile(filepath.Join(killed, "j.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(alone, "j.db"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := journal.Open(filepath.Join(alone, "j.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }() // only read
	state, err := again.Load()
	if err != nil {
		t.Fatal(err)
	}
	if !state.Hydrated.Equal(want) {
		t.Errorf("without the log %d regions are hydrated, want %d", state.Hydrated.Count(), want.Count())
	}
}
