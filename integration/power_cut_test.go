package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"decant/integration/faultfs"
	"decant/journal"
	"decant/region"
)

// The workload: transactions of growing numbers in a journal that is closed and
// opened again now and then, so that its log is merged into it.
const (
	workloadTransactions = 40
	reopenEvery          = 13
	workloadRegionBytes  = int64(64 << 10)
	workloadRegions      = 1 << 20
)

// workloadSet are the regions of one transaction: a run, and another far away. Some
// are large, so that the log grows beyond the size at which it is merged.
func workloadSet(tx journal.TxID) []region.Range {
	first := region.Nr(tx) * 8192
	count := uint64(3)
	if tx%5 == 0 {
		count = 8000
	}
	return []region.Range{{First: first, Count: count}, {First: first + 8100, Count: 2}}
}

func workloadSum(nr region.Nr) uint64 { return uint64(nr)*2654435761 + 1 }

func workloadTransaction(tx journal.TxID) journal.Transaction {
	t := journal.Transaction{Hydrated: region.NewSet(workloadSet(tx)...), CopiedBytes: int64(tx)}
	for _, r := range workloadSet(tx) {
		for nr := r.First; nr < r.End(); nr++ {
			if nr%3 != 0 { // the others are zeros
				t.Checksums = append(t.Checksums, journal.Checksum{Nr: nr, Sum: journal.NormalSum(workloadSum(nr))})
			}
		}
	}
	return t
}

// journalWorkload does the work and says so after each step that is to be durable.
func journalWorkload(path string, tell func(string) error) error {
	g, err := region.NewGeometry(workloadRegions*workloadRegionBytes, workloadRegionBytes)
	if err != nil {
		return err
	}
	j, err := journal.Create(path, journal.Superblock{ID: "m", Geometry: g, Created: time.Unix(1, 0), Options: []byte("{}")})
	if err != nil {
		return err
	}
	if err := tell("0"); err != nil {
		return err
	}
	for tx := journal.TxID(1); tx <= workloadTransactions; tx++ {
		got, err := j.Commit(workloadTransaction(tx))
		if err != nil || got != tx {
			return fmt.Errorf("commit %d: %d, %w", tx, got, err)
		}
		if err := tell(strconv.FormatUint(uint64(tx), 10)); err != nil {
			return err
		}
		if err := j.MarkDiscarded(workloadSet(tx)); err != nil {
			return err
		}
		if tx%reopenEvery == 0 {
			if err := j.Close(); err != nil {
				return err
			}
			if j, err = journal.Open(path); err != nil {
				return err
			}
		}
	}
	return errors.Join(j.Check(), j.Close())
}

// Power is cut at every moment at which it makes a difference to the journal, with
// everything lost that was not synced, or with any part of it left, or torn. Every
// commit that had returned is there, and what is there adds up.
func TestPowerCutsOfTheJournal(t *testing.T) {
	t.Parallel()
	log, dir := recordWorkload(t), inMemory(t)
	moments := log.Boundaries()
	states := 0
	for i, moment := range moments {
		cuts := []faultfs.Cut{{Keep: 0}}
		for seed := range uint64(2) {
			cuts = append(cuts, faultfs.Cut{Keep: 0.5, Seed: seed}, faultfs.Cut{Keep: 0.8, Torn: true, Seed: seed})
		}
		if nightly() {
			cuts = append(cuts, faultfs.Cut{Keep: 1})
			for seed := range uint64(20) {
				cuts = append(cuts, faultfs.Cut{Keep: 0.5, Seed: 100 + seed}, faultfs.Cut{Keep: 0.7, Torn: true, Seed: 100 + seed})
			}
		} else if i%3 != 0 {
			cuts = cuts[:1+i%3] // the first always, the others in turn
		}
		for _, cut := range cuts {
			cut.After = moment
			if err := checkCut(log, dir, cut); err != nil {
				t.Errorf("%v: %v", cut, err)
			}
			states++
		}
		if t.Failed() {
			break // one is enough to look at
		}
	}
	t.Logf("%d states of %d moments and %d records", states, len(moments), log.Len())
}

