package journal

import (
	"database/sql"
	"errors"
	"fmt"

	"decant/region"
)

// Check reads the whole file and holds its records against each other:
//
//	the file is sound by SQLite's own integrity check
//	transactions are numbered 1, 2, 3, ..., forward ones before backward ones
//	a transaction has as many regions as it says, and shares none with another
//	of its direction
//	the regions of all transactions are the hydrated ones; backward, together
//	with those that were never hydrated forward
//	discarded regions are hydrated, and those of a transaction that is noted as
//	discarded are discarded
//	only regions of transactions have checksums
//	a journal open for writing has in memory what is in the file
//
// What it finds is ErrDamaged.
func (j *Journal) Check() error {
	return j.read("check", func(q querier) error {
		g := j.superblock.Geometry
		if err := pragmaCheck(q, "integrity_check"); err != nil {
			return err
		}
		if err := checkRecords(q, g); err != nil {
			return err
		}
		recorded := !j.readOnly && j.broken == nil // in memory is what this process has recorded
		if !recorded {
			return nil
		}
		s, err := readState(q, g)
		if err != nil {
			return err
		}
		return sameState(s, j.state)
	})
}

func sameState(file, memory State) error {
	if !file.Hydrated.Equal(memory.Hydrated) || !file.Discarded.Equal(memory.Discarded) {
		return errors.New("the file holds other regions than this process recorded")
	}
	file.Hydrated, file.Discarded = memory.Hydrated, memory.Discarded
	if file != memory {
		return fmt.Errorf("the file holds %+v where this process recorded %+v", file, memory)
	}
	return nil
}

// records are the sets of one direction.
type records struct {
	hydrated, discarded *region.Set
	// kept are the regions that no transaction had to hydrate.
	kept *region.Set
	// explained are the regions that are hydrated for a known reason.
	explained *region.Set
}

// checkRecords is Check without SQLite's part. It is fast enough to be done
// whenever a journal is opened: a flipped bit in a bitmap could cost a region.
func checkRecords(q querier, g region.Geometry) error {
	s, err := readState(q, g)
	if err != nil {
		return err
	}
	if s.PeakExtraBytes < 0 {
		return fmt.Errorf("a peak of %d bytes", s.PeakExtraBytes)
	}
	if _, err := readBad(q, g); err != nil {
		return err
	}
	all := [2]records{}
	for d := Forward; d <= Backward; d++ {
		if all[d], err = readRecords(q, d, g); err != nil {
			return err
		}
	}
	back := &all[Backward]
	if s.Direction == Backward {
		back.kept = complement(all[Forward].hydrated, g)
		back.explained = back.kept.Clone()
	}
	if err := checkTransactions(q, g, s.Direction, &all); err != nil {
		return err
	}
	for d := Forward; d <= Backward; d++ {
		if err := all[d].check(); err != nil {
			return err
		}
		if err := checkSums(q, g, d, all[d]); err != nil {
			return err
		}
	}
	return nil
}

func readRecords(q querier, d Direction, g region.Geometry) (r records, err error) {
	r = records{kept: &region.Set{}, explained: &region.Set{}}
	if r.hydrated, err = readSet(q, "hydrated", d, g); err != nil {
		return r, err
	}
	r.discarded, err = readSet(q, "discarded", d, g)
	return r, err
}

// check holds the sets against each other.
func (r records) check() error {
	if stray, _ := split(r.discarded, r.hydrated); stray.Count() > 0 {
		return fmt.Errorf("%d regions are discarded and not hydrated", stray.Count())
	}
	if !r.explained.Equal(r.hydrated) {
		return fmt.Errorf("%d regions are hydrated where the transactions make %d, or they are others", r.hydrated.Count(), r.explained.Count())
	}
	return nil
}

// checkTransactions checks the transactions one by one, and adds their regions to
// the explained ones.
func checkTransactions(q querier, g region.Geometry, current Direction, all *[2]records) (err error) {
	rows, err := q.QueryContext(background, `SELECT number, direction, discarded_ns IS NOT NULL, regions, copied_bytes, ranges FROM tx ORDER BY number`)
	if err != nil {
		return err
	}
	defer closeRows(rows, &err)
	last, lastDirection := TxID(0), Forward
	for rows.Next() {
		var number TxID
		var d Direction
		var discarded bool
		var regions uint64
		var copiedBytes int64
		var encoded sql.RawBytes
		if err := rows.Scan(&number, &d, &discarded, &regions, &copiedBytes, &encoded); err != nil {
			return err
		}
		if number != last+1 || d < lastDirection || d > current || copiedBytes < 0 {
			return fmt.Errorf("transaction %d in direction %d with %d bytes comes after transaction %d in direction %d", number, d, copiedBytes, last, lastDirection)
		}
		last, lastDirection = number, d
		found, err := all[d].explain(encoded, g, discarded)
		if err != nil {
			return fmt.Errorf("transaction %d: %w", number, err)
		}
		if found != regions {
			return fmt.Errorf("transaction %d lists %d regions where it has %d", number, found, regions)
		}
	}
	return rows.Err()
}

// explain adds the regions of one transaction and says how many there are.
func (r *records) explain(encoded []byte, g region.Geometry, discarded bool) (regions uint64, err error) {
	for run, err := range decodeRanges(encoded, g.Regions()) {
		switch {
		case err != nil:
			return 0, err
		case r.explained.HasAny(run):
			return 0, fmt.Errorf("regions %v are partly those of an earlier transaction", run)
		case discarded && !r.discarded.HasAll(run):
			return 0, fmt.Errorf("regions %v are not discarded, against what it says", run)
		}
		r.explained.Add(run)
		regions += run.Count
	}
	return regions, nil
}

// checkSums says whether all checksums of a direction are those of regions that
// its transactions hydrated.
func checkSums(q querier, g region.Geometry, d Direction, r records) (err error) {
	rows, err := q.QueryContext(background, `SELECT chunk, sums FROM checksum WHERE direction = ?`, d)
	if err != nil {
		return err
	}
	defer closeRows(rows, &err)
	for rows.Next() {
		var key uint64
		var encoded sql.RawBytes
		if err := rows.Scan(&key, &encoded); err != nil {
			return err
		}
		if key > g.Regions()/sumChunkRegions {
			return fmt.Errorf("checksum chunk %d lies outside the device", key)
		}
		chunk, err := decodeSums(encoded)
		if err != nil {
			return fmt.Errorf("checksum chunk %d: %w", key, err)
		}
		for i, sum := range chunk {
			nr := region.Nr(key)*sumChunkRegions + region.Nr(i)
			if sum != 0 && (!r.hydrated.Has(nr) || r.kept.Has(nr)) {
				return fmt.Errorf("region %d has a checksum and was not copied", nr)
			}
		}
	}
	return rows.Err()
}
