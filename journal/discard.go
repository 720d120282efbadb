package journal

import (
	"database/sql"
	"fmt"
	"time"

	"decant/region"
)

// MarkDiscarded notes that the regions were discarded on the giving end, and the
// time on the transactions of which every region now is. The note is durable after
// the next change of any other kind; losing it repeats the discards, no more. A region that is not hydrated is ErrInvalid, and then
// nothing is noted. Other errors are as for Commit.
func (j *Journal) MarkDiscarded(ranges []region.Range) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	const doing = "note discards"
	if err := j.writable(doing); err != nil {
		return err
	}
	noted := &region.Set{}
	for _, r := range ranges {
		if r.Intersect(j.superblock.Geometry.All()) != r {
			return j.fault(doing, ErrInvalid, fmt.Errorf("regions %v do not lie inside the device", r))
		}
		if !j.state.Hydrated.HasAll(r) {
			return j.fault(doing, ErrInvalid, fmt.Errorf("not all regions of %v are hydrated", r))
		}
		noted.Add(r)
	}
	fresh, _ := split(noted, j.state.Discarded)
	if fresh.Count() == 0 {
		return nil
	}
	d := j.state.Direction
	err := j.writeLate(doing, func(tx *sql.Tx) error {
		if err := writeAdded(tx, "discarded", d, j.state.Discarded, fresh); err != nil {
			return err
		}
		return j.noteTimes(tx, fresh)
	})
	if err != nil {
		return err
	}
	j.state.Discarded.Union(fresh)
	return nil
}

// noteTimes notes the time on the transactions that the regions of fresh complete.
func (j *Journal) noteTimes(tx *sql.Tx, fresh *region.Set) error {
	finished, err := j.finished(tx, fresh)
	if err != nil {
		return err
	}
	now := time.Now().UnixNano()
	for _, number := range finished {
		if _, err := tx.ExecContext(background, `UPDATE tx SET discarded_ns = ? WHERE number = ?`, now, number); err != nil {
			return err
		}
	}
	return nil
}

// finished are the transactions without a time of discard whose regions are all
// discarded already or in fresh.
func (j *Journal) finished(tx *sql.Tx, fresh *region.Set) (numbers []TxID, err error) {
	rows, err := tx.QueryContext(background, `SELECT number, ranges FROM tx
		WHERE discarded_ns IS NULL AND direction = ? AND regions > 0 ORDER BY number`, j.state.Direction)
	if err != nil {
		return nil, err
	}
	defer closeRows(rows, &err)
	for rows.Next() {
		var number TxID
		var encoded sql.RawBytes
		if err := rows.Scan(&number, &encoded); err != nil {
			return nil, err
		}
		all, err := j.allDiscarded(encoded, fresh)
		if err != nil {
			return nil, fmt.Errorf("transaction %d: %w", number, err)
		}
		if all {
			numbers = append(numbers, number)
		}
	}
	return numbers, rows.Err()
}

func (j *Journal) allDiscarded(encoded []byte, fresh *region.Set) (bool, error) {
	for r, err := range decodeRanges(encoded, j.superblock.Geometry.Regions()) {
		if err != nil {
			return false, err
		}
		for rest := r; ; {
			missing, found := j.state.Discarded.MissingRange(rest)
			if !found {
				break
			}
			if !fresh.HasAll(missing) {
				return false, nil
			}
			rest = region.Between(missing.End(), r.End())
		}
	}
	return true, nil
}