// The test above finds what it is made for: a log whose syncs were none, as without
// PRAGMA synchronous=FULL, and a directory whose syncs were none.
func TestPowerCutsFindDisksThatLie(t *testing.T) {
	t.Parallel()
	log, dir := recordWorkload(t), inMemory(t)
	lies := map[string]string{"log": "*-wal", "directory": "/", "journal": "m.db*"}
	for name, pattern := range lies {
		found := 0
		for i, moment := range log.Boundaries() {
			if i%4 != 3 {
				continue // a few are enough
			}
			if checkCut(log, dir, faultfs.Cut{After: moment, Lies: pattern}) != nil {
				found++
			}
		}
		if found == 0 {
			t.Errorf("nobody noticed that syncs of the %s were none", name)
		}
		t.Logf("syncs of the %s were none: %d moments are lost", name, found)
	}
}

// inMemory is a directory on which syncs cost nothing.
func inMemory(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	mountAt(t, dir, "-t", "tmpfs", "tmpfs")
	return dir
}

func recordWorkload(t *testing.T) *faultfs.Log {
	t.Helper()
	dir, backing := t.TempDir(), t.TempDir()
	f, err := faultfs.Mount(faultfs.Options{Backing: backing, MountPoint: dir, Record: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Unmount(); err != nil {
			t.Error(err)
		}
	})
	runChild(t, journalWork, filepath.Join(dir, "m.db"), f.Log().Mark)
	return f.Log()
}

// checkCut looks at what a power cut leaves, twice, since looking is a recovery too.
func checkCut(log *faultfs.Log, parent string, cut faultfs.Cut) (err error) {
	dir, err := os.MkdirTemp(parent, "cut-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := log.Restore(dir, cut); err != nil {
		return err
	}
	promised := -1
	for _, label := range log.Marks(cut.After) {
		if promised, err = strconv.Atoi(label); err != nil {
			return err
		}
	}
	path := filepath.Join(dir, "m.db")
	for range 2 {
		if err := checkSurvivor(path, promised); err != nil {
			names, _ := filepath.Glob(filepath.Join(dir, "*")) // for the message only
			return fmt.Errorf("%w\nin %s", err, strings.Join(names, " "))
		}
	}
	return nil
}

func checkSurvivor(path string, promised int) (err error) {
	j, err := journal.Open(path)
	if errors.Is(err, fs.ErrNotExist) && promised < 0 {
		return nil // Create had not returned
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	if err := j.Check(); err != nil {
		return err
	}
	s, err := j.Load()
	if err != nil {
		return err
	}
	if int(s.Tx) < promised || int(s.Tx) > promised+1 && promised >= 0 {
		return fmt.Errorf("transaction %d was acknowledged, the journal has %d", promised, s.Tx)
	}
	want := region.NewSet()
	for tx := journal.TxID(1); tx <= s.Tx; tx++ {
		for _, r := range workloadSet(tx) {
			want.Add(r)
		}
	}
	if !s.Hydrated.Equal(want) {
		return fmt.Errorf("%d regions are hydrated, %d transactions make %d", s.Hydrated.Count(), s.Tx, want.Count())
	}
	if s.Tx == 0 {
		return nil
	}
	// The checksums of the newest transaction.
	found := map[region.Nr]uint64{}
	for sum, err := range j.Checksums(journal.Forward, workloadSet(s.Tx)[0]) {
		if err != nil {
			return err
		}
		found[sum.Nr] = sum.Sum
	}
	r := workloadSet(s.Tx)[0]
	for nr := r.First; nr < r.End(); nr++ {
		sum, has := found[nr]
		if has != (nr%3 != 0) || has && sum != journal.NormalSum(workloadSum(nr)) {
			return fmt.Errorf("region %d of transaction %d has checksum %d (%v)", nr, s.Tx, sum, has)
		}
	}
	return nil
}
