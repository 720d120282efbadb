package journal_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"decant/clone"
	"decant/clone/clonetest"
	"decant/journal"
	"decant/region"
)

func TestMain(m *testing.M) {
	if work := os.Getenv("JOURNAL_TEST_CHILD"); work != "" {
		child(work, os.Getenv("JOURNAL_TEST_PATH"))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestJournal(t *testing.T) {
	clonetest.TestJournal(t, func(t *testing.T, sb journal.Superblock) (clone.Journal, func() clone.Journal) {
		path := filepath.Join(t.TempDir(), "m.db")
		j := mustCreate(t, path, sb)
		return j, func() clone.Journal {
			mustClose(t, j)
			j = mustOpen(t, path)
			return j
		}
	})
}

// superblock is a device of 20,000 regions of 4 KiB but for 96 bytes.
func superblock(t testing.TB) journal.Superblock {
	return superblockOf(t, 20_000*4096-96, 4096)
}

func superblockOf(t testing.TB, deviceBytes, regionBytes int64) journal.Superblock {
	t.Helper()
	g, err := region.NewGeometry(deviceBytes, regionBytes)
	if err != nil {
		t.Fatal(err)
	}
	return journal.Superblock{
		ID: "m1", Geometry: g,
		Source: journal.Identity{
			Kind: "file", Name: "disk \xff.img", Path: "/images/disk \xff.img", Key: "dev=1,ino=2",
			Bytes: deviceBytes, Offset: 512, ModifiedNanoseconds: 42,
		},
		Destination:      journal.Identity{Kind: "volume", Name: "pool/disk", Path: "/dev/pool/disk", Key: "uuid", Bytes: deviceBytes + 4096},
		Options:          []byte(`{"discard":true}`),
		Created:          time.Unix(1_700_000_000, 5).UTC(),
		SourceStartBytes: 12345,
	}
}

// mustCreate makes a journal that is checked and closed when the test ends.
func mustCreate(t testing.TB, path string, sb journal.Superblock) *journal.Journal {
	t.Helper()
	j, err := journal.Create(path, sb)
	if err != nil {
		t.Fatal(err)
	}
	return checkedAtEnd(t, j)
}

func mustOpen(t testing.TB, path string) *journal.Journal {
	t.Helper()
	j, err := journal.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return checkedAtEnd(t, j)
}

func mustLook(t testing.TB, path string) *journal.Journal {
	t.Helper()
	r, err := journal.OpenReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	return checkedAtEnd(t, r)
}

func checkedAtEnd(t testing.TB, j *journal.Journal) *journal.Journal {
	t.Cleanup(func() { mustClose(t, j) })
	return j
}

// mustClose checks a journal, unless it is closed already, and closes it.
func mustClose(t testing.TB, j *journal.Journal) {
	t.Helper()
	if _, err := j.Options(); err == nil {
		if err := j.Check(); err != nil {
			t.Errorf("check: %v", err)
		}
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}

func commit(t testing.TB, j *journal.Journal, ranges ...region.Range) journal.TxID {
	t.Helper()
	tx, err := j.Commit(journal.Transaction{Hydrated: region.NewSet(ranges...)})
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

func load(t testing.TB, j *journal.Journal) journal.State {
	t.Helper()
	s, err := j.Load()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func regions(first region.Nr, count uint64) region.Range {
	return region.Range{First: first, Count: count}
}

func TestSuperblockComesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "odd name?%41#.db")
	want := superblock(t)
	mustClose(t, mustCreate(t, path, want))
	got := mustOpen(t, path).Superblock()
	if string(got.Options) != string(want.Options) || !got.Created.Equal(want.Created) {
		t.Errorf("options %s, created %v", got.Options, got.Created)
	}
	if got.ID != want.ID || got.Geometry != want.Geometry || got.Source != want.Source || got.Destination != want.Destination ||
		got.SourceStartBytes != want.SourceStartBytes {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	names, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
	for _, name := range names {
		if err != nil || !slices.Contains([]string{path, path + "-wal"}, name) {
			t.Errorf("stray file %s, %v", name, err)
		}
	}
}

func TestSettingsComeBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	j := mustCreate(t, path, superblock(t))
	bad := []journal.BadRange{{Range: regions(7, 2), Error: "input/output error"}, {Range: regions(19_999, 1), Error: ""}}
	if err := errors.Join(j.SetPhase(journal.Cancelled), j.SetOptions([]byte("new")), j.SetBad(bad[:1]), j.SetBad(bad)); err != nil {
		t.Fatal(err)
	}
	mustClose(t, j)
	j = mustOpen(t, path)
	if s := load(t, j); s.Phase != journal.Cancelled {
		t.Errorf("phase %s", s.Phase)
	}
	if options, err := j.Options(); err != nil || string(options) != "new" {
		t.Errorf("options %s, %v", options, err)
	}
	if sb := j.Superblock(); string(sb.Options) != `{"discard":true}` {
		t.Errorf("options at the start %s", sb.Options)
	}
	if got, err := j.Bad(); err != nil || !slices.Equal(got, bad) {
		t.Errorf("bad ranges %v, %v", got, err)
	}
}

func TestInvalidSettingsAreRefused(t *testing.T) {
	j := mustCreate(t, filepath.Join(t.TempDir(), "m.db"), superblock(t))
	for what, err := range map[string]error{
		"phase":     j.SetPhase("lost"),
		"empty":     j.SetBad([]journal.BadRange{{}}),
		"outside":   j.SetBad([]journal.BadRange{{Range: regions(19_999, 2)}}),
		"overflow":  j.SetBad([]journal.BadRange{{Range: regions(5, ^uint64(0))}}),
		"twice":     j.SetBad([]journal.BadRange{{Range: regions(1, 2)}, {Range: regions(2, 2)}}),
		"discarded": j.MarkDiscarded([]region.Range{regions(0, 1)}),
	} {
		if !errors.Is(err, journal.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := j.SetPhase(journal.Done); err != nil {
		t.Errorf("after refusals: %v", err)
	}
}

func TestReverse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	j := mustCreate(t, path, superblock(t))
	forward, kept := region.NewSet(regions(100, 10_000)), region.NewSet(regions(0, 100), regions(10_100, 9_900))
	if _, err := j.Commit(journal.Transaction{Hydrated: forward, CopiedBytes: 5, PeakExtraBytes: 6}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.MarkDiscarded([]region.Range{regions(100, 50)}), j.SetPhase(journal.Done)); err != nil {
		t.Fatal(err)
	}
	s, err := j.Reverse()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if s.Direction != journal.Backward || s.Phase != journal.Running || s.Tx != 1 || s.CopiedBytes != 0 || s.PeakExtraBytes != 6 ||
			!s.Hydrated.Equal(kept) || !s.Discarded.Equal(kept) {
			t.Errorf("state %+v with %d hydrated and %d discarded", s, s.Hydrated.Count(), s.Discarded.Count())
		}
		mustClose(t, j)
		j = mustOpen(t, path)
		s = load(t, j)
	}
	if tx := commit(t, j, regions(100, 7)); tx != 2 {
		t.Errorf("transaction %d comes after 1", tx)
	}
	kept.Add(regions(100, 7))
	if s, err = j.Reverse(); err != nil || !s.Hydrated.Equal(kept) {
		t.Errorf("reversed again: %d regions hydrated, %v", s.Hydrated.Count(), err)
	}
	if got, err := j.Hydrated(journal.Forward); err != nil || !got.Equal(forward) {
		t.Errorf("forward: %d regions, %v", got.Count(), err)
	}
}

func TestRegion(t *testing.T) {
	j := mustCreate(t, filepath.Join(t.TempDir(), "m.db"), superblock(t))
	before := time.Now()
	for _, tr := range []journal.Transaction{
		{Hydrated: region.NewSet(regions(0, 4)), Checksums: []journal.Checksum{{Nr: 1, Sum: 11}, {Nr: 2, Sum: 0}}},
		{Hydrated: region.NewSet(regions(300, 2), regions(900, 1)), Checksums: []journal.Checksum{{Nr: 301, Sum: 301}}},
		{Hydrated: region.NewSet(regions(301, 1))}, // written again, zeros now
		{Hydrated: region.NewSet(regions(3, 1), regions(900, 1)), Checksums: []journal.Checksum{
			{Nr: 3, Sum: journal.WrittenSum}, {Nr: 900, Sum: journal.WrittenSum},
		}},
	} {
		if _, err := j.Commit(tr); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.MarkDiscarded([]region.Range{regions(0, 4), regions(300, 1)}); err != nil {
		t.Fatal(err)
	}
	for nr, want := range map[region.Nr]journal.RegionRecord{
		0:      {Hydrated: true, Discarded: true, Tx: 1, HasSum: true},
		1:      {Hydrated: true, Discarded: true, Tx: 1, HasSum: true, Sum: 11},
		2:      {Hydrated: true, Discarded: true, Tx: 1, HasSum: true, Sum: journal.NormalSum(0)},
		3:      {Hydrated: true, Discarded: true, Tx: 1, HasSum: true, Sum: journal.WrittenSum},
		900:    {Hydrated: true, Tx: 2, HasSum: true, Sum: journal.WrittenSum},
		4:      {},
		300:    {Hydrated: true, Discarded: true, Tx: 2, HasSum: true},
		301:    {Hydrated: true, Tx: 2, HasSum: true},
		19_999: {},
	} {
		got, err := j.Region(nr)
		if err != nil {
			t.Fatal(err)
		}
		if got.Hydrated != (!got.Committed.IsZero() && !got.Committed.Before(before)) || got.DiscardedAt.IsZero() == (got.Tx == 1) {
			t.Errorf("region %d: committed %v, discarded %v", nr, got.Committed, got.DiscardedAt)
		}
		got.Committed, got.DiscardedAt = time.Time{}, time.Time{}
		if got != want {
			t.Errorf("region %d: %+v, want %+v", nr, got, want)
		}
	}
	if err := j.Check(); err != nil {
		t.Error(err)
	}
	if _, err := j.Region(20_000); !errors.Is(err, journal.ErrInvalid) {
		t.Errorf("region behind the end: %v", err)
	}
}

func TestRegionThatNeverLeftTheSource(t *testing.T) {
	j := mustCreate(t, filepath.Join(t.TempDir(), "m.db"), superblock(t))
	commit(t, j, regions(0, 10))
	if _, err := j.Reverse(); err != nil {
		t.Fatal(err)
	}
	got, err := j.Region(10)
	if want := (journal.RegionRecord{Hydrated: true, Discarded: true}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestTransactionsNewestFirst(t *testing.T) {
	j := mustCreate(t, filepath.Join(t.TempDir(), "m.db"), superblock(t))
	for i := range region.Nr(4) {
		if _, err := j.Commit(journal.Transaction{Hydrated: region.NewSet(regions(i*10, 10)), CopiedBytes: int64(i)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, part := range []region.Range{regions(0, 15), regions(15, 5)} {
		if err := j.MarkDiscarded([]region.Range{part}); err != nil {
			t.Fatal(err)
		}
	}
	all, err := j.Transactions(0)
	if err != nil || len(all) != 4 {
		t.Fatalf("%d transactions, %v", len(all), err)
	}
	for i, tx := range all {
		number := journal.TxID(4 - i)
		if tx.Tx != number || tx.Regions != 10 || tx.CopiedBytes != int64(number-1) || tx.Committed.IsZero() || tx.DiscardedAt.IsZero() == (number <= 2) {
			t.Errorf("transaction %d: %+v", number, tx)
		}
	}
	if last, err := j.Transactions(3); err != nil || !slices.Equal(last, all[:3]) {
		t.Errorf("the last three: %v, %v", last, err)
	}
}

func TestReadOnlyBesideWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	j := mustCreate(t, path, superblock(t))
	var r *journal.Journal
	for i := range region.Nr(3) {
		commit(t, j, regions(i*100, 100))
		r = mustLook(t, path)
		for range 2 {
			if s := load(t, r); s.Tx != journal.TxID(i+1) || s.Hydrated.Count() != uint64(i+1)*100 {
				t.Errorf("after commit %d the reader sees transaction %d", i+1, s.Tx)
			}
			if err := j.SetOptions([]byte("later")); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, err := r.Commit(journal.Transaction{Hydrated: region.NewSet(regions(0, 1))})
	_, reverseErr := r.Reverse()
	for _, err := range []error{err, reverseErr, r.SetPhase(journal.Done), r.MarkDiscarded(nil), r.SetBad(nil), r.SetOptions(nil)} {
		if !errors.Is(err, journal.ErrReadOnly) {
			t.Errorf("change: %v", err)
		}
	}
}

func TestReaderDoesNotHoldUpTheLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	j := mustCreate(t, path, superblock(t))
	r := mustLook(t, path)
	for range 600 {
		load(t, r)
		if err := j.SetOptions(make([]byte, 30_000)); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(path + "-wal")
	if err != nil || info.Size() > 8<<20 {
		t.Errorf("the log has %d bytes, %v", info.Size(), err)
	}
}

func TestClosedJournal(t *testing.T) {
	j := mustCreate(t, filepath.Join(t.TempDir(), "m.db"), superblock(t))
	mustClose(t, j)
	if _, err := j.Load(); err == nil {
		t.Error("loads")
	}
	if _, err := j.Commit(journal.Transaction{}); err == nil {
		t.Error("commits")
	}
	if err := j.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
}
