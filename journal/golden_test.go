package journal_test

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"decant/journal"
	"decant/region"
)

// TestGoldenFormat pins tables and rows of version 1. A difference means that the
// journals of running migrations can no longer be read: that takes a new version.
// DECANT_UPDATE_GOLDEN=1 rewrites the file.
func TestGoldenFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	j := mustCreate(t, path, superblock(t))
	for _, tr := range []journal.Transaction{
		{Hydrated: region.NewSet(regions(0, 16_384), regions(19_999, 1))},
		{Hydrated: region.NewSet(regions(16_390, 3), regions(16_400, 1)), Checksums: []journal.Checksum{{Nr: 16_391, Sum: 0}, {Nr: 16_400, Sum: 1 << 56}}, CopiedBytes: 4 << 12, PeakExtraBytes: 77},
	} {
		if _, err := j.Commit(tr); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.MarkDiscarded([]region.Range{regions(16_390, 2)}); err != nil {
		t.Fatal(err)
	}
	if err := j.SetBad([]journal.BadRange{{Range: regions(17_000, 2), Error: "input/output error"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Reverse(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, j)
	got := dump(t, path)
	golden := filepath.Join("testdata", "version1.golden")
	if os.Getenv("DECANT_UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the format changed; got\n%s", got)
	}
}

// dump is all that the file holds but the times of commits.
func dump(t *testing.T, path string) string {
	t.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() // only read from
	var out strings.Builder
	for _, query := range []string{
		"PRAGMA application_id", "PRAGMA user_version", "PRAGMA journal_mode",
		"SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid",
		"SELECT one, quote(id), device_bytes, region_bytes, source_start_bytes, created_ns, quote(options) FROM superblock",
		"SELECT side, kind, quote(CAST(name AS BLOB)), quote(CAST(path AS BLOB)), key, bytes, start_bytes, modified_ns FROM identity",
		"SELECT one, direction, phase, generation, peak_extra_bytes, quote(options) FROM state",
		"SELECT number, direction, committed_ns > 0, coalesce(discarded_ns > 0, 'NULL'), regions, copied_bytes, quote(ranges) FROM tx",
		"SELECT direction, chunk, quote(bits) FROM hydrated ORDER BY 1, 2",
		"SELECT direction, chunk, quote(bits) FROM discarded ORDER BY 1, 2",
		"SELECT direction, chunk, quote(sums) FROM checksum ORDER BY 1, 2",
		"SELECT first_region, regions, quote(error) FROM bad",
	} {
		fmt.Fprintf(&out, "-- %s\n", query)
		dumpRows(t, db, query, &out)
	}
	return out.String()
}

func dumpRows(t *testing.T, db *sql.DB, query string, out *strings.Builder) {
	t.Helper()
	rows, err := db.Query(query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close() // rows.Err below says what matters
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		values, into := make([]sql.NullString, len(columns)), make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		for i, v := range values {
			if i > 0 {
				out.WriteString(" | ")
			}
			out.WriteString(v.String)
		}
		out.WriteString("\n")
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
}
