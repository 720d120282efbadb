package clonetest

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"decant/clone"
	"decant/journal"
	"decant/region"
)

// FreshJournal makes an empty journal, and a function that gives it back and opens
// it anew, as after the end of the process.
type FreshJournal = func(t *testing.T, sb journal.Superblock) (j clone.Journal, reopen func() clone.Journal)

// TestJournal is what every clone.Journal has to do. What fresh makes is released
// by the cleanups of the t that it is given.
func TestJournal(t *testing.T, fresh func(t *testing.T, sb journal.Superblock) (j clone.Journal, reopen func() clone.Journal)) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, FreshJournal)
	}{
		{"starts empty", journalStartsEmpty},
		{"commits are numbered and kept", journalKeepsCommits},
		{"discards show at once and are never invented", journalNotesDiscards},
		{"state belongs to the caller", journalSharesNothing},
		{"regions may be committed again", journalTakesRegionsAgain},
		{"refuses what makes no sense", journalRefuses},
		{"short last region", journalKnowsLastRegion},
		{"16 million regions at once", journalTakesHugeHole},
		{"agrees with a model", journalAgreesWithModel},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, fresh) })
	}
}

// fataler is what *testing.T and *rapid.T have in common here.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// journalSuperblock is a device of 100,000 regions, in seven chunks of a set, with
// a short last region.
func journalSuperblock(t fataler) journal.Superblock {
	return superblockOf(t, 100_000*4096-1000, 4096)
}

func superblockOf(t fataler, deviceBytes, regionBytes int64) journal.Superblock {
	g, err := region.NewGeometry(deviceBytes, regionBytes)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return journal.Superblock{
		ID: "conformance", Geometry: g,
		Source:      journal.Identity{Kind: "file", Key: "source", Bytes: deviceBytes},
		Destination: journal.Identity{Kind: "file", Key: "destination", Bytes: deviceBytes},
	}
}

func run(first region.Nr, count uint64) region.Range { return region.Range{First: first, Count: count} }

func loadJournal(t fataler, j clone.Journal) journal.State {
	t.Helper()
	s, err := j.Load()
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	return s
}

func commitRanges(t fataler, j clone.Journal, ranges ...region.Range) journal.TxID {
	t.Helper()
	tx, err := j.Commit(journal.Transaction{Hydrated: region.NewSet(ranges...), CopiedBytes: 7})
	if err != nil {
		t.Fatalf("Commit(%v): %v", ranges, err)
	}
	return tx
}

func requireSet(t fataler, what string, got, want *region.Set) {
	t.Helper()
	if got == nil || !got.Equal(want) {
		t.Fatalf("%s: got %v, want %v", what, firstRanges(got), firstRanges(want))
	}
}

// firstRanges is enough of a set to recognise it in a message.
func firstRanges(s *region.Set) (list []region.Range) {
	if s == nil {
		return nil
	}
	for r := range s.Ranges() {
		if list = append(list, r); len(list) == 20 {
			break
		}
	}
	return list
}

func journalStartsEmpty(t *testing.T, fresh FreshJournal) {
	j, reopen := fresh(t, journalSuperblock(t))
	for range 2 {
		s := loadJournal(t, j)
		if s.Tx != 0 || s.Direction != journal.Forward || s.Phase != journal.Running || s.CopiedBytes != 0 || s.PeakExtraBytes != 0 {
			t.Errorf("state %+v", s)
		}
		requireSet(t, "hydrated", s.Hydrated, &region.Set{})
		requireSet(t, "discarded", s.Discarded, &region.Set{})
		j = reopen()
	}
}

