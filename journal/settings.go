package journal

import (
	"database/sql"
	"fmt"

	"decant/region"
)

func (p Phase) known() bool {
	return p == Running || p == Done || p == Cancelled || p == Reversed
}

// SetPhase records the phase. Durability and errors are as for Commit.
func (j *Journal) SetPhase(p Phase) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	doing := fmt.Sprintf("set phase %q", string(p))
	if err := j.writable(doing); err != nil {
		return err
	}
	if !p.known() {
		return j.fault(doing, ErrInvalid, nil)
	}
	err := j.write(doing, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(background, `UPDATE state SET phase = ?`, string(p))
		return err
	})
	if err == nil {
		j.state.Phase = p
	}
	return err
}

// SetOptions replaces the options of the migration. Those that it was started with
// stay in the superblock. Durability and errors are as for Commit.
func (j *Journal) SetOptions(options []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	const doing = "set options"
	if err := j.writable(doing); err != nil {
		return err
	}
	return j.write(doing, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(background, `UPDATE state SET options = ?`, blob(options))
		return err
	})
}

// Options are those of the last SetOptions, or of the superblock.
func (j *Journal) Options() ([]byte, error) {
	var options []byte
	err := j.read("read options", func(q querier) error {
		return q.QueryRowContext(background, `SELECT options FROM state`).Scan(&options)
	})
	return options, err
}

// SetBad replaces the list of the ranges that could not be read. They must not
// overlap. Durability and errors are as for Commit.
func (j *Journal) SetBad(bad []BadRange) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	const doing = "set the list of bad ranges"
	if err := j.writable(doing); err != nil {
		return err
	}
	seen := &region.Set{}
	for _, b := range bad {
		if b.Range.Empty() || b.Range.Intersect(j.superblock.Geometry.All()) != b.Range || seen.HasAny(b.Range) {
			return j.fault(doing, ErrInvalid, fmt.Errorf("regions %v are empty, outside the device, or there twice", b.Range))
		}
		seen.Add(b.Range)
	}
	return j.write(doing, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(background, `DELETE FROM bad`); err != nil {
			return err
		}
		for _, b := range bad {
			if _, err := tx.ExecContext(background, `INSERT INTO bad VALUES (?, ?, ?)`,
				int64(b.Range.First), int64(b.Range.Count), b.Error); err != nil {
				return err
			}
		}
		return nil
	})
}

// Bad is the list of the last SetBad, ascending.
func (j *Journal) Bad() (bad []BadRange, err error) {
	err = j.read("read the list of bad ranges", func(q querier) error {
		bad, err = readBad(q, j.superblock.Geometry)
		return err
	})
	return bad, err
}

func readBad(q querier, g region.Geometry) (bad []BadRange, err error) {
	rows, err := q.QueryContext(background, `SELECT first_region, regions, error FROM bad ORDER BY first_region`)
	if err != nil {
		return nil, err
	}
	defer closeRows(rows, &err)
	for rows.Next() {
		var b BadRange
		if err := rows.Scan(&b.Range.First, &b.Range.Count, &b.Error); err != nil {
			return nil, err
		}
		if b.Range.Empty() || b.Range.Intersect(g.All()) != b.Range {
			return nil, fmt.Errorf("bad range %v", b.Range)
		}
		bad = append(bad, b)
	}
	return bad, rows.Err()
}
