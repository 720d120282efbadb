package journal

import (
	"database/sql"
	"errors"
	"fmt"

	"decant/region"
)

// Hydrated are the regions that the journal knows as hydrated in a direction,
// whichever the migration runs in. In direction Backward it is empty before
// Reverse.
func (j *Journal) Hydrated(d Direction) (s *region.Set, err error) {
	err = j.read("read hydrated regions", func(q querier) error {
		s, err = readSet(q, "hydrated", d, j.superblock.Geometry)
		return err
	})
	return s, err
}

// Region is what the journal knows of one region in the current direction. The
// transaction is the one that recorded the region first; a region that Reverse
// found still on the source has none, and neither has it a checksum. It searches
// the transactions, newest first.
func (j *Journal) Region(nr region.Nr) (RegionRecord, error) {
	doing := fmt.Sprintf("look up region %d", nr)
	if !j.superblock.Geometry.All().Has(nr) {
		return RegionRecord{}, j.fault(doing, ErrInvalid, fmt.Errorf("the device has %d regions", j.superblock.Geometry.Regions()))
	}
	var rec RegionRecord
	err := j.read(doing, func(q querier) error {
		var d Direction
		err := q.QueryRowContext(background, `SELECT direction FROM state`).Scan(&d)
		if err != nil {
			return err
		}
		if rec.Hydrated, err = hasRegion(q, "hydrated", d, nr); err != nil || !rec.Hydrated {
			return err
		}
		if rec.Discarded, err = hasRegion(q, "discarded", d, nr); err != nil {
			return err
		}
		if err := j.findTransaction(q, d, nr, &rec); err != nil || rec.Tx == 0 {
			return err
		}
		rec.HasSum = true
		key := uint64(nr) / sumChunkRegions
		_, chunk, err := nextSums(q, d, key, key)
		if chunk != nil {
			rec.Sum = chunk[nr%sumChunkRegions]
		}
		return err
	})
	return rec, err
}

func hasRegion(q querier, table string, d Direction, nr region.Nr) (bool, error) {
	key := uint64(nr) / region.ChunkRegions
	var encoded []byte
	err := q.QueryRowContext(background, `SELECT bits FROM `+table+` WHERE direction = ? AND chunk = ?`, d, int64(key)).Scan(&encoded)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	s := &region.Set{}
	err = s.AddChunk(key, encoded)
	return s.Has(nr), err
}

// findTransaction fills in what the transaction of region nr says of it.
func (j *Journal) findTransaction(q querier, d Direction, nr region.Nr, rec *RegionRecord) (err error) {
	rows, err := q.QueryContext(background, `SELECT number, committed_ns, coalesce(discarded_ns, 0), ranges FROM tx
		WHERE direction = ? ORDER BY number DESC`, d)
	if err != nil {
		return err
	}
	defer closeRows(rows, &err)
	for rows.Next() {
		var number TxID
		var committed, discarded int64
		var encoded sql.RawBytes
		if err := rows.Scan(&number, &committed, &discarded, &encoded); err != nil {
			return err
		}
		for r, err := range decodeRanges(encoded, j.superblock.Geometry.Regions()) {
			if err != nil {
				return fmt.Errorf("transaction %d: %w", number, err)
			}
			if r.Has(nr) {
				rec.Tx, rec.Committed, rec.DiscardedAt = number, kept(committed), kept(discarded)
				return nil
			}
		}
	}
	return rows.Err()
}

// Transactions are the last limit transactions of both directions, newest first;
// with a limit of 0 or less all of them.
func (j *Journal) Transactions(limit int) (list []TransactionRecord, err error) {
	if limit <= 0 {
		limit = -1 // SQLite: no limit
	}
	err = j.read("list transactions", func(q querier) error {
		list, err = readTransactions(q, limit)
		return err
	})
	return list, err
}

func readTransactions(q querier, limit int) (list []TransactionRecord, err error) {
	rows, err := q.QueryContext(background, `SELECT number, direction, committed_ns, coalesce(discarded_ns, 0), regions, copied_bytes
		FROM tx ORDER BY number DESC LIMIT ?`, limit)
	if err != nil {
		return nil, err
	}
	defer closeRows(rows, &err)
	for rows.Next() {
		var t TransactionRecord
		var committed, discarded int64
		if err := rows.Scan(&t.Tx, &t.Direction, &committed, &discarded, &t.Regions, &t.CopiedBytes); err != nil {
			return nil, err
		}
		t.Committed, t.DiscardedAt = kept(committed), kept(discarded)
		list = append(list, t)
	}
	return list, rows.Err()
}