func journalKeepsCommits(t *testing.T, fresh FreshJournal) {
	j, reopen := fresh(t, journalSuperblock(t))
	want := &region.Set{}
	for i, r := range []region.Range{run(5, 3), run(16380, 40_000), run(8, 2)} {
		if i == 2 {
			j = reopen()
		}
		tx, err := j.Commit(journal.Transaction{
			Hydrated: region.NewSet(r), CopiedBytes: 100, PeakExtraBytes: []int64{10, 30, 20}[i],
			Checksums: []journal.Checksum{{Nr: r.First, Sum: 0}, {Nr: r.First + 1, Sum: 1 << 63}},
		})
		if err != nil || tx != journal.TxID(i+1) {
			t.Fatalf("commit %d: transaction %d, %v", i+1, tx, err)
		}
		want.Add(r)
		requireSet(t, "hydrated", loadJournal(t, j).Hydrated, want)
	}
	for range 2 {
		s := loadJournal(t, j)
		requireSet(t, "hydrated", s.Hydrated, want)
		requireSet(t, "discarded", s.Discarded, &region.Set{})
		if s.Tx != 3 || s.CopiedBytes != 300 || s.PeakExtraBytes != 30 {
			t.Errorf("transaction %d, %d bytes copied, peak %d; want 3, 300, 30", s.Tx, s.CopiedBytes, s.PeakExtraBytes)
		}
		j = reopen()
	}
}

func journalNotesDiscards(t *testing.T, fresh FreshJournal) {
	j, reopen := fresh(t, journalSuperblock(t))
	commitRanges(t, j, run(0, 50_000))
	noted := []region.Range{run(3, 1), run(1000, 30_000), run(3, 2)}
	if err := j.MarkDiscarded(noted); err != nil {
		t.Fatalf("%v", err)
	}
	requireSet(t, "discarded", loadJournal(t, j).Discarded, region.NewSet(noted...))
	s := loadJournal(t, reopen())
	if lost := difference(s.Discarded, region.NewSet(noted...)); lost.Count() != 0 {
		t.Errorf("after opening anew, regions %v are discarded that nobody noted", firstRanges(lost))
	}
	requireSet(t, "hydrated", s.Hydrated, region.NewSet(run(0, 50_000)))
}

// difference are the regions of a without those of b.
func difference(a, b *region.Set) *region.Set {
	onlyA := a.Clone()
	onlyA.Subtract(b)
	return onlyA
}

func journalSharesNothing(t *testing.T, fresh FreshJournal) {
	j, _ := fresh(t, journalSuperblock(t))
	mine := region.NewSet(run(10, 10))
	if _, err := j.Commit(journal.Transaction{Hydrated: mine}); err != nil {
		t.Fatalf("%v", err)
	}
	mine.Add(run(30, 10))
	s := loadJournal(t, j)
	s.Hydrated.Add(run(50, 10))
	s.Discarded.Add(run(10, 10))
	s = loadJournal(t, j)
	requireSet(t, "hydrated", s.Hydrated, region.NewSet(run(10, 10)))
	requireSet(t, "discarded", s.Discarded, &region.Set{})
}

func journalTakesRegionsAgain(t *testing.T, fresh FreshJournal) {
	j, reopen := fresh(t, journalSuperblock(t))
	commitRanges(t, j, run(10, 10))
	if tx := commitRanges(t, j, run(5, 10)); tx != 2 {
		t.Errorf("transaction %d, want 2", tx)
	}
	requireSet(t, "hydrated", loadJournal(t, reopen()).Hydrated, region.NewSet(run(5, 15)))
}

