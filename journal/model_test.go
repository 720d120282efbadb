package journal_test

import (
	"errors"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"decant/journal"
	"decant/region"
)

// model is what a journal should know, by the plainest means.
type model struct {
	hydrated, discarded map[region.Nr]bool
	sums                map[region.Nr]uint64
	tx                  map[region.Nr]journal.TxID
	last                journal.TxID
}

// Few regions around the border of a chunk make for many meetings.
const (
	modelFirst = region.ChunkRegions - 300
	modelEnd   = region.ChunkRegions + 300
)

func drawSet(rt *rapid.T) *region.Set {
	s := &region.Set{}
	for range rapid.IntRange(1, 4).Draw(rt, "ranges") {
		first := rapid.Uint64Range(modelFirst, modelEnd-1).Draw(rt, "first")
		s.Add(regions(region.Nr(first), rapid.Uint64Range(1, min(200, modelEnd-first)).Draw(rt, "count")))
	}
	return s
}

func members(s *region.Set) (list []region.Nr) {
	for r := range s.Ranges() {
		for nr := r.First; nr < r.End(); nr++ {
			list = append(list, nr)
		}
	}
	return list
}

func (m *model) commit(rt *rapid.T, j *journal.Journal) {
	tr := journal.Transaction{Hydrated: drawSet(rt)}
	every := rapid.IntRange(1, 5).Draw(rt, "sum every")
	m.last++
	for _, nr := range members(tr.Hydrated) {
		if !m.hydrated[nr] {
			m.hydrated[nr], m.tx[nr] = true, m.last
		}
		delete(m.sums, nr)
		if int(nr)%every == 0 {
			sum := rapid.Uint64Range(0, 3).Draw(rt, "sum")
			tr.Checksums = append(tr.Checksums, journal.Checksum{Nr: nr, Sum: sum})
			m.sums[nr] = journal.NormalSum(sum)
		}
	}
	if tx, err := j.Commit(tr); err != nil || tx != m.last {
		rt.Fatalf("transaction %d, %v; want %d", tx, err, m.last)
	}
}

func (m *model) discard(rt *rapid.T, j *journal.Journal) {
	var list []region.Range
	for _, nr := range members(drawSet(rt)) {
		if m.hydrated[nr] {
			m.discarded[nr] = true
			list = append(list, regions(nr, 1))
		}
	}
	if err := j.MarkDiscarded(list); err != nil {
		rt.Fatal(err)
	}
}

func (m *model) compare(rt *rapid.T, j *journal.Journal) {
	s, err := j.Load()
	if err != nil || s.Tx != m.last || s.Hydrated.Count() != uint64(len(m.hydrated)) || s.Discarded.Count() != uint64(len(m.discarded)) {
		rt.Fatalf("%+v, %v", s, err)
	}
	nr := region.Nr(rapid.Uint64Range(modelFirst, modelEnd-1).Draw(rt, "look at"))
	got, err := j.Region(nr)
	if err != nil {
		rt.Fatal(err)
	}
	if got.Hydrated != m.hydrated[nr] || got.Discarded != m.discarded[nr] || got.Tx != m.tx[nr] || got.Sum != m.sums[nr] || got.HasSum != m.hydrated[nr] {
		rt.Fatalf("region %d: %+v", nr, got)
	}
	first := region.Nr(rapid.Uint64Range(0, modelEnd).Draw(rt, "sums from"))
	within := regions(first, rapid.Uint64Range(0, 1000).Draw(rt, "sums count"))
	want, last := 0, region.Nr(0)
	for nr := range m.sums {
		if within.Has(nr) {
			want++
		}
	}
	for sum, err := range j.Checksums(journal.Forward, within) {
		if err != nil || m.sums[sum.Nr] != sum.Sum || !within.Has(sum.Nr) || sum.Nr < last {
			rt.Fatalf("checksum %+v after region %d in %v, %v; want %d", sum, last, within, err, m.sums[sum.Nr])
		}
		last, want = sum.Nr+1, want-1
	}
	if want != 0 {
		rt.Fatalf("%d checksums are missing in %v", want, within)
	}
}

func TestJournalAgreesWithModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		path := filepath.Join(t.TempDir(), "m.db") // another one each time
		j, err := journal.Create(path, superblock(t))
		if err != nil {
			rt.Fatal(err)
		}
		m := &model{hydrated: map[region.Nr]bool{}, discarded: map[region.Nr]bool{}, sums: map[region.Nr]uint64{}, tx: map[region.Nr]journal.TxID{}}
		for range rapid.IntRange(1, 10).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"commit", "commit", "discard", "reopen"}).Draw(rt, "step") {
			case "commit":
				m.commit(rt, j)
			case "discard":
				m.discard(rt, j)
			case "reopen":
				if err := j.Close(); err != nil {
					rt.Fatal(err)
				}
				if j, err = journal.Open(path); err != nil {
					rt.Fatal(err)
				}
			}
			m.compare(rt, j)
		}
		if err := errors.Join(j.Check(), j.Close()); err != nil {
			rt.Fatal(err)
		}
	})
}