func journalRefuses(t *testing.T, fresh FreshJournal) {
	sb := journalSuperblock(t)
	end := region.Nr(sb.Geometry.Regions())
	for name, change := range map[string]func(clone.Journal) error{
		"commit behind the end": func(j clone.Journal) error {
			_, err := j.Commit(journal.Transaction{Hydrated: region.NewSet(run(end, 1))})
			return err
		},
		"commit far behind the end": func(j clone.Journal) error {
			_, err := j.Commit(journal.Transaction{Hydrated: region.NewSet(run(end*100, 1))})
			return err
		},
		"checksum of a region outside the transaction": func(j clone.Journal) error {
			_, err := j.Commit(journal.Transaction{Hydrated: region.NewSet(run(7, 1)), Checksums: []journal.Checksum{{Nr: 8, Sum: 1}}})
			return err
		},
		"discard of a region that is not hydrated": func(j clone.Journal) error {
			return j.MarkDiscarded([]region.Range{run(0, 1), run(1, 2)})
		},
		"discard behind the end": func(j clone.Journal) error {
			return j.MarkDiscarded([]region.Range{run(end, 1)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			j, reopen := fresh(t, sb)
			commitRanges(t, j, run(0, 2))
			if change(j) == nil {
				t.Error("accepted")
			}
			s := loadJournal(t, reopen())
			requireSet(t, "hydrated", s.Hydrated, region.NewSet(run(0, 2)))
			requireSet(t, "discarded", s.Discarded, &region.Set{})
		})
	}
}

func journalKnowsLastRegion(t *testing.T, fresh FreshJournal) {
	sb := journalSuperblock(t)
	j, reopen := fresh(t, sb)
	commitRanges(t, j, sb.Geometry.All())
	if err := j.MarkDiscarded([]region.Range{sb.Geometry.All()}); err != nil {
		t.Fatalf("%v", err)
	}
	requireSet(t, "hydrated", loadJournal(t, reopen()).Hydrated, region.NewSet(sb.Geometry.All()))
}

func journalTakesHugeHole(t *testing.T, fresh FreshJournal) {
	sb := superblockOf(t, 16<<40, 1<<20)
	j, reopen := fresh(t, sb)
	start := time.Now()
	commitRanges(t, j, run(1, sb.Geometry.Regions()-2))
	if took := time.Since(start); took > time.Second {
		t.Errorf("took %v", took)
	}
	requireSet(t, "hydrated", loadJournal(t, reopen()).Hydrated, region.NewSet(run(1, sb.Geometry.Regions()-2)))
}

// journalAgreesWithModel runs commits, discards and reopenings against two sets.
func journalAgreesWithModel(t *testing.T, fresh FreshJournal) {
	sb := journalSuperblock(t)
	regions := sb.Geometry.Regions()
	rapid.Check(t, func(rt *rapid.T) {
		j, reopen := fresh(t, sb)
		hydrated, discarded, last := &region.Set{}, &region.Set{}, journal.TxID(0)
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			ranges := drawRanges(rt, regions)
			switch rapid.SampledFrom([]string{"commit", "commit", "discard", "reopen"}).Draw(rt, "step") {
			case "commit":
				hydrated.Union(region.NewSet(ranges...))
				if last++; commitRanges(rt, j, ranges...) != last {
					rt.Fatalf("the transaction is not number %d", last)
				}
			case "discard":
				known := region.NewSet(ranges...)
				missing := difference(known, hydrated)
				known.Subtract(missing)
				if err := j.MarkDiscarded(listRanges(known)); err != nil {
					rt.Fatalf("%v", err)
				}
				discarded.Union(known)
			case "reopen":
				j = reopen()
				s := loadJournal(rt, j)
				if invented := difference(s.Discarded, discarded); invented.Count() > 0 {
					rt.Fatalf("regions %v are discarded that nobody noted", firstRanges(invented))
				}
				discarded = s.Discarded
			}
			s := loadJournal(rt, j)
			requireSet(rt, "hydrated", s.Hydrated, hydrated)
			requireSet(rt, "discarded", s.Discarded, discarded)
			if s.Tx != last || s.CopiedBytes != 7*int64(last) {
				rt.Fatalf("transaction %d with %d bytes, want %d", s.Tx, s.CopiedBytes, last)
			}
		}
	})
}

func listRanges(s *region.Set) (list []region.Range) {
	for r := range s.Ranges() {
		list = append(list, r)
	}
	return list
}

func drawRanges(rt *rapid.T, regions uint64) (list []region.Range) {
	for range rapid.IntRange(0, 6).Draw(rt, "ranges") {
		first := rapid.Uint64Range(0, regions-1).Draw(rt, "first")
		long := rapid.SampledFrom([]uint64{1, 10, 20_000, regions}).Draw(rt, "long")
		list = append(list, run(region.Nr(first), rapid.Uint64Range(1, min(long, regions-first)).Draw(rt, "count")))
	}
	return list
}
